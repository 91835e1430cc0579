"""Autoencoders on disk and on the Hub: `load_vae` reads every common form, `save_*` write two more.

Loading is strict: every tensor of the network comes from the file, no tensor of the file is left
over, and nothing in it is executed. All errors are ValueErrors that name the flag and the fix.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from modules.errors import ArgumentError, blaming
from modules.ldm_layout import (
    UnknownLayout,
    describe_names,
    from_ldm,
    guess_family,
    infer_config,
    rename_to_diffusers,
    to_ldm,
)
from modules.model_config import network_of
from modules.tensor_files import (
    PICKLES,
    SAFETENSORS,
    UnreadableTensors,
    read_tensors,
    write_safetensors,
)
from modules.vae_sources import Folder, HubRepository, Source, UnusableModel, join

logger = logging.getLogger(__name__)

FLAG = "--pretrained_model_name_or_path"
WEIGHTS = "diffusion_pytorch_model"
FP16_WEIGHTS = f"{WEIGHTS}.fp16.safetensors"
LDM_FILE = "vae_ldm.safetensors"
CONFIG_KEY = "autoencoder_config"

Config = dict[str, Any]
StateDict = dict[str, Tensor]


class Float16Overflow(ValueError):
    """Some weights are beyond float16's largest number, 65504; names them."""


def load_vae(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    config_overrides: Mapping[str, Any] | None = None,
) -> AutoencoderKL:
    """Load an AutoencoderKL in float32 and eval mode from wherever it is.

    `path_or_id`: a VAE's folder or hub id, a pipeline's folder or hub id (its `vae/` is taken), or
    one file in latent-diffusion's or diffusers' layout, alone or inside a whole checkpoint.
    `revision`, `cache_dir` and `token` concern hub ids; `variant` ("fp16") and `subfolder` concern
    folders and hub ids. `config_overrides` replaces entries of the configuration found, such as a
    scaling factor that a single file cannot state. Raises ArgumentError naming the flag, what was
    found and the fix for everything a user can get wrong.
    """
    what = f"{FLAG}={path_or_id}"
    with blaming(what, "give another file, or download or save it again"):
        try:
            path = Path(path_or_id).expanduser()
            if path.is_file():
                if variant or subfolder:
                    raise UnusableModel("this is one file; a variant or subfolder needs a folder")
                config, state_dict = _read_single_file(path)
            else:
                source = _open_source(path, str(path_or_id), revision, cache_dir, token)
                config, state_dict = _read_source(source, subfolder, variant)
            return _build(network_of(config | dict(config_overrides or {}), what), state_dict)
        except (UnusableModel, UnknownLayout, UnreadableTensors) as error:
            raise ArgumentError(f"{what}: {error}") from error


def save_ldm(vae: AutoencoderKL, path: str | Path, prefix: str = "") -> None:
    """Write an autoencoder as one float32 safetensors file in latent-diffusion's layout.

    A1111 and ComfyUI read it without prefix; `prefix="first_stage_model."` is how whole checkpoints
    hold it. The configuration goes into the header, where `load_vae` finds it again. Other programs
    take the GroupNorm to have 32 groups: a warning is logged if it has not.
    """
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    if config["norm_num_groups"] != 32:
        logger.warning(
            "%s: latent-diffusion's layout cannot say that norm_num_groups is %d; "
            "A1111 and ComfyUI take it to be 32 and will decode wrongly",
            path,
            config["norm_num_groups"],
        )
    renamed = to_ldm(vae.state_dict(), config)
    tensors = {f"{prefix}{key}": tensor.float() for key, tensor in renamed.items()}
    write_safetensors(tensors, Path(path), {CONFIG_KEY: json.dumps(config)})


def save_fp16_variant(vae: AutoencoderKL, folder: str | Path) -> None:
    """Write float16 weights beside the float32 ones, for `from_pretrained(folder, variant="fp16")`.

    Raises ValueError if the folder has no float32 weights yet (a variant alone does not load by
    default), and Float16Overflow if a weight is too large for float16.
    """
    folder = Path(folder)
    if not (folder / f"{WEIGHTS}.safetensors").is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}.safetensors; call save_pretrained there first")
    tensors = {key: tensor.half() for key, tensor in vae.state_dict().items()}
    overflown = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if overflown:
        raise Float16Overflow(f"weights too large for float16 (65504): {describe_names(overflown)}")
    write_safetensors(tensors, folder / FP16_WEIGHTS)


