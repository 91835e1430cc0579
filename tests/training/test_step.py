"""Properties of the training step: what each gradient holds, and who moves when."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from tiny import (
    batch,
    gradients,
    largest_difference,
    slices,
    tiny_run,
    train,
    train_without_update,
    weights,
)

import train_vae
from modules.data.images.images import normalize
from modules.errors import RunStopped
from modules.models.discriminator import NORM_TYPES
from modules.training.run import Run
from modules.training.update import unscale

# Rounding apart, nothing below depends on a random number that is not given.
FIXED_WEIGHT = "--no_disc_adaptive_weight --disc_scale 0.1 --disc_norm_type group"


@pytest.fixture(scope="module")
def squeeze_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file as torchvision's, with random weights of SqueezeNet 1.1."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("lpips") / "squeezenet1_1.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), file)
    return str(file)


def textbook_gradients(run: Run, given: dict) -> dict[str, torch.Tensor]:
    """Latent-diffusion's objective as it is written: sums, and one backward through everything."""
    args, vae, discriminator = run.args, run.raw_vae.vae, run.raw_discriminator
    images = normalize(given["images"])
    posterior = vae.encode(images).latent_dist
    reconstructions = vae.decode(posterior.mean + posterior.std * given["noise"]).sample
    pixels = F.l1_loss if args.losses.rec_loss == "l1" else F.mse_loss
    nll = pixels(reconstructions, images, reduction="none")
    if run.perceptual is not None:
        distance = run.perceptual(images, reconstructions)[:, None, None, None]
        nll = nll + args.losses.perceptual_scale * distance
    nll = nll.sum() / len(images)
    kl = posterior.kl().sum() / len(images)
    g_loss = -discriminator.eval()(reconstructions).mean()
    last = vae.decoder.conv_out.weight
    (nll_gradient,) = torch.autograd.grad(nll, last, retain_graph=True)
    (g_gradient,) = torch.autograd.grad(g_loss, last, retain_graph=True)
    d_weight = nll_gradient.norm() / (g_gradient.norm() + 1e-4)
    d_weight = d_weight.clamp(0.0, args.discriminator.disc_weight_max)
    loss = nll + args.losses.kl_scale * kl + args.discriminator.disc_scale * d_weight * g_loss
    names, parameters = zip(*vae.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters)
    return {f"vae.{name}": gradient for name, gradient in zip(names, found, strict=True)}


@pytest.mark.parametrize("norm", NORM_TYPES)
@pytest.mark.parametrize(("loss", "clamp"), [("l1", "1e4"), ("l2", "0.5")])
def test_gradient_is_latent_diffusions_over_the_number_of_pixels(
    loss: str, clamp: str, norm: str
) -> None:
    flags = f"--rec_loss {loss} --disc_weight_max {clamp} --kl_scale 1e-3 --disc_scale 0.7 "
    flags += f"--disc_norm_type {norm}"
    run, given = tiny_run(flags), batch()
    ours = gradients(train_without_update(run, [given]).raw_vae)
    elements = given["images"][0].numel()
    theirs = {n: g / elements for n, g in textbook_gradients(tiny_run(flags), given).items()}
    assert largest_difference(ours, theirs) < 1e-5


def test_perceptual_gradient_reaches_the_vae(squeeze_weights: str) -> None:
    flags = (
        "--perceptual_scale 2.0 --lpips_backbone squeeze --lpips_weights "
        f"{squeeze_weights} --disc_scale 0.5"
    )
    given = batch()
    with_lpips = gradients(train_without_update(tiny_run(flags), [given]).raw_vae)
    without = gradients(train_without_update(tiny_run("--disc_scale 0.5"), [given]).raw_vae)
    elements = given["images"][0].numel()
    theirs = {n: g / elements for n, g in textbook_gradients(tiny_run(flags), given).items()}
    assert largest_difference(with_lpips, theirs) < 1e-5
    assert largest_difference(with_lpips, without) > 1e-2


