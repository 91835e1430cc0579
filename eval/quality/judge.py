"""One protocol for everything that was trained: the same validation images and networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eval.metrics.networks import open_networks
from eval.protocol.codecs import open_codec
from eval.protocol.evaluate import evaluate_reconstruction
from eval.protocol.protocol import Protocol, ProtocolImages
from eval.protocol.results import Evaluation
from modules.config.arguments import Arguments
from modules.data.sources.open import open_folder
from modules.errors import ArgumentError

PICTURES = 8  # of each arm


class Judge:
    """Measures models on the validation images, all alike. Raises ArgumentError early.

    args: flags that all arms share: folder, resolution, LPIPS weights. metrics: names of METRICS.
    """

    def __init__(self, args: Arguments, metrics: Sequence[str]) -> None:
        weights, folder = args.losses.lpips_weights, args.validation.validation_data_dir
        self.metrics, self.factor = ["psnr", *metrics], args.model.downsample_factor
        self.networks = open_networks(metrics, [weights] if weights else None)
        if self.networks.unavailable:
            reasons = "; ".join(f"{k}: {v}" for k, v in self.networks.unavailable.items())
            raise ArgumentError(f"--metrics: {reasons}; or leave it out")
        mode = args.model.image_mode or "RGB"
        self.protocol = Protocol(args.data.resolution, image_mode=mode)
        self.images = ProtocolImages(open_folder(folder, "--validation_data_dir"), self.protocol)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def measure(self, model: str) -> Evaluation:
        """Of a model's folder, or of a baseline such as "downsample:8"."""
        return evaluate_reconstruction(
            {model: open_codec(model)},
            self.images,
            self.metrics,
            protocol=self.protocol,
            device=self.device,
            networks=self.networks,
            latents=True,
            num_samples=PICTURES,
            progress=False,
        )[model]

    def baselines(self) -> dict[str, Evaluation]:
        """What any autoencoder has to beat: bicubic down and up by its factor."""
        name = f"downsample:{self.factor}"
        return {name: self.measure(name)}

    @property
    def stamp(self) -> list[str]:
        """What stands under every table."""
        return [f"Protocol: {self.protocol.describe()}", f"Data: {self.images.describe()}"]
