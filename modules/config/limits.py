"""A flag, and what its value may be: declared side by side, checked in one place for all."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from modules.errors import ArgumentError

LARGEST = 10**15  # of any number: a float still holds it exactly
LONGEST = 4096  # characters of a text; Linux takes no longer path
LONGEST_NAME = 255  # bytes of one name in a path
SHARE = "a share of the run, above 0 and below 1"
Length = int | float  # optimizer steps, or a share of all of them


@dataclass(frozen=True)
class Limits:
    """Of a number, never negative: `minimum` and `maximum` are allowed, `above` and `below` not.

    length: a whole number within them is in steps, and any other is a share of the run.
    path: the text names a file or folder (or what is none, such as a hub id): "~" is expanded.
    secret: the value is never shown.
    """

    minimum: float = 0
    maximum: float = LARGEST
    above: float | None = None
    below: float | None = None
    length: bool = False
    path: bool = False
    secret: bool = False

    def rule(self) -> str:
        """Such as "at least 0 and below 1"."""
        least = self.minimum if self.above is None else None
        most = self.maximum if self.below is None else None
        named = (("at least", least), ("above", self.above), ("below", self.below),
                 ("at most", most))  # fmt: skip
        rule = " and ".join(
            f"{word} {limit:,}" if isinstance(limit, int) else f"{word} {limit:g}"
            for word, limit in named
            if limit is not None
        )
        return f"a whole number of steps, {rule}, or {SHARE}" if self.length else rule

    def wrong(self, value: object) -> str | None:
        """What is wrong with a value, to follow "--flag=value "; None where it is within them."""
        if isinstance(value, str):
            return wrong_text(value, self.path)
        fine = value is None or isinstance(value, bool) or self.allow(value)
        return None if fine else f"must be {self.rule()}"

    def allow(self, number: float) -> bool:
        """Whether a number is within the limits; NaN never is."""
        if self.length and isinstance(number, float):
            return 0 < number < 1
        return (
            self.minimum <= number <= self.maximum
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


@dataclass(frozen=True)
class FlagGroup:
    """Flags of one title of `--help`, which is its docstring; each value keeps to its limits."""

    def __post_init__(self) -> None:
        """Raises ArgumentError naming flag, value and rule.

        Numbers are finite and within their limits; lists are not empty; texts are not empty, can
        be printed on one line and written as UTF-8.
        """
        for f in fields(self):
            value, limits = getattr(self, f.name), f.metadata["limits"]
            if value == ():
                raise ArgumentError(f"--{f.name} needs at least one value, or leave it out")
            for part in value if isinstance(value, tuple) else (value,):
                if wrong := limits.wrong(part):
                    text = "..." if limits.secret else shown(part)
                    raise ArgumentError(f"--{f.name}={text} {wrong}")

    def require(self, condition: bool, name: str, rule: str) -> None:
        """Raises ArgumentError("--name=value rule") unless `condition` holds."""
        require(condition, name, getattr(self, name), rule)


def wrong_text(text: str, is_path: bool) -> str | None:
    """What is wrong with a text from the command line, to follow "--flag=value "; or None."""
    if not text.strip():
        return "is empty; give a value, or leave the flag out"
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        return "is not valid UTF-8, which the files of a run are written in; rename it"
    if _breaks_lines(text):
        return "must not hold line breaks, NUL or other control characters"
    if len(text) > LONGEST:
        return f"must have at most {LONGEST} characters"
    if is_path and any(len(name.encode()) > LONGEST_NAME for name in text.split("/")):
        return f"has a name in it of more than {LONGEST_NAME} bytes, which no file can have"
    return None


def _breaks_lines(text: str) -> bool:
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)


def expanded(f: Field, value: Any) -> Any:
    """The value of a flag, a list as a tuple, and "~" expanded where it names files or folders."""
    if isinstance(value, list):
        return tuple(expanded(f, part) for part in value)
    return os.path.expanduser(value) if f.metadata["limits"].path and value else value


def shown(value: object, width: int = 120) -> str:
    """A value on one line, shortened in the middle where it is long."""
    text = str(value)
    if _breaks_lines(text):
        text = repr(text)
    return text if len(text) <= width else f"{text[: width // 2]}...{text[-width // 4 :]}"


def flag(default: Any, help: str, choices: Sequence[Any] | None = None, **limits: Any) -> Any:
    """A dataclass field whose default, help and choices become the command line's.

    limits: those of `Limits`, which every value keeps to.
    """
    metadata = {"help": help, "choices": choices, "limits": Limits(**limits)}
    return field(default=default, metadata=metadata)


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raises ArgumentError("--name=value rule") unless `condition` holds."""
    if not condition:
        raise ArgumentError(f"--{name}={shown(value)} {rule}")


def in_steps(length: Length, steps: int) -> int:
    """A length in optimizer steps, of a run of `steps` of them; a share is at least one."""
    return max(1, round(length * steps)) if isinstance(length, float) else length


def number(value: str | Length) -> Length:
    """What a text says of a length, as an integer wherever it looks like one; ValueError."""
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        return float(value)
