"""LPIPS (Zhang et al. 2018) as a fixed measure: float32, and never in training mode."""

from __future__ import annotations

import warnings
from pathlib import Path

import lpips
import torch
from torch import Tensor, nn

from modules.errors import LIBRARY_ERRORS, ArgumentError, one_line
from modules.image_modes import over_views
from modules.models.at_once import at_once
from modules.weights.tensor_files import UnusableModel, read_tensors

WIDTHS = {  # channels of the layers that are compared
    "vgg": (64, 128, 256, 512, 512),
    "alex": (64, 192, 384, 256, 256),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}


class LPIPS(nn.Module):
    """`forward(images, reconstructions)`: [B, K, H, W] in [-1, 1], twice, to distances [B].

    Of grey and transparent images the distance is the mean over their RGB views. Gradients flow to
    the reconstructions and to no weight. The network runs in float32 whatever autocast says
    (bfloat16 is a quarter off between near-identical images), and a parent's `.train()` cannot
    switch its dropout on. It looks at `slice_size` images at a time, or at all.
    """

    def __init__(
        self, backbone: str, weights: str | None = None, slice_size: int | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.slice_size = slice_size
        self.network = _network(backbone, weights).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in eval mode."""
        del mode
        return super().train(False)

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Distances [B], non-negative, 0 for equal images."""
        size = self.slice_size or len(images)
        with torch.autocast(images.device.type, enabled=False):
            pairs = zip(
                images.float().split(size), reconstructions.float().split(size), strict=True
            )
            return torch.cat([self._distances(*pair) for pair in pairs])

    def _distances(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        # At once, so that no slice keeps its activations.
        images = images.detach()
        return at_once(
            lambda fakes: over_views(self.network, images, fakes).flatten(), reconstructions
        )


def build_lpips(backbone: str, weights: str | None = None, slice_size: int | None = None) -> LPIPS:
    """LPIPS over "vgg", "alex" or "squeeze".

    `weights` is a local .safetensors or .pth file with torchvision's state dict of that network;
    without it torchvision downloads it (the linear heads come with the lpips package). Raises
    ArgumentError naming the flag when the file does not fit or the download fails.
    """
    if backbone not in WIDTHS:
        raise ArgumentError(f"--lpips_backbone={backbone} must be one of {', '.join(WIDTHS)}")
    return LPIPS(backbone, weights, slice_size)


def _network(backbone: str, weights: str | None) -> nn.Module:
    with warnings.catch_warnings():
        # lpips passes torchvision's old `pretrained` argument.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        if weights is None:
            return _downloaded(backbone)
        network = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
    _load_backbone(network.net, weights, backbone)
    return network


def _downloaded(backbone: str) -> nn.Module:
    try:
        return lpips.LPIPS(net=backbone, verbose=False)
    except LIBRARY_ERRORS as error:
        raise ArgumentError(
            f"--lpips_backbone={backbone}: its weights could not be downloaded and read "
            f"({one_line(error)}). Either give torchvision's file with --lpips_weights FILE, or "
            "train without it: --perceptual_scale 0 --disc_type patch"
        ) from error


def _load_backbone(network: nn.Module, file: str, backbone: str) -> None:
    """Copies torchvision's `features.*` tensors into the slices that lpips makes of the network."""
    if not Path(file).is_file():
        raise ArgumentError(f"--lpips_weights={file} does not exist")
    try:
        tensors, _ = read_tensors(Path(file))
    except (UnusableModel, OSError) as error:
        raise ArgumentError(f"--lpips_weights={file}: {error}") from error
    given = {name.removeprefix("features."): value for name, value in tensors.items()}
    wanted = network.state_dict()
    # "slice2.5.weight" here is "features.5.weight" there.
    found = {name: given.get(name.split(".", 1)[1]) for name in wanted}
    wrong = [
        name.split(".", 1)[1]
        for name, value in found.items()
        if value is None
        or value.shape != wanted[name].shape
        or not (value.is_floating_point() and value.isfinite().all())
    ]
    if wrong:
        raise ArgumentError(
            f"--lpips_weights={file} is not torchvision's {backbone} state dict: features."
            f"{wrong[0]} is missing, of another shape or not finite ({len(wrong)} of {len(wanted)} "
            "tensors)"
        )
    network.load_state_dict(found)
