"""Reading and writing files of tensors: nothing in them is run, and none is left half written."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modules.errors import LIBRARY_ERRORS, one_line

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


class UnreadableTensors(ValueError):
    """A file of tensors is damaged, of an unknown kind, or needs code to be read."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a safetensors or pickle file, and a safetensors file's metadata.

    Nested dictionaries become dotted names; anything in them that is not a tensor is left out.
    Pickles are read with `weights_only=True`, so nothing in them runs. The tensors of a safetensors
    file stay on disk until they are touched. Raises UnreadableTensors.
    """
    suffix = path.suffix.lower()
    if suffix not in SAFETENSORS + PICKLES:
        known = ", ".join(SAFETENSORS + PICKLES)
        raise UnreadableTensors(f"{path.name} is of an unknown file type; expected {known}")
    with path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise UnreadableTensors(
                f"{path.name} is a Git LFS pointer, not weights; run `git lfs pull` there"
            )
    try:
        return _read_safetensors(path) if suffix in SAFETENSORS else (_read_pickle(path), {})
    except pickle.UnpicklingError as error:
        raise UnreadableTensors(
            f"{path.name} is refused: it is damaged, or holds Python objects besides tensors, "
            "which could run code when read; use a .safetensors version, or save its tensors alone "
            f"({one_line(error)})"
        ) from error
    except (SafetensorError, *LIBRARY_ERRORS) as error:
        raise UnreadableTensors(
            f"{path.name} is damaged or incomplete ({path.stat().st_size} bytes); download or save "
            f"it again ({one_line(error)})"
        ) from error


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file that is complete or not there, and that others may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")  # one name: a kill leaves one at most
    try:
        contiguous = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"format": "pt", **(metadata or {})})
        temporary.chmod(0o644)  # safetensors writes for the owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
        return tensors, file.metadata() or {}


def _read_pickle(path: Path) -> dict[str, Tensor]:
    return dict(_flatten(torch.load(path, map_location="cpu", weights_only=True)))


def _flatten(content: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        return [(prefix, content)]
    if not isinstance(content, Mapping):
        return []
    inner = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in content.items()]
    return [pair for name, value in inner for pair in _flatten(value, name)]
