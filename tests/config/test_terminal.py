"""What was typed, and the command by which it goes on."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from modules.config.terminal import continuing, typed_command

ROOT = Path(__file__).parents[2]
TYPED = ["train_vae.py", "--train_data_dir", "my photos", "--seed=3"]


def test_what_was_typed_is_known_from_the_launcher_on(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", TYPED)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert typed_command(TYPED[1:]) == ("python", *TYPED)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert typed_command(TYPED[1:]) == ("...", *TYPED)

    told = tmp_path / "told.py"
    told.write_text(
        "import json, sys; from modules.config.terminal import typed_command\n"
        "print(json.dumps(typed_command(sys.argv[1:])))\n"
    )
    launcher = tmp_path / "torchrun"
    launcher.write_text(
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, *sys.argv[sys.argv.index('told.py'):]], check=True)\n"
    )
    own = [str(launcher), "--nproc_per_node=2", "told.py", "--seed=3", "a b"]
    shown = subprocess.run([sys.executable, *own], capture_output=True, check=True, cwd=tmp_path,
                           env={"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert json.loads(shown.stdout) == ["torchrun", *own[1:]]


@pytest.mark.parametrize(
    ("typed", "goes_on"),
    [
        ("a --seed 3", "a --seed 3 --resume_from_checkpoint latest"),
        ("a --resume_from_checkpoint x/step-000003 --seed 3",
         "a --seed 3 --resume_from_checkpoint latest"),
        ("a --overwrite_output_dir --resume_from_checkpoint=latest --seed 3",
         "a --seed 3 --resume_from_checkpoint latest"),
        ("a --hub_token secret --seed 3",
         "a --hub_token ... --seed 3 --resume_from_checkpoint latest"),
        ("a --hub_token=secret", "a --hub_token ... --resume_from_checkpoint latest"),
        ("a --train_data_dir 'my photos'",
         "a --train_data_dir 'my photos' --resume_from_checkpoint latest"),
    ],
)  # fmt: skip
def test_the_command_that_goes_on_is_the_same_but_for_where_it_begins(typed, goes_on):
    assert continuing(shlex.split(typed)) == goes_on
