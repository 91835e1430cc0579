"""The result as diffusers reads it: complete files, float32, with measured latent statistics."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import nn

from modules.models.autoencoder import downsample_factor
from modules.output.durable import replacing
from modules.weights.tensor_files import write_safetensors
from modules.weights.vae_files import (
    FP16_WEIGHTS,
    LDM_FILE,
    WEIGHTS,
    save_fp16_variant,
    save_ldm,
)

logger = logging.getLogger(__name__)


def export_vae(vae: AutoencoderKL, folder: Path, **config: Any) -> AutoencoderKL:
    """Writes config.json and float32 safetensors that `AutoencoderKL.from_pretrained` loads.

    `config` overrides entries of the configuration, such as scaling_factor. The training network is
    left as it is; the exported copy is returned. A file replaces an old one once it is complete.
    """
    copy = AutoencoderKL.from_config(vae.config)
    copy.load_state_dict(vae.state_dict())
    copy.register_to_config(**_tile_size(vae), **config)
    write_safetensors(copy.state_dict(), folder / f"{WEIGHTS}.safetensors")
    with replacing(folder / "config.json") as partial:
        partial.write_text(copy.to_json_string(), encoding="utf-8")
    return copy


def _tile_size(vae: AutoencoderKL) -> dict[str, int]:
    """sample_size, enlarged if need be to a multiple of 4 latents.

    diffusers' `enable_tiling` makes tiles of that size which overlap by a quarter, and returns
    images of a wrong size where a quarter is not a whole number of latents.
    """
    size, step = vae.config.sample_size, 4 * downsample_factor(vae)
    if not isinstance(size, int):  # a pair, in configurations that others wrote
        return {}
    return {"sample_size": math.ceil(size / step) * step}


def export_discriminator(discriminator: nn.Module, folder: Path) -> None:
    """Writes the discriminator's state dict as safetensors."""
    write_safetensors(discriminator.state_dict(), folder / "discriminator.safetensors")


def export_everything(
    vae: AutoencoderKL,
    folder: Path,
    *,
    discriminator: nn.Module | None = None,
    ldm: bool = False,
    fp16: bool = False,
    **config: Any,
) -> AutoencoderKL:
    """Writes the VAE as `export_vae` does, the discriminator, and the forms asked for.

    What an earlier export left in another form is deleted: it would be taken for these weights.
    Weights beyond float16 are logged as an error: the run is complete all the same, other processes
    wait for it to end, and what was exported may have to be uploaded. Returns the exported VAE.
    """
    for name in (LDM_FILE, FP16_WEIGHTS, "discriminator/discriminator.safetensors"):
        (folder / name).unlink(missing_ok=True)
    vae = export_vae(vae, folder, **config)
    if discriminator is not None:
        export_discriminator(discriminator, folder / "discriminator")
    if ldm:
        save_ldm(vae, folder / LDM_FILE)
    if fp16:
        try:
            save_fp16_variant(vae, folder)
        except ValueError as error:
            logger.error("--export_fp16: no float16 weights were written, because of %s; "
                         "the float32 weights in %s are complete", error, folder)  # fmt: skip
    return vae
