"""Pushes a run to its repository on the Hub: copies of it on the way, and all of it at the end.

Uploads are processes of their own, see `modules.hub_upload`.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

import torch
from diffusers import AutoencoderKL

from modules.arguments import Arguments
from modules.errors import RunStopped
from modules.hub import make_repository
from modules.metrics_log import whole_validations
from modules.model_card import Provenance, write_model_card
from modules.run import Run
from modules.run_files import COMPLETE_MIDWAY, SNAPSHOT, find

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
PATIENCE = 600.0  # seconds that the last push on the way may still take when training is complete
GRACE = 10.0  # seconds it may take when the run has to stop: launchers kill after 30


class Publisher:
    """The repository that a run is pushed to, by at most one process at a time.

    For the main process, and with --push_to_hub alone. Leaving it as a context ends what is still
    being pushed, after GRACE seconds.
    """

    def __init__(self, args: Arguments) -> None:
        """Creates the repository. Raises ArgumentError as `make_repository` does."""
        self.output_dir = Path(args.checkpoints.output_dir)
        self.snapshot = self.output_dir / SNAPSHOT
        self.every = (args.logging.push_every or 0) * args.checkpoints.checkpointing_steps
        self.token = args.logging.hub_token
        self.repository = make_repository(args)
        self.process: subprocess.Popen[bytes] | None = None
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.step = 0  # of the push under way
        self.said_busy = False

    def is_due(self, step: int) -> bool:
        """Whether the present state is to be pushed after this step."""
        return self.every > 0 and step % self.every == 0

    def push(self, run: Run, rows: list[dict[str, float]], provenance: Provenance) -> None:
        """Starts to push a copy of what is complete now; a full disk is told and ends nothing.

        rows: those of metrics.jsonl. While an earlier push is under way, this one is left out.
        """
        if self.process is not None:
            if not self.said_busy:
                logger.warning(
                    "the push of step %d is still under way, so that of step %d is left out, and "
                    "so will be others, without a word: every push carries everything",
                    self.step, run.step,
                )  # fmt: skip
            self.said_busy = True
            return
        try:
            _take_snapshot(self.output_dir, self.snapshot)
            _write_card(self.snapshot, run, rows, provenance)
            self._start(self.snapshot, f"Step {run.step}")
        except OSError as error:
            shutil.rmtree(self.snapshot, ignore_errors=True)
            logger.warning("step %d could not be pushed (%s); training goes on", run.step, error)
            return
        self.step = run.step

    def report(self) -> None:
        """Says how the push on the way went, once it has ended; costs nothing before that."""
        if self.process is None or self.process.poll() is None:
            return
        if self.process.returncode == 0:
            logger.info("pushed step %d to %s", self.step, self.repository)
        else:
            logger.warning(
                "the push of step %d to %s failed (%s); training goes on, and the next push "
                "carries everything", self.step, self.repository, self._reason(),
            )  # fmt: skip
        self.process = None
        shutil.rmtree(self.snapshot, ignore_errors=True)

    def finish(self, step: int) -> None:
        """Uploads the finished run, after the last push on the way.

        Raises RunStopped, saying how to repeat it; the files stay on disk.
        """
        self._await(PATIENCE)
        logger.info("uploading %s to %s", self.output_dir, self.repository)
        self.step = step
        self._start(self.output_dir, f"End of training, step {step}")
        failed, self.process = self.process.wait() != 0, None
        if failed:
            again = ["python", "-m", "modules.hub_upload", self.repository, str(self.output_dir)]
            raise RunStopped(
                f"training is complete in {self.output_dir}, but the upload to {self.repository} "
                f"failed ({self._reason()}); repeat it with `{shlex.join(again)}`"
            )

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._await(GRACE)
        self.errors.close()

    def _start(self, folder: Path, message: str) -> None:
        """The token goes through the environment, which other users cannot read."""
        environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if self.token is not None:
            environment["HF_TOKEN"] = self.token
        self.errors.seek(0)
        self.errors.truncate()
        upload = ["-m", "modules.hub_upload", self.repository, str(folder.resolve()), message]
        self.process = subprocess.Popen(
            [sys.executable, *upload],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
        )

    def _reason(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the process was ended from outside"

    def _await(self, seconds: float) -> None:
        """Waits for the push under way, and ends it when it takes longer."""
        if self.process is None:
            return
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.errors.write(b"\nit took too long and was ended")
        self.report()


def _take_snapshot(output_dir: Path, snapshot: Path) -> None:
    """Copies what is complete midway, so that training may go on changing the originals.

    Weights and pictures are replaced whole and never changed, so a link is a copy of them.
    """
    shutil.rmtree(snapshot, ignore_errors=True)
    snapshot.mkdir()
    for source in filter(Path.is_file, find(output_dir, COMPLETE_MIDWAY)):
        target = snapshot / source.relative_to(output_dir)
        target.parent.mkdir(exist_ok=True)
        whole = source.suffix in (".png", ".safetensors")
        (_link if whole else shutil.copyfile)(source, target)


def _write_card(
    snapshot: Path, run: Run, rows: list[dict[str, float]], provenance: Provenance
) -> None:
    """Writes the card of the best weights so far, if there are any."""
    vae, best = run.raw_vae.vae, None
    if (snapshot / "best" / "config.json").exists():
        best = "best"
        with torch.device("meta"):  # the card tells of the configuration alone
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(snapshot / best))
    seen = [row for row in whole_validations(rows) if row["step"] <= run.best.get("step", 0)]
    write_model_card(snapshot, run.args, vae, steps=run.step, latents=None, validations=seen,
                     provenance=provenance, history=run.history, subfolder=best)  # fmt: skip


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems know no links, or no permissions and times to copy
        shutil.copyfile(source, target)
