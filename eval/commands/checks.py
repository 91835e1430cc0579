"""What every command's flags are checked for before anything is opened: texts, numbers, outputs."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from modules.builders.first_checks import require_place
from modules.builders.output_dir import require_permission
from modules.config.arguments import Arguments
from modules.config.command_line import resolve_arguments
from modules.config.limits import shown, wrong_text
from modules.errors import ArgumentError

FILES = ("json", "markdown", "report", "grid", "latents", "out")
PICTURES = ("grid", "out")
POSITIONAL = {"picture": "IN", "out": "OUT"}
FOLDERS = ("output", "output_dir")
INPUTS = ("model", "data", "reference")
READ = (*INPUTS, "data_cache_dir", "lpips_weights", "inception_weights", "picture", "from_latents")
PATHS = (*FILES, *FOLDERS, *READ)


def integer(minimum: int, maximum: int = 10**9) -> Callable[[str], int]:
    """The `type` of a flag that is an integer within limits."""

    def read(text: str) -> int:
        value = int(text)
        if not minimum <= value <= maximum:
            limits = f"at least {minimum} and at most {maximum:,}"
            raise argparse.ArgumentTypeError(f"{shown(text)} must be {limits}")
        return value

    read.__name__ = "int"  # in argparse's own messages
    return read


def check_texts(args: argparse.Namespace) -> None:
    """Expands "~" in paths.

    Raises ArgumentError for a text that is empty or cannot be written, and for an input that is not
    there.
    """
    for name, value in vars(args).items():
        texts = value if isinstance(value, list) else [value]
        if name in ("command", "training_flags") or not all(isinstance(t, str) for t in texts):
            continue
        for text in texts:
            if (wrong := wrong_text(text, name in PATHS)) is not None:
                raise ArgumentError(f"{_flag(name)}={shown(text)} {wrong}")
        if name in PATHS:
            homes = [os.path.expanduser(text) for text in texts]
            setattr(args, name, homes if isinstance(value, list) else homes[0])
            for home in homes if name in INPUTS else ():
                require_place(name, home)


def measured_arguments(training_flags: Sequence[str]) -> Arguments:
    """The script's arguments, without trackers and validation images.

    Precision is bfloat16 unless a flag or the recipe says otherwise, as in accelerate_config.yaml.
    Raises ArgumentError naming flag, value and fix.
    """
    alone = ["--report_to", "none", "--num_validation_images", "0", "--early_stopping", "0"]
    args = resolve_arguments([*training_flags, *alone])
    if args.precision.mixed_precision is None:
        args = replace(args, precision=replace(args.precision, mixed_precision="bf16"))
    return args


def prepare_outputs(args: argparse.Namespace) -> None:
    """Makes the folders of files that are to be written, so that nothing is measured in vain.

    Raises ArgumentError for what cannot be written, and for two outputs in one file.
    """
    chosen = vars(args)
    files = {name: Path(chosen[name]) for name in FILES if chosen.get(name)}
    folders = {name: Path(chosen[name]) for name in FOLDERS if chosen.get(name)}
    for name, path in [*files.items(), *folders.items()]:
        try:
            _prepare_file(path) if name in files else require_permission(path)
        except OSError as error:
            raise ArgumentError(f"{_flag(name)}={path} cannot be written to ({error})") from error
    real = [path.resolve() for path in files.values() if path.is_file() or not path.exists()]
    if len(set(real)) < len(real):
        flags = ", ".join(map(_flag, files))
        raise ArgumentError(f"{flags} name one file twice; give each a file of its own")
    for name in files.keys() & set(PICTURES):
        kind = Image.registered_extensions().get(files[name].suffix.lower())
        if kind not in Image.SAVE:
            raise ArgumentError(
                f"{_flag(name)}={files[name]} must end in what names a picture, such as .png or "
                ".jpg"
            )


def _flag(name: str) -> str:
    return POSITIONAL.get(name, f"--{name}")


def _prepare_file(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise PermissionError(f"no permission to write to {path}")
        return  # it may be one such as /dev/stdout
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass
