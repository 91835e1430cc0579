"""Latents that change as their images do: the changes, their draw, and the step with them."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import (
    batch,
    gradients,
    largest_difference,
    slices,
    tiny_arguments,
    tiny_run,
    train,
    train_without_update,
)

from modules.builders.networks import make_vae
from modules.config.command_line import resolve_arguments
from modules.data.images.images import normalize
from modules.errors import ArgumentError
from modules.training.equivariance import SMALLEST_SCALE, Change, drawn_change, resized
from modules.training.run import Run

FACTOR = 8
HALF = Fraction(1, 2)
sides = st.integers(2, 40)


def drawn(height: int, width: int, seed: int, smallest: int = 1) -> Change:
    return drawn_change(Random(seed), 1.0, (height, width), smallest)


@given(sides, sides, st.integers(0, 100), st.data())
def test_a_change_leaves_whole_latents_and_the_image_that_belongs_to_them(h, w, seed, data):
    smallest = data.draw(st.integers(1, min(h, w) - 1))
    change = drawn(h, w, seed, smallest)
    latents = change(torch.zeros(1, 2, h, w))
    images = change(torch.zeros(1, 3, FACTOR * h, FACTOR * w))
    assert [FACTOR * side for side in latents.shape[2:]] == list(images.shape[2:])
    shorter = min(latents.shape[2:])
    assert max(smallest, SMALLEST_SCALE * min(h, w)) <= shorter < min(h, w)
    upright = latents.shape[2:] if change.turns % 2 == 0 else latents.shape[:1:-1]
    for after, before in zip(upright, (h, w), strict=True):  # the shape is kept, to rounding
        assert abs(after - before * shorter / min(h, w)) <= 0.5


@given(sides, st.integers(0, 3), st.booleans())
def test_turns_and_mirroring_are_undone_and_scaling_by_1_is_nothing(side, turns, mirrored):
    x = torch.randn(2, 3, side, side + 1)
    assert Change()(x) is x
    changed = Change(mirrored=mirrored, turns=turns)(x)
    back = Change(mirrored=mirrored)(Change(turns=4 - turns)(changed))
    assert torch.equal(back, x)
    assert torch.equal(Change(turns=1)(x)[..., 0, :], x[..., :, -1])  # right goes to the top
    assert torch.equal(Change(mirrored=True)(x)[..., 0], x[..., -1])


@given(sides, sides, st.integers(0, 100))
def test_scaling_commutes_with_turns_and_mirroring(h, w, seed):
    scales = drawn(h, w, seed).scales
    x = torch.randn(1, 2, h, w, generator=torch.Generator().manual_seed(seed))
    close = {"rtol": 1e-4, "atol": 3e-5}  # the filter's weights are rounded where they are computed
    torch.testing.assert_close(resized(x.flip(-1), scales), resized(x, scales).flip(-1), **close)
    turned = resized(x.rot90(1, (-2, -1)), scales[::-1])
    torch.testing.assert_close(turned, resized(x, scales).rot90(1, (-2, -1)), **close)


def test_scaling_is_antialiased_bicubic_keeps_flat_pictures_and_averages_noise():
    x = torch.randn(2, 3, 48, 64)
    scales = (Fraction(3, 4), HALF)
    expected = F.interpolate(x, (36, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(resized(x, scales), expected, rtol=1e-4, atol=1e-5)
    flat = torch.full((1, 1, 24, 24), 0.7)
    torch.testing.assert_close(resized(flat, (HALF, HALF)), flat[..., :12, :12])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resized(x, scales), resized(x, scales).float())
        torch.testing.assert_close(resized(x, scales), expected, rtol=1e-4, atol=1e-5)


def test_the_share_of_changes_is_the_probability_and_every_kind_occurs():
    changes = [drawn_change(Random(seed), 0.3, (8, 8)) for seed in range(2000)]
    assert sum(change != Change() for change in changes) == pytest.approx(600, abs=80)
    found = {c for c in changes if c != Change()}
    assert {change.scales[0] for change in found} == {Fraction(n, 8) for n in range(2, 8)}
    assert {(change.mirrored, change.turns) for change in found} == {
        (mirrored, turns) for mirrored in (False, True) for turns in range(4)
    }
    assert {drawn_change(Random(seed), 0.0, (8, 8)) for seed in range(99)} == {Change()}


def test_the_draw_belongs_to_seed_and_position():
    def changes(flags: str) -> list[Change]:
        run, seen = tiny_run(f"--eq_prob 0.8 {flags}"), []
        run.raw_vae.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
        return train(run, [batch(seed=seed) for seed in range(8)]) and seen

    plain = changes("")
    assert len(set(plain)) > 2
    assert Change() in plain
    assert changes("--gradient_accumulation_steps 2") == plain
    assert changes("--seed 1") != plain
    run = tiny_run("--eq_prob 0.8")
    run.samples = 2 * 5  # as after five micro-batches of two
    assert [run.change(*run.to_device(batch())) for _ in range(3)] == plain[5:]


def eq_gradients(run: Run, given: dict, change: Change) -> dict[str, torch.Tensor]:
    """EQ-VAE's objective as it is written, in means; the KL is of the latents as they were."""
    vae, images = run.raw_vae.vae, normalize(given["images"])
    posterior = vae.encode(images).latent_dist
    fakes = vae.decode(change(posterior.mean + posterior.std * given["noise"])).sample
    nll = F.mse_loss(fakes, change(images))
    g_loss = -run.raw_discriminator.eval()(fakes).mean()
    last, size = vae.decoder.conv_out.weight, images[0].numel()
    norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (nll, g_loss)]
    weight = (size * norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4) / size
    kl = run.args.losses.kl_scale * posterior.kl().mean() / size
    weight = run.args.discriminator.disc_scale * weight.detach()
    (nll + kl + weight * g_loss).backward()
    return gradients(run.raw_vae)


