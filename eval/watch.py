"""What stands around a run while it trains: its data, records, validation, signals and uploads."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from eval.report.training import write_training_report
from eval.validation import Validation, ValidationResult, make_validation
from modules.builders.banner import banner, facts
from modules.builders.data import TrainingData
from modules.builders.output_dir import clear_output_dir
from modules.data.bad_images import BadImages
from modules.distributed.reduce import gather_from_processes
from modules.distributed.signals import StopRequest
from modules.errors import dispensable
from modules.export.model_card import Provenance
from modules.export.publisher import Publisher
from modules.tracking.journal import Journal
from modules.tracking.metrics_log import comparable
from modules.training.run import Run


@dataclass(frozen=True)
class Watch:
    """What looks at the run between its steps, and may end it."""

    data: TrainingData
    validation: Validation | None
    journal: Journal
    bad_images: BadImages
    stop: StopRequest
    publisher: Publisher | None  # of the main process, with --push_to_hub

    def provenance(self) -> Provenance:
        """What the model card says of where its numbers come from and where it lies."""
        repository = self.publisher.repository if self.publisher else None
        if self.validation is None:
            return Provenance(repository=repository)
        protocol = self.validation.protocol
        return Provenance(protocol.describe(), protocol.stamp(), repository)

    def rows(self, run: Run) -> list[dict[str, float]]:
        """Those of metrics.jsonl, with validations of the images that are validated on now."""
        return comparable(self.journal.metrics_log.rows(), run.measured_since)

    def write_report(self, run: Run, result: ValidationResult) -> None:
        """Refreshes report.html: all curves so far, and the pictures of this validation."""
        with dispensable(str(run.output_dir / "report.html")):
            write_training_report(
                run.output_dir / "report.html",
                run.output_dir.name,
                self.rows(run),
                result.evaluation,
                self.validation.protocol,
                result.latent_grid,
                facts(run, self.journal),
            )

    def name_bad_images(self, run: Run) -> None:
        """Lists images that no process could use since the last time; stops if they are many."""
        rejected, run.rejected = run.rejected, []
        self.bad_images.add(gather_from_processes(rejected), run.samples)

    def push_when_due(self, run: Run) -> None:
        """Sends the best weights so far to the Hub; training does not wait for it."""
        self.publisher.report()
        if self.publisher.is_due(run.step):
            self.publisher.push(run, self.rows(run), self.provenance())


def begin(run: Run, data: TrainingData) -> Watch:
    """Makes the output folder this run's, says what is about to happen, and watches from then on.

    Nothing that was there is touched before: a refusal must not cost what an old run left.
    """
    args, accelerator, publisher = run.args, run.accelerator, None
    if accelerator.is_main_process:
        if args.logging.push_to_hub:
            publisher = Publisher(args)
        clear_output_dir(args)
        print(banner(args, run.raw_vae.vae, data.describe(args), run), file=sys.stderr)
    accelerator.wait_for_everyone()
    writes, every = accelerator.is_main_process, args.validation.validation_steps
    return Watch(
        data=data,
        validation=make_validation(run, data.validation),
        journal=Journal(accelerator, run.output_dir, run.max_train_steps, every),
        bad_images=BadImages(run.output_dir, args.data.max_bad_images, data.size, writes),
        stop=StopRequest(args.precision.ddp_timeout),
        publisher=publisher,
    )
