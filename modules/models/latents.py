"""What the latents of an autoencoder look like, measured in one pass, and how to normalise them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from modules.distributed.reduce import sum_over_processes
from modules.errors import ArgumentError

NORMALIZATIONS = ("scale", "scale_shift", "per_channel")
SPECTRUM_BINS = 16  # rings from 0 to 1/2 cycle per latent position; None where one is empty
# A channel is dead when its signal is below this fraction of its own noise, or its standard
# deviation below this fraction of the global one: a diffusion model would find only noise in it.
DEAD_FRACTION = 0.01


@dataclass(frozen=True)
class LatentStatistics:
    """Moments of the latents z ~ q(z|x) = N(mean(x), exp(logvar(x))) over a set of images.

    Lists have one entry per channel C and pool images and positions; variances are population
    variances. `global_std` is the standard deviation of all elements of z together, what
    latent-diffusion's `std_rescale` estimates from one batch with `z.flatten().std()`.
    """

    num_images: int
    channel_mean: list[float]
    channel_std: list[float]  # of z: sqrt(Var[mean] + E[exp(logvar)])
    signal_std: list[float]  # of the posterior mean alone
    noise_std: list[float]  # sqrt(E[exp(logvar)])
    kl_per_channel: list[float]  # nats per image
    covariance: list[list[float]]  # [C, C] of z
    spectrum: list[float | None]  # power of the posterior mean by frequency, see SPECTRUM_BINS
    high_frequency: float  # share of the power above 1/4 cycle per position, half of Nyquist's
    global_mean: float
    global_std: float
    kl: float  # nats per image

    @property
    def dead_channels(self) -> list[int]:
        """Channels without information: signal drowned in their own noise, or constant.

        The active units of Burda et al. (2016), made independent of the latents' scale.
        """
        dead = []
        for channel, (signal, noise) in enumerate(
            zip(self.signal_std, self.noise_std, strict=True)
        ):
            drowned = signal**2 < DEAD_FRACTION * noise**2
            constant = signal <= DEAD_FRACTION * self.global_std
            if drowned or constant:
                dead.append(channel)
        return dead

    @property
    def posterior_std(self) -> float:
        """The noise in all elements of z together, beside `global_std`."""
        return math.sqrt(sum(std**2 for std in self.noise_std) / len(self.noise_std))

    @property
    def correlation_eigenvalues(self) -> list[float]:
        """Eigenvalues of the channels' correlation matrix, largest first; all 1 if uncorrelated."""
        covariance = torch.tensor(self.covariance, dtype=torch.float64)
        std = covariance.diagonal().sqrt().clamp(min=1e-12)
        return torch.linalg.eigvalsh(covariance / std / std[:, None]).flip(0).tolist()

    def normalization(self, kind: str = "scale") -> dict[str, Any]:
        """The config entries that bring latents to unit scale, for `register_to_config`.

        "scale": `scaling_factor` = 1 / global std, latent-diffusion's convention (z * factor).
        "scale_shift": also `shift_factor` = global mean, as in SD3 and FLUX ((z - shift) * factor).
        "per_channel": `latents_mean` and `latents_std`, with `scaling_factor` 1
        ((z - mean) / std * factor). Entries that a kind does not use are None, so that nothing
        stale is applied on top. Raises ArgumentError for an unknown kind or latents without spread.
        """
        if kind not in NORMALIZATIONS:
            raise ArgumentError(
                f"--normalization={kind} must be one of {', '.join(NORMALIZATIONS)}"
            )
        if not math.isfinite(self.global_std) or min(self.global_std, *self.channel_std) <= 0:
            raise ArgumentError(
                f"these latents cannot be normalised (global std {self.global_std}, per channel "
                f"{self.channel_std}): the encoder gives a constant or NaN; train it first"
            )
        entries: dict[str, Any] = {
            "scaling_factor": 1.0 / self.global_std,
            "shift_factor": None,
            "latents_mean": None,
            "latents_std": None,
        }
        if kind == "scale_shift":
            entries["shift_factor"] = self.global_mean
        if kind == "per_channel":
            entries.update(
                scaling_factor=1.0, latents_mean=self.channel_mean, latents_std=self.channel_std
            )
        return entries

    def to_dict(self) -> dict[str, Any]:
        """Everything measured and derived, ready for JSON."""
        return {
            **asdict(self),
            "dead_channels": self.dead_channels,
            "correlation_eigenvalues": self.correlation_eigenvalues,
        }


