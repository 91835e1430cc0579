"""What a checkpoint remembers of a run beside its tensors, and whether it fits another run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from diffusers import AutoencoderKL
from torch.optim.lr_scheduler import LRScheduler

from modules.config import fates
from modules.config.arguments import Arguments
from modules.config.objective import GAN_LENGTHS
from modules.data.streaming.reader import StreamPosition
from modules.errors import ArgumentError
from modules.image_modes import mode_of
from modules.models.autoencoder import downsample_factor
from modules.output.checkpoint_folders import is_checkpoint_of, read_trainer_state, rotate
from modules.training.checkpoint import load_checkpoint
from modules.training.run import Run
from modules.training.schedule import BEGINNING, Reached

logger = logging.getLogger(__name__)

# What decides the shapes of the VAE's tensors, by configuration key.
ARCHITECTURE = ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups",
                "mid_block_add_attention", "use_quant_conv", "use_post_quant_conv",
                "down_block_types", "up_block_types", "act_fn")  # fmt: skip


def trainer_state(run: Run, data: Mapping[str, Any]) -> dict[str, Any]:
    """Counters, tallies, flags and what `data` says of the images, as plain JSON. Collective."""
    return {
        "step": run.step,
        "samples": run.samples,
        "stream": run.stream.state_dict(),
        "vae_updates": run.scheduler_vae.scheduler.last_epoch,
        "disc_updates": run.scheduler_disc.scheduler.last_epoch,
        "best": run.best,
        "validation_due": run.validation_due,
        "stale": run.stale,
        "guard": run.guard.state_dict(),
        "adversary": run.adversary.state_dict(),
        "gan_lengths": dict(zip(GAN_LENGTHS, run.schedule.lengths, strict=True)),
        "meters": gather_object([run.meter.state_dict()]),
        "flags": flags_in_force(run.args, run.raw_vae.vae),
        "history": run.history,
        **data,
    }


def flags_in_force(args: Arguments, vae: AutoencoderKL) -> dict[str, Any]:
    """Every flag but secrets, as plain JSON; as the network has settled it."""
    settled = {key: vae.config[key] for key in ARCHITECTURE}
    settled |= {"downsample_factor": downsample_factor(vae), "image_mode": mode_of(vae)}
    settled["disc_type"] = args.disc_type
    if args.disc_type == "features":  # whose heads fit one network alone
        settled["lpips_backbone under --disc_type=features"] = args.losses.lpips_backbone
    return json.loads(json.dumps(args.as_dict() | settled))


def reached_by(path: Path | None, args: Arguments, vae: AutoencoderKL) -> Reached:
    """How far the run of the checkpoint at `path` has come; the beginning where there is none.

    Raises ArgumentError where a flag has a value that its tensors do not fit.
    """
    if path is None:
        return BEGINNING
    state = read_trainer_state(path)
    refused = fates.changed_flags(_flags_of(state), flags_in_force(args, vae), fates.REFUSED)
    for name, (before, now) in refused.items():
        flag = f"--{name}" if name in fates.FATES else name
        raise ArgumentError(
            f"--resume_from_checkpoint={path}: {flag} is {fates.shown(before)} there and "
            f"{fates.shown(now)} here, and {fates.reason(name)}; use the flags of that run (its "
            "train_config.yaml), or another --output_dir"
        )
    updates = {name: state.get(name) for name in ("vae_updates", "disc_updates")}
    return Reached(state["step"], state["samples"], **updates, lengths=_lengths_of(state, args))


def _lengths_of(state: Mapping[str, Any], args: Arguments) -> dict[str, int]:
    """Those of a GAN that has begun, as it has kept to them, where they are the same shares now."""
    if not state.get("disc_updates"):
        return {}
    asked = args.as_dict()
    return {
        name: steps
        for name, steps in state.get("gan_lengths", {}).items()
        if isinstance(asked[name], float) and asked[name] == _flags_of(state).get(name)
    }


def _flags_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a checkpoint was written with; of earlier versions, those of its networks."""
    return {"disc_type": "patch"} | (state.get("flags") or state["networks"])


def resume(run: Run, path: Path, data: Mapping[str, Any]) -> bool:
    """Puts `run` back to where the checkpoint at `path` was written, and lets its own flags count.

    data: what its checkpoints will say of the images. Returns whether the training images are the
    same. Warns of what makes the rest of the run another one than it would have been. Collective.
    """
    state = read_trainer_state(path)
    moved = ((run.optimizer_vae, run.scheduler_vae), (run.optimizer_disc, run.scheduler_disc))
    asked = [_hyperparameters(optimizer) for optimizer, _ in moved]
    load_checkpoint(run.accelerator, path, run.ema)
    for (optimizer, scheduler), groups in zip(moved, asked, strict=True):
        _apply_hyperparameters(optimizer, scheduler.scheduler, groups)
        _lay_out_moments(optimizer)
    run.step, run.samples, run.best = state["step"], state["samples"], state["best"]
    run.validation_due = state.get("validation_due", False)  # earlier versions always completed it
    run.stale = state.get("stale", 0)
    run.guard.load_state_dict(state["guard"])
    if "adversary" in state:  # checkpoints of earlier versions hold none
        run.adversary.load_state_dict(state["adversary"])
    processes = run.accelerator.num_processes
    if len(state["meters"]) == processes:
        run.meter.load_state_dict(state["meters"][run.accelerator.process_index])
    else:
        logger.warning(
            "%s was written by %d processes and is continued by %d: the position in the data is "
            "kept, but numbers will not be bit-identical", path, len(state["meters"]), processes,
        )  # fmt: skip
    own = is_checkpoint_of(path, run.output_dir)
    if own and run.accelerator.is_main_process:  # the kill may have come before the rotation
        rotate(path.parent, run.step, run.args.checkpoints.checkpoints_total_limit)
    logger.info("Resumed from %s at step %d", path, run.step)
    same_images = _compare_images(state, data, path)
    run.stream = StreamPosition.restored(state.get("stream"), anew=not same_images)
    _compare_flags(run, state, data, path, same_images)
    if not own:  # its best/ and its rows lie elsewhere
        run.best, run.validation_due, run.stale = {}, True, 0
    _say_if_nothing_is_left(run)
    return same_images


