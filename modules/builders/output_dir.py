"""The folder a run writes to: never another run's by accident, and writable from the start."""

from __future__ import annotations

import logging
import os
import tempfile
from itertools import product
from pathlib import Path

from modules.builders.overlap import lies_in, searched_by_datasets, would_match
from modules.config.arguments import Arguments
from modules.config.outputs import CheckpointArguments
from modules.errors import ArgumentError
from modules.output import run_files
from modules.output.checkpoint_folders import (
    DamagedCheckpoint,
    checkpoint_steps,
    clear_debris,
    is_checkpoint_of,
    newest_checkpoint,
    read_trainer_state,
    verify,
)
from modules.output.owned_files import OwnedFiles, remove

logger = logging.getLogger(__name__)

SIGNS_OF_A_RUN = ("checkpoints", "metrics.jsonl", "config.json")
FOLDERS = ("checkpoints", "samples", "best", "discriminator")
EXAMPLES = ("metrics.jsonl", "samples/step-000000.png")  # of what data could be taken for
SHOWN = 5  # names in a message
# Flags whose files are read after an old run has been deleted.
READ_LATER = ("pretrained_model_name_or_path", "model_config_name_or_path", "lpips_weights",
              "inception_weights", "validation_image", "data_files",
              "resume_from_checkpoint")  # fmt: skip


def check_output_dir(args: Arguments, create: bool = True) -> None:
    """Raises ArgumentError if the folder holds another run, what is not a run's, or is read-only.

    create: make the folder and write to it, to be sure; otherwise only permissions are looked at.
    """
    output_dir = Path(args.checkpoints.output_dir)
    owned = OwnedFiles(output_dir)
    _check_collisions(args, owned)
    _check_data(args)
    present = {path.relative_to(output_dir).parts[0] for path in owned.existing()}
    found = [name for name in SIGNS_OF_A_RUN if name in present]
    if found and not _continues(args.checkpoints):
        if not args.checkpoints.overwrite_output_dir:
            wanted, advice = args.checkpoints.resume_from_checkpoint, ""
            if wanted:
                wanted = f", and --resume_from_checkpoint={wanted} is none of its checkpoints"
            if newest_checkpoint(output_dir / "checkpoints") is not None:
                advice = "continue it with --resume_from_checkpoint latest, "
            raise ArgumentError(
                f"--output_dir={output_dir} already holds a run ({', '.join(found)}){wanted or ''}"
                f": {advice}choose another folder, or delete what it wrote with "
                "--overwrite_output_dir"
            )
        _check_needed(args, owned)
    try:
        if create:
            output_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".probe-", dir=output_dir) as probe:
                folder = Path(probe, "partial")
                folder.mkdir()
                (folder / "file").write_bytes(b"0")
                os.replace(folder, Path(probe, "complete"))  # as checkpoints are; FUSE may not
        else:
            require_permission(output_dir)
    except OSError as error:
        raise ArgumentError(
            f"--output_dir={output_dir} cannot be written to ({error}); choose another folder"
        ) from error


def require_permission(folder: Path) -> None:
    """Raises OSError where the folder, or the one it would be made in, refuses new files."""
    if folder.is_symlink() and not folder.exists():
        raise FileNotFoundError("it is a link that leads nowhere")
    absolute = folder.resolve()
    nearest = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is not a folder: it is a file; give a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write to {nearest}")


def _continues(args: CheckpointArguments) -> bool:
    """Whether the run in the folder is what goes on, and not another one or a new one in its place.

    One that was killed before its first checkpoint begins anew; one that was exported does not.
    """
    wanted, folder = args.resume_from_checkpoint, Path(args.output_dir)
    if wanted == "latest":
        exported = (folder / "config.json").exists()
        return not exported or bool(checkpoint_steps(folder / "checkpoints"))
    return wanted is not None and is_checkpoint_of(Path(wanted), folder)


def _names_while_training(args: Arguments) -> tuple[str, ...]:
    logs = run_files.tracker_files(args.logging.logging_dir, args.logging.tracker_project_name)
    return (*run_files.WHILE_TRAINING, *logs)


