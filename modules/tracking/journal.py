"""Everything that tells how the run goes: metrics.jsonl, trackers, progress, pictures."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from modules.errors import dispensable
from modules.output.run_files import PICTURES, find
from modules.tracking.metrics_log import MetricsLog
from modules.tracking.trackers import send_histograms, send_numbers, send_picture

logger = logging.getLogger(__name__)

MOST_PICTURES = 100
SHOWN = ("rec_loss", "psnr", "p_loss", "g_loss", "d_loss", "images_per_s")
LINE_EVERY = 10.0  # seconds between lines of training in a log file


class Journal:
    """Rows go to the file and the trackers, a few numbers to the screen. The main process writes.

    In a terminal a bar moves. A log file gets a line at the first log point after every LINE_EVERY
    seconds and at the end; both get one at every validation, from whoever measured it. Nothing of
    this can end the run: what cannot be written is warned of.
    """

    def __init__(
        self, accelerator: Accelerator, output_dir: Path, max_train_steps: int, drawn_every: int
    ) -> None:
        self.accelerator = accelerator
        self.metrics_log = MetricsLog(output_dir / "metrics.jsonl")
        self.samples = output_dir / "samples"
        self.max_train_steps, self.drawn_every = max_train_steps, drawn_every
        self.bar: tqdm | None = None
        self.messages = ExitStack()  # above the bar, while it moves
        self.next_line, self.speed = 0.0, 0.0

    def start_at(self, step: int) -> None:
        """Continues at `step`: later rows are dropped, the bar and its ETA start there.

        At 0 every row is: a run that was killed before its first checkpoint measures step 0 again.
        """
        if self.accelerator.is_main_process:
            self.metrics_log.keep_up_to(step or -1)
        self.first_step, self.began = step, time.monotonic()
        self.bar = tqdm(
            total=self.max_train_steps,
            initial=step,
            desc="Steps",
            disable=not (self.accelerator.is_local_main_process and sys.stderr.isatty()),
            mininterval=0.2,
            dynamic_ncols=True,
        )
        if not self.bar.disable:
            self.messages.enter_context(logging_redirect_tqdm())

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Adds one row of numbers, named `kind`/name; kind: "train" or "val"."""
        if not self.accelerator.is_main_process:
            return
        row = {f"{kind}/{name}": value for name, value in values.items()}
        with dispensable(str(self.metrics_log.file)):
            self.metrics_log.append(step, row)
        send_numbers(self.accelerator.trackers, row, step)
        if kind == "val":
            return
        self.speed = values.get("images_per_s", 0.0)
        shown = ", ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        if not self.bar.disable:
            self.bar.set_postfix_str(shown, refresh=False)
        elif (now := time.monotonic()) >= self.next_line or step == self.max_train_steps:
            self.next_line = now + LINE_EVERY
            left = self.left(step)
            logger.info("step %d of %d, %s left: %s", step, self.max_train_steps, left, shown)

    def left(self, step: int) -> str:
        """The time until the last step at the pace since the start, such as "02:15"."""
        each = (time.monotonic() - self.began) / max(1, step - self.first_step)
        return tqdm.format_interval(each * (self.max_train_steps - step))

    def advance(self) -> None:
        """One optimizer step is done."""
        self.bar.update()

    def draw(self, step: int, grid: Image.Image) -> None:
        """Writes samples/step-*.png and hands the picture to trackers that take pictures.

        The folder keeps about MOST_PICTURES at most, spread evenly over the run.
        """
        if not self.accelerator.is_main_process:
            return
        with dispensable(f"{self.samples}/"):
            self.samples.mkdir(exist_ok=True)
            newest = self.samples / f"step-{step:06d}.png"
            grid.save(newest)
            spacing = picture_spacing(step, self.drawn_every)
            for picture in find(self.samples.parent, [PICTURES]):
                if int(picture.stem.removeprefix("step-")) % spacing and picture != newest:
                    picture.unlink()
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
        self.messages.close()
        if self.bar is not None:
            self.bar.close()


def picture_spacing(newest: int, every: int) -> int:
    """Steps between the pictures that are kept beside the newest: `every` x a power of two.

    The power depends on `newest` alone, so that a run that was killed and resumed keeps the same.
    """
    spacing = every
    while newest // spacing >= MOST_PICTURES:
        spacing *= 2
    return spacing
