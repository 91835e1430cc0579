"""What the memory planner says: states to the byte, activations in the right order."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import lpips
import pytest
import torch
import torch.nn.functional as F
from tiny import batch, tiny_run, train
from torch_fidelity import feature_extractor_inceptionv3 as inception

import train_vae
from eval.__main__ import main
from eval.commands.checks import measured_arguments
from eval.memory.fake_run import cuda_autocast, fake_run
from eval.memory.plan import BLOCK, AllocationMeter, Peaks
from eval.rehearsal import BEFORE_GAN, LATENTS, TRAINING, VALIDATION, random_batch
from eval.speed import script
from eval.speed.predicted import TEXTBOOK, plan, plan_textbook
from modules.builders import run as builder
from modules.builders.state_sizes import state_bytes
from modules.config.arguments import Arguments
from modules.models import norm_silu

FLAGS = (
    "--resolution 64 --train_batch_size 1 --downsample_factor 4 --block_out_channels 32 32 64 "
    "--layers_per_block 1 --norm_num_groups 8 --perceptual_scale 0 --disc_hidden_channels 8 "
    "--disc_num_groups 4 --disc_type patch --disc_num_layers 2"
)


def arguments(flags: str = "") -> Arguments:
    return measured_arguments([*FLAGS.split(), *flags.split()])


@cache
def planned(flags: str = "") -> tuple[dict[str, int], Peaks]:
    return plan(arguments(flags))


def peak(flags: str = "") -> int:
    return planned(flags)[1].parts[TRAINING]


def bytes_of(*tensors: torch.Tensor) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


def test_states_are_those_of_real_tensors_to_the_byte() -> None:
    flags = "--use_ema --mixed_precision no"
    run = tiny_run(flags)
    clear, left = run.update, {}

    def update(vae_turn: bool, disc_turn: bool) -> None:
        left["VAE"] = bytes_of(*(p.grad for p in run.raw_vae.parameters()))
        left["discriminator"] = bytes_of(*(p.grad for p in run.raw_discriminator.parameters()))
        clear(vae_turn, disc_turn)

    run.update = update
    train(run, [batch()])
    measured = {}
    for name, network, optimizer in (
        ("VAE", run.raw_vae, run.optimizer_vae),
        ("discriminator", run.raw_discriminator, run.optimizer_disc),
    ):
        measured[f"{name}: weights"] = bytes_of(*network.state_dict().values())
        measured[f"{name}: gradients"] = left[name]
        measured[f"{name}: Adam's moments"] = bytes_of(
            *(v for s in optimizer.optimizer.state.values() for v in s.values())
        )
    measured["EMA"] = bytes_of(*run.ema.state_dict().values())
    predicted, _ = plan(run.args)
    assert predicted == measured == state_bytes(run)


def test_frozen_encoder_needs_neither_gradients_nor_moments(tmp_path: Path) -> None:
    tiny_run().raw_vae.vae.save_pretrained(tmp_path)
    pretrained = f"--pretrained_model_name_or_path {tmp_path}"
    whole, _ = planned(pretrained)
    half, _ = planned(f"{pretrained} --decoder_only")
    assert half["VAE: weights"] == whole["VAE: weights"]
    assert half["VAE: gradients"] < whole["VAE: gradients"]
    assert half["VAE: Adam's moments"] < whole["VAE: Adam's moments"]


def test_peak_grows_with_batch_and_resolution() -> None:
    assert peak("--resolution 32") < peak() < peak("--train_batch_size 2")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_recomputation_saves_memory(precision: str) -> None:
    none, norm, full = [
        peak(f"--recompute {how} --mixed_precision {precision} --train_batch_size 4")
        for how in ("none", "norm", "full")
    ]
    assert full < norm < 0.85 * none


def test_normalisation_is_float32_by_the_rules_of_cuda_alone() -> None:
    images = torch.randn(1, 4, 2, 2, dtype=torch.bfloat16)
    seen = []
    with torch.autocast("cpu", torch.bfloat16):
        seen.append(F.group_norm(images, 2).dtype)
        with cuda_autocast():
            seen += [F.group_norm(images, 2).dtype, F.interpolate(images, scale_factor=2.0).dtype]
        seen.append(F.group_norm(images, 2).dtype)
    with cuda_autocast():
        seen.append(F.group_norm(images, 2).dtype)
    low, full = torch.bfloat16, torch.float32
    assert seen == [low, full, full, low, low]


def test_lpips_in_slices_needs_less() -> None:
    flags = "--block_out_channels 8 8 8 --perceptual_scale 1 --lpips_backbone squeeze"
    flags = f"{flags} --train_batch_size 2"
    assert peak(f"{flags} --perceptual_slice_size 1") < peak(flags)


def test_a_network_that_discriminator_and_validation_look_through_is_there_once() -> None:
    flags = "--disc_type features --disc_num_layers 3 --lpips_backbone squeeze --validation_metrics"
    states, watched = planned(f"{flags} lpips")
    without, unwatched = planned(f"{flags} psnr")
    assert states == without
    assert states["LPIPS"] > 0
    assert watched.parts["training"] == unwatched.parts["training"]
    shared, _ = planned(f"{flags} lpips --perceptual_scale 1")
    assert shared == states


def test_textbook_step_keeps_twice_as_much_as_ours_before_recomputation() -> None:
    flags = "--use_ema --train_batch_size 4 --mixed_precision bf16"
    (_, ours), theirs = planned(flags), plan_textbook(arguments(flags))
    assert theirs.recompute == TEXTBOOK
    assert theirs.allocated > 1.7 * ours.allocated


def test_accumulated_gradients_are_there_while_the_next_batch_is_seen() -> None:
    states, _ = planned()
    one, many = peak(), peak("--gradient_accumulation_steps 8")
    gradients = states["VAE: gradients"] + states["discriminator: gradients"]
    rounding = 500 * BLOCK  # less than one for each tensor
    assert one < many <= one + gradients + rounding


@pytest.mark.parametrize("flags", [
    "--train_batch_size 2 --recompute full --perceptual_scale 1 --lpips_backbone squeeze "
    "--perceptual_slice_size 1",
    "--train_resolutions 32 64 --recompute norm --mixed_precision no",
])  # fmt: skip
def test_validation_needs_no_more_than_training_unless_told_to(flags: str) -> None:
    _, found = planned(flags)
    assert found.parts.keys() == {BEFORE_GAN, TRAINING, VALIDATION, LATENTS}
    assert found.largest == TRAINING
    assert found.parts[LATENTS] <= found.parts[VALIDATION]
    _, much = planned(f"{flags} --validation_batch_size 64")
    assert much.largest == VALIDATION
    assert much.parts[TRAINING] == found.parts[TRAINING]


def test_meter_counts_storages_once_and_forgets_them() -> None:
    with AllocationMeter() as meter:
        first = torch.ones(1000)
        view = first[10:]
        assert meter.now == 8 * BLOCK
        second = first * 2
        assert meter.now == meter.peak == 16 * BLOCK
        del first
        assert meter.now == 16 * BLOCK
        del view, second
    assert meter.now == 0
    assert meter.peak == 16 * BLOCK


def test_fake_run_is_the_scripts_own_and_leaves_nothing_of_its_stand_ins() -> None:
    def replaced() -> list[object]:
        return [builder.make_accelerator, builder.make_discriminator, builder.make_perceptual,
                builder.convolution_layout, builder.can_fuse, norm_silu.kernels,
                lpips.LPIPS, inception.load_state_dict_from_url,
                torch.nn.Module.to, F.group_norm, F.interpolate, train_vae.after_step]  # fmt: skip

    before = replaced()
    with fake_run(arguments("--use_ema --validation_metrics rfid")) as (run, _):
        script.train_on(run, [random_batch(run, 1, 64)])
        assert type(next(run.raw_vae.parameters()).data).__name__ == "FakeTensor"
        assert run.schedule.adversarial_share(run.step) == 1.0
        assert not any(ours is theirs for ours, theirs in zip(before, replaced()[:6], strict=False))
    assert replaced() == before


def test_networks_of_the_validation_alone_are_counted() -> None:
    without, peak = planned()
    states, larger = planned("--validation_metrics lpips rfid --lpips_backbone alex")
    added = {name: size for name, size in states.items() if name not in without}
    assert added == pytest.approx({"LPIPS": 4 * 2.47e6, "Inception": 4 * 23.9e6}, rel=0.01)
    assert larger.parts[VALIDATION] > peak.parts[VALIDATION] + sum(added.values())


def test_files_of_weights_are_asked_for_as_by_the_run(capsys: pytest.CaptureFixture) -> None:
    for flags in ("rfid --inception_weights nowhere", "lpips --lpips_weights nowhere"):
        assert main(["memory", *FLAGS.split(), "--validation_metrics", *flags.split()]) == 2
        assert "_weights=nowhere does not exist" in capsys.readouterr().err


def test_card_must_hold_more_than_the_tensors() -> None:
    assert Peaks(256, 1, "none", None, {TRAINING: 7_000_000_000}).on_card > 7.7e9


def test_command_prints_the_table_and_writes_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "plan.json"
    flags = [*FLAGS.split(), "--batches", "1", "2", "--recomputes", "none", "norm"]
    assert main(["memory", *flags, "--json", str(file)]) == 0
    text, data = capsys.readouterr().out, json.loads(file.read_text())
    assert len(data["peaks"]) == 4
    assert f"{sum(data['states'].values()):,d} bytes" in text
    assert text.count(" fits") == 16
    assert "What needs most is training; flags that lower it" in text
