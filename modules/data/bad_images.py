"""The record of pictures that could not be used."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from modules.data.images.samples import UNREADABLE, Rejection
from modules.errors import RunStopped, dispensable

logger = logging.getLogger(__name__)

MIN_STREAM_SIZE = 1000  # a stream counts as this long at least, so that one bad start is no verdict
# Paths need not be valid Unicode: what cannot be decoded is written as the bytes it was.
FORM = {"encoding": "utf-8", "errors": "surrogateescape", "newline": "\n"}
ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


class BadImages:
    """Names each picture once, in the log and in a file, and knows when to stop.

    The file is `output_dir/bad_images.txt`: kind, label and reason with tabs between. Lines already
    there count, so a resumed run names nothing twice. max_bad_images: the fraction of dataset_size
    that may be unreadable. dataset_size: None for a stream, which counts as long as it has been
    read. Every process counts, so that all stop together; one `writes` the file.
    """

    def __init__(
        self,
        output_dir: str | Path,
        max_bad_images: float,
        dataset_size: int | None,
        writes: bool = True,
    ) -> None:
        self.path, self.writes = Path(output_dir) / "bad_images.txt", writes
        self.max_bad_images, self.dataset_size = max_bad_images, dataset_size
        self.kinds: dict[str, str] = {}  # by escaped label
        if not self.path.is_file():
            return
        with self.path.open(**FORM) as file:
            lines = file.readlines()
        whole = [line for line in lines if line.endswith("\n") and line.count("\t") == 2]
        self.kinds = {label: kind for kind, label, _ in (line.split("\t") for line in whole)}
        if whole != lines and writes:  # a run was killed while it wrote
            self.path.write_text("".join(whole), **FORM)

    def add(self, rejected: Iterable[Rejection], position: int = 0) -> None:
        """Records what is new of `rejected`, from all processes. position: samples drawn so far.

        Raises RunStopped once more pictures are unreadable than max_bad_images allows.
        """
        lines = [line for rejection in rejected if (line := self._line_if_new(rejection))]
        if lines and self.writes:
            with dispensable(str(self.path)):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", **FORM) as file:
                    file.writelines(lines)
        unreadable = sum(kind == UNREADABLE for kind in self.kinds.values())
        size = self.dataset_size or max(position, MIN_STREAM_SIZE)
        if unreadable > self.max_bad_images * size:
            raise RunStopped(
                f"{unreadable} of {size} training images cannot be read, more than "
                f"--max_bad_images={self.max_bad_images} allows; they are listed in {self.path}. "
                "Repair or remove them, or raise --max_bad_images"
            )

    def forget(self) -> None:
        """Starts anew, for other data: pictures that were repaired or removed count no more."""
        self.kinds.clear()
        if self.writes:
            self.path.unlink(missing_ok=True)

    def _line_if_new(self, rejection: Rejection) -> str | None:
        label, reason = (text.translate(ESCAPES) for text in rejection[:2])
        if label in self.kinds:
            return None
        # Pictures that are too small can be half of a dataset: the first one tells the story.
        first = rejection.kind not in self.kinds.values()
        level = logging.WARNING if first or rejection.kind == UNREADABLE else logging.DEBUG
        # A terminal cannot show a path that is not Unicode; the file keeps its bytes.
        shown, why = (text.encode("utf-8", "backslashreplace").decode() for text in (label, reason))
        logger.log(level, "%s image skipped: %s (%s)", rejection.kind, shown, why)
        self.kinds[label] = rejection.kind
        return f"{rejection.kind}\t{label}\t{reason}\n"


@cache
def warn_of_upscaling(resolution: int) -> None:
    """Says once that some images were too small; their share is logged as train/upscaled."""
    logger.warning(
        "some training images are smaller than %d pixels and are enlarged, which teaches blur; "
        "their share is train/upscaled, --min_image_size %d drops them", resolution, resolution,
    )  # fmt: skip
