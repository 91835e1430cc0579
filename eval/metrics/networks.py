"""The fixed networks under LPIPS and rFID, and why one of them is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from eval.metrics.columns import keys_of
from eval.metrics.fid import InceptionUnavailable, build_inception
from modules.errors import blaming
from modules.models.lpips import build_lpips
from modules.weights.tensor_files import read_tensors

# The first convolution of torchvision's state dict tells AlexNet and VGG16 apart; SqueezeNet has
# one of VGG's shape, and a layer of its own.
FIRST_LAYER = "features.0.weight"
BACKBONE_OF = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}
SQUEEZE_LAYER = "features.3.squeeze.weight"


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
                reason = "its backbone could not be downloaded"
                reason += f" ({error.__cause__})" if error.__cause__ is not None else ""
                networks.unavailable[key] = f"{reason}; give it with --lpips_weights FILE"
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
    if not Path(file).is_file():
        raise ValueError(f"--lpips_weights={file} does not exist")
    with blaming(f"--lpips_weights={file}", "give torchvision's file"):
        tensors, _ = read_tensors(Path(file))
    if SQUEEZE_LAYER in tensors:
        return "squeeze"
    shape = tuple(tensors[FIRST_LAYER].shape) if FIRST_LAYER in tensors else "missing"
    if shape not in BACKBONE_OF:
        raise ValueError(
            f"--lpips_weights={file} is not torchvision's state dict of alexnet, vgg16 or "
            f"squeezenet1_1: {FIRST_LAYER} is {shape}"
        )
    return BACKBONE_OF[shape]
