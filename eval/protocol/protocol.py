"""How an image becomes a number: the choices that every reported figure carries with it.

Published reconstruction numbers differ in crop, filter, rounding and averaging, and each of these
moves PSNR by tenths of a dB and rFID by more. The defaults here are stamped on every output.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict, dataclass

from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from eval.metrics.image import PSNR_CAP
from eval.protocol import choices
from eval.protocol.choices import DEFAULT_RESOLUTION, FULL_SIZE_MULTIPLE
from modules.data.images.images import center_crop_adm, to_uint8_tensor
from modules.data.sources.parts import ImageSource
from modules.image_modes import in_mode, mode_of

STAMPED_PACKAGES = ("torch", "diffusers", "pillow", "lpips", "torch-fidelity")


@dataclass(frozen=True)
class Protocol:
    """The choices. Raises ValueError for one that is not offered.

    crop: "adm" halves with a box filter, resizes bicubically and crops the centre (Dhariwal and
    Nichol 2021); "resize" resizes once, bicubically with antialiasing, and crops the centre; "full"
    keeps the size, cropped to a multiple of 32, and evaluates images one by one.
    posterior: "mode", or "sample" with noise that belongs to (seed, image index).
    rounding: how a clamped reconstruction becomes 8-bit.
    """

    resolution: int = DEFAULT_RESOLUTION  # pixels, side of the crop; not used by crop "full"
    crop: str = "adm"
    posterior: str = "mode"
    rounding: str = "nearest"
    seed: int = 0  # of posterior samples and of the bootstrap
    image_mode: str = "RGB"  # what the models take

    def __post_init__(self) -> None:
        known = {
            "crop": choices.CROPS,
            "posterior": choices.POSTERIORS,
            "rounding": choices.ROUNDINGS,
        }
        for flag, values in known.items():
            if (value := getattr(self, flag)) not in values:
                raise ValueError(f"--{flag}={value} must be one of {', '.join(values)}")

    @classmethod
    def of(cls, vae: AutoencoderKL, resolution: int) -> Protocol:
        """The defaults for what a model takes."""
        return cls(resolution, image_mode=mode_of(vae))

    def cut(self, image: Image.Image) -> Image.Image:
        """The crop of one image that every model reconstructs and is compared with."""
        image = in_mode(image, self.image_mode)
        if self.crop == "adm":
            return center_crop_adm(image, self.resolution)
        if self.crop == "resize":
            scale = self.resolution / min(image.size)
            size = [max(self.resolution, round(side * scale)) for side in image.size]
            resized = image.resize(size, Image.Resampling.BICUBIC)
            return _center_crop(resized, self.resolution, self.resolution)
        width, height = (side // FULL_SIZE_MULTIPLE * FULL_SIZE_MULTIPLE for side in image.size)
        if not width or not height:
            raise ValueError(
                f"--crop=full needs images of at least {FULL_SIZE_MULTIPLE} pixels a side, "
                f"one is {image.width}x{image.height}; use --crop=adm"
            )
        return _center_crop(image, width, height)

    def stamp(self) -> dict[str, object]:
        """Every choice and the versions of the packages that computed the numbers, for JSON."""
        versions = {package: importlib.metadata.version(package) for package in STAMPED_PACKAGES}
        return {**asdict(self), "psnr_cap_db": PSNR_CAP, "precision": "fp32", "versions": versions}

    def describe(self) -> str:
        """The choices in one line, as it stands under every table."""
        crop = {
            "adm": f"ADM centre crop {self.resolution}²",
            "resize": f"bicubic resize and centre crop {self.resolution}²",
            "full": f"full size, cropped to multiples of {FULL_SIZE_MULTIPLE}",
        }[self.crop]
        posterior = "posterior mode" if self.posterior == "mode" else f"sample (seed {self.seed})"
        rounding = "rounded" if self.rounding == "nearest" else "truncated"
        mode = {"L": "grey, ", "RGB": "", "RGBA": "over black and over white, "}[self.image_mode]
        return (
            f"{crop}, {mode}{posterior}, clamped and {rounding} to uint8, fp32; PSNR mean of dB, "
            f"capped at {PSNR_CAP:g}; SSIM 11x11 Gaussian 1.5, range 255"
        )


class ProtocolImages(Dataset[Tensor]):
    """The images of a source as the protocol sees them: uint8 [K, H, W], in the source's order.

    num_images takes that many, evenly spaced over the source, so that a sorted folder is covered.
    Raises ValueError for an empty source; indexing raises UnreadableImage for a damaged image.
    """

    def __init__(
        self, source: ImageSource, protocol: Protocol, num_images: int | None = None
    ) -> None:
        total = len(source)
        if total == 0:
            raise ValueError(f"--data: no images found in {source.name}")
        if num_images is not None and num_images < 1:
            raise ValueError(f"--num_images={num_images} must be at least 1")
        count = min(total, num_images or total)
        self.source = source
        self.protocol = protocol
        self.indices = [position * total // count for position in range(count)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Tensor:
        return to_uint8_tensor(self.protocol.cut(self.source.open(self.indices[position])))

    def label(self, position: int) -> str:
        """The source's name of an image: its path or its row."""
        return self.source.label(self.indices[position])

    def describe(self) -> str:
        """Where the images come from and how many of them, for the stamp."""
        count, total = len(self.indices), len(self.source)
        chosen = f"all {total}" if count == total else f"{count} of {total}, evenly spaced"
        return f"{self.source.name} ({chosen})"

    def stamp(self) -> dict[str, object]:
        """Protocol and data, for JSON."""
        return {"protocol": self.protocol.stamp(), "data": self.describe()}


def _center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
