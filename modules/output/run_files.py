"""The names of what a run writes into `output_dir`, and which of them are for the world to see.

Names are glob patterns below the folder, in which STEP stands for the number of a step. A name of
ours is no proof: whether a file of that name is ours is what `modules.output.owned_files` knows.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

STEP = "<step>"
RECORD = ".train_vae.json"  # by which a folder is known as a run's, see `owned_files`
SNAPSHOT = ".push"  # where a push in the middle of training is put together

BEST = ("best/config.json", "best/diffusion_pytorch_model.safetensors")
PICTURES = f"samples/step-{STEP}.png"
MODEL_CARD = "README.md"
METRICS, DAMAGED_METRICS, CONFIG, REPORT, BAD_IMAGES = (
    "metrics.jsonl", "metrics.damaged.jsonl", "train_config.yaml", "report.html", "bad_images.txt",
)  # fmt: skip
IN_A_CHECKPOINT = (
    "manifest.json", "trainer_state.json", "ema.safetensors", "model*.safetensors*",
    "optimizer*.bin", "scheduler*.bin", "sampler*.bin", "scaler.pt", "random_states_*.pkl",
)  # fmt: skip
CHECKPOINTS = tuple(f"checkpoints/step-{STEP}/{name}" for name in IN_A_CHECKPOINT)
UNFINISHED = (
    f"checkpoints/.partial-step-{STEP}", f"checkpoints/.deleted-step-{STEP}", SNAPSHOT,
)  # fmt: skip
WANDB_RUNS = ("run-*", "offline-run-*", "latest-run")
AT_THE_END = (
    "config.json", "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors", "vae_ldm.safetensors",
    "discriminator/discriminator.safetensors", MODEL_CARD,
)  # fmt: skip
# What a kill leaves of `modules.output.durable.replacing`.
HALF_WRITTEN = tuple((file.parent / f".{file.name}.partial").as_posix()
                     for file in map(PurePosixPath, (METRICS, *BEST, *AT_THE_END)))  # fmt: skip
WHILE_TRAINING = (
    *CHECKPOINTS, METRICS, DAMAGED_METRICS, CONFIG, REPORT, BAD_IMAGES, PICTURES, *BEST,
    *UNFINISHED, *HALF_WRITTEN,
)  # fmt: skip

# What leaves the machine. Not checkpoints: they are several times the size of the weights, a
# repository keeps every version for good, and only this trainer reads them. Nor bad_images.txt,
# which names the user's own files, nor the logs.
KEPT_AT_HOME = ("checkpoints", "logs", BAD_IMAGES, DAMAGED_METRICS)
# What a push in the middle of training consists of: everything that is complete at that moment.
COMPLETE_MIDWAY = (*BEST, PICTURES, METRICS, REPORT, CONFIG)
UPLOADED = (*COMPLETE_MIDWAY, *AT_THE_END)


def tracker_files(logging_dir: str, project: str) -> tuple[str, ...]:
    """What TensorBoard and Weights & Biases write below `output_dir`."""
    logs = glob.escape(PurePosixPath(logging_dir).as_posix())
    board = (PurePosixPath(logs) / glob.escape(project)).as_posix()
    wandb = PurePosixPath(logs) / "wandb"
    return (
        f"{board}/**/events.out.tfevents.*", f"{board}/**/hparams.yml",
        (PurePosixPath(logs) / "wandb_run_id.txt").as_posix(),
        *((wandb / name).as_posix() for name in (*WANDB_RUNS, "debug*.log")),
    )  # fmt: skip


def is_folders(name: str) -> bool:
    """Whether a run makes a folder of this name; all others are files."""
    return name in UNFINISHED or PurePosixPath(name).name in WANDB_RUNS


def find(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    """What lies in `folder` under these names; a link that leads nowhere lies there as well."""
    for pattern in patterns:
        if not glob.has_magic(pattern) and STEP not in pattern:
            found = [folder / pattern] if os.path.lexists(folder / pattern) else []
        else:
            found = sorted(folder.glob(pattern.replace(STEP, "[0-9]*")))
        if STEP in pattern:
            exact = fnmatch.translate(pattern.replace(STEP, "STEP")).replace("STEP", r"\d{6,}")
            names = ((path, path.relative_to(folder).as_posix()) for path in found)
            found = [path for path, name in names if re.match(exact, name)]
        yield from found


def uploaded_files(folder: Path) -> list[str]:
    """What of a run may leave `folder`, by relative names: the files themselves, no patterns."""
    return [path.relative_to(folder).as_posix() for path in find(folder, UPLOADED)]


def top_names(patterns: Iterable[str]) -> list[str]:
    """The first part of each name, once: what a person sees in the folder."""
    return list(dict.fromkeys(pattern.split("/")[0] for pattern in patterns))
