"""Everything that turns an image into a reconstruction: autoencoders, and baselines to beat."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor, nn

from eval.metrics.precise import full_precision
from eval.protocol.protocol import Protocol
from modules.data.images.images import normalize, to_uint8, to_uint8_tensor
from modules.image_modes import mode_of, to_picture
from modules.models.autoencoder import downsample_factor
from modules.models.modes import frozen
from modules.seeding import seed_for
from modules.weights.vae_files import load_vae

BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Reconstruction:
    """One batch through a codec.

    images: [B, K, H, W] uint8, as the protocol rounds. values: [B, K, H, W] float32, unclamped, in
    [-1, 1] where good. finite: [B] bool on the CPU, False where anything is NaN or infinite.
    mean, logvar: [B, C, h, w], the posterior's, or None without one.
    """

    images: Tensor
    values: Tensor
    finite: Tensor
    mean: Tensor | None = None
    logvar: Tensor | None = None


class Codec:
    """What `evaluate_reconstruction` measures."""

    latent_channels: int | None = None  # None without latents
    factor: int | None = None  # image side over latent side
    image_mode: str | None = None  # None for any

    def prepared(self, device: torch.device) -> AbstractContextManager[None]:
        """A context in which `reconstruct` may be called; it puts everything back afterwards."""
        del device
        return nullcontext()

    def reconstruct(
        self, images: Tensor, indices: Sequence[int], protocol: Protocol
    ) -> Reconstruction:
        """images: [B, K, H, W] uint8 on the device; indices: their positions in the data."""
        raise NotImplementedError


class VAECodec(Codec):
    """An AutoencoderKL under the protocol: float32, eval mode, no autocast, no gradients."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae
        self.latent_channels, self.image_mode = vae.config.latent_channels, mode_of(vae)
        self.factor = downsample_factor(vae)

    @classmethod
    def open(cls, name: str, weights: str = "auto") -> VAECodec:
        """What `load_vae` reads for `--model NAME`. Raises ValueError naming that flag."""
        try:
            return cls(load_vae(name, weights=weights))
        except ValueError as error:
            message = str(error).replace("--pretrained_model_name_or_path", "--model")
            raise ValueError(message) from error

    @contextmanager
    def prepared(self, device: torch.device) -> Iterator[None]:
        """Eval mode, no gradients, the plain memory format, all put back; weights must be float32.

        Memory format and `requires_grad` (even under no_grad) choose kernels, and with them the
        last digits: how a network is being trained must not change what validation reports.
        """
        if self.vae.dtype != torch.float32:
            raise ValueError(f"models are evaluated in float32, this one is {self.vae.dtype}")
        self.vae.to(device)
        with ExitStack() as stack:
            for parameter in self.vae.parameters():
                stack.callback(_lay_out, parameter, parameter.stride())
                _lay_out(parameter, torch.empty(parameter.shape, device="meta").stride())
            stack.enter_context(frozen(self.vae))
            yield

    def encode(self, images: Tensor) -> DiagonalGaussianDistribution:
        """The posterior of images [B, K, H, W] uint8. ValueError for sides it cannot take."""
        channels, height, width = images.shape[1:]
        if channels != self.vae.config.in_channels:
            raise ValueError(f"images have {channels} channels, the model takes {self.image_mode}")
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"images of {width}x{height} do not fit a model that downsamples by {self.factor}; "
                f"choose a --resolution divisible by {self.factor}"
            )
        return self.vae.encode(normalize(images)).latent_dist

    def reconstruct(
        self, images: Tensor, indices: Sequence[int], protocol: Protocol
    ) -> Reconstruction:
        """Encodes, takes the posterior's mode or a sample that belongs to the index, decodes."""
        posterior = self.encode(images)
        latents = posterior.mode()
        if protocol.posterior == "sample":
            latents = latents + posterior.std * _noise(latents, indices, protocol.seed)
        values = self.vae.decode(latents).sample
        outputs = (values, posterior.mean, posterior.logvar)
        finite = torch.stack([torch.isfinite(o).flatten(1).all(dim=1) for o in outputs]).all(dim=0)
        pictures = quantize(values, protocol.rounding)
        return Reconstruction(pictures, values, finite.cpu(), posterior.mean, posterior.logvar)


class PixelCodec(Codec):
    """A baseline without latents: a function from PIL image to PIL image of the same size."""

    def __init__(self, transform: Callable[[Image.Image], Image.Image]) -> None:
        self.transform = transform

    def reconstruct(
        self, images: Tensor, indices: Sequence[int], protocol: Protocol
    ) -> Reconstruction:
        """Transforms each image on the CPU; the result is 8-bit already."""
        del indices, protocol
        pictures = [to_uint8_tensor(self.transform(to_picture(image))) for image in images]
        outputs = torch.stack(pictures).to(images.device)
        finite = torch.ones(len(outputs), dtype=torch.bool)
        return Reconstruction(outputs, normalize(outputs), finite)


