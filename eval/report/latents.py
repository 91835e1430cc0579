"""Latent statistics for every report that has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.report.charts import Chart, line_chart
from eval.report.page import Cell
from eval.report.terminal import print_table
from modules.models.latents import SPECTRUM_BINS, LatentStatistics

HEADER = ("model", "images", "mean", "std", "KL, nats per image", "dead channels")
CHANNEL_HEADER = ("channel", "mean", "std", "signal", "noise", "KL, nats")
SCALE = (
    "A diffusion model sees latents times scaling_factor, which brings them to unit scale where it "
    "is about 1 / std. It was measured when the model was written, over other images."
)


def latent_values(
    models: Mapping[str, LatentStatistics], explained: str, scaling_factors: Mapping[str, float]
) -> dict[str, Any]:
    """What `latents` of parts.html draws; empty without models.

    explained: how "std" relates to the scaling_factor that a configuration holds.
    scaling_factors: those of the configurations, of each model or of none.
    """
    if not models:
        return {}
    rows = {}
    for label, found in models.items():
        dead = ", ".join(map(str, found.dead_channels)) or "none"
        texts = [f"{found.num_images}", f"{found.global_mean:+.4f}", f"{found.global_std:.4f}",
                 f"{found.kl:.1f}", dead]  # fmt: skip
        texts += [f"{scaling_factors[label]:.5f}"] if label in scaling_factors else []
        rows[label] = [Cell(text) for text in texts]
    return {
        "header": (*HEADER, "scaling_factor in config.json") if scaling_factors else HEADER,
        "rows": rows,
        "explained": explained,
        "advice": [
            f"{label}: dead channels {', '.join(map(str, found.dead_channels))}: noise without a "
            "signal, or constant"
            for label, found in models.items()
            if found.dead_channels
        ],
        "channel_header": CHANNEL_HEADER,
        "channels": {
            label: {"rows": channel_rows(found), "correlation": correlation(found)}
            for label, found in models.items()
        },
        "spectra": _spectra(models),
    }


def print_latents(
    models: Mapping[str, LatentStatistics],
    scaling_factors: Mapping[str, float],
    entries: Mapping[str, Mapping[str, Any]],
) -> None:
    """The statistics for a terminal. entries: the normalization measured, by model."""
    for label, found in models.items():
        print(
            f"{label}: {found.num_images} images, KL {found.kl:.1f} nats per image, "
            f"mean {found.global_mean:+.4f}, std {found.global_std:.4f}; "
            f"config.json has scaling_factor {scaling_factors[label]:.5f}, measured here:"
        )
        for name, value in entries[label].items():
            print(f"{name}: {value}")
        rows = [[name, *(c.text for c in cells)] for name, cells in channel_rows(found).items()]
        print_table([CHANNEL_HEADER, *rows])
        eigenvalues = " ".join(f"{value:.3f}" for value in found.correlation_eigenvalues[:16])
        print(f"eigenvalues of the correlation: {eigenvalues}")


def channel_rows(found: LatentStatistics) -> dict[str, list[Cell]]:
    """The numbers under CHANNEL_HEADER by channel, with bars behind the deviations and the KL."""

    def with_bar(value: float, digits: int, column: Sequence[float]) -> Cell:
        return Cell(f"{value:.{digits}f}", share=value / max(column) if max(column) > 0 else 0.0)

    columns = (found.channel_mean, found.channel_std, found.signal_std, found.noise_std,
               found.kl_per_channel)  # fmt: skip
    return {
        f"{channel} dead" if channel in found.dead_channels else f"{channel}": [
            Cell(f"{mean:+.4f}"),
            with_bar(std, 4, found.channel_std),
            Cell(f"{signal:.4f}"),
            Cell(f"{noise:.4f}"),
            with_bar(kl, 1, found.kl_per_channel),
        ]
        for channel, (mean, std, signal, noise, kl) in enumerate(zip(*columns, strict=True))
    }


def correlation(found: LatentStatistics) -> list[list[float]]:
    """Correlation matrix of the channels of z, [C, C]; 0 beside a constant channel."""
    scale = np.outer(found.channel_std, found.channel_std)
    zeros = np.zeros_like(scale)
    return np.divide(found.covariance, scale, out=zeros, where=scale > 0).tolist()


def _spectra(models: Mapping[str, LatentStatistics]) -> Chart:
    """Power over frequency on a logarithmic axis; empty rings are bridged, not drawn as gaps."""
    lines = {
        label: [
            ((ring + 0.5) / (2 * SPECTRUM_BINS), power)
            for ring, power in enumerate(found.spectrum)
            if power is not None
        ]
        for label, found in models.items()
    }
    title = "Power spectrum of the posterior mean"
    return line_chart(title, "cycles per latent position", lines, log_y=True)
