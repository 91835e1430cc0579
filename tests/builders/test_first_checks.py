"""What is not there is named by its flag, and a hub id is not taken for a path."""

from __future__ import annotations

import pytest

from modules.builders.first_checks import check_first, check_places
from modules.config.command_line import resolve_arguments
from modules.errors import ArgumentError


@pytest.mark.parametrize(
    "flag",
    ["train_data_dir", "validation_data_dir", "lpips_weights", "inception_weights",
     "validation_image", "dataset_name", "pretrained_model_name_or_path",
     "model_config_name_or_path", "resume_from_checkpoint"],
)  # fmt: skip
def test_a_path_that_leads_nowhere_is_named_with_its_flag(flag, tmp_path):
    with pytest.raises(ArgumentError, match=f"--{flag}.*nowhere.*check the path"):
        check_places(resolve_arguments([f"--{flag}", str(tmp_path / "nowhere")]))
    place = tmp_path / "somewhere"
    if "weights" in flag or flag == "validation_image":
        place.touch()
    else:
        place.mkdir()
        if flag in ("train_data_dir", "validation_data_dir"):
            (place / "notes.txt").touch()
            with pytest.raises(ArgumentError, match=f"--{flag}=.*somewhere holds no images"):
                check_places(resolve_arguments([f"--{flag}", str(place)]))
        (place / "any.heic").touch()  # something is to be said of these, when they are opened
    images = [] if flag in ("train_data_dir", "dataset_name") else ["--dataset_name=synthetic"]
    check_places(resolve_arguments([f"--{flag}", str(place), *images]))


@pytest.mark.parametrize("name", ["synthetic", "imagefolder", "clane9/imagenet-100"])
def test_what_may_be_on_the_hub_is_not_looked_for_here(name):
    check_places(resolve_arguments(["--dataset_name", name]))


@pytest.mark.parametrize("recipes", [[], ["8gb"], ["kl-f8"], ["ft-mse"], ["kl-f8", "8gb"]])
def test_nothing_is_trained_on_that_was_not_named(recipes):
    argv = ["--recipe", *recipes] if recipes else []
    with pytest.raises(
        ArgumentError, match=r"--train_data_dir.*--dataset_name.*quickstart"
    ) as told:
        check_places(resolve_arguments(argv))
    assert all(name in str(told.value) for name in recipes)
    check_places(resolve_arguments([*argv, "--dataset_name", "synthetic"]))


@pytest.mark.parametrize("recipe", ["quickstart", "flowers", "imagenet100"])
def test_recipes_that_name_images_need_no_more(recipe):
    check_places(resolve_arguments(["--recipe", recipe]))
    check_places(resolve_arguments(["--recipe", recipe, "8gb"]))


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
