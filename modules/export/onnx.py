"""An autoencoder as two ONNX files, for programs without PyTorch, compared with torch.

Folders and tensor names are those of Hugging Face's Optimum, which other runtimes read as well:
`vae_encoder/model.onnx` and `vae_decoder/model.onnx`, each with the config.json beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from modules.models.autoencoder import downsample_factor
from modules.models.modes import frozen
from modules.output.durable import replacing
from modules.weights.vae_files import CONFIG_KEY

TOLERANCE = 1e-3  # of the largest value; in an image, a quarter of an 8-bit level
# Batch, height and width in latents.
TRACED, COMPARED = (2, 10, 9), (1, 12, 8)
LATENTS = (
    "as the encoder gives them: scaling_factor, shift_factor, latents_mean and latents_std are not "
    "applied"
)


class Half(NamedTuple):
    """One of the two networks: its folder, what its file calls input and output, what it does."""

    folder: str
    input_name: str
    output_name: str
    function: Callable[[AutoencoderKL, Tensor], Tensor]


HALVES = (
    # Images [B, K, H, W] in [-1, 1] to mean and log-variance in one, [B, 2C, h, w].
    Half("vae_encoder", "sample", "latent_parameters",
         lambda vae, images: vae.encode(images).latent_dist.parameters),
    # Unscaled latents [B, C, h, w] to images [B, K, H, W], unclamped, around [-1, 1].
    Half("vae_decoder", "latent_sample", "sample", lambda vae, latents: vae.decode(latents).sample),
)  # fmt: skip


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
    for half, values in zip(HALVES, _inputs(vae, TRACED), strict=True):
        with frozen(vae):
            program = torch.onnx.export(
                _Network(vae, half.function).eval(),
                (values,),
                dynamo=True,
                input_names=[half.input_name],
                output_names=[half.output_name],
                dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
                verbose=False,
            )
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with the paths of this machine
        program.model.metadata_props.update(metadata)
        file = output / half.folder / "model.onnx"
        vae.save_config(file.parent)
        with replacing(file) as partial:
            program.save(partial, external_data=False)
        files.append(file)
    return files


def compare_with_torch(vae: AutoencoderKL, output: Path) -> dict[str, float]:
    """How far onnxruntime is from torch for each half, over torch's largest value; on the CPU.

    Both get the same random images, and the latents that torch makes of these, in another shape
    than the traced one. Needs onnxruntime.
    """
    import onnxruntime

    errors = {}
    for half, values in zip(HALVES, _inputs(vae, COMPARED), strict=True):
        with frozen(vae):
            expected = half.function(vae, values)
        file = output / half.folder / "model.onnx"
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (found,) = session.run([half.output_name], {half.input_name: values.numpy()})
        error = (torch.from_numpy(found) - expected).abs().max() / expected.abs().max()
        errors[half.folder] = error.item()
    return errors


class _Network(nn.Module):
    def __init__(self, vae: AutoencoderKL, function: Callable) -> None:
        super().__init__()
        self.vae, self.function = vae, function

    def forward(self, values: Tensor) -> Tensor:
        return self.function(self.vae, values)


def _inputs(vae: AutoencoderKL, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Uniform images for the encoder and their latents for the decoder. shape: B, h, w."""
    batch, height, width = shape
    factor = downsample_factor(vae)
    generator = torch.Generator().manual_seed(0)
    size = (batch, vae.config.in_channels, factor * height, factor * width)
    images = torch.rand(size, generator=generator) * 2 - 1
    with frozen(vae):
        return images, vae.encode(images).latent_dist.mean
