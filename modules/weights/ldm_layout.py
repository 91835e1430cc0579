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

from modules.weights.tensor_files import UnusableModel
from modules.weights.vae_selection import StateDict, describe_names, select_vae

_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {
    "conv_shortcut": "nin_shortcut"
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
GROUPS = 32  # of GroupNorm
MOST_LEVELS, MOST_LAYERS = 16, 64  # no autoencoder has as many; names could claim a billion


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
    """Rename an AutoencoderKL's tensors to latent-diffusion's layout, as `to_diffusers` undoes.

    `config` is the AutoencoderKL's.
    """
    modules = _ldm_names(len(config["block_out_channels"]), config["layers_per_block"] + 1)
    renamed: StateDict = {}
    for key, tensor in state_dict.items():
        module, _, leaf = key.rpartition(".")
        if ".attentions." in key and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        renamed[f"{modules[module]}.{leaf}"] = tensor
    return renamed


def unlike_stable_diffusion(config: Mapping[str, Any]) -> list[str]:
    """What of an architecture a file in latent-diffusion's layout cannot tell other programs.

    They build Stable Diffusion's network and read into it what has the same name.
    """
    blocks = (*config["down_block_types"], *config["up_block_types"])
    unlike = {
        f"in_channels {config['in_channels']}": config["in_channels"] != 3,
        f"norm_num_groups {config['norm_num_groups']}": config["norm_num_groups"] != 32,
        f"act_fn {config['act_fn']}": config["act_fn"] not in ("silu", "swish"),
        "attention inside the levels": any(block.startswith("Attn") for block in blocks),
        "no attention in the middle": not config["mid_block_add_attention"],
    }
    return [name for name, differs in unlike.items() if differs]


def to_diffusers(state_dict: Mapping[str, Tensor], weights: str = "auto") -> StateDict:
    """Find the autoencoder among the tensors of a checkpoint, with diffusers' names and shapes.

    Accepts latent-diffusion's layout, diffusers', and diffusers' with its old attention names
    (`query`, `key`, `value`, `proj_attn`), behind any prefix (`first_stage_model.`, `vae.`, ...),
    alone or inside a whole checkpoint, of which `select_vae` takes `weights`. Raises UnusableModel
    if there is not exactly one, naming the tensors that belong to no known layout.
    """
    tensors = select_vae(state_dict, weights)
    levels = 1 + _largest_index(r"(?:down|up)(?:_blocks)?\.(\d+)\.", tensors)
    layers = 1 + _largest_index(
        r"(?:down|up)(?:_blocks)?\.\d+\.(?:block|resnets|attn|attentions)\.(\d+)\.", tensors
    )
    if levels > MOST_LEVELS or layers > MOST_LAYERS:
        raise UnusableModel(f"its tensors' names count {levels} levels of {layers} blocks")
    ldm_names = _ldm_names(levels, layers)
    present_names = {known: name for name, ldm in ldm_names.items() for known in (name, ldm)}
    renamed: StateDict = {}
    unknown = []
    for key, tensor in tensors.items():
        module, _, leaf = key.rpartition(".")
        if ".attentions." in key:
            block, _, part = module.rpartition(".")
            module = f"{block}.{_OLD_ATTENTION.get(part, part)}"
        target = f"{present_names.get(module)}.{leaf}"
        if module not in present_names or leaf not in ("weight", "bias") or target in renamed:
            unknown.append(key)
            continue
        if ".attentions." in target and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        renamed[target] = tensor
    if unknown:
        raise UnusableModel(
            "expected latent-diffusion's or diffusers' names of an AutoencoderKL's tensors, each "
            f"once; found {describe_names(unknown)}"
        )
    return renamed


def infer_config(vae: StateDict, family: Family) -> dict[str, Any]:
    """The AutoencoderKL configuration that fits tensors with diffusers' names.

    The number of GroupNorm groups leaves no trace in tensors: every published family uses 32.
    Nor do the scaling and shift factors, which are the family's. Raises UnusableModel.
    """
    first = "encoder.down_blocks.{}.resnets.0.conv1.weight"
    channels = [_side(vae, first.format(0), 0)]
    while first.format(len(channels)) in vae:
        channels.append(_side(vae, first.format(len(channels)), 0))
    latent_channels = _side(vae, "decoder.conv_in.weight", 1)
    moments = _side(vae, "encoder.conv_out.weight", 0)
    if moments != 2 * latent_channels:
        raise UnusableModel(
            f"the encoder ends in {moments} channels, the decoder begins with {latent_channels}; "
            "in a KL autoencoder the former (means and log-variances) is twice the latter"
        )
    if any(width % GROUPS for width in channels):
        raise UnusableModel(
            f"channels {channels} do not divide into {GROUPS} GroupNorm groups; "
            "only a config.json beside the tensors can say how many there are"
        )
    attending = {name.partition(".attentions.0.")[0] for name in vae if ".attentions.0." in name}
    down, up = (
        [f"{'Attn' * (f'{blocks}.{level}' in attending)}{kind}" for level in range(len(channels))]
        for blocks, kind in (("encoder.down_blocks", "DownEncoderBlock2D"),
                             ("decoder.up_blocks", "UpDecoderBlock2D"))
    )  # fmt: skip
    return {
        "in_channels": _side(vae, "encoder.conv_in.weight", 1),
        "out_channels": _side(vae, "decoder.conv_out.weight", 0),
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": channels,
        "layers_per_block": 1 + _largest_index(r"down_blocks\.\d+\.resnets\.(\d+)\.", vae),
        "latent_channels": latent_channels,
        "norm_num_groups": GROUPS,
        "sample_size": family.sample_size,
        "scaling_factor": family.scaling_factor,
        "shift_factor": family.shift_factor,
        "use_quant_conv": "quant_conv.weight" in vae,
        "use_post_quant_conv": "post_quant_conv.weight" in vae,
        "mid_block_add_attention": "encoder.mid_block" in attending,
    }


def guess_family(vae: Mapping[str, Tensor], neighbours: Iterable[str] = ()) -> tuple[Family, str]:
    """The published family an autoencoder belongs to, and a sentence on how sure that is.

    Inside a whole checkpoint the names of neighbouring tensors decide. Alone, SD 1.x and SDXL have
    the same tensors (SD 1.x is taken), and so have SD3 and FLUX.1 (FLUX.1 is taken, the commoner
    file). Anything else gets a scaling factor of 1: latents as the encoder gives them.
    """
    latent_channels = _side(vae, "decoder.conv_in.weight", 1)
    names = list(neighbours)
    for marker, family in _NEIGHBOURS.items():
        if family.latent_channels == latent_channels and any(marker in name for name in names):
            return family, f"the checkpoint is {family.name}'s: {_latent_scale(family)}"

    has_quant_conv = "quant_conv.weight" in vae
    twins = {(4, True): (_SD15, _SDXL), (16, False): (_FLUX, _SD3)}
    if (latent_channels, has_quant_conv) not in twins:
        unknown = Family("unknown", latent_channels, 1.0, None, 512)
        return unknown, (
            f"{latent_channels} latent channels {'with' if has_quant_conv else 'without'} "
            f"quant_conv are of no known family: {_latent_scale(unknown)}, latents as they are"
        )
    family, twin = twins[latent_channels, has_quant_conv]
    return family, (
        f"taken for {family.name}'s autoencoder: {_latent_scale(family)}; {twin.name}'s has the "
        f"same tensors and {_latent_scale(twin)}"
    )


def _latent_scale(family: Family) -> str:
    shift = "" if family.shift_factor is None else f", shift_factor {family.shift_factor}"
    return f"scaling_factor {family.scaling_factor}{shift}"


def _side(vae: StateDict, name: str, axis: int) -> int:
    """The channels of a convolution: 0 those that it gives, 1 those that it takes."""
    if name not in vae:
        raise UnusableModel(f"the autoencoder is incomplete: {name} is missing")
    if vae[name].ndim != 4:
        raise UnusableModel(f"{name} has shape {list(vae[name].shape)}, no convolution's")
    return vae[name].shape[axis]


def _largest_index(pattern: str, names: Iterable[str]) -> int:
    return max((int(m[1]) for name in names if (m := re.search(pattern, name))), default=0)


def _ldm_names(levels: int, layers: int) -> dict[str, str]:
    """Latent-diffusion's name of every module with tensors, by diffusers' name."""
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    resnets, attentions = {}, {}
    for part, down, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        ends = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
        names |= {f"{part}.{name}": f"{part}.{ldm}" for name, ldm in ends.items()}
        attentions[f"{part}.mid_block.attentions.0"] = f"{part}.mid.attn_1"
        resnets |= {f"{part}.mid_block.resnets.{i}": f"{part}.mid.block_{i + 1}" for i in (0, 1)}
        for level in range(levels):
            # latent-diffusion numbers the decoder's levels by resolution, diffusers by execution.
            ldm_level = level if part == "encoder" else levels - 1 - level
            block, ldm = f"{part}.{down}_blocks.{level}", f"{part}.{down}.{ldm_level}"
            names[f"{block}.{sampler}rs.0.conv"] = f"{ldm}.{sampler}.conv"
            resnets |= {f"{block}.resnets.{i}": f"{ldm}.block.{i}" for i in range(layers)}
            attentions |= {f"{block}.attentions.{i}": f"{ldm}.attn.{i}" for i in range(layers)}
    for blocks, parts in ((resnets, _RESNET), (attentions, _ATTENTION)):
        for block, ldm in blocks.items():
            names |= {f"{block}.{name}": f"{ldm}.{part}" for name, part in parts.items()}
    return names
