"""YAML files of flags: small, plain, and read with the types that the command line has."""

from __future__ import annotations

import stat
from collections.abc import Callable, Hashable
from dataclasses import Field
from pathlib import Path
from typing import Any

import yaml

from modules.config.limits import number, shown
from modules.errors import ArgumentError, one_line

LARGEST_FILE = 1_000_000  # bytes
# What may stand for a value: YAML reads 1e-6 as a string and 1 as an integer.
READ = {bool: (bool,), int: (int,), str: (str,), float: (str, int, float),
        number: (str, int, float)}  # fmt: skip


class _Loader(yaml.SafeLoader):
    """Plain values alone: no aliases (a few of them expand to gigabytes), no key given twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "aliases (*name) are not read; write the "
                                       "value out", self.peek_event().start_mark)  # fmt: skip
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"{shown(key.value)} is given twice",
                                           key.start_mark)  # fmt: skip
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        digits = node.value.lstrip("+-")
        if ":" in digits or (digits.startswith("0") and digits[1:].isdigit()):
            raise yaml.MarkedYAMLError(None, None, f"{shown(node.value)} would be read as another "
                                       "number; write it in decimals", node.start_mark)  # fmt: skip
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_config(file: Path, flag: str) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises ArgumentError, beginning with `flag` and the file.

    It must be a regular file of at most LARGEST_FILE bytes: each process of a run reads it again,
    which a pipe does not allow, and a device may never end.
    """
    name = f"{flag}={shown(file)}"
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ArgumentError(f"{name} is not a regular file; give one of `flag: value` lines")
        if found.st_size > LARGEST_FILE:
            raise ArgumentError(
                f"{name} has {found.st_size:,} bytes, a configuration at most {LARGEST_FILE:,}; "
                "give a file of `flag: value` lines"
            )
        with file.open("rb") as stream:
            content = yaml.load(stream.read(LARGEST_FILE + 1), _Loader)
    except FileNotFoundError:
        raise ArgumentError(f"{name} does not exist") from None
    except ArgumentError:
        raise
    except RecursionError:
        raise ArgumentError(f"{name} is nested too deeply; write `flag: value` lines") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ArgumentError(f"{name} cannot be read as YAML: {one_line(error)}") from None
    if content is None:  # nothing but comments
        return {}
    if not isinstance(content, dict):
        raise ArgumentError(f"{name} must hold `flag: value` lines")
    return content


def from_yaml(file: Path, f: Field, kind: Callable[..., Any], is_list: bool, value: Any) -> Any:
    """A value of a YAML file as the flag's type, `kind` or a list of it. Raises ArgumentError."""
    if value is None and f.default is None:
        return None
    parts = value if is_list and isinstance(value, list) else [value]
    text = "..." if f.metadata["limits"].secret else shown(repr(value))
    try:
        if any(type(part) not in READ[kind] for part in parts):
            raise ValueError
        parts = [kind(part) for part in parts]
    except (ValueError, OverflowError):
        wanted = f"a list of {kind.__name__}" if is_list else kind.__name__
        hint = "; put it in quotes" if kind is str else ""
        raise ArgumentError(f"{shown(file)}: {f.name}: {text} must be {wanted}{hint}") from None
    choices = f.metadata["choices"]
    if choices and any(part not in choices for part in parts):
        allowed = ", ".join(map(str, choices))
        raise ArgumentError(f"{shown(file)}: {f.name}: {text} must be one of {allowed}")
    return parts if is_list else parts[0]
