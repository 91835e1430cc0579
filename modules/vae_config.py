"""What a config.json says of an autoencoder, and the network it describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modules.vae_sources import UnusableModel

Config = dict[str, Any]


def parse_config(text: str, name: str) -> Config:
    """The JSON object in `text`, which messages call `name`. Raises UnusableModel."""
    try:
        config = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UnusableModel(f"{name} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise UnusableModel(f"{name} is not a JSON object")
    return config


def read_config(file: Path, name: str) -> Config:
    """The JSON object in `file`, which messages call `name`. Raises UnusableModel."""
    try:
        return parse_config(file.read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableModel(f"{name} cannot be read: {error}") from error


def is_autoencoder_kl(config: Config) -> bool:
    """Whether a config.json describes one: by its class, or in files without it, by its entries."""
    if "_class_name" in config:
        return config["_class_name"] == "AutoencoderKL"
    return "latent_channels" in config and "block_out_channels" in config
