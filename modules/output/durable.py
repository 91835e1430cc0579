"""What makes a written file whole and lasting, on every kind of drive."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How exFAT, SMB, NFS and FUSE drives say that they do not know an operation.
UNKNOWN_TO_DRIVE = {
    errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS,
    errno.EBADF, errno.EISDIR, errno.ENOTTY,
}  # fmt: skip


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to, beside `file`; what it holds in the end becomes `file`, in one step.

    A failure leaves `file` as it was and nothing beside it, a kill at most one partial file.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def where_supported() -> Iterator[None]:
    """Goes without an operation that the drive does not know; every other failure is raised."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNKNOWN_TO_DRIVE:
            raise


def sha256(file: Path) -> str:
    """Of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    with where_supported():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
