"""`python -m eval quality`: tiny arms and peers side by side, and what it refuses."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest
from eval_fixtures import tiny_vae
from launching import SCRIPT, TINY, launch

from eval.__main__ import main
from eval.quality import training

FEW = shlex.split("--max_train_steps 2 --validation_steps 1 --train_batch_size 2 --lr_warmup_steps "
                  "0 --metrics frequency kl --seeds 3 --num_validation_images 10")  # fmt: skip


class Forked:
    """subprocess.Popen, with the script in a process whose imports are behind it."""

    def __init__(self, command, **options):
        self.launched = launch(command[2:]) if command[1] == str(SCRIPT) else None
        self.peer = None if self.launched else POPEN(command, **options)

    def poll(self):
        return self.launched.process.exitcode if self.launched else self.peer.poll()

    @property
    def returncode(self):
        return self.poll()

    def terminate(self):
        (self.launched.process if self.launched else self.peer).terminate()


POPEN = subprocess.Popen


def quality(*arguments: object) -> int:
    return main(["quality", *TINY, *FEW, *map(str, arguments)])


def test_arms_and_peers_are_trained_once_and_compared(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.subprocess, "Popen", Forked)
    tiny_vae(factor=8).save_pretrained(tmp_path / "theirs")
    command = ["--train_data_dir", pictures, "--validation_data_dir", pictures, "--output_dir",
               tmp_path / "out", "--arm", "a:", "--arm", "alike: --learning_rate 1e-3", "--jobs", 2,
               "--peer", f"theirs: cp -r {tmp_path / 'theirs'} {{output}}"]  # fmt: skip
    failing = ["--peer", "none: sh -c 'echo out of luck; exit 3' {output}"]
    assert quality(*command, *failing) == 1
    printed = capsys.readouterr().out
    assert "none, seed 3, failed: exit code 3" in printed
    assert "out of luck" in printed

    found = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert list(found["arms"]) == ["a", "alike", "theirs"]
    assert list(found["failed"]) == ["none, seed 3"]
    assert set(found["baselines"]) == {"downsample:8"}
    # The same flags on the same images in the same order give the same model.
    a, alike, theirs = found["arms"].values()
    for key in ("psnr", "high_frequency", "kl", "latent_std", "early_psnr"):
        assert alike["differences"][key]["mean"] == 0, key
        assert alike["differences"][key]["verdict"] == "no difference"
    assert theirs["differences"]["psnr"]["verdict"] == "one seed"
    assert theirs["differences"]["psnr"]["mean"] == (
        theirs["measures"]["psnr"]["mean"] - a["measures"]["psnr"]["mean"]
    )
    # Validation while training measures what the comparison measures of the model it exported.
    curve = a["runs"]["3"]["curve"]
    assert [images for images, *_ in curve] == [0, 2, 4]
    assert curve[-1][2] == pytest.approx(a["measures"]["psnr"]["mean"], abs=1e-5)
    assert [images for images, *_ in theirs["runs"]["3"]["curve"]] == [4]

    page = (tmp_path / "out" / "quality.html").read_text()
    assert "out of luck" in page
    assert page.count("<svg") == 3
    assert {f"{name}.png" for name in found["arms"]} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert not list((tmp_path / "out").glob("*/*/checkpoints"))

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(training.subprocess, "Popen", never)
    assert quality(*command) == 0
    assert quality(*command, "--adam_beta2", "0.9") == 2
    assert "was trained by another command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], 'nothing to train: give --arm "name: flags"'),
        (["--arm", "random"], 'must be "name: ..."'),
        (["--arm", "../up: "], 'must be "name: ..."'),
        (["--arm", "a: --learning_rate '1"], "mend the quotes"),
        (["--arm", "a:", "--arm", "a: --use_ema"], "name a twice"),
        (["--arm", "a: --lerning_rate 1"], "did you mean --learning_rate?"),
        (["--arm", "a: --learning_rate -1"], "--arm 'a': --learning_rate=-1.0 must be at least 0"),
        (["--arm", "a: --seed 1"], "--seed is set here; use --seeds"),
        (["--arm", "a:", "--resume_from_checkpoint=latest"], "is set here"),
        (["--arm", "a:", "--validation_data_dir", "nowhere"], "--validation_data_dir=nowhere"),
        (["--arm", "a: --train_data_dir nowhere"], "--train_data_dir=nowhere is not a folder"),
        (["--peer", "p: cp -r"], "must leave its model in {output}"),
        (["--peer", "p: cp {output} {where}"], "may use {data}"),
        (["--peer", "p: cp {output"], "mend the quotes"),
    ],
)
def test_a_mistake_is_answered_before_anything_trains(
    arguments, message, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(training.subprocess, "Popen", None)
    common = ["--train_data_dir", pictures, "--validation_data_dir", pictures]
    assert quality(*common, "--output_dir", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_arms_are_compared_by_a_validation_folder(pictures, tmp_path, capsys):
    common = ["--train_data_dir", pictures, "--output_dir", tmp_path / "out", "--arm", "a:"]
    assert quality(*common) == 2
    assert "--validation_data_dir is missing" in capsys.readouterr().err
