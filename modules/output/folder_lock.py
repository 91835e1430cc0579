"""One folder, one writer: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from modules.errors import ArgumentError

logger = logging.getLogger(__name__)

LOCK = ".train_vae.lock"
PATIENCE = 30.0  # seconds for a run that was requeued while the one before it still saves
HELD = (errno.EACCES, errno.EAGAIN)
UNKNOWN_HERE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
# The launchers' names, as accelerate reads them.
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
WORLD_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


class FolderLock:
    """The right to write into a folder, which one process has at a time; a context that ends it.

    A POSIX record lock: the kernel takes it back when its process ends, forked children have no
    part in it, and NFS tells other machines of it. It would also be lost if this process opened and
    closed the file once more, which nothing does.

    patience: seconds to wait for another holder, which is said. Of the processes of one launch the
    main one takes the lock; a `refusal` is kept for all of them to hear of, see `refuse_together`.
    Raises ArgumentError naming host and process, or where the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, patience: float = 0.0, flag: str = "output_dir") -> None:
        self.path, self.descriptor = Path(folder) / LOCK, None
        self.refusal: str | None = None
        folders = (self.path.parent, *self.path.parent.parents)
        self.made = [folder for folder in folders if not folder.exists()]
        if _launched_as(RANK, 0) != 0:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            holder = self._wait(patience)
        except OSError as error:
            raise ArgumentError(
                f"--{flag}={folder} cannot be written to ({error}); choose another folder"
            ) from error
        if holder is not None:
            self.refusal = (
                f"--{flag}={folder} is in use by {holder}: let it end, or choose another folder"
            )
            if _launched_as(WORLD_SIZE, 1) == 1:
                raise ArgumentError(self.refusal)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        if self.descriptor is not None:
            with suppress(OSError):  # the disk may be read-only by now, or the folder moved away
                self.path.unlink()  # while the lock is held: afterwards it may be another's
                for folder in self.made:
                    folder.rmdir()  # fails where anything was written into it
            os.close(self.descriptor)

    def _wait(self, patience: float) -> str | None:
        """The process that still holds the lock in the end; None where it is ours."""
        deadline, said = time.monotonic() + patience, False
        while (holder := self._take()) is not None and time.monotonic() < deadline:
            if not said:
                logger.warning("%s is in use by %s; waiting up to %g s for it to end",
                               self.path.parent, holder, patience)  # fmt: skip
            said = True
            time.sleep(0.2)
        return holder

    def _take(self) -> str | None:
        """Takes the lock, or returns who has it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                holder = os.read(descriptor, 4096).decode(errors="replace")
                os.close(descriptor)
                return holder or "another process"
            if error.errno not in UNKNOWN_HERE:
                os.close(descriptor)
                raise
            logger.warning("%s: this file system knows no locks (%s): nothing keeps a second run "
                           "out of the folder", self.path.parent, error)  # fmt: skip
        if not self._is_still_there(descriptor):
            os.close(descriptor)  # whoever held it has deleted it since it was opened
            return self._take()
        self.descriptor = descriptor
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {since}"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        return None

    def _is_still_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False


def _launched_as(names: tuple[str, ...], default: int) -> int:
    """A number that a launcher gives its processes; words are refused elsewhere."""
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdecimal()), default)
