"""What a config.json says of an autoencoder, and the network it describes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL

from modules.vae_sources import UnusableModel

logger = logging.getLogger(__name__)

Config = dict[str, Any]

BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}


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


def build_from_config(config: Mapping[str, Any]) -> AutoencoderKL:
    """The network, with random weights. Raises UnusableModel for what cannot be trained here.

    diffusers checks little of this: levels that do not match or are a U-Net's fail in a forward.
    """
    levels = {
        name: len(config[name]) if isinstance(config.get(name), list | tuple) else 1
        for name in (*BLOCKS, "block_out_channels")
    }
    if len(set(levels.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in levels.items())
        raise UnusableModel(f"its configuration gives different numbers of levels: {counts}")
    for name, known in BLOCKS.items():
        strange = [block for block in config.get(name, known) if block not in known]
        if strange:
            raise UnusableModel(f"its {name} names {strange[0]}; known are {' and '.join(known)}")
    if config.get("scaling_factor", 1.0) is None:
        logger.warning("its scaling_factor is null and taken as 1: latents as they are")
        config = {**config, "scaling_factor": 1.0}
    try:
        vae = AutoencoderKL.from_config(dict(config))
    except Exception as error:  # a constructor may fail in any way on a foreign file's values
        raise UnusableModel(f"its configuration describes no AutoencoderKL: {error}") from error
    if (vae.config.in_channels, vae.config.out_channels) != (3, 3):
        raise UnusableModel(
            f"it takes images of {vae.config.in_channels} channels and gives images of "
            f"{vae.config.out_channels}; only RGB is supported, 3 and 3"
        )
    return vae
