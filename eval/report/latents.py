"""Latent statistics as charts and a table, for every report that has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.report.charts import Series, bar_chart_svg, heatmap_svg, line_chart_svg
from eval.report.page import Cell, bullet_list, charts, metrics_table, page
from modules.models.latents import SPECTRUM_BINS, LatentStatistics

HEADER = ("model", "images", "mean", "std", "1 / std", "KL, nats", "dead channels")


def latent_section(models: Mapping[str, LatentStatistics]) -> str:
    """Moments, KL, correlation and spectrum of one or more models; empty for none."""
    if not models:
        return ""
    table = metrics_table(HEADER, {label: _row(found) for label, found in models.items()})
    figures = [_spectra(models)]
    for label, found in models.items():
        names = [str(channel) for channel in range(len(found.channel_mean))]
        prefix = f"{label}: " if len(models) > 1 else ""
        figures += [
            bar_chart_svg(
                names, found.channel_mean, title=f"{prefix}mean of each channel", x_label="channel"
            ),
            bar_chart_svg(
                names,
                found.channel_std,
                title=f"{prefix}standard deviation of each channel",
                x_label="channel",
            ),
            bar_chart_svg(
                names,
                found.kl_per_channel,
                title=f"{prefix}KL of each channel",
                x_label="channel",
                y_label="nats per image",
            ),
            heatmap_svg(correlation(found), title=f"{prefix}correlation of channels"),
        ]
    return table + bullet_list(advice(models)) + charts(figures)


def advice(models: Mapping[str, LatentStatistics]) -> list[str]:
    """What to write into the configuration, and which channels carry nothing."""
    lines = []
    for label, found in models.items():
        if not found.global_std > 0:
            lines.append(f"{label}: the latents are constant")
            continue
        lines.append(f"{label}: scaling_factor should be {1 / found.global_std:.5f}")
        if found.dead_channels:
            channels = ", ".join(map(str, found.dead_channels))
            lines.append(f"{label}: dead channels {channels}: noise without a signal, or constant")
    return lines


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


def _row(found: LatentStatistics) -> list[Cell]:
    scale = f"{1 / found.global_std:.5f}" if found.global_std > 0 else "–"
    dead = ", ".join(map(str, found.dead_channels)) or "none"
    return [
        Cell(str(found.num_images)),
        Cell(f"{found.global_mean:+.4f}"),
        Cell(f"{found.global_std:.4f}"),
        Cell(scale),
        Cell(f"{found.kl:.1f}"),
        Cell(dead),
    ]


def _spectra(models: Mapping[str, LatentStatistics]) -> str:
    """Power over frequency on a logarithmic axis; empty rings are bridged, not drawn as gaps."""
    lines = []
    for label, found in models.items():
        rings = [(i, power) for i, power in enumerate(found.spectrum) if power is not None]
        frequencies = [(ring + 0.5) / (2 * SPECTRUM_BINS) for ring, _ in rings]
        lines.append(Series(label, frequencies, [power for _, power in rings]))
    return line_chart_svg(
        lines,
        title="Power spectrum of the posterior mean",
        x_label="cycles per latent position",
        y_label="power",
        log_y=True,
    )


def latent_page(models: Mapping[str, LatentStatistics], stamp: Sequence[str]) -> str:
    """A report of latents alone."""
    return page(
        "Latents",
        [("Statistics", latent_section(models))],
        lead=", ".join(models),
        stamp=stamp,
    )


def latent_text(models: Mapping[str, LatentStatistics], kind: str) -> str:
    """The statistics for a terminal, and the config entries of normalisation `kind`."""
    return "\n\n".join(_model_text(label, found, kind) for label, found in models.items())


def _model_text(label: str, found: LatentStatistics, kind: str) -> str:
    lines = [
        f"{label}: {found.num_images} images, KL {found.kl:.1f} nats per image, "
        f"mean {found.global_mean:+.4f}, std {found.global_std:.4f}",
        "channel      mean       std    signal     noise   KL nats",
    ]
    columns = (
        found.channel_mean, found.channel_std, found.signal_std, found.noise_std,
        found.kl_per_channel,
    )  # fmt: skip
    for channel, values in enumerate(zip(*columns, strict=True)):
        mean, std, signal, noise, kl = values
        dead = "  dead" if channel in found.dead_channels else ""
        lines.append(
            f"{channel:7d}{mean:+10.4f}{std:10.4f}{signal:10.4f}{noise:10.4f}{kl:10.1f}{dead}"
        )
    eigenvalues = found.correlation_eigenvalues
    lines.append(
        "eigenvalues of the correlation: " + " ".join(f"{value:.3f}" for value in eigenvalues[:16])
    )
    for name, value in found.normalization(kind).items():
        lines.append(f"{name}: {value}")
    return "\n".join(lines)