def _read_single_file(path: Path) -> tuple[Config, StateDict]:
    """The configuration and tensors of one file, which may be a whole checkpoint.

    The configuration is the one `save_ldm` left in the header, else that of the folder whose
    weights this file is, else inferred; then the guess about the latents' scale is logged.
    """
    tensors, metadata = read_tensors(path)
    state_dict = from_ldm(tensors)
    if CONFIG_KEY in metadata:
        return _parse_config(metadata[CONFIG_KEY], f"the header of {path.name}"), state_dict
    beside = path.with_name("config.json")
    if path.name.startswith(WEIGHTS) and beside.is_file():
        config = _parse_config(beside.read_text(encoding="utf-8"), str(beside))
        if _is_autoencoder_kl(config):
            return config, state_dict
    _, note = guess_family(tensors)
    logger.warning("%s has no config.json: %s", path, note)
    return infer_config(tensors), state_dict


def _open_source(
    path: Path, name: str, revision: str | None, cache_dir: str | Path | None, token: str | None
) -> Source:
    if path.is_dir():
        return Folder(path)
    if name.startswith((".", "/", "~")) or path.suffix.lower() in SAFETENSORS + PICKLES:
        raise UnusableModel("no such file or folder; check the path")
    return HubRepository(name, revision, cache_dir, token)


def _read_source(
    source: Source, subfolder: str | None, variant: str | None
) -> tuple[Config, StateDict]:
    """The configuration and tensors of a model laid out as diffusers lays it out."""
    place, config = _find_config(source, subfolder)
    weights = _find_weights(source, place, variant)
    tensors, _ = read_tensors(weights)
    return config, rename_to_diffusers(tensors)


def _find_config(source: Source, subfolder: str | None) -> tuple[str, Config]:
    """Where in a folder or repository the AutoencoderKL lies, and its configuration."""
    others = {}
    for place in ("", "vae") if subfolder is None else (subfolder,):
        name = join(place, "config.json")
        file = source.fetch(name)
        if file is None:
            continue
        config = _parse_config(file.read_text(encoding="utf-8"), name)
        if _is_autoencoder_kl(config):
            return place, config
        others[name] = config.get("_class_name", "something without a class name")
    source.raise_if_unreachable()

    if others:
        found = " and ".join(f"{name} describes {model}" for name, model in others.items())
        raise UnusableModel(f"only an AutoencoderKL can be trained here, but {found}")
    where = "in it or in its vae/" if subfolder is None else f"in its {subfolder}/"
    raise UnusableModel(
        f"this is not a VAE: there is no config.json {where}; found "
        f"{describe_names(source.listing(), 12)}. Give the folder that save_pretrained wrote, or "
        "one .safetensors or .ckpt file"
    )


def _find_weights(source: Source, place: str, variant: str | None) -> Path:
    name = join(place, f"{WEIGHTS}.{variant}" if variant else WEIGHTS)
    for suffix in (".safetensors", ".bin"):
        file = source.fetch(name + suffix)
        if file is not None:
            return file
    source.raise_if_unreachable()

    found = [file for file in source.listing() if file.startswith(join(place, ""))]
    fix = "drop --variant" if variant else "a file named *.fp16.* needs --variant=fp16"
    raise UnusableModel(
        f"there is no {name}.safetensors or .bin; found {describe_names(found, 12)} ({fix})"
    )


def _parse_config(text: str, name: str) -> Config:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise UnusableModel(f"{name} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise UnusableModel(f"{name} is not a JSON object")
    return config


def _is_autoencoder_kl(config: Config) -> bool:
    """Whether a config.json describes one: by its class, or in files without it, by its entries."""
    if "_class_name" in config:
        return config["_class_name"] == "AutoencoderKL"
    return "latent_channels" in config and "block_out_channels" in config


def _build(vae: AutoencoderKL, state_dict: StateDict) -> AutoencoderKL:
    """`vae`, which has no weights yet, with exactly the given tensors, in float32.

    Raises UnusableModel naming the tensors that are missing, left over, misshapen or not numbers:
    diffusers itself would fill the gaps with random weights and a warning.
    """
    expected = vae.state_dict()
    # The copy detaches the network from its file, which the run may overwrite.
    weights = {
        key: tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for key, tensor in state_dict.items()
    }
    wrong = {
        "missing tensors": [key for key in expected if key not in weights],
        "unexpected tensors": [key for key in weights if key not in expected],
        "shapes that differ from the configuration's": [
            f"{key} {list(weights[key].shape)} instead of {list(tensor.shape)}"
            for key, tensor in expected.items()
            if key in weights and weights[key].shape != tensor.shape
        ],
        "tensors that are not floating point": [
            key for key, tensor in state_dict.items() if not tensor.is_floating_point()
        ],
        "NaN or infinite values": [
            key for key, tensor in weights.items() if not tensor.isfinite().all()
        ],
    }
    found = "; ".join(f"{what}: {describe_names(names)}" for what, names in wrong.items() if names)
    if found:
        raise UnusableModel(f"its tensors do not fill the network its configuration names; {found}")
    vae.load_state_dict(weights, strict=True, assign=True)
    return vae.eval()
