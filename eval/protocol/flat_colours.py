"""What a model makes of flat colours, which need no data: regular grids show best there."""

from __future__ import annotations

import torch

from eval.metrics.artefacts import flat_images, grid_energy
from eval.metrics.columns import GRIDS
from eval.protocol.codecs import Codec
from eval.protocol.protocol import Protocol
from modules.data.images.images import to_uint8_tensor
from modules.image_modes import in_mode, to_picture

WITHOUT_LATENTS = 8  # the f of baselines: JPEG's block


def grids_of(
    codec: Codec, batch_size: int, protocol: Protocol, device: torch.device
) -> dict[str, float]:
    """The GRIDS of a prepared codec, root mean squares over nine colours, in levels of 255.

    Of the unclamped output, so that neither rounding nor the end of the scale hides a grid.
    """
    factor = max(2, codec.factor or WITHOUT_LATENTS)
    pictures = [in_mode(to_picture(flat), protocol.image_mode) for flat in flat_images(factor)]
    parts = torch.stack(list(map(to_uint8_tensor, pictures))).to(device).split(batch_size)
    values = [codec.reconstruct(part, range(len(part)), protocol).values for part in parts]
    levels = 127.5 * torch.cat(values)
    periods = dict(zip(GRIDS, (factor, max(2, factor // 2), 2), strict=True))
    return {
        name: grid_energy(levels, factor, period).square().mean().sqrt().item()
        for name, period in periods.items()
    }
