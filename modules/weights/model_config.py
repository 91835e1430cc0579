"""What a config.json says, and whether it is an AutoencoderKL that can be built and run here."""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
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


def parse_config(content: str | bytes, name: str) -> Config:
    """The JSON object in `content`, which messages call `name`. Raises UnusableModel."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnusableModel(f"{name} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise UnusableModel(f"{name} is not a JSON object")
    return config


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
    for name, right, wanted in _rules(config):
        if not right:
            raise UnusableModel(f"{name} is {str(config[name])[:80]} and must be {wanted}")


def _rules(config: Config) -> Iterator[tuple[str, bool, str]]:
    """An entry, whether it is right, and what it must be; each relies on those before it."""
    for name, largest in LARGEST.items():
        yield name, _is_count(config[name], largest), f"an integer from 1 to {largest}"
    widths, channels = config["block_out_channels"], config["latent_channels"]
    right = _is_list(widths) and 1 <= len(widths) <= MOST_LEVELS
    right = right and all(_is_count(width, WIDEST) for width in widths)
    yield "block_out_channels", right, f"1 to {MOST_LEVELS} integers from 1 to {WIDEST}"
    right = all(width % config["norm_num_groups"] == 0 for width in widths)
    yield "norm_num_groups", right, f"a divisor of every one of block_out_channels {list(widths)}"
    for name, known in BLOCKS.items():
        right = _is_list(config[name]) and len(config[name]) == len(widths)
        yield name, right, f"a list of {len(widths)} names, as block_out_channels has"
        yield name, all(block in known for block in config[name]), f"of {' and '.join(known)}"
    for name in SWITCHES:
        yield name, config[name] in (True, False, None), "true or false"
    side = config["sample_size"]
    yield "sample_size", _is_number(side) or _is_list(side), "a number"
    yield "act_fn", isinstance(config["act_fn"], str), "the name of an activation"
    given, factor, shift = (
        config[name] for name in ("in_channels", "scaling_factor", "shift_factor")
    )
    right = _is_count(given, max(MODES)) and given in MODES
    yield "in_channels", right, "1 (grey), 3 (RGB) or 4 (RGBA)"
    yield "out_channels", config["out_channels"] == given, f"{given}, as in_channels is"
    yield "scaling_factor", _is_number(factor) and factor != 0, "a number other than 0"
    yield "shift_factor", shift is None or _is_number(shift), "null or a number"
    for name in ("latents_mean", "latents_std"):
        numbers = config[name]
        right = numbers is None or (
            _is_list(numbers) and len(numbers) == channels and all(map(_is_number, numbers))
        )
        yield name, right, f"null or {channels} numbers, as latent_channels says"
    spread = config["latents_std"] or ()
    yield "latents_std", all(std > 0 for std in spread), "above 0 in every channel"


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_count(value: object, largest: int) -> bool:
    return type(value) is int and 1 <= value <= largest


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
