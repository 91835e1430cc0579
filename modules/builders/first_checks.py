"""What can be answered without torch, which takes seconds to import: most of what goes wrong."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path

from modules.builders.output_dir import check_output_dir
from modules.config.arguments import Arguments
from modules.data.images.image_kinds import PACKED_SUFFIXES, remedy, suffixes
from modules.data.sources.folder_walk import files_below
from modules.distributed.launch_environment import check_environment
from modules.errors import ArgumentError
from modules.output.folder_lock import PATIENCE, FolderLock

logger = logging.getLogger(__name__)


def check_first(args: Arguments) -> FolderLock | None:
    """The right to write into --output_dir, once all is well; None for a dry run, which does not.

    Raises ArgumentError naming flag, value and fix, and leaves no folder behind then.
    """
    accumulation = args.optimization.gradient_accumulation_steps
    check_environment(os.environ, accumulation, args.precision.compile)
    check_places(args)
    if args.logging.hub_model_id and not args.logging.push_to_hub:
        logger.warning("--hub_model_id=%s names the model card alone: nothing is uploaded without "
                       "--push_to_hub", args.logging.hub_model_id)  # fmt: skip
    if args.launch.dry_run:
        check_output_dir(args, create=False)
        return None
    checkpoints = args.checkpoints
    patience = PATIENCE if checkpoints.resume_from_checkpoint else 0.0
    with ExitStack() as refused:
        lock = refused.enter_context(FolderLock(checkpoints.output_dir, patience))
        check_output_dir(args)
        refused.pop_all()
    return lock


def check_places(args: Arguments) -> None:
    """Raises ArgumentError where no flag names images, or one names what does not exist.

    A model or data set may be on the Hub, so only what cannot be an id there must be a path here.
    """
    for name, folder in args.named(
        "train_data_dir", "validation_data_dir", "resume_from_checkpoint"
    ):
        resumed = name == "resume_from_checkpoint"
        if not os.path.isdir(folder) and not (resumed and folder == "latest"):
            raise ArgumentError(f"--{name}={folder} is not a folder; check the path")
        if not resumed:
            _require_pictures(name, folder)
    for name, file in args.named("lpips_weights", "inception_weights", "validation_image"):
        if not os.path.isfile(file):
            raise ArgumentError(f"--{name}: {file} is not a file; check the path")
    for name, value in args.named(
        "pretrained_model_name_or_path", "model_config_name_or_path", "dataset_name"
    ):
        require_place(name, value)
    if not (args.data.train_data_dir or args.data.dataset_name):
        recipes = " ".join(args.launch.recipes)
        whose = f"--recipe={recipes} brings no images of its own" if recipes else "no images"
        raise ArgumentError(
            f"{whose}: give --train_data_dir, a folder of them, or --dataset_name, a hub id or a "
            "local data set; --recipe quickstart draws its own"
        )


def _require_pictures(name: str, folder: str) -> None:
    """Raises ArgumentError for a folder in which nothing could be a picture.

    What else could be, such as raw photographs or archives, is named with its remedy when the
    folder is opened.
    """
    for file in files_below(folder):
        ending = os.path.splitext(file.path)[1].lower()
        if ending in suffixes() or ending in PACKED_SUFFIXES or remedy(ending):
            return
    raise ArgumentError(
        f"--{name}={folder} holds no images; files must end in {' '.join(sorted(suffixes()))}, and "
        "what a run wrote is left out"
    )


def require_place(name: str, value: str | None) -> None:
    """Raises ArgumentError where --name's value can only be a path, and nothing is there."""
    parts = Path(value or "").parts  # an id on the Hub is "name" or "owner/name"
    is_path = len(parts) > 2 or (value or "").startswith((".", "/"))
    if is_path and not os.path.exists(value):
        raise ArgumentError(
            f"--{name}={value}: no such file or folder; check the path, or give a hub id"
        )
