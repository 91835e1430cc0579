"""The folder a run writes to: never another run's by accident, and writable from the start."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from modules.arguments import CheckpointArguments
from modules.checkpoint import (
    DamagedCheckpoint,
    checkpoint_steps,
    clear_debris,
    newest_checkpoint,
    read_trainer_state,
    verify,
)
from modules.errors import ArgumentError
from modules.run_files import SNAPSHOT, WRITTEN

SIGNS_OF_A_RUN = ("checkpoints", "metrics.jsonl", "config.json")


def check_output_dir(args: CheckpointArguments, create: bool = True) -> None:
    """Raises ArgumentError if the folder holds another run or cannot be written to.

    create: make the folder and write to it, to be sure; otherwise only permissions are looked at.
    """
    output_dir = Path(args.output_dir)
    fresh = args.resume_from_checkpoint is None and not args.overwrite_output_dir
    found = [name for name in SIGNS_OF_A_RUN if (output_dir / name).exists()]
    if fresh and found:
        raise ArgumentError(
            f"--output_dir={output_dir} already holds a run ({', '.join(found)}): continue it with "
            "--resume_from_checkpoint latest, choose another folder, or delete what it wrote with "
            "--overwrite_output_dir"
        )
    try:
        if create:
            output_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".probe-", dir=output_dir) as probe:
                folder = Path(probe, "partial")
                folder.mkdir()
                (folder / "file").write_bytes(b"0")
                os.replace(folder, Path(probe, "complete"))  # as checkpoints are; FUSE may not
        else:
            _check_permission(output_dir)
    except OSError as error:
        raise ArgumentError(
            f"--output_dir={output_dir} cannot be written to ({error}); choose another folder"
        ) from error


def _check_permission(folder: Path) -> None:
    """Raises OSError where the folder, or the one it would be made in, refuses new files."""
    absolute = folder.resolve()
    nearest = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write to {nearest}")


def clear_output_dir(args: CheckpointArguments) -> None:
    """Deletes what killed processes left and, if --overwrite_output_dir asks, all of an old run.

    Main process only.
    """
    clear_debris(Path(args.output_dir) / "checkpoints")
    shutil.rmtree(Path(args.output_dir) / SNAPSHOT, ignore_errors=True)
    if not args.overwrite_output_dir or args.resume_from_checkpoint:
        return
    for name in WRITTEN:
        path = Path(args.output_dir) / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


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
        return newest
    path = Path(wanted)
    try:
        verify(path)
    except DamagedCheckpoint as error:
        raise ArgumentError(
            f"--resume_from_checkpoint={wanted} is no intact checkpoint: {error}; give one of "
            f"{siblings}, or latest"
        ) from error
    if path.resolve().parent == siblings.resolve():
        step = read_trainer_state(path)["step"]
        later = [later for later in checkpoint_steps(siblings) if later > step]
        if later:
            raise ArgumentError(
                f"--resume_from_checkpoint={wanted} lies before step {later[0]} of the same run; "
                "give another --output_dir to branch off, or delete the later checkpoints"
            )
    return path