@contextmanager
def all_prepared(codecs: Iterable[Codec], device: torch.device) -> Iterator[None]:
    """A context in which every one of them may be called, in full float32."""
    with ExitStack() as stack:
        stack.enter_context(full_precision())
        for codec in codecs:
            stack.enter_context(codec.prepared(device))
        yield


def quantize(values: Tensor, rounding: str) -> Tensor:
    """values: [B, K, H, W] float in [-1, 1], clamped here; to uint8, "nearest" or "truncate".

    NaN becomes mid-grey, for display only: such an image enters no metric.
    """
    values = torch.nan_to_num(values, nan=0.0)
    if rounding == "truncate":
        return ((values.clamp(-1.0, 1.0) + 1.0) * 127.5).to(torch.uint8)
    return to_uint8(values)


def open_codec(name: str, weights: str = "auto") -> Codec:
    """The codec that `--model NAME` means.

    "identity", "jpeg:QUALITY" (1 to 100; alpha as it is), "downsample:FACTOR" (bicubic down and up
    again), or anything `load_vae` reads: a folder, a hub id, a pipeline, a single file, of which
    `weights` are taken. Raises ValueError.
    """
    kind, _, value = name.partition(":")
    if name == "identity":
        return PixelCodec(lambda image: image)
    if kind not in BASELINES or Path(name).exists():
        return VAECodec.open(name, weights)
    transform, parameter, largest = BASELINES[kind]
    if not value.isdigit() or not 1 <= int(value) <= largest:
        raise ValueError(
            f"--model={name} must be {kind}:{parameter} with a number from 1 to {largest}"
        )
    return PixelCodec(lambda image: transform(image, int(value)))


def open_models(
    names: Sequence[str],
    weights: str,
    labels: Sequence[str] | None = None,
    opener: Callable[[str, str], Codec] = open_codec,
) -> dict[str, Codec]:
    """The codecs by distinct label. Raises ValueError when labels and models do not match."""
    labels = distinct_labels(names) if labels is None else labels
    if len(labels) != len(names) or len(set(labels)) != len(labels):
        raise ValueError(f"--labels {' '.join(labels)} must give {len(names)} different names")
    return {label: opener(name, weights) for label, name in zip(labels, names, strict=True)}


def common_mode(models: Mapping[str, Codec]) -> str:
    """The mode of the images that all models take. Raises ValueError where two differ."""
    takers: dict[str, str] = {}
    for label, codec in models.items():
        if codec.image_mode:
            takers.setdefault(codec.image_mode, label)
    if len(takers) > 1:
        different = " and ".join(f"{label} takes {mode}" for mode, label in takers.items())
        raise ValueError(f"--model: {different} images; measure them one after the other")
    return next(iter(takers), "RGB")


def distinct_labels(names: Sequence[str]) -> list[str]:
    """Short labels for models: the last part of each path, and as much more as tells them apart.

    A model that is named twice gets a number.
    """
    paths = [name.rstrip("/").split("/") for name in names]
    labels = []
    for path in paths:
        others = [other for other in paths if other != path]
        depths = range(1, len(path))
        alone = (n for n in depths if all(other[-n:] != path[-n:] for other in others))
        labels.append("/".join(path[-next(alone, len(path)) :]))
    return [
        label if labels.count(label) == 1 else f"{label} ({labels[: position + 1].count(label)})"
        for position, label in enumerate(labels)
    ]


def _lay_out(parameter: nn.Parameter, stride: tuple[int, ...]) -> None:
    """Gives the values other strides.

    `is_contiguous` is no test for them: to it a 1x1 kernel is contiguous in both formats, but its
    strides choose the kernel all the same.
    """
    if parameter.stride() != stride:
        data = parameter.data
        parameter.data = data.new_empty_strided(data.shape, stride).copy_(data)


def _noise(latents: Tensor, indices: Sequence[int], seed: int) -> Tensor:
    """Standard normal noise [B, C, h, w] drawn on the CPU, a function of seed and index alone."""
    seeds = [seed_for(seed, "posterior", index) for index in indices]
    draws = [
        torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds
    ]
    return torch.stack(draws).to(latents.device)


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.convert("L" if image.mode == "L" else "RGB").save(buffer, "JPEG", quality=quality)
    decoded = Image.open(buffer)
    if image.mode == "RGBA":
        decoded.putalpha(image.getchannel("A"))
    return decoded


def _down_and_up(image: Image.Image, factor: int) -> Image.Image:
    small = image.resize([max(1, round(side / factor)) for side in image.size], BICUBIC)
    return small.resize(image.size, BICUBIC)


# By what stands before the colon: the function, its parameter and that one's largest value.
BASELINES = {"jpeg": (_jpeg, "QUALITY", 100), "downsample": (_down_and_up, "FACTOR", 1024)}
