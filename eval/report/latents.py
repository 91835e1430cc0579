"""Latent statistics for every report that has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    rows = {label: [Cell(text) for text in summary_row(found)] for label, found in models.items()}
    for label, factor in scaling_factors.items():
        rows[label].append(Cell(f"{factor:.5f}"))
    return {
        "header": (*HEADER, "scaling_factor in config.json") if scaling_factors else HEADER,
        "rows": rows,
        "explained": explained,
        "advice": dead_channels(models),
        "channels": {
            label: {
                "header": CHANNEL_HEADER,
                "rows": _channels(found),
                "correlation": correlation(found),
            }
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
        print_table([CHANNEL_HEADER, *channel_rows(found)])
        eigenvalues = " ".join(f"{value:.3f}" for value in found.correlation_eigenvalues[:16])
        print(f"eigenvalues of the correlation: {eigenvalues}")


def summary_row(found: LatentStatistics) -> list[str]:
    """The numbers under HEADER."""
    return [
        str(found.num_images),
        f"{found.global_mean:+.4f}",
        f"{found.global_std:.4f}",
        f"{found.kl:.1f}",
        ", ".join(map(str, found.dead_channels)) or "none",
    ]


def channel_rows(found: LatentStatistics) -> list[list[str]]:
    """The numbers under CHANNEL_HEADER, channel by channel; a dead one says so."""
    columns = (
        found.channel_mean, found.channel_std, found.signal_std, found.noise_std,
        found.kl_per_channel,
    )  # fmt: skip
    return [
        [
            f"{channel}{' dead' if channel in found.dead_channels else ''}",
            f"{mean:+.4f}",
            *(f"{number:.4f}" for number in (std, signal, noise)),
            f"{kl:.1f}",
        ]
        for channel, (mean, std, signal, noise, kl) in enumerate(zip(*columns, strict=True))
    ]


def dead_channels(models: Mapping[str, LatentStatistics]) -> list[str]:
    """Which channels carry nothing."""
    return [
        f"{label}: dead channels {', '.join(map(str, found.dead_channels))}: noise without a "
        "signal, or constant"
        for label, found in models.items()
        if found.dead_channels
    ]


def correlation(found: LatentStatistics) -> list[list[float]]:
    """Correlation matrix of the channels of z, [C, C]; 0 beside a constant channel."""
    std = found.channel_std
    return [
        [
            value / (std[row] * std[column]) if std[row] * std[column] > 0 else 0.0
            for column, value in enumerate(values)
        ]
        for row, values in enumerate(found.covariance)
    ]


def _channels(found: LatentStatistics) -> dict[str, list[Cell]]:
    """`channel_rows` with bars behind the deviations and the KL."""
    largest_std, largest_kl = max(found.channel_std), max(found.kl_per_channel)
    rows = {}
    for channel, (name, *texts) in enumerate(channel_rows(found)):
        cells = rows[name] = [Cell(text) for text in texts]
        for number, value, largest in (
            (1, found.channel_std[channel], largest_std),
            (4, found.kl_per_channel[channel], largest_kl),
        ):
            cells[number] = cells[number]._replace(share=value / largest if largest > 0 else 0.0)
    return rows


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
