"""The two ways of naming an autoencoder's tensors: latent-diffusion's and diffusers'.

Latent-diffusion's layout (Rombach et al. 2022) is what A1111 and ComfyUI read and what whole
checkpoints hold under `first_stage_model.`; diffusers' is that of `AutoencoderKL`. They differ in
names, in the order of the decoder's levels, and in the shape of the attention weights: 1x1
convolutions [C, C, 1, 1] there, linear layers [C, C] here. Values and dtypes are never touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

StateDict = dict[str, Tensor]

_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {
    "conv_shortcut": "nin_shortcut"
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_OTHER_MODELS = {
    "quantize.": "a vector-quantised autoencoder (VQGAN)",
    "bn.": "FLUX.2's autoencoder (AutoencoderKLFlux2)",
}


class UnknownLayout(ValueError):
    """The tensors are not those of a KL autoencoder in a layout known here."""


class Family(NamedTuple):
    """What a published family of autoencoders says about its latents; no tensor holds it."""

    name: str
    latent_channels: int
    scaling_factor: float
    shift_factor: float | None
    sample_size: int


_SD15 = Family("Stable Diffusion 1.x/2.x", 4, 0.18215, None, 512)
_SDXL = Family("SDXL", 4, 0.13025, None, 1024)
_SD3 = Family("Stable Diffusion 3", 16, 1.5305, 0.0609, 1024)
_FLUX = Family("FLUX.1", 16, 0.3611, 0.1159, 1024)
_NEIGHBOURS = {
    "joint_blocks.": _SD3,
    "double_blocks.": _FLUX,
    "conditioner.embedders.": _SDXL,
    "cond_stage_model.": _SD15,
}


def to_ldm(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> StateDict:
    """Rename an AutoencoderKL's tensors to latent-diffusion's layout; `from_ldm` is its inverse.

    `config` is the AutoencoderKL's. Raises ValueError for attention inside the levels, which the
    two codebases compute differently, and for tensors that do not belong to an AutoencoderKL.
    """
    blocks = {*config.get("down_block_types", ()), *config.get("up_block_types", ())}
    unsupported = sorted(blocks - {"DownEncoderBlock2D", "UpDecoderBlock2D"})
    if unsupported:
        raise ValueError(f"block types {unsupported} have no counterpart in latent-diffusion")

    levels = len(config["block_out_channels"])
    modules = _ldm_names(levels, int(config["layers_per_block"]) + 1)
    renamed: StateDict = {}
    for key, tensor in state_dict.items():
        module, _, leaf = key.rpartition(".")
        if module not in modules:
            raise ValueError(f"{key} is not a tensor of an AutoencoderKL with {levels} levels")
        is_attention_weight = ".attn_1." in modules[module] and tensor.ndim == 2
        renamed[f"{modules[module]}.{leaf}"] = (
            tensor[:, :, None, None] if is_attention_weight else tensor
        )
    return renamed


def from_ldm(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Find the autoencoder among the tensors of a checkpoint and give it diffusers' names.

    Accepts latent-diffusion's layout, diffusers', and diffusers' with its old attention names
    (`query`, `key`, `value`, `proj_attn`), behind any prefix (`first_stage_model.`, `vae.`, ...),
    alone or inside a whole checkpoint. Raises UnknownLayout if there is not exactly one.
    """
    return rename_to_diffusers(select_vae(state_dict))


def select_vae(state_dict: Mapping[str, Tensor]) -> StateDict:
    """The tensors of the one autoencoder inside a checkpoint, without their common prefix."""
    prefix = find_prefix(state_dict)
    inside = {
        key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)
    }
    for marker, description in _OTHER_MODELS.items():
        if any(key.startswith(marker) for key in inside):
            raise UnknownLayout(f"this is {description}, not an AutoencoderKL")
    return {key: value for key, value in inside.items() if key.startswith(_PARTS)}


