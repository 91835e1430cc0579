"""Autoencoders on disk and on the Hub: `load_vae` reads every common form, `save_*` write two more.

Loading is strict: every tensor of the network comes from the file, no tensor of the file is left
over, and nothing in it is executed. All errors are ValueErrors that name the flag and the fix.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from modules.errors import ArgumentError, blaming
from modules.weights.ldm_layout import (
    guess_family,
    infer_config,
    to_diffusers,
    to_ldm,
    unlike_stable_diffusion,
)
from modules.weights.model_config import Config, is_autoencoder_kl, network_of, parse_config
from modules.weights.sources import Folder, HubRepository, Source
from modules.weights.tensor_files import (
    PICKLES,
    SAFETENSORS,
    UnusableModel,
    read_tensors,
    write_safetensors,
)
from modules.weights.vae_folder import WEIGHTS, find_config, find_weights
from modules.weights.vae_selection import StateDict, describe_names

logger = logging.getLogger(__name__)

FLAG = "--pretrained_model_name_or_path"
FP16_WEIGHTS = f"{WEIGHTS}.fp16.safetensors"
LDM_FILE = "vae_ldm.safetensors"
CONFIG_KEY = "autoencoder_config"
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")


def load_vae(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | Path | None = None,
    weights: str = "auto",
) -> AutoencoderKL:
    """Load an AutoencoderKL in float32 and eval mode from wherever it is.

    `path_or_id`: a VAE's folder or hub id, a pipeline's folder or hub id (its `vae/` is taken), or
    one file in latent-diffusion's or diffusers' layout, alone or inside a whole checkpoint.
    `revision` and `cache_dir` concern hub ids; `variant` ("fp16") concerns folders and hub ids.
    `weights`: "raw", "ema", or "auto" for the average where a checkpoint holds one. Raises
    ArgumentError naming the flag, what was found and the fix for everything a user can get wrong.
    """
    what, path = f"{FLAG}={path_or_id}", Path(path_or_id).expanduser()
    with blaming(what, "give another file, or download or save it again"):
        try:
            if path.is_file():
                if variant:
                    raise UnusableModel("this is one file; a variant needs a folder")
                config, state_dict = _read_single_file(path, weights)
            else:
                source = _open_source(path, str(path_or_id), revision, cache_dir)
                place, config = find_config(source)
                files = find_weights(source, place, variant)
                tensors = {key: t for file in files for key, t in read_tensors(file)[0].items()}
                state_dict = to_diffusers(tensors, weights)
            return _build(network_of(config, what), state_dict)
        except UnusableModel as error:
            raise ArgumentError(f"{what}: {error}") from error


def warn_of_other_programs(config: Mapping[str, Any]) -> None:
    """Logs what keeps A1111 and ComfyUI from a network that `save_ldm` writes, if anything does."""
    if unlike := unlike_stable_diffusion(config):
        logger.warning(
            "the file in latent-diffusion's layout is not for A1111 and ComfyUI: they build Stable "
            "Diffusion's network and would decode wrongly, for this one has %s",
            " and ".join(unlike),
        )


def save_ldm(vae: AutoencoderKL, path: str | Path) -> None:
    """Write an autoencoder as one float32 safetensors file in latent-diffusion's layout.

    The configuration goes into the header, where `load_vae` finds it again. A warning is logged
    where other programs would take it for another network.
    """
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    warn_of_other_programs(config)
    renamed = to_ldm(vae.state_dict(), config)
    tensors = {key: tensor.float() for key, tensor in renamed.items()}
    write_safetensors(tensors, Path(path), {CONFIG_KEY: json.dumps(config)})


def save_fp16_variant(vae: AutoencoderKL, folder: str | Path) -> None:
    """Write float16 weights beside the float32 ones, for `from_pretrained(folder, variant="fp16")`.

    Raises ValueError naming the weights that are beyond float16's largest number, if any is.
    """
    tensors = {key: tensor.half() for key, tensor in vae.state_dict().items()}
    overflown = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if overflown:
        raise ValueError(f"weights too large for float16 (65504): {describe_names(overflown)}")
    write_safetensors(tensors, Path(folder) / FP16_WEIGHTS)


def _read_single_file(path: Path, weights: str) -> tuple[Config, StateDict]:
    """The configuration and tensors of one file, which may be a whole checkpoint.

    The configuration is the one `save_ldm` left in the header, else that of the folder whose
    weights this file is, else inferred; then the guess about the latents' scale is logged.
    """
    if part := SHARD.search(path.name):
        raise UnusableModel(f"this is one of {int(part[1])} files that hold the weights together; "
                            "give the folder that they lie in")  # fmt: skip
    tensors, metadata = read_tensors(path)
    state_dict = to_diffusers(tensors, weights)
    if CONFIG_KEY in metadata:
        return parse_config(metadata[CONFIG_KEY], f"the header of {path.name}"), state_dict
    beside = path.with_name("config.json")
    if path.name.startswith(WEIGHTS) and beside.is_file():
        config = parse_config(beside.read_bytes(), str(beside))
        if is_autoencoder_kl(config):
            return config, state_dict
    family, note = guess_family(state_dict, tensors)
    config = infer_config(state_dict, family)
    logger.warning("%s has no config.json: %s", path, note)
    return config, state_dict


def _open_source(
    path: Path, name: str, revision: str | None, cache_dir: str | Path | None
) -> Source:
    if path.is_dir():
        return Folder(path)
    if name.startswith((".", "/", "~")) or path.suffix.lower() in SAFETENSORS + PICKLES:
        raise UnusableModel("no such file or folder; check the path")
    return HubRepository(name, revision, cache_dir)


def _build(vae: AutoencoderKL, state_dict: StateDict) -> AutoencoderKL:
    """`vae`, which has no weights yet, with exactly the given tensors, in float32.

    Raises UnusableModel naming the tensors that are missing, left over, misshapen or not numbers:
    diffusers itself would fill the gaps with random weights and a warning.
    """
    expected = vae.state_dict()
    _refuse({
        "missing tensors": [key for key in expected if key not in state_dict],
        "unexpected tensors": [key for key in state_dict if key not in expected],
        "shapes that differ from the configuration's": [
            f"{key} {list(state_dict[key].shape)} instead of {list(tensor.shape)}"
            for key, tensor in expected.items()
            if key in state_dict and _sides(state_dict[key]) != _sides(tensor)
        ],
        "tensors that are not floating point": [
            key
            for key, tensor in state_dict.items()
            if not tensor.is_floating_point() or tensor.is_sparse or tensor.is_meta
        ],
    })  # fmt: skip
    # The copy detaches the network from its file, which the run may overwrite.
    weights = {
        key: tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format).view(
            expected[key].shape
        )
        for key, tensor in state_dict.items()
    }
    _refuse({"NaN or infinite values": [k for k, w in weights.items() if not w.isfinite().all()]})
    others = {str(t.dtype).removeprefix("torch.") for t in state_dict.values()} - {"float32"}
    if others:
        logger.warning("the weights are %s and become float32", " and ".join(sorted(others)))
    vae.load_state_dict(weights, strict=True, assign=True)
    return vae.eval()


def _refuse(wrong: Mapping[str, list[str]]) -> None:
    found = "; ".join(f"{what}: {describe_names(names)}" for what, names in wrong.items() if names)
    if found:
        raise UnusableModel(f"its tensors do not fill the network its configuration names; {found}")


def _sides(tensor: Tensor) -> list[int]:
    """The axes that say something: a 1x1 convolution's weight may come as a matrix, and a matrix
    as a convolution's."""
    return [side for side in tensor.shape if side != 1]