@pytest.mark.parametrize("perceptual_scale", [0, 1])
def test_features_judge_in_the_step_as_patches_do(
    perceptual_scale: int, squeeze_weights: str
) -> None:
    flags = (
        f"--disc_type features --disc_num_layers 3 --perceptual_scale {perceptual_scale} "
        "--disc_scale 0.7 "
        f"--lpips_backbone squeeze --lpips_weights {squeeze_weights}"
    )
    run, given = tiny_run(flags), batch()
    train_without_update(run, [given])
    assert (run.perceptual is run.raw_discriminator.perceptual) == bool(perceptual_scale)
    assert (
        gradients(run.raw_discriminator).keys()
        == dict(run.raw_discriminator.named_parameters()).keys()
    )
    assert not gradients(run.raw_discriminator.perceptual)
    elements = given["images"][0].numel()
    theirs = {n: g / elements for n, g in textbook_gradients(tiny_run(flags), given).items()}
    assert largest_difference(gradients(run.raw_vae), theirs) < 1e-5


def test_generators_pass_leaves_the_discriminator_as_it_was() -> None:
    run = tiny_run("--disc_norm_type spectral_group")
    run.schedule = type(run.schedule)(True, start=0, warmup_steps=0, ramp_steps=0, in_turns=True)
    before = weights(run.raw_discriminator)
    train_without_update(run, [batch()])  # step 0 is the VAE's alone
    after = weights(run.raw_discriminator)
    assert gradients(run.raw_vae)
    assert not gradients(run.raw_discriminator)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in run.raw_discriminator.parameters())


def test_discriminators_pass_leaves_the_vae_as_it_was() -> None:
    run = tiny_run("--alternation every_other_step")
    run.step = 1  # the discriminator's turn
    train_without_update(run, [batch()])
    assert gradients(run.raw_discriminator)
    assert not gradients(run.raw_vae)


@pytest.mark.parametrize("norm", NORM_TYPES)
def test_discriminator_learns_the_function_that_judges(norm: str) -> None:
    flags = f"--disc_norm_type {norm} --disc_loss vanilla"
    run, given = tiny_run(flags), batch()
    ours = gradients(train_without_update(run, [given]).raw_discriminator)
    other = tiny_run(flags)
    images = normalize(given["images"])
    with torch.no_grad():
        fakes, _ = other.vae(images, given["noise"])
        other.raw_discriminator(images)  # one power iteration, as ours; then it judges
    other.raw_discriminator.eval()
    real, fake = other.raw_discriminator(images), other.raw_discriminator(fakes)
    loss = (F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
            + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))) / 2  # fmt: skip
    loss.backward()
    assert largest_difference(ours, gradients(other.raw_discriminator)) < 1e-4


def test_no_network_is_run_backward_twice(squeeze_weights: str) -> None:
    flags = f"--perceptual_scale 1 --lpips_backbone squeeze --lpips_weights {squeeze_weights}"
    run = tiny_run(f"{flags} --alternation every_other_step")
    layers = {
        "encoder": run.raw_vae.vae.encoder.conv_in,
        "decoder": run.raw_vae.vae.decoder.conv_in,
        "before the last": run.raw_vae.vae.decoder.conv_norm_out,
        "discriminator": run.raw_discriminator.model[-1],
    }
    calls = dict.fromkeys(layers, 0)

    def count(name: str) -> None:
        calls[name] += 1

    for name, layer in layers.items():
        layer.register_full_backward_hook(lambda *_, name=name: count(name))
    train_without_update(run, [batch()])
    assert calls == dict.fromkeys(layers, 1)


def test_loss_scale_of_float16_leaves_every_gradient_and_the_adaptive_weight_as_they_are(
    squeeze_weights: str,
) -> None:
    flags = f"--perceptual_scale 1 --lpips_backbone squeeze --lpips_weights {squeeze_weights} "
    flags += "--gradient_accumulation_steps 2"
    found, judged = [], []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**16)):
        run = tiny_run(flags)
        run.accelerator.scaler = scaler
        last = run.raw_discriminator.model[-1]
        last.register_full_backward_hook(lambda m, i, o: judged.append(o[0].abs().max().item()))
        train_without_update(run, [batch(seed=0), batch(seed=1)])
        unscale(run.accelerator, [run.optimizer_vae, run.optimizer_disc])
        found.append((gradients(run.raw_vae), gradients(run.raw_discriminator), run.meter.flush()))
    for scaled, plain in zip(*found, strict=True):
        scaled.pop("images_per_s", None), plain.pop("images_per_s", None)
    for number in (0, 1):
        assert largest_difference(found[1][number], found[0][number]) < 1e-6
    assert found[1][2] == pytest.approx(found[0][2], rel=1e-5)
    half = len(judged) // 2
    assert judged[half] == pytest.approx(2.0**16 * judged[0])  # the judge works within the scale


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulated_micro_batches_equal_one_batch(micro_batches: int) -> None:
    whole = batch(4)
    one = train_without_update(tiny_run(f"{FIXED_WEIGHT} --train_batch_size 4"), [whole])
    size = 4 // micro_batches
    many = tiny_run(
        f"{FIXED_WEIGHT} --train_batch_size {size} --gradient_accumulation_steps {micro_batches}"
    )
    train_without_update(many, list(slices(whole, size)))
    for ours, theirs in ((many.raw_vae, one.raw_vae),
                         (many.raw_discriminator, one.raw_discriminator)):  # fmt: skip
        assert largest_difference(gradients(ours), gradients(theirs)) < 1e-5