def find_prefix(names: Iterable[str]) -> str:
    """What stands before `encoder.` and `decoder.` in the names of a checkpoint's tensors.

    Raises UnknownLayout if no autoencoder is found, or several of equal standing.
    """
    names = list(names)
    encoders, decoders = (
        {name.removesuffix(end) for name in names if name.endswith(end) and _is_start(name, end)}
        for end in ("encoder.conv_in.weight", "decoder.conv_in.weight")
    )
    prefixes = sorted(encoders & decoders)
    if len(prefixes) > 1:
        prefixes = [
            prefix for prefix in prefixes if prefix.endswith("first_stage_model.")
        ] or prefixes
    if len(prefixes) > 1:
        raise UnknownLayout(f"there are several autoencoders, under {prefixes}; keep one")
    if not prefixes:
        raise UnknownLayout(
            "expected a KL autoencoder, with encoder.conv_in.weight and decoder.conv_in.weight "
            "(latent-diffusion's or diffusers' layout, behind any prefix); "
            f"found {describe_names(names)}"
        )
    return prefixes[0]


def rename_to_diffusers(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Give every tensor of an autoencoder (without prefix) diffusers' present name and shape.

    Raises UnknownLayout naming the tensors that belong to no known layout.
    """
    levels = 1 + _largest_index(r"(?:down|up)(?:_blocks)?\.(\d+)\.", state_dict)
    layers = 1 + _largest_index(
        r"(?:down|up)(?:_blocks)?\.\d+\.(?:block|resnets)\.(\d+)\.", state_dict
    )
    ldm_names = _ldm_names(levels, layers)
    diffusers_names = {name: name for name in ldm_names}
    diffusers_names |= {ldm: name for name, ldm in ldm_names.items()}
    for attention in ("encoder.mid_block.attentions.0", "decoder.mid_block.attentions.0"):
        for new, old in _OLD_ATTENTION.items():
            diffusers_names[f"{attention}.{old}"] = f"{attention}.{new}"

    renamed: StateDict = {}
    unknown = []
    for key, tensor in state_dict.items():
        module, _, leaf = key.rpartition(".")
        target = f"{diffusers_names.get(module)}.{leaf}"
        if module not in diffusers_names or leaf not in ("weight", "bias") or target in renamed:
            unknown.append(key)
            continue
        is_attention_weight = ".attentions." in target and tensor.ndim > 2
        renamed[target] = tensor.reshape(tensor.shape[:2]) if is_attention_weight else tensor
    if unknown:
        raise UnknownLayout(
            "expected latent-diffusion's or diffusers' names of an AutoencoderKL's tensors, each "
            f"once; found {describe_names(unknown)}"
        )
    return renamed


def infer_config(state_dict: Mapping[str, Tensor], norm_num_groups: int = 32) -> dict[str, Any]:
    """The AutoencoderKL configuration that fits the tensors of a checkpoint in any known layout.

    The number of GroupNorm groups leaves no trace in tensors: every published family uses 32.
    Nor do the scaling and shift factors: see `guess_family`. Raises UnknownLayout.
    """
    vae = from_ldm(state_dict)
    channels = []
    while f"encoder.down_blocks.{len(channels)}.resnets.0.conv1.weight" in vae:
        channels.append(vae[f"encoder.down_blocks.{len(channels)}.resnets.0.conv1.weight"].shape[0])
    ends = ("encoder.conv_out.weight", "decoder.conv_out.weight")
    missing = [name for name in ends if name not in vae] or (
        [] if channels else ["encoder.down_blocks.0"]
    )
    if missing:
        raise UnknownLayout(f"the autoencoder is incomplete: {missing[0]} is missing")

    latent_channels = vae["decoder.conv_in.weight"].shape[1]
    moments = vae["encoder.conv_out.weight"].shape[0]
    if moments != 2 * latent_channels:
        raise UnknownLayout(
            f"the encoder ends in {moments} channels, the decoder begins with {latent_channels}; "
            "in a KL autoencoder the former (means and log-variances) is twice the latter"
        )
    if any(width % norm_num_groups for width in channels):
        raise UnknownLayout(
            f"channels {channels} do not divide into {norm_num_groups} GroupNorm groups; "
            "only a config.json beside the tensors can say how many there are"
        )
    family, _ = guess_family(state_dict)
    return {
        "in_channels": vae["encoder.conv_in.weight"].shape[1],
        "out_channels": vae["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "block_out_channels": channels,
        "layers_per_block": 1 + _largest_index(r"down_blocks\.\d+\.resnets\.(\d+)\.", vae),
        "latent_channels": latent_channels,
        "norm_num_groups": norm_num_groups,
        "sample_size": family.sample_size,
        "scaling_factor": family.scaling_factor,
        "shift_factor": family.shift_factor,
        "use_quant_conv": "quant_conv.weight" in vae,
        "use_post_quant_conv": "post_quant_conv.weight" in vae,
        "mid_block_add_attention": any(".mid_block.attentions." in name for name in vae),
    }


def guess_family(state_dict: Mapping[str, Tensor]) -> tuple[Family, str]:
    """The published family a checkpoint belongs to, and a sentence on how sure that is.

    Inside a whole checkpoint the neighbouring tensors decide. Alone, SD 1.x and SDXL have the same
    tensors (SD 1.x is taken), and so have SD3 and FLUX.1 (FLUX.1 is taken, the commoner file).
    Anything else gets a scaling factor of 1: latents as the encoder gives them.
    """
    prefix = find_prefix(state_dict)
    latent_channels = state_dict[f"{prefix}decoder.conv_in.weight"].shape[1]
    for marker, family in _NEIGHBOURS.items():
        is_present = any(marker in name for name in state_dict)
        if is_present and family.latent_channels == latent_channels:
            return family, f"the checkpoint is {family.name}'s: {_latent_scale(family)}"

    has_quant_conv = f"{prefix}quant_conv.weight" in state_dict
    if latent_channels == 4 and has_quant_conv:
        family, twin = _SD15, _SDXL
    elif latent_channels == 16 and not has_quant_conv:
        family, twin = _FLUX, _SD3
    else:
        unknown = Family("unknown", latent_channels, 1.0, None, 512)
        return unknown, (
            f"{latent_channels} latent channels {'with' if has_quant_conv else 'without'} "
            f"quant_conv are of no known family: {_latent_scale(unknown)}, latents as they are"
        )
    return family, (
        f"taken for {family.name}'s autoencoder: {_latent_scale(family)}; {twin.name}'s has the "
        f"same tensors and {_latent_scale(twin)}"
    )


def describe_names(names: Iterable[str], limit: int = 6) -> str:
    """The first few of some names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) if names else "nothing"


