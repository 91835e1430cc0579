"""The two ways in which a run ends with a message instead of a traceback."""

from __future__ import annotations


class ArgumentError(ValueError):
    """Something the user asked for cannot be done; names the flag, its value and the fix."""


class RunStopped(RuntimeError):
    """The run cannot go on; says why, and what of it is intact."""
