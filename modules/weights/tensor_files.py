"""Reading and writing files of tensors: nothing in them is run, and none is left half written."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modules.errors import LIBRARY_ERRORS, one_line
from modules.output.durable import replacing, where_supported

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


class UnusableModel(ValueError):
    """A file, folder or repository does not give the tensors asked for; says why, and the fix."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a safetensors or pickle file, and a safetensors file's metadata.

    The content says which it is: downloads are often misnamed. Nested dictionaries become dotted
    names; anything in them that is not a tensor is left out. Pickles are read with
    `weights_only=True`, so nothing in them runs. The tensors of a safetensors file stay on disk
    until they are touched. Raises UnusableModel.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
            if start[8:9] == b"{":  # after the header's length, which may begin with any byte
                with safe_open(path, framework="pt") as content:
                    names, metadata = list(content.keys()), content.metadata() or {}
                    return {name: content.get_tensor(name) for name in names}, metadata
            if start.startswith((b"PK\x03\x04", b"\x80")):
                file.seek(0)  # and no path, of which torch would judge by the suffix
                return dict(_flatten(torch.load(file, map_location="cpu", weights_only=True))), {}
    except pickle.UnpicklingError as error:
        raise UnusableModel(
            f"{path.name} is refused: it is damaged, or holds Python objects besides tensors, "
            "which could run code when read; use a .safetensors version, or save its tensors alone "
            f"({one_line(error)})"
        ) from error
    except (SafetensorError, *LIBRARY_ERRORS) as error:
        raise UnusableModel(
            f"{path.name} is damaged or incomplete ({path.stat().st_size} bytes); download or save "
            f"it again ({one_line(error)})"
        ) from error
    raise UnusableModel(f"{path.name} is {_what_else(start)}")


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file that is complete or not there, and that others may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
    with replacing(path) as partial:
        save_file(contiguous, partial, metadata={"format": "pt", **(metadata or {})})
        with where_supported():
            partial.chmod(0o644)  # safetensors writes for the owner alone


def _what_else(start: bytes) -> str:
    """What a file that begins so is, and what to do about it."""
    if not start:
        return "empty, so damaged or incomplete; download or save it again"
    if start.startswith(b"version https://git-lfs."):
        return "a Git LFS pointer, not weights; run `git lfs pull` there"
    if start.lstrip().startswith(b"<"):
        return "a web page, not weights; download it again, logged in if the page asks for that"
    if start.lstrip().startswith(b"{"):
        return "JSON, not weights; give the folder that it lies in"
    known = ", ".join(SAFETENSORS + PICKLES)
    return f"damaged, or of an unknown file type; expected the content of {known}"


def _flatten(content: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        return [(prefix, content)]
    if not isinstance(content, Mapping):
        return []
    inner = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in content.items()]
    return [pair for name, value in inner for pair in _flatten(value, name)]