def _latent_scale(family: Family) -> str:
    shift = "" if family.shift_factor is None else f", shift_factor {family.shift_factor}"
    return f"scaling_factor {family.scaling_factor}{shift}"


def _is_start(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _largest_index(pattern: str, names: Iterable[str]) -> int:
    return max((int(m[1]) for name in names if (m := re.search(pattern, name))), default=0)


def _ldm_names(levels: int, layers: int) -> dict[str, str]:
    """Latent-diffusion's name of every module with tensors, by diffusers' name."""
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    resnets = {}
    for part, down, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        ends = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
        names |= {f"{part}.{name}": f"{part}.{ldm}" for name, ldm in ends.items()}
        attention = f"{part}.mid_block.attentions.0", f"{part}.mid.attn_1"
        names |= {f"{attention[0]}.{n}": f"{attention[1]}.{ldm}" for n, ldm in _ATTENTION.items()}
        resnets |= {f"{part}.mid_block.resnets.{i}": f"{part}.mid.block_{i + 1}" for i in (0, 1)}
        for level in range(levels):
            # latent-diffusion numbers the decoder's levels by resolution, diffusers by execution.
            ldm_level = level if part == "encoder" else levels - 1 - level
            block, ldm = f"{part}.{down}_blocks.{level}", f"{part}.{down}.{ldm_level}"
            names[f"{block}.{sampler}rs.0.conv"] = f"{ldm}.{sampler}.conv"
            resnets |= {f"{block}.resnets.{i}": f"{ldm}.block.{i}" for i in range(layers)}
    for block, ldm in resnets.items():
        names |= {f"{block}.{name}": f"{ldm}.{part}" for name, part in _RESNET.items()}
    return names
