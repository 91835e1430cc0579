"""What a config.json says, and whether it is an AutoencoderKL that can be built and run here."""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from modules.errors import blaming
from modules.image_modes import MODES
from modules.weights.tensor_files import UnusableModel

logger = logging.getLogger(__name__)

Config = dict[str, Any]

LARGEST = {"latent_channels": 4096, "layers_per_block": 32, "norm_num_groups": 16384}
WIDEST, MOST_LEVELS = 16384, 12
BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}
SWITCHES = ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")
DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(AutoencoderKL.__init__).parameters.items()
}
PROBE = 4  # side of the latents that are tried out


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


def network_of(config: Mapping[str, Any], what: str) -> AutoencoderKL:
    """The AutoencoderKL that a configuration describes, without memory for its weights.

    It is built and tried out on PyTorch's meta device. what: flag and value, for the ArgumentError
    that is raised where an entry makes no sense, the network does not run or has no room here.
    """
    if config.get("scaling_factor", 1.0) is None:
        logger.warning("its scaling_factor is null and taken as 1: latents as they are")
        config = {**config, "scaling_factor": 1.0}
    with blaming(what, "mend its config.json"):
        check_config(config)
        with torch.device("meta"):
            vae = AutoencoderKL.from_config(dict(config))
            side = PROBE * 2 ** (len(vae.config.block_out_channels) - 1)
            vae(torch.empty(1, vae.config.in_channels, side, side))
        require_room(vae)
    return vae


def require_room(network: nn.Module) -> None:
    """Raises UnusableModel where a network's weights alone exceed this machine's memory."""
    needed = 4 * sum(parameter.numel() for parameter in network.parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UnusableModel(
            f"its weights take {needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB"
        )


def check_config(config: Mapping[str, Any]) -> None:
    """Raises UnusableModel naming the first entry that is of a wrong type or without sense."""
    config = DEFAULTS | dict(config)
    for name, largest in LARGEST.items():
        _require(_is_count(config[name], largest), config, name, f"an integer from 1 to {largest}")
    widths = config["block_out_channels"]
    _require(
        _is_list(widths) and 1 <= len(widths) <= MOST_LEVELS
        and all(_is_count(width, WIDEST) for width in widths),
        config, "block_out_channels", f"1 to {MOST_LEVELS} integers from 1 to {WIDEST}",
    )  # fmt: skip
    _require(
        all(width % config["norm_num_groups"] == 0 for width in widths),
        config, "norm_num_groups", f"a divisor of every one of block_out_channels {list(widths)}",
    )  # fmt: skip
    for name in ("down_block_types", "up_block_types"):
        right = _is_list(config[name]) and len(config[name]) == len(widths)
        _require(right, config, name, f"a list of {len(widths)} names, as block_out_channels has")
        known = all(block in BLOCKS[name] for block in config[name])
        _require(known, config, name, f"of {' and '.join(BLOCKS[name])}")
    for name in SWITCHES:
        _require(config[name] in (True, False, None), config, name, "true or false")
    side = config["sample_size"]
    _require(_is_number(side) or _is_list(side), config, "sample_size", "a number")
    _require(isinstance(config["act_fn"], str), config, "act_fn", "the name of an activation")
    right = _is_count(config["in_channels"], max(MODES)) and config["in_channels"] in MODES
    _require(right, config, "in_channels", "1 (grey), 3 (RGB) or 4 (RGBA)")
    given = config["in_channels"]
    _require(config["out_channels"] == given, config, "out_channels", f"{given}, as in_channels is")
    factor, shift = config["scaling_factor"], config["shift_factor"]
    _require(_is_number(factor) and factor != 0, config, "scaling_factor", "a number other than 0")
    _require(shift is None or _is_number(shift), config, "shift_factor", "null or a number")
    channels = config["latent_channels"]
    for name in ("latents_mean", "latents_std"):
        right = config[name] is None or (
            _is_list(config[name]) and len(config[name]) == channels
            and all(map(_is_number, config[name]))
        )  # fmt: skip
        _require(right, config, name, f"null or {channels} numbers, as latent_channels says")
    spread = config["latents_std"] or ()
    _require(all(std > 0 for std in spread), config, "latents_std", "above 0 in every channel")


def _require(right: bool, config: Mapping[str, Any], name: str, wanted: str) -> None:
    if not right:
        raise UnusableModel(f"{name} is {str(config[name])[:80]} and must be {wanted}")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_count(value: object, largest: int) -> bool:
    return type(value) is int and 1 <= value <= largest


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
