"""The two ways in which a run ends with a message instead of a traceback, and what ends none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

logger = logging.getLogger(__name__)


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
        reason = (str(error).strip().splitlines() or [""])[0]
        _say(what, f"{type(error).__name__}: {reason}")


@lru_cache(maxsize=256)
def _say(what: str, reason: str) -> None:
    logger.warning("%s could not be written (%s); the run goes on without", what, reason)
