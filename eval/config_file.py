"""Entries of a model's config.json changed in place, everything else left as it is."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.durable import where_supported


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
    """Sets `entries` and returns those that changed, as name: (before, after).

    The order and all other entries stay. The file is replaced in one step, so that a reader never
    sees half of it. Raises ValueError when it does not hold a JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} does not hold a model's configuration")
    changed = {
        name: (config.get(name), value)
        for name, value in entries.items()
        if name not in config or config[name] != value
    }
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".config-")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(json.dumps({**config, **entries}, indent=2) + "\n")
    with where_supported():
        os.chmod(temporary, file.stat().st_mode & 0o777)
    os.replace(temporary, file)
    return changed