@pytest.mark.parametrize("precise", [True, False])
def test_the_gradient_is_that_of_the_changed_pair_and_of_the_kl_before(precise):
    flags, given = "--eq_prob 1 --kl_scale 10 --disc_norm_type group", batch()
    run = tiny_run(flags if precise else f"{flags} --mixed_precision bf16")
    seen, judged = [], []
    run.raw_vae.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    run.raw_discriminator.register_forward_pre_hook(lambda module, inputs: judged.append(inputs))
    ours = gradients(train_without_update(run, [given]).raw_vae)
    (change,) = seen
    theirs = eq_gradients(tiny_run(flags), given, change)
    assert largest_difference(ours, theirs) < (1e-5 if precise else 0.1)
    real, fake = judged[1]
    assert torch.equal(real, change(normalize(given["images"])))
    assert fake.shape == real.shape != given["images"].shape


def test_accumulated_changed_micro_batches_weigh_alike():
    flags, whole = "--eq_prob 1 --disc_factor 0 --train_batch_size 2", batch(4)
    run = tiny_run(f"{flags} --gradient_accumulation_steps 2")
    seen = []
    run.raw_vae.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    ours = gradients(train_without_update(run, list(slices(whole, 2))).raw_vae)
    assert seen[0].scales != seen[1].scales
    parts = [gradients(train_without_update(_as_drawn(flags, change), [part]).raw_vae)
             for change, part in zip(seen, slices(whole, 2), strict=True)]  # fmt: skip
    mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    assert largest_difference(ours, mean) < 1e-5


def _as_drawn(flags: str, change: Change) -> Run:
    run = tiny_run(flags)
    run.change = lambda images, noise: change
    return run


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--eq_prob 1.5", "--eq_prob=1.5 must be at least 0 and at most 1"),
        ("--eq_prob 0.5 --resolution 8 --num_validation_images 0 --perceptual_scale 0 "
         "--disc_factor 0", "--eq_prob=0.5 scales images to fewer latents: --resolution=8 leaves 0 "
         "pixels at most, and a latent needs 8; raise that, or drop --eq_prob"),
        ("--eq_prob 1 --train_resolutions 24 64 --disc_factor 0 --lpips_backbone squeeze",
         "--train_resolutions=24 leaves 16 pixels at most, and LPIPS with .* needs 17"),
        ("--eq_prob 1 --resolution 32 --disc_num_layers 3 --disc_start 0 --lpips_backbone squeeze "
         "--downsample_factor 16", "--resolution=32 leaves 16 pixels at most, and LPIPS"),
        ("--eq_prob 1 --resolution 48 --disc_num_layers 4 --disc_start 0 --perceptual_scale 0",
         "--resolution=48 leaves 40 pixels at most, and a discriminator .* needs 48"),
    ],
)  # fmt: skip
def test_scales_that_leave_too_little_are_refused(argv, message):
    with pytest.raises(ArgumentError, match=message):
        resolve_arguments(argv.split())


def test_the_narrowest_bucket_decides_and_no_change_goes_below_what_looks_at_it():
    flags = "--eq_prob 1 --disc_num_layers 2 --aspect_ratio_bucketing --resolution"
    with pytest.raises(ArgumentError, match="--resolution=24 with --aspect_ratio_bucketing leaves"):
        make_vae(tiny_arguments(f"{flags} 24"))
    make_vae(tiny_arguments(f"{flags} 32"))
    run = tiny_run("--eq_prob 1 --disc_num_layers 2")  # which needs 12 pixels, of 32
    found = set()
    for _ in range(99):
        images, noise = run.to_device(batch())
        found.add(run.change(images, noise)(images).shape[-1])
    assert found == {16, 24}
