"""Flags from the command line, a recipe and a YAML file, checked before anything slow is imported.

Precedence: a field's default < `--recipe` (of several, a later one) < `--config` < flags, also
across flags that answer the same question. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import logging
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from modules.config.arguments import FLAGS, GROUPS, Arguments, Launch
from modules.config.config_file import from_yaml, read_config
from modules.config.limits import Length, expanded, number, require, shown
from modules.config.precedence import overlay
from modules.config.terminal import typed_command
from modules.errors import ArgumentError

# What other programs call it.
SHORT = {"lr": "learning_rate", "epochs": "num_train_epochs", "steps": "max_train_steps",
         "batch_size": "train_batch_size", "resume": "resume_from_checkpoint"}  # fmt: skip
HINTS = {name: hint for group in GROUPS.values()
         for name, hint in typing.get_type_hints(group).items()}  # fmt: skip
RECIPES = Path(__file__).parent / "recipes"


def show_messages() -> None:
    """Shows the trainer's own messages, and only warnings of the libraries; once over processes."""
    main_process = os.environ.get("RANK", "0") == "0"
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(format=form, datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("modules").setLevel(logging.INFO if main_process else logging.ERROR)


def resolve_arguments(argv: Sequence[str]) -> Arguments:
    """The arguments that `argv` asks for. Raises ArgumentError naming flag, value and fix."""
    given = vars(_parser().parse_args(argv))
    recipes, config = tuple(given.pop("recipe", ())), given.pop("config", None)
    dry_run = given.pop("dry_run", None)
    values: dict[str, Any] = {}
    for recipe in recipes:
        names = recipe_names()
        require(recipe in names, "recipe", recipe, f"is not one of {', '.join(names)}")
        values = overlay(values, _read_yaml(RECIPES / f"{recipe}.yaml", "--recipe"))
    named = set(given)
    if config is not None:
        configured = _read_yaml(Path(os.path.expanduser(config)), "--config")
        values, named = overlay(values, configured), named | set(configured)
    values = overlay(values, given)
    values = {name: expanded(FLAGS[name], value) for name, value in values.items()}
    groups = {
        name: group(**{f.name: values[f.name] for f in fields(group) if f.name in values})
        for name, group in GROUPS.items()
    }
    launch = Launch(dry_run, recipes, frozenset(named), typed_command(argv))
    return Arguments(**groups, launch=launch)


def to_yaml(arguments: Arguments, history: Sequence[Mapping[str, Any]] = ()) -> str:
    """The resolved configuration, which `--config` reads back to an equal object.

    history: at which steps the run was resumed with other flags, as in a checkpoint; comments.
    """
    comments = [
        f"# From step {change['step']} on: {name}: {json.dumps(now)} (before: {json.dumps(before)})"
        for change in history
        for name, (before, now) in change["flags"].items()
    ]
    values = arguments.as_dict().items()
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values}
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return "".join(f"{line}\n" for line in comments) + text


def for_trackers(arguments: Arguments) -> dict[str, Any]:
    """The resolved configuration as the plain scalars that every tracker takes."""
    values = arguments.as_dict().items()
    return {name: value if isinstance(value, int | float | bool) else str(value)
            for name, value in values}  # fmt: skip


def recipe_names() -> list[str]:
    """The shipped recipes, by name."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


class _Parser(argparse.ArgumentParser):
    """argparse that raises ArgumentError instead of printing its long usage line."""

    def error(self, message: str) -> typing.NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            name = unknown.split()[0].split("=")[0]
            raise ArgumentError(f"{name} is not a flag{_suggestion(name.lstrip('-'), '--')}")
        raise ArgumentError(shown(message.removeprefix("argument "), 400))


class _Switch(argparse.Action):
    """`--name` sets True and `--no_name` sets False."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__([f"--{dest}", f"--no_{dest}"], dest, nargs=0, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, not (option or "").startswith("--no_"))


@cache
def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="train_vae.py",
        description="Train an image autoencoder (AutoencoderKL) that diffusers loads.",
        argument_default=argparse.SUPPRESS,  # only what was given, so that it can win over YAML
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=100),
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        nargs="+",
        action="extend",
        help=f"start from a shipped recipe, {', '.join(recipe_names())}; of several, what a later "
        "one sets wins",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags; flags given win")
    parser.add_argument(
        "--dry_run",
        nargs="?",
        const="short",
        choices=("short", "full"),
        help="count the images, predict steps, memory and disk, and stop; full: with every flag",
    )
    for group in GROUPS.values():
        section = parser.add_argument_group(group.__doc__)
        for f in fields(group):
            section.add_argument(f"--{f.name}", **_options(f))
    return parser


def _options(f: dataclasses.Field) -> dict[str, Any]:
    """What `add_argument` is told of a flag."""
    default = f.default
    if default is None or isinstance(default, bool):
        default = {None: "unset", True: "on", False: "off"}[default]
    text = f"{f.metadata['help']} (default: {default})".replace("%", "%%")
    kind, is_list = value_type(f.name)
    if kind is bool:
        return {"action": _Switch, "help": text}
    choices = f.metadata["choices"]
    metavar = None if choices else kind.__name__.upper()
    return {"type": kind, "nargs": "+" if is_list else None, "choices": choices,
            "metavar": metavar, "help": text}  # fmt: skip


def value_type(name: str) -> tuple[Callable[..., Any], bool]:
    """What makes a value of the flag from a text, and whether it takes several of them."""
    hint = HINTS[name]
    if hint == Length:
        return number, False
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    is_list = typing.get_origin(hint) is tuple
    return typing.get_args(hint)[0] if is_list else hint, is_list


def _read_yaml(file: Path, flag: str) -> dict[str, Any]:
    """The flags that a YAML file sets, with their types checked as the command line's are."""
    values = {}
    for key, value in read_config(file, flag).items():
        if key not in FLAGS:
            name = shown(repr(key))
            raise ArgumentError(f"{shown(file)}: {name} is not a flag{_suggestion(str(key), '')}")
        values[key] = from_yaml(file, FLAGS[key], *value_type(key), value)
    return values


def _suggestion(name: str, prefix: str) -> str:
    known = [*FLAGS, "recipe", "config", "dry_run"]
    close = [SHORT[name]] if name in SHORT else []
    longer = [flag for flag in known if flag.startswith(name)]
    close += longer if len(longer) == 1 else []
    close += difflib.get_close_matches(name[:100], known, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else "; see --help"
