"""The fixed networks under LPIPS and rFID, and why one of them is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from eval.columns import keys_of
from eval.fid import InceptionUnavailable, build_inception
from modules.errors import blaming
from modules.perceptual import build_lpips
from modules.tensor_files import read_tensors

# The first convolution of torchvision's state dict tells the backbones apart.
FIRST_LAYER = "features.0.weight"
BACKBONE_OF = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}
SQUEEZE_LAYER = "features.3.squeeze.weight"  # SqueezeNet's first convolution has VGG's shape


@dataclass
class Networks:
    """What could be built: LPIPS by backbone, Inception, and the reason for each one missing."""

    lpips: dict[str, nn.Module] = field(default_factory=dict)
    inception: nn.Module | None = None
    unavailable: dict[str, str] = field(default_factory=dict)  # metric: reason


def open_networks(
    metrics: Sequence[str],
    lpips_weights: Sequence[str] | None = None,
    inception_weights: str | None = None,
) -> Networks:
    """The networks that `metrics` need, from the given files or else downloaded by their libraries.

    A failed download is written down, not raised: the other metrics still come out. A file that was
    given and does not fit raises ValueError.
    """
    networks = Networks()
    files = {backbone_of(file): file for file in lpips_weights or ()}
    for key in keys_of(list(metrics)):
        if key.startswith("lpips_"):
            backbone = key.removeprefix("lpips_")
            try:
                networks.lpips[backbone] = build_lpips(backbone, files.get(backbone))
            except ValueError as error:
                if backbone in files:
                    raise
                networks.unavailable[key] = _download_failure(error)
        elif key == "rfid":
            try:
                networks.inception = build_inception(inception_weights)
            except InceptionUnavailable as error:
                networks.unavailable[key] = str(error)
    return networks


def backbone_of(file: str) -> str:
    """ "alex", "vgg" or "squeeze", from the tensors in a torchvision state dict on disk.

    Raises ValueError for a file that is none of them.
    """
    shapes = _shapes(file)
    if SQUEEZE_LAYER in shapes:
        return "squeeze"
    if shapes.get(FIRST_LAYER) not in BACKBONE_OF:
        raise ValueError(
            f"--lpips_weights={file} is not torchvision's state dict of alexnet, vgg16 or "
            f"squeezenet1_1: {FIRST_LAYER} is {shapes.get(FIRST_LAYER, 'missing')}"
        )
    return BACKBONE_OF[shapes[FIRST_LAYER]]


def _shapes(file: str) -> dict[str, tuple[int, ...]]:
    if not Path(file).is_file():
        raise ValueError(f"--lpips_weights={file} does not exist")
    with blaming(f"--lpips_weights={file}", "give torchvision's file"):
        tensors, _ = read_tensors(Path(file))
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _download_failure(error: ValueError) -> str:
    cause = error.__cause__
    reason = f" ({cause})" if cause is not None else ""
    return f"its backbone could not be downloaded{reason}; give it with --lpips_weights FILE"
