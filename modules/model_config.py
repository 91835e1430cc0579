"""Whether a configuration describes an AutoencoderKL that can be built and run here."""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from modules.errors import blaming

logger = logging.getLogger(__name__)

LARGEST = {"latent_channels": 4096, "layers_per_block": 32, "norm_num_groups": 16384}
WIDEST, MOST_LEVELS = 16384, 12
BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}
DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(AutoencoderKL.__init__).parameters.items()
}
PROBE = 4  # side of the latents that are tried out


class UnusableConfig(ValueError):
    """A configuration that describes no AutoencoderKL; names the entry."""


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
    """Raises UnusableConfig where a network's weights alone exceed this machine's memory."""
    needed = 4 * sum(parameter.numel() for parameter in network.parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UnusableConfig(
            f"its weights take {needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB"
        )


def check_config(config: Mapping[str, Any]) -> None:
    """Raises UnusableConfig naming the first entry that is of a wrong type or without sense."""
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
    for name in ("in_channels", "out_channels"):
        _require(config[name] == 3, config, name, "3: only RGB is supported")
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
        raise UnusableConfig(f"{name} is {str(config[name])[:80]} and must be {wanted}")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_count(value: object, largest: int) -> bool:
    return type(value) is int and 1 <= value <= largest


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