def _say_if_nothing_is_left(run: Run) -> None:
    args = run.args
    if run.step >= run.max_train_steps:
        flag, value = "max_train_steps", args.optimization.max_train_steps
        if value is None:
            flag, value = "num_train_epochs", args.optimization.num_train_epochs
        why = f"step {run.step} is reached and --{flag}={value} asks for {run.max_train_steps}"
    elif run.out_of_patience:
        why = (f"{run.stale} validations in a row had found nothing better and --early_stopping="
               f"{args.validation.early_stopping} ends the run there")  # fmt: skip
    else:
        return
    logger.warning("nothing is left to train: %s; raise it to train on. What was reached is "
                   "exported", why)  # fmt: skip


def _hyperparameters(optimizer: Any) -> list[dict[str, Any]]:
    return [{key: group[key] for key in group if key != "params"}
            for group in optimizer.param_groups]  # fmt: skip


def _apply_hyperparameters(
    optimizer: Any, schedule: LRScheduler, asked: list[dict[str, Any]]
) -> None:
    """The flags' rates, betas and decay replace the checkpoint's, at the schedule's position."""
    schedule.base_lrs = [group["initial_lr"] for group in asked]
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    for group, ours, factor in zip(optimizer.param_groups, asked, factors, strict=True):
        group |= {**ours, "lr": ours["initial_lr"] * factor}
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def _lay_out_moments(optimizer: Any) -> None:
    """They come as they lay in memory; another device or --compile may want weights otherwise.

    Fused AdamW pairs numbers by their place: a GPU refuses other strides, a CPU mixes them up.
    """
    for weight, state in optimizer.state.items():
        for name, moment in state.items():
            if torch.is_tensor(moment) and moment.shape == weight.shape:
                state[name] = torch.empty_like(weight, dtype=moment.dtype).copy_(moment)


def _compare_images(state: Mapping[str, Any], data: Mapping[str, Any], path: Path) -> bool:
    """Whether the training images are those of the checkpoint; warns of what differs."""
    if state["num_train_images"] != data["num_train_images"]:
        logger.warning(
            "the training set had %s images when %s was written and has %s now: the order of the "
            "data changes from here on", state["num_train_images"], path, data["num_train_images"],
        )  # fmt: skip
        return False
    if state.get("data_fingerprint", data["data_fingerprint"]) != data["data_fingerprint"]:
        logger.warning(
            "the files of the training set (names, sizes or versions) are not those that %s was "
            "trained on: what follows is not what that run would have seen", path,
        )  # fmt: skip
        return False
    return True


def _compare_flags(
    run: Run, state: Mapping[str, Any], data: Mapping[str, Any], path: Path, same_images: bool
) -> None:
    """Says which flags differ from the checkpoint's, and notes it in the run's history.

    Where validation measures something else than before, the best so far starts again with it.
    """
    before, now = _flags_of(state), flags_in_force(run.args, run.raw_vae.vae)
    if "flags" not in state:
        logger.warning("%s is of an earlier version, which did not write down its flags: whether "
                       "they were the same is not known", path)  # fmt: skip
    taken = fates.changed_flags(before, now, fates.TAKES_EFFECT)
    warned = fates.changed_flags(before, now, fates.WARNED)
    if same_images:
        taken |= {name: warned.pop(name) for name in fates.PLACES if name in warned}
    if taken:
        changes = (fates.told(name, *values) for name, values in taken.items())
        logger.info("resuming with %s", ", ".join(changes))
    for name, values in warned.items():
        logger.warning("%s: %s", fates.told(name, *values), fates.reason(name))

    images = data["validation_fingerprint"]
    others = state.get("validation_fingerprint", images) != images
    if "best_metric" in warned:
        run.stale = 0
    measured_anew = images is not None and (others or any(name in warned for name in fates.MEASURE))
    if measured_anew:
        logger.warning(
            "validation is not that of %s, and images that were trained on may be part of it: the "
            "best so far and the numbers to compare with begin anew at step %d", path, run.step,
        )  # fmt: skip
        run.best, run.validation_due, run.stale = {}, True, 0
    run.history = state.get("history", [])
    if taken or warned or measured_anew:
        change = {"step": run.step, "flags": taken | warned, "measured_anew": measured_anew}
        run.history = [*run.history, change]
