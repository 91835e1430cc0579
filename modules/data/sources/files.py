"""The files of a dataset: whether they are whole, and whether they are still the same ones."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import lzma
import os
import tarfile
import time
import zlib
from collections.abc import Iterable, Sequence

import pyarrow as pa
from datasets.exceptions import DatasetsError
from datasets.utils.file_utils import is_local_path
from huggingface_hub.errors import HfHubHTTPError

from modules.errors import ArgumentError, RunStopped

logger = logging.getLogger(__name__)

NUM_SIZES = 10_000  # a network drive takes a millisecond for each
NUM_NAMES = 100_000  # objects of Python at once, where the names are not
TAR_END = bytes(1024)
WAITS = (2.0, 10.0, 30.0)  # seconds before what failed on its way is tried again
# What a connection that fails raises. The Hub's own error is derived from that of the library it
# sends requests with, which is not the same one in all of its versions.
NETWORK_ERRORS = (ConnectionError, TimeoutError, asyncio.TimeoutError, HfHubHTTPError.__bases__[0])
# What reading a file that is missing, cut off, of another kind or out of reach raises.
READ_ERRORS = (*NETWORK_ERRORS, OSError, EOFError, ValueError, tarfile.TarError, zlib.error,
               lzma.LZMAError, pa.ArrowException, DatasetsError)  # fmt: skip


def wait_to_retry(reason: str, failures: int, error: Exception) -> None:
    """Waits, and says so, before what failed on its way is tried again.

    reason: what could not be read, and why. failures: how often it was waited for already. Raises
    RunStopped from `error` when that was as often as there are WAITS.
    """
    if failures == len(WAITS):
        raise RunStopped(
            f"{reason}. Look after the connection, then continue with "
            "--resume_from_checkpoint latest"
        ) from error
    logger.warning("%s; trying again in %g s", reason, WAITS[failures])
    time.sleep(WAITS[failures])


def fingerprint(paths: Sequence[str | bytes] | pa.Array, more: Iterable[object] = ()) -> str:
    """A digest of the files' names, in order, and of their sizes; contents are not read.

    paths: names count from the folder that all files share, so that it may be moved. Of more than
    NUM_SIZES files, the sizes are those of as many, evenly spread; files that are not on this
    machine have none. more: what else tells versions apart, such as ETags.
    """
    count = len(paths)
    runs = [paths[start : start + NUM_NAMES] for start in range(0, count, NUM_NAMES)]
    ends = [end(_names(run)) for run in runs for end in (min, max)]
    shared = len(os.path.commonprefix(ends).rpartition(b"/")[0]) if ends else 0  # noqa: RUF071
    digest = hashlib.blake2b(digest_size=16)
    for number, run in enumerate(runs):
        digest.update(b"\0" * bool(number) + b"\0".join(name[shared:] for name in _names(run)))
    sizes = [_size(name) for name in _names(paths[:: -(-count // NUM_SIZES) or 1])]
    digest.update(repr((count, sizes, [str(part) for part in more])).encode())
    return digest.hexdigest()


def _names(paths: Sequence[str | bytes] | pa.Array) -> list[bytes]:
    listed = paths.to_pylist() if isinstance(paths, pa.Array) else paths
    return [os.fsencode(path) for path in listed]


def _size(path: bytes) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def check_files(files: Sequence[str], where: str) -> None:
    """Looks at the ends of local parquet and tar files, where an interrupted copy shows.

    Raises ArgumentError, beginning with `where`, for a file that cannot be read; warns of a tar
    without the end that tars have, which may lack its last pictures.
    """
    cut = []
    for number, file in enumerate(files):
        kind = os.path.splitext(file)[1].lower()
        if kind not in (".parquet", ".tar") or not is_local_path(file):
            continue
        try:
            start, end = _both_ends(file, len(TAR_END))
        except OSError as error:
            raise ArgumentError(f"{where}: {file} cannot be read ({error})") from error
        if not end:
            raise ArgumentError(f"{where}: {file} is empty; copy it again, or remove it")
        if kind == ".parquet" and not end.endswith(b"PAR1"):
            raise ArgumentError(f"{where}: {file} is cut off; copy it again, or remove it")
        if kind == ".tar" and number == 0 and start == TAR_END:  # columns are those of the first
            raise ArgumentError(f"{where}: the first shard, {file}, holds nothing; remove it")
        if kind == ".tar" and end != TAR_END:
            cut.append(file)
    if cut:
        more = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
        logger.warning(
            "%s: %s%s has not the end that a tar has; if its copy was interrupted, its last images "
            "are missing: copy it again", where, cut[0], more,
        )  # fmt: skip


def _both_ends(file: str, count: int) -> tuple[bytes, bytes]:
    with open(file, "rb") as stream:
        start = stream.read(count)
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - count))
        return start, stream.read()
