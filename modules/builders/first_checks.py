"""What can be answered without torch, which takes seconds to import: most of what goes wrong."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack

from modules.builders.output_dir import check_output_dir
from modules.builders.places import check_places
from modules.config.arguments import Arguments
from modules.distributed.launch_environment import check_environment
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
