"""Entries of a model's config.json changed in place, everything else left as it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.output.durable import replacing, where_supported
from modules.weights.model_config import parse_config


def config_path(model: str) -> Path:
    """The config.json of the VAE in a folder, which may be a pipeline's.

    Raises ValueError for what is not a local folder with a VAE: `--write` has nowhere to write.
    """
    for folder in (Path(model), Path(model) / "vae"):
        file = folder / "config.json"
        if file.is_file():
            if not (os.access(file, os.W_OK) and os.access(folder, os.W_OK)):
                raise ValueError(f"--write: no permission to write to {file}")
            return file
    raise ValueError(
        f"--write needs a local folder with a config.json, --model={model} has none; save the "
        "model with save_pretrained first"
    )


def update_config(file: Path, entries: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Sets `entries` and returns those that changed, as name: (before, after); others stay."""
    config = parse_config(file.read_bytes(), str(file))
    with replacing(file) as partial:
        partial.write_text(json.dumps({**config, **entries}, indent=2) + "\n", encoding="utf-8")
        with where_supported():
            shutil.copymode(file, partial)
    return {name: (config.get(name), value) for name, value in entries.items()
            if name not in config or config[name] != value}  # fmt: skip
