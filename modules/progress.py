"""What a checkpoint remembers of a run beside its tensors, and whether it fits another run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from modules.checkpoint import load_checkpoint, read_trainer_state, rotate
from modules.errors import ArgumentError
from modules.run import Run
from modules.streaming import StreamPosition

logger = logging.getLogger(__name__)


def trainer_state(
    run: Run, num_train_images: int | None, data_fingerprint: str | None = None
) -> dict[str, Any]:
    """Counters, tallies, the data and the shapes of both networks, as plain JSON. Collective."""
    return {
        "step": run.step,
        "samples": run.samples,
        "stream": run.stream.state_dict(),
        "best": run.best,
        "validation_due": run.validation_due,
        "guard": run.guard.state_dict(),
        "gan_guard": run.gan_guard.state_dict(),
        "meters": gather_object([run.meter.state_dict()]),
        "num_train_images": num_train_images,
        "data_fingerprint": data_fingerprint,
        "networks": _networks(run),
    }


def resume(
    run: Run, path: Path, num_train_images: int | None, data_fingerprint: str | None = None
) -> None:
    """Puts `run` back to where the checkpoint at `path` was written.

    Raises ArgumentError when it belongs to other networks; warns of what makes it inexact.
    """
    state = read_trainer_state(path)
    for key, ours in _networks(run).items():
        theirs = state["networks"].get(key)
        if theirs != ours:
            raise ArgumentError(
                f"--resume_from_checkpoint={path} holds another network: {key} is {theirs} there "
                f"and {ours} here; use the flags of that run (its train_config.yaml), or another "
                "--output_dir"
            )
    changed = state.get("data_fingerprint", data_fingerprint) != data_fingerprint
    run.stream = StreamPosition.restored(state.get("stream"), run.args.data.stream_lanes, changed)
    load_checkpoint(run.accelerator, path, run.ema)
    run.step, run.samples, run.best = state["step"], state["samples"], state["best"]
    run.validation_due = state.get("validation_due", False)  # earlier versions always completed it
    run.guard.load_state_dict(state["guard"])
    if "gan_guard" in state:  # checkpoints of earlier versions hold none
        run.gan_guard.load_state_dict(state["gan_guard"])
    processes = run.accelerator.num_processes
    if len(state["meters"]) == processes:
        run.meter.load_state_dict(state["meters"][run.accelerator.process_index])
    else:
        logger.warning(
            "%s was written by %d processes and is continued by %d: the position in the data is "
            "kept, but numbers will not be bit-identical", path, len(state["meters"]), processes,
        )  # fmt: skip
    if state["num_train_images"] != num_train_images:
        logger.warning(
            "the training set had %s images when %s was written and has %s now: the order of the "
            "data changes from here on", state["num_train_images"], path, num_train_images,
        )  # fmt: skip
    elif changed:
        logger.warning(
            "the files of the training set (names, sizes or versions) are not those that %s was "
            "trained on: what follows is not what that run would have seen", path,
        )  # fmt: skip
    own = path.resolve().parent == (run.output_dir / "checkpoints").resolve()
    if own and run.accelerator.is_main_process:  # the kill may have come before the rotation
        rotate(path.parent, run.step, run.args.checkpoints.checkpoints_total_limit)
    logger.info("Resumed from %s at step %d", path, run.step)


def _networks(run: Run) -> dict[str, Any]:
    """What decides the shapes of the tensors in a checkpoint, by flag or configuration key."""
    config, disc = run.raw_vae.vae.config, run.args.discriminator
    keys = ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups",
            "mid_block_add_attention", "use_quant_conv")  # fmt: skip
    flags = ("disc_hidden_channels", "disc_num_layers", "disc_norm_type", "disc_num_groups")
    vae = {key: config[key] for key in keys}
    vae["block_out_channels"] = list(vae["block_out_channels"])
    return vae | {"decoder_only": run.args.model.decoder_only} | {
        flag: getattr(disc, flag) for flag in flags
    }  # fmt: skip