def test_nothing_adversarial_is_computed_before_it_is_needed() -> None:
    run, seen = tiny_run("--disc_start 2 --disc_warmup_steps 2 --disc_ramp_steps 0"), []
    run.raw_discriminator.register_forward_pre_hook(
        lambda module, inputs: seen.append((run.step, len(inputs)))
    )
    train(run, [batch(seed=seed) for seed in range(5)])
    # Its own turn sees real and fake, the generator's pass the fakes alone.
    assert seen == [(2, 2), (3, 2), (4, 1), (4, 2)]


def everything(run: Run) -> dict[str, torch.Tensor]:
    """Copies of all that an update moves, by part and name; a power iteration needs no update."""
    found = {f"vae.{name}": tensor for name, tensor in weights(run.raw_vae).items()}
    found |= {
        f"disc.{name}": tensor
        for name, tensor in weights(run.raw_discriminator).items()
        if not name.endswith(("_u", "_v"))
    }
    if run.ema is not None:
        found |= {f"ema.{name}": tensor.clone() for name, tensor in run.ema.state_dict().items()}
    for part, optimizer in (("vae", run.optimizer_vae), ("disc", run.optimizer_disc)):
        for number, state in optimizer.state_dict()["state"].items():
            found[f"{part} moments.{number}"] = state["exp_avg"].clone()
    return found


def moved_by(run: Run, batches: list) -> set[str]:
    """The parts that training on `batches` changes."""
    before, after = everything(run), everything(train(run, batches))
    return {name.split(".")[0] for name, tensor in after.items()
            if name not in before or not torch.equal(before[name], tensor)}  # fmt: skip


def test_alternation_by_step_gives_every_image_of_a_step_to_one_network() -> None:
    run = tiny_run("--alternation every_other_step --gradient_accumulation_steps 2")
    pairs = [[batch(seed=2 * step), batch(seed=2 * step + 1)] for step in range(4)]
    turns = [{"vae", "vae moments"}, {"disc", "disc moments"}]
    assert [moved_by(run, pair) for pair in pairs] == turns * 2


def rates(run: Run, steps: int) -> list[tuple[float, ...]]:
    """The learning rates of the VAE at each step of training, and those of the discriminator."""
    found = []
    for step in range(steps):
        found.append(tuple(run.learning_rates().values()))
        train(run, [batch(seed=step)])
    return list(zip(*found, strict=True))


def test_learning_rates_follow_schedules_as_long_as_their_networks_updates() -> None:
    run = tiny_run(
        "--alternation every_other_step --max_train_steps 12 --disc_start 4 "
        "--lr_scheduler linear --disc_lr_scheduler linear --lr_warmup_steps 0"
    )
    vae, disc = rates(run, 12)
    vae_turns, disc_turns = (0, 1, 2, 3, 4, 6, 8, 10), (5, 7, 9, 11)
    for found, turns in ((vae, vae_turns), (disc, disc_turns)):
        expected = [1e-3 * (1 - n / len(turns)) for n in range(len(turns))]
        assert [found[step] for step in turns] == pytest.approx(expected)
    assert run.learning_rates() == {"lr": 0.0, "disc_lr": 0.0}


