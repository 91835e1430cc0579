"""The metrics by name: their titles in tables, which way is better, how they are printed."""

from __future__ import annotations

from dataclasses import dataclass

ARROWS = {"higher": "↑", "lower": "↓", "zero": "→0", "one": "→1", "": ""}


@dataclass(frozen=True)
class Column:
    """One number of a summary. `better`: "higher", "lower", "zero", "one", or "" for neither."""

    key: str
    title: str
    better: str
    digits: int
    meaning: str

    @property
    def heading(self) -> str:
        """The title, and an arrow to where it is better."""
        return f"{self.title} {ARROWS[self.better]}".strip()

    def format(self, value: float | None) -> str:
        """The value with the column's digits; signed where zero is best; a dash where missing."""
        if value is None or value != value:
            return "–"
        sign = "+" if self.better == "zero" else ""
        return f"{round(value, self.digits) + 0.0:{sign}.{self.digits}f}"  # + 0.0: no "-0.00"

    def distance(self, value: float) -> float:
        """How far from perfect: smaller is better, whatever the direction."""
        found = {"higher": -value, "lower": value, "zero": abs(value), "one": abs(value - 1.0)}
        return found.get(self.better, 0.0)


COLOR = ("color_bias_r", "color_bias_g", "color_bias_b")
GRIDS = ("grid_f", "grid_half", "grid_2")  # what repeats every f, f/2, 2 pixels
ON_FLAT_COLOURS = "RMS on flat colours of what repeats every f, f/2 or 2 pixels, levels of 255"

COLUMNS = (
    Column("psnr", "PSNR", "higher", 2, "dB, mean over images"),
    Column("psnr_pooled", "PSNR pooled", "higher", 2, "dB of the mean squared error of all images"),
    Column("ssim", "SSIM", "higher", 4, "structural similarity, mean over images"),
    Column("lpips_alex", "LPIPS alex", "lower", 4, "perceptual distance over AlexNet"),
    Column("lpips_vgg", "LPIPS vgg", "lower", 4, "perceptual distance over VGG16"),
    Column("lpips_squeeze", "LPIPS squeeze", "lower", 4, "perceptual distance over SqueezeNet"),
    Column("rfid", "rFID", "lower", 3, "Fréchet Inception distance; compares only at equal N"),
    Column("color_bias_r", "red", "zero", 2, "mean of reconstruction minus image, levels of 255"),
    Column("color_bias_g", "green", "zero", 2, "mean of reconstruction minus image, levels of 255"),
    Column("color_bias_b", "blue", "zero", 2, "mean of reconstruction minus image, levels of 255"),
    Column("low_frequency", "low freq", "lower", 2, "RMSE of 16x16 box averages, levels of 255"),
    Column("high_frequency", "high freq", "one", 3, "Laplacian energy over the image's; < 1 blur"),
    Column("border", "border", "lower", 2, "dB, error of the outer 8 pixels over that of the rest"),
    Column("halo", "halo", "lower", 2, "overshoot beside strong edges, levels of 255"),
    Column("grid_f", "grid f", "lower", 3, ON_FLAT_COLOURS),
    Column("grid_half", "grid f/2", "lower", 3, ON_FLAT_COLOURS),
    Column("grid_2", "grid 2", "lower", 3, ON_FLAT_COLOURS),
    Column("rec_l1", "L1", "lower", 4, "mean absolute error of the unclamped output on [-1, 1]"),
    Column("rec_l2", "L2", "lower", 5, "mean squared error of the unclamped output on [-1, 1]"),
    Column("kl", "KL", "", 0, "KL(q(z|x) || N(0, 1)), nats per image"),
)
COLUMN = {column.key: column for column in COLUMNS}

# What `--metrics` takes, and the numbers each name gives.
METRICS = {
    "psnr": ("psnr", "psnr_pooled"),
    "ssim": ("ssim",),
    "lpips": ("lpips_alex", "lpips_vgg"),
    "lpips_alex": ("lpips_alex",),
    "lpips_vgg": ("lpips_vgg",),
    "lpips_squeeze": ("lpips_squeeze",),
    "rfid": ("rfid",),
    "color": COLOR,
    "frequency": ("low_frequency", "high_frequency"),
    "artefacts": ("border", "halo", *GRIDS, *COLOR),
    "rec": ("rec_l1", "rec_l2"),
    "kl": ("kl",),
}
DEFAULT_METRICS = ("psnr", "ssim", "lpips", "rfid", "color", "frequency")


def keys_of(metrics: tuple[str, ...] | list[str]) -> list[str]:
    """Summary keys of `--metrics` names, in table order. Raises ValueError for an unknown name."""
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"--metrics={name} must be one of {', '.join(METRICS)}")
    wanted = {key for name in metrics for key in METRICS[name]}
    return [column.key for column in COLUMNS if column.key in wanted]
