"""An autoencoder as two ONNX files, for programs without PyTorch, compared with torch.

Folders and tensor names are those of Hugging Face's Optimum, which other runtimes read as well:
`vae_encoder/model.onnx` and `vae_decoder/model.onnx`, each with the config.json beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from modules.autoencoder import downsample_factor
from modules.modes import frozen
from modules.vae_files import CONFIG_KEY

TOLERANCE = 1e-3  # of the largest value; in an image, a quarter of an 8-bit level
# Batch, height and width in latents. The first is traced, the others are compared.
TRACED = (2, 10, 9)
COMPARED = ((1, 8, 8), (2, 12, 8))
LATENTS = (
    "as the encoder gives them: scaling_factor, shift_factor, latents_mean and latents_std are not "
    "applied"
)


class Encoder(nn.Module):
    """The half that ends in the posterior's moments."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        """sample: images [B, 3, H, W] in [-1, 1]. Mean and log-variance in one, [B, 2C, h, w]."""
        return self.vae.encode(sample).latent_dist.parameters


class Decoder(nn.Module):
    """The half that begins with latents."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        """latent_sample: [B, C, h, w], unscaled. Images [B, 3, H, W], unclamped, around [-1, 1]."""
        return self.vae.decode(latent_sample).sample


@dataclass(frozen=True)
class Half:
    """One of the two networks and what its file calls it."""

    network: nn.Module
    folder: str
    input_name: str
    output_name: str

    def file(self, output: Path) -> Path:
        """Where it lies below `output`."""
        return output / self.folder / "model.onnx"


@dataclass(frozen=True)
class Difference:
    """What onnxruntime computes, compared with torch.

    largest: the largest absolute difference; scale: torch's largest absolute value; shape: of the
    input.
    """

    half: str
    shape: tuple[int, ...]
    largest: float
    scale: float

    @property
    def acceptable(self) -> bool:
        """Whether rounding explains it; NaN is not acceptable."""
        return self.largest <= TOLERANCE * self.scale


def require_onnx() -> None:
    """Raises ValueError with the fix if a package that the export needs is not installed."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--format=onnx needs {' and '.join(missing)}; run `pip install {' '.join(missing)}`"
        )


def export_onnx(vae: AutoencoderKL, output: Path) -> list[Path]:
    """Writes both halves; batch, height and width stay free, the sides multiples of the factor.

    The configuration, and that the latents are not scaled, stand in each file's metadata. A file
    replaces an old one once it is complete. Returns the files.
    """
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    metadata = {
        "latents": LATENTS,
        "scaling_factor": str(config["scaling_factor"]),
        CONFIG_KEY: json.dumps(config),
    }
    files = []
    with frozen(vae):
        for half, inputs in zip(_halves(vae), _inputs(vae, TRACED), strict=True):
            program = torch.onnx.export(
                half.network.eval(),
                (inputs,),
                dynamo=True,
                input_names=[half.input_name],
                output_names=[half.output_name],
                dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
                verbose=False,
            )
            for node in program.model.graph.all_nodes():
                node.metadata_props.clear()  # stack traces, with the paths of this machine
            program.model.metadata_props.update(metadata)
            file = half.file(output)
            vae.save_config(file.parent)
            partial = file.with_name(f".{file.name}.partial")
            program.save(partial, external_data=False)
            os.replace(partial, file)
            files.append(file)
    return files


def compare_with_torch(vae: AutoencoderKL, output: Path) -> Iterator[Difference]:
    """Runs what `export_onnx` wrote in onnxruntime, on random images of two shapes, on the CPU.

    The decoder gets the means that torch's encoder makes of these images. Needs onnxruntime.
    """
    import onnxruntime

    for half, *inputs in zip(_halves(vae), *(_inputs(vae, s) for s in COMPARED), strict=True):
        session = onnxruntime.InferenceSession(
            half.file(output), providers=["CPUExecutionProvider"]
        )
        for values in inputs:
            with frozen(vae):
                expected = half.network(values)
            (found,) = session.run([half.output_name], {half.input_name: values.numpy()})
            yield Difference(
                half.folder,
                tuple(values.shape),
                (torch.from_numpy(found) - expected).abs().max().item(),
                expected.abs().max().item(),
            )


def _halves(vae: AutoencoderKL) -> tuple[Half, Half]:
    return (
        Half(Encoder(vae), "vae_encoder", "sample", "latent_parameters"),
        Half(Decoder(vae), "vae_decoder", "latent_sample", "sample"),
    )


def _inputs(vae: AutoencoderKL, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Uniform images for the encoder and their latents for the decoder. shape: B, h, w."""
    batch, height, width = shape
    factor = downsample_factor(vae)
    generator = torch.Generator().manual_seed(0)
    size = (batch, vae.config.in_channels, factor * height, factor * width)
    images = torch.rand(size, generator=generator) * 2 - 1
    with frozen(vae):
        return images, vae.encode(images).latent_dist.mean
