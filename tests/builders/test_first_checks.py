"""What is said before anything slow is imported, and that it leaves nothing behind."""

from __future__ import annotations

from modules.builders.first_checks import check_first
from modules.config.command_line import resolve_arguments


def test_a_repository_to_which_nothing_is_sent_is_named(tmp_path, caplog):
    argv = ["--dataset_name=synthetic", "--hub_model_id=me/mine", f"--output_dir={tmp_path / 'x'}"]
    with check_first(resolve_arguments(argv)):
        assert "--hub_model_id=me/mine names the model card alone" in caplog.text
    assert not (tmp_path / "x").exists()
    caplog.clear()
    with check_first(resolve_arguments([*argv, "--push_to_hub"])):
        assert not caplog.text
    assert check_first(resolve_arguments([*argv, "--dry_run"])) is None
    assert not (tmp_path / "x").exists()
