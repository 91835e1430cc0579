"""Two processes follow one process with twice the batch, and never one another's absence."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from eval_fixtures import tiny_inception
from launching import ADVERSARIAL, TINY, finish_together, launch, launch_together, succeed
from safetensors.torch import load_file
from survival import fail_for_want_of_space, rows
from torch.nn.parallel import DistributedDataParallel

from eval import rehearsal, validation
from modules.output.checkpoint_folders import checkpoint_steps
from modules.training.run import Run

STEPS = 4
ONE_NORM = pytest.mark.parametrize("runs", ["spectral_group"], indirect=True)


def flags(pictures: Path, output_dir: Path, batch_size: int, norm_type: str) -> list[str]:
    return [
        *TINY, *ADVERSARIAL, "--train_data_dir", str(pictures), "--output_dir", str(output_dir),
        "--train_batch_size", str(batch_size), "--gradient_accumulation_steps", "2", "--use_ema",
        "--max_train_steps", str(STEPS), "--checkpointing_steps", "2", "--validation_steps", "2",
        "--validation_batch_size", "2", "--disc_norm_type", norm_type,
        "--eq_prob", "0.5",
        # Adam divides a gradient by its own size: where that is rounding, so would be the update.
        "--adam_epsilon", "1e-4",
    ]  # fmt: skip


@pytest.fixture(scope="module", params=["group", "spectral_group"])
def runs(request, pictures, tmp_path_factory) -> tuple[Path, Path, list[str]]:
    """The output folders of (one process, two processes with half the batch), what those said."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    more = ["--validation_metrics", "ssim", "rfid"]
    argv = [*flags(pictures, two, 2, request.param), *more]
    together = launch_together(argv, 2, before=print_digests_of_the_weights)
    argv = [*flags(pictures, one, 4, request.param), *more]
    finish_together([launch(argv, before=take_a_small_inception)])
    return one, two, finish_together(together)


def take_a_small_inception() -> None:
    validation.build_inception = lambda weights: tiny_inception()


def print_digests_of_the_weights() -> None:
    take_a_small_inception()
    rehearsal.WITHOUT_LIMIT = ()  # as on a GPU
    update = Run.update

    def update_and_print(self: Run, *turns: bool) -> None:
        update(self, *turns)
        digest = hashlib.sha256()
        for network in (self.raw_vae, self.raw_discriminator):
            for tensor in network.state_dict().values():
                digest.update(tensor.numpy().tobytes())
        for average in self.ema.averages:
            digest.update(average.numpy().tobytes())
        print("weights", self.step, digest.hexdigest(), flush=True)

    Run.update = update_and_print


def test_both_processes_hold_the_same_weights_after_every_step(runs):
    first, second = (re.findall(r"weights \d+ \w+", output) for output in runs[2])
    assert len(set(first)) == STEPS
    assert first == second


