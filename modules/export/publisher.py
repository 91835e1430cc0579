"""Pushes a run to its repository on the Hub: a copy of its best on the way, all of it at the end.

Each push is a process of its own, see `modules.export.upload`.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from modules.errors import RunStopped
from modules.output.run_files import COMPLETE_MIDWAY, SNAPSHOT, find

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
UPLOAD = "modules.export.upload"
PATIENCE = 600.0  # seconds that the last push on the way may still take when training is complete
GRACE = 10.0  # seconds it may take when the run has to stop: launchers kill after 30


class Publisher:
    """The repository that a run is pushed to, by at most one process at a time.

    every: steps between pushes on the way, 0 for none. For the main process. Leaving it as a
    context ends what is still being pushed.
    """

    def __init__(
        self, repository: str, output_dir: Path, every: int = 0, token: str | None = None
    ) -> None:
        self.repository, self.output_dir, self.every = repository, output_dir, every
        self.token = token
        self.snapshot = output_dir / SNAPSHOT  # where what is pushed on the way is copied to
        self.process: subprocess.Popen[bytes] | None = None  # pushes `step`, writes to `errors`
        self.said_busy = False

    def is_due(self, step: int) -> bool:
        """Whether the present state is to be pushed after this step."""
        return self.every > 0 and step % self.every == 0

    def push(self, step: int, write_card: Callable[[Path], None]) -> None:
        """Starts to push a copy of what is complete now, to which `write_card` adds README.md.

        While an earlier push is under way, this one is left out. What goes wrong with files, as on
        a full disk, is told and ends nothing.
        """
        if self.process is not None:
            if not self.said_busy:
                logger.warning("the push of step %d is still under way, so that of step %d is left "
                               "out, and so will be others, without a word: every push carries "
                               "everything", self.step, step)  # fmt: skip
            self.said_busy = True
            return
        try:
            self._copy()
            write_card(self.snapshot)
            self._start(self.snapshot, step, f"Step {step}")
        except OSError as error:
            shutil.rmtree(self.snapshot, ignore_errors=True)
            logger.warning("step %d could not be pushed (%s); training goes on", step, error)

    def report(self) -> None:
        """Says how the push on the way went, once it has ended; costs nothing before that."""
        if self.process is None or self.process.poll() is None:
            return
        if self.process.returncode == 0:
            logger.info("pushed step %d to %s", self.step, self.repository)
        else:
            logger.warning("the push of step %d to %s failed (%s); the next one carries everything",
                           self.step, self.repository, self._reason())  # fmt: skip
        self.process = None
        shutil.rmtree(self.snapshot, ignore_errors=True)

    def finish(self, step: int, stop: Callable[[], bool]) -> None:
        """Uploads the finished run, after the last push on the way; `stop` leaves it GRACE seconds.

        Raises RunStopped, saying how to repeat it, where it fails; the files stay on disk.
        """
        self._wait(PATIENCE, stop)
        self.report()
        logger.info("uploading %s to %s", self.output_dir, self.repository)
        self._start(self.output_dir, step, f"End of training, step {step}")
        self._wait(math.inf, stop)
        failed, self.process = self.process.returncode != 0, None
        if failed:
            again = ["python", "-m", UPLOAD, self.repository, str(self.output_dir)]
            raise RunStopped(
                f"training is complete in {self.output_dir}, but the upload to {self.repository} "
                f"failed ({self._reason()}); repeat it with `{shlex.join(again)}`"
            )

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *error: object) -> None:
        self._wait(GRACE)
        self.report()

    def _copy(self) -> None:
        """Copies what is complete midway: training goes on, and changes the originals."""
        shutil.rmtree(self.snapshot, ignore_errors=True)
        for source in filter(Path.is_file, find(self.output_dir, COMPLETE_MIDWAY)):
            target = self.snapshot / source.relative_to(self.output_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def _start(self, folder: Path, step: int, message: str) -> None:
        """The token goes through the environment, which other users cannot read."""
        token = {} if self.token is None else {"HF_TOKEN": self.token}
        self.step, self.errors = step, tempfile.TemporaryFile()  # noqa: SIM115 - it outlives this
        self.process = subprocess.Popen(
            [sys.executable, "-m", UPLOAD, self.repository, str(folder.resolve()), message],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **token},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
        )

    def _wait(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Waits for the push under way, and ends it when it takes longer."""
        deadline = time.monotonic() + seconds
        while self.process is not None and self.process.poll() is None:
            if stop():
                deadline = min(deadline, time.monotonic() + GRACE)
            if time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                self.errors.write(b"\nit took too long and was ended")
            time.sleep(0.05)

    def _reason(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the process was ended from outside"