def test_a_share_of_warm_up_is_one_of_the_updates_that_each_network_gets() -> None:
    run = tiny_run(
        "--max_train_steps 12 --disc_start 4 --lr_warmup_steps 0.5 "
        "--lr_scheduler constant_with_warmup --disc_lr_scheduler constant_with_warmup"
    )
    vae, disc = rates(run, 12)
    assert vae == pytest.approx([1e-3 * min(1, n / 6) for n in range(12)])
    assert disc[4:] == pytest.approx([1e-3 * min(1, n / 4) for n in range(8)])


def test_average_moves_only_when_the_vae_moved() -> None:
    run = tiny_run("--use_ema --alternation every_other_step")
    moved = [moved_by(run, [batch(seed=seed)]) for seed in range(4)]
    assert ["ema" in parts for parts in moved] == [True, False, True, False]
    assert run.ema.num_updates == 2


@pytest.mark.parametrize("poisoned", [0, 1])
def test_update_with_a_nan_is_skipped_for_both_networks_and_the_average(poisoned: int) -> None:
    run = tiny_run("--use_ema --gradient_accumulation_steps 2")
    train(run, [batch(seed=0), batch(seed=1)])
    pair = [batch(seed=2), batch(seed=3)]
    pair[poisoned]["noise"][0, 0, 0, 0] = torch.nan
    assert not moved_by(run, pair)
    assert run.step == 2
    assert run.guard.check() == {"skipped_steps": 1.0}
    assert "vae" in moved_by(run, [batch(seed=4), batch(seed=5)])
    assert all(torch.isfinite(value).all() for value in weights(run.raw_vae).values())


def test_persistent_nan_stops_the_run_and_names_the_term() -> None:
    run = tiny_run("--max_skipped_steps 3")
    bad = batch()
    bad["noise"][:] = torch.nan
    train(run, [bad, bad])
    assert run.guard.check() == {"skipped_steps": 2.0}
    train(run, [bad])
    with pytest.raises(RunStopped, match=r"rec_loss.*--max_skipped_steps=3"):
        run.guard.check()
    assert all(torch.isfinite(value).all() for value in weights(run.raw_vae).values())


def test_nan_that_is_over_is_forgotten() -> None:
    run, bad, good = tiny_run("--max_skipped_steps 3"), batch(), batch()
    bad["noise"][:] = torch.nan
    train(run, [bad] * 5 + [good])
    state = run.guard.state_dict()
    with pytest.raises(RunStopped, match="5 updates in a row"):  # this is the first look at it
        run.guard.check()
    run.guard.load_state_dict(state)
    train(run, [bad, bad, good])
    assert run.guard.check() == {"skipped_steps": 7.0}
    for _ in range(3):
        run.guard.watch(kl_loss=torch.tensor(torch.nan))
        run.guard.verdict(run.adversary.seen)
    with pytest.raises(RunStopped, match="because kl_loss was not finite"):
        run.guard.check()


@pytest.mark.parametrize("where", ["vae", "discriminator", "average"])
def test_weights_that_are_not_finite_are_never_written(where: str, monkeypatch) -> None:
    run = tiny_run("--use_ema")
    run.require_finite_weights()
    tensors = {"vae": list(run.raw_vae.parameters()), "average": run.ema.averages,
               "discriminator": list(run.raw_discriminator.parameters())}  # fmt: skip
    with torch.no_grad():
        tensors[where][-1].fill_(torch.inf)
    monkeypatch.setattr(train_vae, "save_checkpoint", None)  # not reached
    with pytest.raises(RunStopped, match=rf"step 0 \({where}\..*--learning_rate"):
        train_vae.save(run, None)


def test_tiny_learning_rate_in_bfloat16_moves_the_float32_weights_and_their_average() -> None:
    run = tiny_run("--mixed_precision bf16 --learning_rate 4.5e-6 --use_ema")
    before = weights(run.raw_vae)
    average = {name: tensor.clone() for name, tensor in run.ema.state_dict().items()}
    train(run, [batch(seed=0), batch(seed=1)])
    after, later = weights(run.raw_vae), run.ema.state_dict()
    assert all(value.dtype == torch.float32 for value in after.values())
    moved = torch.cat([(before[name] != after[name]).flatten() for name in before])
    assert moved.float().mean() > 0.95
    drifted = torch.cat([(average[n] != later[n]).flatten() for n in run.ema.names])
    assert drifted.float().mean() > 0.9