def networks(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Every weight and buffer of both networks and of the EMA, by network and name."""
    checkpoint = folder / "checkpoints" / f"step-{step:06d}"
    files = {"vae": "model", "disc": "model_1", "ema": "ema"}
    return {
        f"{network}.{name}": tensor
        for network, file in files.items()
        for name, tensor in load_file(checkpoint / f"{file}.safetensors").items()
    }


def assert_same_networks(ours: Path, theirs: Path) -> None:
    """To rounding, measured against how far each network moved in the last two steps."""
    one, two, start = networks(ours), networks(theirs), networks(theirs, 2)
    assert one.keys() == two.keys()
    for network in ("vae", "disc", "ema"):
        names = [name for name in one if name.startswith(f"{network}.")]
        assert all(torch.equal(one[name], two[name]) for name in names if "num_" in name)
        names = [name for name in names if "num_" not in name]
        distance = torch.stack([(one[name] - two[name]).norm() for name in names]).norm()
        moved = torch.stack([(start[name] - two[name]).norm() for name in names]).norm()
        assert distance <= 1e-4 * moved, network


def test_two_processes_end_with_the_weights_of_one_with_twice_the_batch(runs):
    assert_same_networks(runs[0], runs[1])


def test_what_is_logged_is_that_of_the_whole_batch(runs):
    pairs = list(zip(rows(runs[0]), rows(runs[1]), strict=True))
    assert len(pairs) == STEPS + 3
    assert "train/d_weight" in pairs[-2][0]
    for one, two in pairs:
        assert one.keys() == two.keys()
        for name in one:
            # A deviation of a whole is not the mean of those of its halves.
            rel = 0.05 if name in ("train/latent_std", "train/posterior_std") else 1e-4
            assert two[name] == pytest.approx(one[name], rel=rel, abs=1e-5), name


def test_skill_is_that_of_the_whole_batch(runs):
    states = [run / "checkpoints" / f"step-{STEPS:06d}" / "trainer_state.json" for run in runs[:2]]
    one, two = (json.loads(state.read_text())["adversary"] for state in states)
    assert one["accuracy"] != [0.5, 0.5]
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=1e-5)


def test_validation_does_not_depend_on_the_number_of_processes(runs):
    """At step 0 the weights are equal, and so is every digit but of sums over all images."""
    one, two = rows(runs[0])[0], rows(runs[1])[0]
    assert one.pop("val/rfid") == pytest.approx(two.pop("val/rfid"), rel=1e-6)
    assert one["step"] == 0
    assert "val/psnr" in one
    assert one == two


@ONE_NORM
def test_a_run_of_two_processes_goes_on_with_one(runs, pictures, tmp_path):
    path = runs[1] / "checkpoints" / "step-000002"
    argv = flags(pictures, tmp_path, 4, "spectral_group")
    output = succeed([*argv, "--resume_from_checkpoint", str(path)])
    assert "was written by 2 processes and is continued by 1" in output
    shutil.copytree(path, tmp_path / "checkpoints" / path.name)
    assert_same_networks(tmp_path, runs[0])


@ONE_NORM
def test_a_signal_to_one_process_stops_both_and_they_resume_bit_equal(runs, pictures, tmp_path):
    argv = flags(pictures, tmp_path, 2, "spectral_group")
    together = launch_together([*argv, "--checkpointing_steps", "100"], 2)
    log = tmp_path / "metrics.jsonl"
    together[0].wait_until(lambda: log.exists() and log.read_text().count("\n") > 0)
    together[1].signal(signal.SIGTERM)
    finish_together(together)
    (step,) = checkpoint_steps(tmp_path / "checkpoints")
    assert 0 < step < STEPS
    finish_together(launch_together([*argv, "--resume_from_checkpoint", "latest"], 2))
    ours, theirs = networks(tmp_path), networks(runs[1])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_processes_that_do_not_know_of_each_other_are_refused(pictures, tmp_path):
    argv = flags(pictures, tmp_path, 2, "group")
    results = [process.wait() for process in launch_together(argv, 2, use_cpu=False)]
    told = [output for code, output in results if code == 2]
    assert told
    for output in told:
        assert "launcher started 2 processes but accelerate sees 1" in output
        assert "ACCELERATE_USE_CPU=true" in output
    for code, output in results:  # one may notice first that the other has gone
        assert code == 2 or "another process of the run has ended" in output
    assert not list(tmp_path.iterdir())


def test_batch_statistics_of_processes_that_cannot_share_them_are_refused(pictures, tmp_path):
    outputs = finish_together(launch_together(flags(pictures, tmp_path, 2, "batch"), 2), expected=2)
    assert all("--disc_norm_type=batch over several processes needs GPUs" in o for o in outputs)


def test_a_full_disk_in_one_process_stops_both_with_a_message(pictures, tmp_path):
    argv = flags(pictures, tmp_path, 2, "group")
    outputs = finish_together(
        launch_together(argv, 2, before=fill_the_disk_of_the_second), expected=1
    )
    for output in outputs:
        assert "No space left on device" in output
        assert "earlier checkpoints are intact" in output
        assert "Traceback" not in output
    assert not checkpoint_steps(tmp_path / "checkpoints")


def fill_the_disk_of_the_second() -> None:
    if os.environ["RANK"] == "1":
        Accelerator.save_state = fail_for_want_of_space


def test_a_bad_image_is_listed_once_whoever_met_it(pictures, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    for number in range(5):
        (folder / f"{number}.png").write_bytes(b"no picture")
    argv = flags(folder, tmp_path / "run", 2, "group")
    finish_together(launch_together([*argv, "--max_bad_images", "1"], 2))
    labels = [line.split("\t")[1] for line in (
        tmp_path / "run" / "bad_images.txt").read_text().splitlines()]  # fmt: skip
    assert labels
    assert len(labels) == len(set(labels))
    assert set(labels) <= {str(folder / f"{number}.png") for number in range(5)}


def test_only_the_first_process_writes_to_the_trackers(pictures, tmp_path):
    """And both end where patience does, because nothing is learnt."""
    argv = flags(pictures, tmp_path, 2, "group")
    more = ["--report_to", "all", "--learning_rate", "1e-30", "--early_stopping", "1"]
    first, _ = finish_together(launch_together([*argv, *more], 2, before=stay_offline))
    assert "ended the run at step 2 of 4" in first
    assert len(list((tmp_path / "logs" / "wandb").glob("offline-run-*"))) == 1
    assert len(list((tmp_path / "logs" / "train_autoencoderkl").glob("events.*"))) == 1


def stay_offline() -> None:
    os.environ["WANDB_MODE"] = "offline"


def test_no_network_outlives_its_processes_group_or_the_end_could_hang(pictures, tmp_path):
    argv = [*flags(pictures, tmp_path, 2, "group"), "--max_train_steps", "1"]
    outputs = finish_together(launch_together(argv, 2, before=count_networks_at_the_end))
    assert all("networks that know their processes: 0\n" in output for output in outputs)


def count_networks_at_the_end() -> None:
    end_training = Accelerator.end_training

    def count_and_end(self: Accelerator) -> None:
        left = sum(type(thing) is DistributedDataParallel for thing in gc.get_objects())
        print("networks that know their processes:", left, flush=True)
        end_training(self)

    Accelerator.end_training = count_and_end
