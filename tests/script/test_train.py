"""The script, launched end to end: what it writes, and what of that is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from diffusers import AutoencoderKL
from launching import ADVERSARIAL, ROOT, TINY, launch, succeed
from PIL import Image
from safetensors.torch import load_file
from survival import rows

from eval.protocol.codecs import VAECodec, open_codec
from eval.protocol.evaluate import evaluate_reconstruction
from eval.protocol.latents import measure_latents
from eval.protocol.protocol import Protocol, ProtocolImages
from modules.builders.data import open_data
from modules.config.command_line import resolve_arguments
from modules.distributed.device import multiplies_bfloat16
from modules.distributed.launch_environment import THREADS, undo_launchers_limit
from modules.models.discriminator import NLayerDiscriminator

STEPS = 6


def flags(output_dir: Path, *more: object) -> list[str]:
    return [
        *TINY, *ADVERSARIAL, "--output_dir", str(output_dir), "--use_ema", "--export_ldm",
        "--train_batch_size", "2", "--gradient_accumulation_steps", "2",
        "--max_train_steps", str(STEPS), "--validation_steps", "2", "--checkpointing_steps", "3",
        "--num_latent_images", "8", *map(str, more),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    succeed(flags(folder, "--train_data_dir", pictures, "--report_to", "tensorboard"))
    return folder


def arguments(folder: Path):
    return resolve_arguments(["--config", str(folder / "train_config.yaml")])


def validation_of(
    folder: Path, model: AutoencoderKL | str, batch_size: int = 4
) -> dict[str, float]:
    """What `python -m eval` says of these weights, or a baseline, on the validation images."""
    protocol = Protocol(resolution=16)
    return evaluate_reconstruction(
        {"model": open_codec(model) if isinstance(model, str) else VAECodec(model)},
        ProtocolImages(open_data(arguments(folder)).validation, protocol, 4),
        ["psnr", "ssim", "rec", "kl"],
        protocol=protocol,
        batch_size=batch_size,
        progress=False,
    )["model"].summary()


def test_the_card_compares_with_what_needs_no_training(trained):
    card = (trained / "README.md").read_text()
    for name in ("downsample:8", "jpeg:10"):
        found = validation_of(trained, name)
        assert f"| `{name}` | {found['psnr']:.4g} | {found['ssim']:.4g} |" in card


def test_everything_that_was_promised_is_there(trained):
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    checkpoint = {"model.safetensors", "model_1.safetensors", "optimizer.bin", "optimizer_1.bin",
                  "scheduler.bin", "scheduler_1.bin", "random_states_0.pkl", "ema.safetensors",
                  "trainer_state.json", "manifest.json"}  # fmt: skip
    expected = {
        "config.json", "diffusion_pytorch_model.safetensors", "README.md", "train_config.yaml",
        "metrics.jsonl", "discriminator/discriminator.safetensors", "vae_ldm.safetensors",
        ".train_vae.json", "best/config.json", "best/diffusion_pytorch_model.safetensors",
        *(f"samples/step-{step:06d}.png" for step in (0, 2, 4, 6)),
        *(f"checkpoints/step-{step:06d}/{name}" for step in (3, 6) for name in checkpoint),
    }  # fmt: skip
    optional = {file for file in files if file.startswith("logs/")} | {"report.html"}
    assert files - optional == expected


def test_the_log_begins_with_the_starting_weights_and_tells_every_step(trained):
    found = rows(trained)
    assert found[0]["step"] == 0
    assert found[0]["val/num_images"] == 4
    assert [row["step"] for row in found if "val/psnr" in row] == [0, 2, 4, 6]
    training = [row for row in found if "train/rec_loss" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5, 6]
    # The discriminator trains from step 1 and is felt from step 2, counted from 0.
    assert ["train/d_loss" in row for row in training] == [False] + [True] * 5
    assert ["train/d_weight" in row for row in training] == [False] * 2 + [True] * 4
    assert all(row["train/latent_std"] > row["train/posterior_std"] > 0 for row in training)


def test_the_trackers_get_the_numbers_and_the_pictures(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in (trained / "logs" / "train_autoencoderkl").glob("event*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"val/psnr", "train/rec_loss", "train/lr"} <= set(events.Tags()["scalars"])
    logged = {event.step: event.value for event in events.Scalars("val/psnr")}
    assert logged == pytest.approx(
        {row["step"]: row["val/psnr"] for row in rows(trained) if "val/psnr" in row}
    )
    assert [event.step for event in events.Images("validation")] == [0, 2, 4, 6]


def test_the_averaged_weights_are_exported(trained):
    checkpoint = trained / "checkpoints" / f"step-{STEPS:06d}"
    exported = load_file(trained / "diffusion_pytorch_model.safetensors")
    average, last = load_file(checkpoint / "ema.safetensors"), load_file(
        checkpoint / "model.safetensors"
    )  # fmt: skip
    assert average.pop("num_updates") == STEPS
    assert exported.keys() == average.keys()
    for name, tensor in exported.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, average[name])
    assert any(not torch.equal(exported[name], last[f"vae.{name}"]) for name in exported)


def test_diffusers_loads_the_result_and_its_scale_is_that_of_its_latents(trained):
    vae = AutoencoderKL.from_pretrained(trained)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert vae(images).sample.isfinite().all()
    args = arguments(trained)
    data = open_data(args)
    measured = measure_latents(
        vae, ProtocolImages(data.finite(args, 8), Protocol(resolution=16), 8), batch_size=4,
        progress=False,
    )  # fmt: skip
    assert measured.num_images == 6
    assert vae.config.scaling_factor == 1 / measured.global_std
    assert vae.config.scaling_factor != 1
    assert vae.config.shift_factor is None


def test_the_last_validation_is_that_of_the_exported_weights_to_the_last_digit(trained):
    logged = {name.removeprefix("val/"): value for name, value in rows(trained)[-1].items()}
    assert logged.pop("step") == STEPS
    measured = validation_of(trained, AutoencoderKL.from_pretrained(trained))
    assert measured.items() <= logged.items()
    assert {"psnr", "ssim", "kl"} <= measured.keys()


def test_the_best_weights_are_those_of_the_best_validation(trained):
    best = max(row["val/psnr"] for row in rows(trained) if "val/psnr" in row)
    vae = AutoencoderKL.from_pretrained(trained / "best")
    assert validation_of(trained, vae)["psnr"] == best
    assert vae.config.scaling_factor != 1


def test_the_written_configuration_repeats_the_run(trained, pictures, tmp_path):
    given = resolve_arguments(
        flags(trained, "--train_data_dir", pictures, "--report_to", "tensorboard")
    )
    assert arguments(trained) == given
    config = ["--config", str(trained / "train_config.yaml")]
    succeed([*config, "--output_dir", str(tmp_path), "--report_to", "none"])
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_the_discriminator_can_be_taken_up_again(trained):
    disc = arguments(trained).discriminator
    network = NLayerDiscriminator(
        ndf=disc.disc_hidden_channels,
        n_layers=disc.disc_num_layers,
        norm_type=disc.disc_norm_type,
        num_groups=disc.disc_num_groups,
    )
    network.load_state_dict(load_file(trained / "discriminator" / "discriminator.safetensors"))


def test_the_pictures_show_the_validation_images(trained):
    with Image.open(trained / "samples" / "step-000006.png") as grid:
        assert grid.mode == "RGB"
        assert grid.width > grid.height > 2 * 16  # two rows of original, reconstruction, error


def test_the_card_says_where_it_came_from_and_how_good_it_is(trained):
    card = (trained / "README.md").read_text()
    assert card.startswith("---\n")
    assert "AutoencoderKL.from_pretrained(" in card
    assert (
        f"| PSNR (dB) | {rows(trained)[0]['val/psnr']:.4g} | {rows(trained)[-1]['val/psnr']:.4g} |"
        in card
    )
    assert "`scaling_factor` is" in card
    assert "samples/step-000006.png" in card


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path):
    output = succeed(flags(tmp_path / "run", "--dry_run", "full"))
    assert "\nresolution: 16\n" in output
    assert re.search(r"synthetic: 9,996 images to train on, 4 held back", output)
    assert re.search(
        r"GAN  discriminator of patches trains from step 1, is felt from 2, in full from 4", output
    )
    assert "AutoencoderKL f8c4, 48x compression, 0.02 M parameters" in output
    assert re.search(r"Memory .*: training 0\.\d+, before the GAN 0\.\d+, validation", output)
    assert "every 3 steps, all kept" in output
    assert not (tmp_path / "run" / "train_config.yaml").exists()
    assert not list((tmp_path / "run").glob("*"))


def test_without_validation_images_it_trains_all_the_same(tmp_path):
    succeed(flags(tmp_path, "--num_validation_images", "0"))
    assert not [row for row in rows(tmp_path) if "val/psnr" in row]
    assert not (tmp_path / "samples").exists()
    assert "no metrics" in (tmp_path / "README.md").read_text()
    AutoencoderKL.from_pretrained(tmp_path)


def test_bf16_keeps_weights_and_average_in_float32(tmp_path):
    succeed(flags(tmp_path, "--mixed_precision", "bf16", "--max_train_steps", "3"))
    checkpoint = tmp_path / "checkpoints" / "step-000003"
    for file in ("model", "model_1", "ema"):
        for tensor in load_file(checkpoint / f"{file}.safetensors").values():
            assert tensor.dtype in (torch.float32, torch.int64)
    assert rows(tmp_path)[-1]["val/nan_images"] == 0
    logged = {name.removeprefix("val/"): value for name, value in rows(tmp_path)[-1].items()}
    measured = validation_of(tmp_path, AutoencoderKL.from_pretrained(tmp_path))
    assert measured.items() <= logged.items()


def test_diverged_training_stops_and_leaves_only_finite_weights(tmp_path):
    argv = flags(tmp_path, "--checkpointing_steps", "2", "--max_skipped_steps", "2")
    code, output = launch(argv, before=make_the_third_step_and_all_after_it_infinite).wait()
    assert code == 1, output
    assert "2 updates in a row were skipped because rec_loss" in output
    assert "Traceback" not in output
    saved = load_file(tmp_path / "checkpoints" / "step-000002" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())


def make_the_third_step_and_all_after_it_infinite() -> None:
    from modules.training.run import Run

    to_device = Run.to_device

    def spoilt(self: Run, batch):
        images, noise = to_device(self, batch)
        return (images * float("inf") if self.step >= 2 else images), noise

    Run.to_device = spoilt


def test_the_documented_launch_works_in_a_process_of_its_own(tmp_path, capfd):
    """accelerate launch, with the shipped configuration file."""
    command = [
        "--config_file", str(ROOT / "accelerate_config.yaml"), str(ROOT / "train_vae.py"),
        *flags(tmp_path, "--max_train_steps", "1", "--dataset_name", "synthetic"),
    ]  # fmt: skip
    at = command.index("--mixed_precision")
    del command[at : at + 2]
    launch_command(launch_command_parser().parse_args(command))
    said = capfd.readouterr().err
    assert f"1 x CPU, {threads_without_launcher()} thread" in said
    precision = "bf16" if multiplies_bfloat16(torch.device("cpu")) else "no"
    assert f"precision {precision}" in said
    assert rows(tmp_path)[-1]["step"] == 1


def threads_without_launcher() -> int:
    """How many PyTorch takes here by itself."""
    environment = {name: value for name, value in os.environ.items() if name != THREADS}
    command = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    found = subprocess.run(command, env=environment, capture_output=True, check=True)
    return int(found.stdout)


@pytest.mark.parametrize(
    ("environment", "left"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16", THREADS: "1"}, None),
        ({"ACCELERATE_MIXED_PRECISION": "bf16", THREADS: "4"}, "4"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16", THREADS: "1", "WORLD_SIZE": "2"}, "1"),
        ({THREADS: "1"}, "1"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, None),
    ],
)
def test_only_the_launchers_own_limit_of_threads_is_undone(environment, left):
    undo_launchers_limit(environment)
    assert environment.get(THREADS) == left