def test_posterior_is_float32_under_autocast() -> None:
    run = tiny_run("--mixed_precision bf16")
    images, noise = run.to_device(batch())
    reconstructions, posterior = run.vae(images, noise)
    assert reconstructions.dtype == posterior.mean.dtype == posterior.kl().dtype == torch.float32
    inner = []
    run.raw_vae.vae.decoder.conv_in.register_forward_hook(lambda m, i, o: inner.append(o.dtype))
    run.vae(images, noise)
    assert inner == [torch.bfloat16]


def test_every_trained_parameter_belongs_to_exactly_one_optimizer() -> None:
    run = tiny_run()
    owned = [
        id(parameter)
        for optimizer in (run.optimizer_vae, run.optimizer_disc)
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    trained = [
        id(parameter)
        for network in (run.raw_vae, run.raw_discriminator)
        for parameter in network.parameters()
        if parameter.requires_grad
    ]
    assert sorted(owned) == sorted(trained)


def test_both_networks_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    run, norms = tiny_run("--max_grad_norm 1e-3"), []
    step_unless = train_vae.Run.update.__globals__["step_unless"]

    def measure(skip: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        found = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.stack([gradient.norm() for gradient in found]).norm().item())
        step_unless(skip, optimizer)

    monkeypatch.setitem(train_vae.Run.update.__globals__, "step_unless", measure)
    train(run, [batch()])
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_host_does_not_wait_for_the_device_between_log_points(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tiny_run("--use_ema --gradient_accumulation_steps 2")
    train(run, [batch(seed=0), batch(seed=1)])  # optimizers make their state on the first step
    asked = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy", "cpu", "nonzero"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *a, _o=original, _n=name, **k: asked.append(_n) or _o(self, *a, **k),
        )
    train(run, [batch(seed=2), batch(seed=3)])
    assert asked == []


def test_running_out_of_memory_in_the_adversarial_pass_is_not_hidden() -> None:
    run = tiny_run()

    def explode(*args: object) -> None:
        raise RuntimeError("out of memory")

    run.raw_discriminator.model.forward = explode
    with pytest.raises(RuntimeError, match="out of memory"):
        train(run, [batch()])


def test_frozen_encoder_is_bit_identical_and_the_decoder_learns(tmp_path: object) -> None:
    pretrained = tiny_run().raw_vae.vae
    pretrained.save_pretrained(f"{tmp_path}/vae")
    run = tiny_run(f"--decoder_only --pretrained_model_name_or_path {tmp_path}/vae")
    before = weights(run.raw_vae.vae)
    train(run, [batch(seed=seed) for seed in range(3)])
    after = weights(run.raw_vae.vae)
    for name in before:
        frozen = name.startswith(("encoder.", "quant_conv."))
        assert torch.equal(before[name], after[name]) == frozen, name


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("flags", ["--gradient_checkpointing", "--recompute norm"])
def test_recomputation_changes_no_gradient(flags: str, precision: str) -> None:
    given, flags = batch(), f"{flags} --mixed_precision {precision}"
    plain = train_without_update(tiny_run(f"--mixed_precision {precision}"), [given])
    recomputed = train_without_update(tiny_run(flags), [given])
    ours, theirs = gradients(recomputed.raw_vae), gradients(plain.raw_vae)
    assert largest_difference(ours, theirs) < 1e-6


def test_pretrained_vae_trains_in_training_mode_so_that_it_is_recomputed(tmp_path: Path) -> None:
    tiny_run().raw_vae.vae.save_pretrained(tmp_path / "vae")
    run = tiny_run(f"--pretrained_model_name_or_path {tmp_path}/vae --recompute norm")
    assert all(module.training for module in run.raw_vae.vae.modules())


@pytest.mark.parametrize("flags", ["", "--allow_tf32"])
def test_precision_is_set_so_that_the_compiler_and_the_exporter_may_ask_for_it(flags: str) -> None:
    tiny_run(flags)
    wanted = flags == "--allow_tf32"
    assert torch.backends.cudnn.allow_tf32 == wanted
    assert torch.backends.cuda.matmul.allow_tf32 == wanted
    assert torch.get_float32_matmul_precision() == ("high" if wanted else "highest")
