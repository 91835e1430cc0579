"""The two ways in which a run ends with a message instead of a traceback, and what ends none."""

from __future__ import annotations

import logging
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

logger = logging.getLogger(__name__)

# What libraries raise for bad files and bad values. Not MemoryError, and nothing that is no error.
LIBRARY_ERRORS = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError,
    ImportError, EOFError, AssertionError, struct.error, pickle.PickleError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # which colour a terminal


class ArgumentError(ValueError):
    """Something the user asked for cannot be done; names the flag, its value and the fix."""


class RunStopped(RuntimeError):
    """The run cannot go on; says why, and what of it is intact."""


@contextmanager
def dispensable(
    what: str, failures: type[Exception] | tuple[type[Exception], ...] = OSError
) -> Iterator[None]:
    """Goes on without `what` where it fails with one of `failures`.

    For what tells of a run, and not for what it is made of: no picture or row is worth the steps
    since the last checkpoint. Each cause is said once.
    """
    try:
        yield
    except failures as error:
        reason = str(error).strip().partition("\n")[0]
        _say(what, f"{type(error).__name__}: {reason}")


@lru_cache(maxsize=256)
def _say(what: str, reason: str) -> None:
    logger.warning("%s could not be written (%s); the run goes on without", what, reason)


@contextmanager
def blaming(what: str, fix: str, *more: type[Exception]) -> Iterator[None]:
    """Turns what a library raises over a bad file or value into one ArgumentError.

    what: flag and value, "--flag=value". more: errors of the library besides LIBRARY_ERRORS. For
    the few calls that open what a flag names, never around training.
    """
    try:
        yield
    except (ArgumentError, RunStopped):
        raise
    except (*LIBRARY_ERRORS, *more) as error:
        cause = "" if error.__cause__ is None else f" ({one_line(error.__cause__)})"
        if isinstance(error, ImportError):  # such as aiohttp for http://, s3fs for s3://
            fix = "install that with pip"
        raise ArgumentError(f"{what}: {one_line(error)}{cause}; {fix}") from error


def one_line(error: BaseException, width: int = 300) -> str:
    """What an error says, on one line; its kind where it says little, as a KeyError does."""
    text = " ".join(ESCAPES.sub("", str(error)).split())
    if not text or isinstance(error, LookupError | AssertionError | AttributeError | TypeError):
        text = f"{type(error).__name__} {text}".rstrip()
    return text if len(text) <= width else f"{text[:width]}..."
