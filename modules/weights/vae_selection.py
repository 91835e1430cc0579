"""Which tensors of a checkpoint are the autoencoder's: behind any prefix, trained or averaged."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from modules.weights.tensor_files import UnusableModel

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_ENDS = ("encoder.conv_in.weight", "decoder.conv_in.weight")
_OTHER_MODELS = {
    "quantize.": "a vector-quantised autoencoder (VQGAN)",
    "bn.": "FLUX.2's autoencoder (AutoencoderKLFlux2)",
}
# What torch.compile, FSDP and activation checkpointing put into names, anywhere.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGE = re.compile(r"(?<![^._])(?:ema|averaged?|swa)[._]", re.IGNORECASE)
_LITEMA = "model_ema."  # latent-diffusion's average, whose names have lost their dots


def select_vae(state_dict: Mapping[str, Tensor], weights: str = "auto") -> StateDict:
    """The tensors of the one autoencoder inside a checkpoint, without their common prefix.

    weights: "raw", "ema", or "auto" for the average where there is one; which is logged where the
    checkpoint holds both. Tensors that an average leaves out were frozen: the raw ones are equal.
    Raises UnusableModel if there is not exactly one.
    """
    tensors = _plain_names(state_dict)
    raw, averaged = _prefixes(tensors)
    prefix = _choose(tensors, raw, averaged, weights)
    inside = _below(tensors, prefix)
    if raw and averaged:
        what, other = ("averaged", "raw") if prefix in averaged else ("raw", "ema")
        logger.warning(
            "taking the %s weights (%s*) of a checkpoint that holds both; --pretrained_weights %s "
            "takes the others", what, prefix, other,
        )  # fmt: skip
    if len(raw) == 1 and not all(end in inside for end in _ENDS):
        inside = _below(tensors, raw[0]) | inside
    for marker, description in _OTHER_MODELS.items():
        if any(key.startswith(marker) for key in inside):
            raise UnusableModel(f"this is {description}, not an AutoencoderKL")
    return {key: value for key, value in inside.items() if key.startswith(_PARTS)}


def describe_names(names: Iterable[str], limit: int = 6) -> str:
    """The first few of some names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) if names else "nothing"


def _plain_names(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Without wrappers' names, and with the dots of latent-diffusion's average put back."""
    tensors = {_WRAPPERS.sub("", key): tensor for key, tensor in state_dict.items()}
    dotted = {name.replace(".", ""): name for name in tensors if _LITEMA not in name}
    for name in [name for name in tensors if _LITEMA in name]:
        place, _, rest = name.rpartition(_LITEMA)
        raw = dotted.get(f"{place}{rest}".replace(".", ""))
        if raw is not None:
            tensors[f"{place}{_LITEMA}{raw.removeprefix(place)}"] = tensors.pop(name)
    return tensors


def _prefixes(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those of autoencoders as trained, and of averages, of which one half is enough."""
    encoders, decoders = (
        {
            name.removesuffix(end)
            for name in names
            if name == end or name.endswith(f".{end}")
        }
        for end in _ENDS
    )  # fmt: skip
    averaged = {
        prefix
        for prefix in encoders | decoders
        if _AVERAGE.search(prefix) and not prefix.endswith("online_model.")
    }
    return sorted((encoders & decoders) - averaged), sorted(averaged)


def _choose(names: Iterable[str], raw: list[str], averaged: list[str], weights: str) -> str:
    prefixes = {"auto": averaged or raw, "raw": raw, "ema": averaged}[weights]
    if not prefixes and (raw or averaged):
        other = "raw" if weights == "ema" else "ema"
        raise UnusableModel(
            f"--pretrained_weights={weights}, but it holds the {other} weights alone; use auto"
        )
    if len(prefixes) > 1:
        first_stages = [prefix for prefix in prefixes if "first_stage_model." in prefix]
        prefixes = first_stages or prefixes
    if len(prefixes) > 1:
        raise UnusableModel(f"there are several autoencoders, under {prefixes}; keep one")
    if not prefixes:
        raise UnusableModel(
            "expected a KL autoencoder, with encoder.conv_in.weight and decoder.conv_in.weight "
            "(latent-diffusion's or diffusers' layout, behind any prefix); "
            f"found {describe_names(names)}"
        )
    return prefixes[0]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> StateDict:
    return {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}