def _check_collisions(args: Arguments, owned: OwnedFiles) -> None:
    """Raises ArgumentError for files of others under names that a run writes to.

    An old train_config.yaml or model card that a user has edited is none of them: `owned.claim`
    keeps it under another name before a new one is written.
    """
    kept = owned.changed & {run_files.CONFIG, run_files.MODEL_CARD}
    foreign = owned.foreign(
        name for name in (*_names_while_training(args), *run_files.AT_THE_END) if name not in kept
    )
    logs = () if args.logging.report_to == "none" else (args.logging.logging_dir,)
    for folder in (owned.folder / name for name in (*FOLDERS, *logs)):
        if os.path.lexists(folder) and not folder.is_dir():
            foreign.append(folder)
    if (owned.folder / run_files.RECORD).is_dir():
        foreign.append(owned.folder / run_files.RECORD)
    if foreign:
        names = [path.relative_to(owned.folder).as_posix() for path in foreign]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise ArgumentError(
            f"--output_dir={owned.folder} holds {', '.join(names[:SHOWN])}{more}, which no run of "
            "this trainer wrote, or not as it is now, and which a run would replace: choose "
            "another folder, or move them away"
        )


def _check_data(args: Arguments) -> None:
    """Raises ArgumentError where `load_dataset` would find the run's files, or a cache, as images.

    In folders that this program searches itself it leaves out what a run wrote.
    """
    data, output_dir, cache_dir = args.data, args.checkpoints.output_dir, args.model.cache_dir
    for flag, pattern in searched_by_datasets(data):
        if any(would_match(os.path.join(output_dir, name), pattern) for name in EXAMPLES):
            raise ArgumentError(
                f"--output_dir={output_dir} lies where --{flag} looks for images ({pattern}): the "
                "run's own pictures would be trained on; choose a folder outside"
            )
    if cache_dir and data.train_data_dir and lies_in(cache_dir, data.train_data_dir):
        raise ArgumentError(
            f"--cache_dir={cache_dir} lies in --train_data_dir={data.train_data_dir}: pictures "
            "that are downloaded would be trained on; choose a folder outside"
        )


def _check_needed(args: Arguments, owned: OwnedFiles) -> None:
    """Raises ArgumentError where --overwrite_output_dir would delete what a flag wants to read."""
    for (flag, name), path in product(args.named(*READ_LATER), list(owned.existing())):
        if os.path.exists(name) and (lies_in(path, name) or lies_in(name, path)):
            raise ArgumentError(
                f"--{flag}={name} would be deleted by --overwrite_output_dir ({path}): copy it "
                "elsewhere first, or choose another --output_dir"
            )


def clear_output_dir(args: Arguments) -> None:
    """Deletes what killed processes left and, if --overwrite_output_dir asks, all of an old run.

    What the run writes while it trains is its own from here on. Main process only.
    """
    owned, checkpoints = OwnedFiles(args.checkpoints.output_dir), args.checkpoints
    clear_debris(owned.folder / "checkpoints")
    remove(owned.folder / run_files.SNAPSHOT)
    if checkpoints.overwrite_output_dir and not _continues(checkpoints):
        owned.delete()
    owned.claim(_names_while_training(args))


def resume_path(args: CheckpointArguments) -> Path | None:
    """The checkpoint to continue from: a path as given, the newest for "latest"; None for neither.

    Raises ArgumentError when the path is no intact checkpoint, or lies before others of the same
    run: those would be taken for newer ones at the next resume.
    """
    wanted, siblings = args.resume_from_checkpoint, Path(args.output_dir) / "checkpoints"
    if wanted is None:
        return None
    if wanted == "latest":
        newest = newest_checkpoint(siblings)
        if newest is None and checkpoint_steps(siblings):
            raise ArgumentError(
                f"--resume_from_checkpoint=latest: every checkpoint in {siblings} is damaged; "
                "start again in another --output_dir, or here with --overwrite_output_dir alone"
            )
        if newest is None:
            logger.info("--resume_from_checkpoint=latest: %s has no checkpoint yet; a new run "
                        "begins", siblings.parent)  # fmt: skip
        return newest
    path = Path(wanted)
    try:
        verify(path)
    except DamagedCheckpoint as error:
        raise ArgumentError(
            f"--resume_from_checkpoint={wanted} is no intact checkpoint: {error}; give one of "
            f"{siblings}, or latest"
        ) from error
    if is_checkpoint_of(path, siblings.parent):
        step = read_trainer_state(path)["step"]
        later = [later for later in checkpoint_steps(siblings) if later > step]
        if later:
            raise ArgumentError(
                f"--resume_from_checkpoint={wanted} lies before step {later[0]} of the same run; "
                "give another --output_dir to branch off, or delete the later checkpoints"
            )
    return path
