"""Whether a decoder survives half precision: its largest activation, NaN, and the PSNR it costs."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.data import Dataset

from eval.metrics.image import PSNR_CAP, mean_squared_error, psnr
from eval.metrics.precise import full_precision
from eval.protocol.choices import DEFAULT_BATCH_SIZE
from eval.protocol.codecs import VAECodec, quantize
from eval.protocol.loading import own_batches
from modules.image_modes import over_views

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FP16_MAX = torch.finfo(torch.float16).max  # 65504
# fp16 is called safe below half of its range: other images reach higher than those measured.
SAFE_FRACTION = 0.5
TOLERATED_LOSS = 0.1  # dB


@dataclass(frozen=True)
class PrecisionResult:
    """One precision over all images."""

    precision: str
    largest: float  # activation magnitude behind any layer of the decoder; inf if one overflowed
    largest_layer: str
    bad_images: int  # with NaN or infinity in the output
    psnr: float  # against the images, mean of dB over good ones
    psnr_lost: float  # dB below fp32 on the same images
    psnr_to_fp32: float  # of the output against fp32's
    num_images: int


@torch.no_grad()
def measure_precision(
    vae: AutoencoderKL,
    images: Dataset[Tensor],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    progress: bool = True,
) -> dict[str, PrecisionResult]:
    """Decodes the fp32 encoder's latents with weights and activations of each precision.

    images: uint8 [K, H, W] by position. The model itself is not changed. Run it on one process.
    """
    device, codec = torch.device(device), VAECodec(vae)
    decoders = {name: _Decoder(vae, device, dtype) for name, dtype in PRECISIONS.items()}
    with full_precision(), codec.prepared(device):
        for batch in own_batches(images, batch_size, num_workers, progress):
            if not batch.count:
                continue
            originals = batch.images.to(device)
            latents = codec.encode(originals).mode()
            values = {name: decoder.decode(latents) for name, decoder in decoders.items()}
            for name, decoder in decoders.items():
                decoder.add(values[name], originals, values["fp32"], batch.count)
    if not decoders["fp32"].dbs:
        raise ValueError("--data: no image could be read")
    reference = torch.cat(decoders["fp32"].dbs)
    return {name: decoder.result(name, reference) for name, decoder in decoders.items()}


def should_force_upcast(results: dict[str, PrecisionResult]) -> tuple[bool, str]:
    """(what config.force_upcast should be, why).

    diffusers' pipelines decode in float32 although loaded in float16 when it is true.
    """
    fp32, fp16 = results["fp32"], results["fp16"]
    if fp16.bad_images:
        return True, f"fp16 gives NaN or infinity for {fp16.bad_images} of {fp16.num_images} images"
    if not fp32.largest <= SAFE_FRACTION * FP16_MAX:
        return True, (
            f"activations reach {fp32.largest:.0f} at {fp32.largest_layer}, more than half of "
            f"fp16's range ({FP16_MAX:.0f})"
        )
    if not fp16.psnr_lost <= TOLERATED_LOSS:
        return True, f"fp16 loses {fp16.psnr_lost:.2f} dB"
    return False, (
        f"fp16 loses {fp16.psnr_lost:.3f} dB, and activations reach {fp32.largest:.0f} of "
        f"{FP16_MAX:.0f}"
    )


class _Decoder:
    """A copy in one precision, its scores, and the largest magnitude that a layer put out."""

    def __init__(self, vae: AutoencoderKL, device: torch.device, dtype: torch.dtype) -> None:
        # Not diffusers' own `to`, which warns of modules to keep in float32 where there are none.
        self.vae = nn.Module.to(copy.deepcopy(vae), device, dtype).eval()
        self.dtype = dtype
        self.dbs: list[Tensor] = []
        self.dbs_to_fp32: list[Tensor] = []
        self.largest, self.layer = 0.0, ""
        for name, module in self.vae.decoder.named_modules():
            if not any(module.children()):
                module.register_forward_hook(partial(self._look, f"decoder.{name}"))

    def decode(self, latents: Tensor) -> Tensor:
        """latents: [B, C, h, w] to float32 values [B, K, H, W]."""
        return self.vae.decode(latents.to(self.dtype)).sample.float()

    def add(self, values: Tensor, originals: Tensor, exact: Tensor, count: int) -> None:
        """Scores the first `count` decoded images. exact: the values of fp32."""
        good = torch.isfinite(values).flatten(1).all(dim=1).cpu()
        output = quantize(values, "nearest")
        targets = originals, quantize(exact, "nearest")
        for scores, target in zip((self.dbs, self.dbs_to_fp32), targets, strict=True):
            db = psnr(over_views(mean_squared_error, target, output)).clamp(max=PSNR_CAP)
            scores.append(torch.where(good, db, math.nan)[:count])

    def result(self, name: str, reference: Tensor) -> PrecisionResult:
        """reference: fp32's dB, [N]."""
        db = torch.cat(self.dbs)
        return PrecisionResult(
            precision=name,
            largest=self.largest,
            largest_layer=self.layer,
            bad_images=int(db.isnan().sum()),
            psnr=db.nanmean().item(),
            psnr_lost=(reference - db).nanmean().item(),
            psnr_to_fp32=torch.cat(self.dbs_to_fp32).nanmean().item(),
            num_images=len(db),
        )

    def _look(self, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        del module, inputs
        largest = output.detach().abs().amax().float().item()
        largest = math.inf if math.isnan(largest) else largest
        if largest > self.largest:
            self.largest, self.layer = largest, name
