"""The result as diffusers reads it: complete files, float32, with measured latent statistics."""

from __future__ import annotations

import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import nn

from modules.arguments import Arguments
from modules.autoencoder import downsample_factor
from modules.durable import let_others_read
from modules.latents import LatentStatistics
from modules.metrics_log import whole_validations
from modules.model_card import Provenance, write_model_card
from modules.run import Run
from modules.tensor_files import write_safetensors
from modules.vae_files import (
    FP16_WEIGHTS,
    LDM_FILE,
    Float16Overflow,
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
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".export"
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed here
    copy.save_pretrained(partial)
    for file in sorted(partial.iterdir(), reverse=True):  # weights before config.json
        let_others_read(file)
        os.replace(file, folder / file.name)
    partial.rmdir()
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


def latent_config(args: Arguments, latents: LatentStatistics | None) -> dict[str, Any]:
    """The configuration entries that normalise the latents; none where the encoder was frozen."""
    if latents is None or args.model.decoder_only:
        return {}
    return latents.normalization(args.checkpoints.latent_normalization)


def export_everything(
    run: Run,
    latents: LatentStatistics | None,
    rows: list[dict[str, float]],
    provenance: Provenance,
) -> AutoencoderKL:
    """Writes the VAE, the discriminator, the model card and what else was asked for.

    The VAE's present weights are exported: call it inside `run.averaged_weights()`. `rows` are
    those of metrics.jsonl. One process only. Returns the VAE as exported.
    """
    args, folder = run.args, run.output_dir
    vae = export_vae(run.raw_vae.vae, folder, **latent_config(args, latents))
    export_discriminator(run.raw_discriminator, folder / "discriminator")
    _export_other_forms(vae, folder, args.checkpoints.export_ldm, args.checkpoints.export_fp16)
    write_model_card(folder, args, vae, steps=run.step, latents=latents, history=run.history,
                     validations=whole_validations(rows), provenance=provenance)  # fmt: skip
    return vae


def _export_other_forms(vae: AutoencoderKL, folder: Path, ldm: bool, fp16: bool) -> None:
    """The weights just exported in the forms asked for; an earlier export's are not left beside.

    Weights beyond float16 are logged as an error: the run is complete all the same, other processes
    wait for it to end, and what was exported may have to be uploaded.
    """
    for name in (LDM_FILE, FP16_WEIGHTS):
        (folder / name).unlink(missing_ok=True)  # it would be taken for these weights
    if ldm:
        save_ldm(vae, folder / LDM_FILE)
    if fp16:
        try:
            save_fp16_variant(vae, folder)
        except Float16Overflow as error:
            logger.error("--export_fp16: no float16 weights were written, because of %s; "
                         "the float32 weights in %s are complete", error, folder)  # fmt: skip
