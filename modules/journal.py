"""Everything that tells how the run goes: metrics.jsonl, trackers, progress bar, pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from modules.metrics_log import MetricsLog
from modules.trackers import send_histograms, send_picture

MOST_PICTURES = 100
SHOWN = ("rec_loss", "psnr", "g_loss", "d_loss")


class Journal:
    """Rows go to the file and the trackers, a few numbers to the bar. Only the main process writes.

    In a terminal the bar moves; in a log file it leaves a line every half minute.
    """

    def __init__(
        self, accelerator: Accelerator, output_dir: Path, max_train_steps: int, drawn_every: int
    ) -> None:
        self.accelerator = accelerator
        self.metrics_log = MetricsLog(output_dir / "metrics.jsonl")
        self.samples = output_dir / "samples"
        self.max_train_steps, self.drawn_every = max_train_steps, drawn_every
        self.bar: tqdm | None = None

    def start_at(self, step: int) -> None:
        """Continues at `step`: later rows are dropped, the bar and its ETA start there.

        At 0 every row is: a run that was killed before its first checkpoint measures step 0 again.
        """
        if self.accelerator.is_main_process:
            self.metrics_log.keep_up_to(step or -1)
        self.bar = tqdm(
            total=self.max_train_steps,
            initial=step,
            desc="Steps",
            disable=not self.accelerator.is_local_main_process,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
            dynamic_ncols=True,
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds one row of numbers."""
        if self.accelerator.is_main_process:
            self.metrics_log.append(step, values)
        self.accelerator.log(values, step=step)

    def show(self, values: dict[str, float]) -> None:
        """Puts the telling ones of training's `values` beside the bar."""
        shown = {name: f"{values[name]:.4g}" for name in SHOWN if name in values}
        self.bar.set_postfix(shown | {"images/s": f"{values['images_per_s']:.3g}"}, refresh=False)

    def advance(self) -> None:
        """One optimizer step is done."""
        self.bar.update()

    def draw(self, step: int, grid: Image.Image) -> None:
        """Writes samples/step-*.png and hands the picture to trackers that take pictures.

        The folder keeps about MOST_PICTURES at most, spread evenly over the run.
        """
        if not self.accelerator.is_main_process:
            return
        self.samples.mkdir(exist_ok=True)
        grid.save(self.samples / f"step-{step:06d}.png")
        drawn = {int(path.stem[5:]): path for path in self.samples.glob("step-*.png")}
        for old in drawn.keys() - kept_pictures(drawn, step, self.drawn_every):
            drawn[old].unlink()
        send_picture(self.accelerator.trackers, "validation", grid, step)

    def draw_latents(self, step: int, picture: Image.Image, latents: Tensor) -> None:
        """Hands the latents to the trackers, as a picture and as histograms by channel.

        latents: [n, C, h, w]. Nothing is written anywhere else.
        """
        send_picture(self.accelerator.trackers, "latents", picture, step)
        channels = latents.detach().cpu().float().transpose(0, 1)
        arrays = {"latents/all": channels} | {
            f"latents/channel_{number:02d}": channel for number, channel in enumerate(channels)
        }
        finite = {name: array[array.isfinite()].numpy() for name, array in arrays.items()}
        send_histograms(self.accelerator.trackers, finite, step)

    def close(self) -> None:
        """Ends the bar, so that what is printed next starts on its own line."""
        if self.bar is not None:
            self.bar.close()


def kept_pictures(steps: Iterable[int], newest: int, every: int) -> set[int]:
    """Which of `steps` keep their picture: the newest, and multiples of `every` x a power of two.

    The power depends on `newest` alone, so that a run that was killed and resumed keeps the same.
    """
    spacing = every
    while newest // spacing >= MOST_PICTURES:
        spacing *= 2
    return {step for step in steps if step == newest or step % spacing == 0}