@torch.no_grad()
def posterior_spread(posterior: DiagonalGaussianDistribution) -> dict[str, Tensor]:
    """Of a batch of posteriors, as scalars on the device: {"latent_std", "posterior_std"}.

    The standard deviation of all elements of z together, and the noise in it: the root of the mean
    variance of q(z|x).
    """
    noise = posterior.var.mean()
    signal = posterior.mean.var(correction=0)
    return {"latent_std": (signal + noise).sqrt(), "posterior_std": noise.sqrt()}


def kl_per_channel(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(q(z|x) || N(0, 1)) of each image and channel in nats, summed over positions, in float64.

    mean, logvar: [B, C, h, w]. Returns [B, C].
    """
    mean, logvar = mean.double(), logvar.double()
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum(dim=(2, 3))


class LatentAccumulator:
    """Streams posteriors into float64 sums on the CPU; memory does not grow with the images.

    Images may differ in size; channels may not.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        # Images and positions; sums of mean, mean mean^T, variance, KL; spectrum and its count.
        self.sizes = [2, channels, channels**2, channels, channels, SPECTRUM_BINS, SPECTRUM_BINS]
        self.sums = torch.zeros(sum(self.sizes), dtype=torch.float64)

    def update(self, mean: Tensor, logvar: Tensor) -> None:
        """Adds a batch. mean, logvar: [B, C, h, w], the posterior's, any float type."""
        mean, logvar = mean.detach().cpu().double(), logvar.detach().cpu().double()
        counts, first, second, variance, kl, power, weight = self.sums.split(self.sizes)
        flat = mean.transpose(0, 1).reshape(self.channels, -1)
        counts += torch.tensor([len(mean), flat.shape[1]], dtype=torch.float64)
        first += flat.sum(dim=1)
        second += (flat @ flat.T).flatten()
        variance += logvar.exp().sum(dim=(0, 2, 3))
        kl += kl_per_channel(mean, logvar).sum(dim=0)
        batch_power, batch_weight = _radial_power(mean)
        power += batch_power
        weight += batch_weight

    def result(self) -> LatentStatistics:
        """Statistics of everything that all processes added; every process must call it.

        Raises ArgumentError when nothing was added.
        """
        sums = sum_over_processes(self.sums)
        counts, first, second, variance, kl, power, weight = sums.split(self.sizes)
        num_images, positions = counts.tolist()
        if not num_images:
            raise ArgumentError("latent statistics of no images: every image was unreadable or NaN")
        mean = first / positions
        signal = second.view(self.channels, -1) / positions - torch.outer(mean, mean)
        signal_variance = signal.diagonal().clamp(min=0)
        noise_variance = variance / positions
        channel_variance = signal_variance + noise_variance
        # Law of total variance over channels, which all have the same number of elements.
        global_variance = channel_variance.mean() + mean.var(correction=0)
        rings = power.tolist(), weight.tolist()
        return LatentStatistics(
            num_images=int(num_images),
            channel_mean=mean.tolist(),
            channel_std=channel_variance.sqrt().tolist(),
            signal_std=signal_variance.sqrt().tolist(),
            noise_std=noise_variance.sqrt().tolist(),
            kl_per_channel=(kl / num_images).tolist(),
            covariance=(signal + noise_variance.diag()).tolist(),
            spectrum=[total / n if n else None for total, n in zip(*rings, strict=True)],
            high_frequency=(power[SPECTRUM_BINS // 2 :].sum() / power.sum()).item(),
            global_mean=mean.mean().item(),
            global_std=global_variance.sqrt().item(),
            kl=(kl.sum() / num_images).item(),
        )


def _radial_power(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Power spectrum of [B, C, h, w], summed in rings of frequency, and the coefficients in each.

    Orthonormal, each image's and channel's own mean removed, so white noise of variance v has power
    v in every ring. Frequencies run from 0 to 1/2 cycle per latent position; corners are left out.
    """
    latents = latents - latents.mean(dim=(2, 3), keepdim=True)
    power = torch.fft.fft2(latents, norm="ortho").abs().square().sum(dim=(0, 1))
    vertical = torch.fft.fftfreq(latents.shape[2], dtype=torch.float64)
    horizontal = torch.fft.fftfreq(latents.shape[3], dtype=torch.float64)
    radius = torch.hypot(vertical[:, None], horizontal[None, :])
    inside = (radius > 0) & (radius <= 0.5)
    ring = (radius[inside] * 2 * SPECTRUM_BINS).ceil().long() - 1
    rings = F.one_hot(ring, SPECTRUM_BINS).double()
    return power[inside] @ rings, rings.sum(dim=0) * latents.shape[0] * latents.shape[1]
