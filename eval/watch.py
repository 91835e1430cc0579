"""What stands around a run while it trains: its data, records, validation, signals and uploads."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

from eval.export import describe_training, latent_config, make_publisher
from eval.report.training import write_training_report
from eval.validation import Validation, ValidationResult
from modules.builders.banner import banner, facts, summary
from modules.builders.data import TrainingData
from modules.builders.output_dir import clear_output_dir, owned_files
from modules.data.bad_images import BadImages
from modules.distributed.reduce import gather_from_processes
from modules.distributed.signals import StopRequest
from modules.errors import dispensable
from modules.export.model_card import Training, write_model_card
from modules.export.publisher import Publisher
from modules.export.vae import export_everything
from modules.models.autoencoder import describe
from modules.models.latents import LatentStatistics
from modules.output.run_files import AT_THE_END
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

    def training(self, run: Run) -> Training:
        """What the model card says of how the weights came about."""
        protocol = self.validation.protocol if self.validation else None
        return describe_training(
            run.args,
            describe(run.raw_vae.vae),
            history=run.history,
            repository=self.publisher.repository if self.publisher else None,
            protocol=protocol.describe() if protocol else "",
            stamp=protocol.stamp() if protocol else {},
        )

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
            rows = [row for row in self.rows(run) if row["step"] <= run.best.get("step", 0)]
            write_card = partial(write_model_card, training=self.training(run), steps=run.step,
                                 rows=rows, subfolder="best")  # fmt: skip
            self.publisher.push(run.step, write_card)

    def write_result(self, run: Run, latents: LatentStatistics | None) -> None:
        """Writes the VAE's present weights, the card and what else was asked for; says so.

        For the main process. latents: None where the encoder was frozen.
        """
        args = run.args
        self.journal.close()
        owned, rows = owned_files(args), self.rows(run)
        owned.claim(AT_THE_END)
        vae = export_everything(
            run.raw_vae.vae,
            run.output_dir,
            discriminator=run.raw_discriminator if args.discriminator.enabled else None,
            ldm=args.checkpoints.export_ldm,
            fp16=args.checkpoints.export_fp16,
            **latent_config(args, latents),
        )
        write_model_card(run.output_dir, self.training(run), run.step, rows, latents)
        owned.sign("README.md")  # people write on in it
        print(summary(vae, run.output_dir, rows), file=sys.stderr)
        if run.step < run.max_train_steps:
            print(f"--early_stopping={args.validation.early_stopping} ended the run at step "
                  f"{run.step} of {run.max_train_steps}: {run.stale} validations in a row had no "
                  f"better {args.validation.best_metric} than best/, of step "
                  f"{run.best.get('step', 'none')}.", file=sys.stderr)  # fmt: skip


def begin(run: Run, data: TrainingData, validation: Validation | None) -> Watch:
    """Makes the output folder this run's, says what is about to happen, and watches from then on.

    Nothing that was there is touched before: a refusal must not cost what an old run left.
    """
    args, accelerator, publisher = run.args, run.accelerator, None
    if accelerator.is_main_process:
        if args.logging.push_to_hub:
            publisher = make_publisher(args)
        clear_output_dir(args)
        print(banner(run, data.describe(args)), file=sys.stderr)
    accelerator.wait_for_everyone()
    writes, every = accelerator.is_main_process, args.validation.validation_steps
    return Watch(
        data=data,
        validation=validation,
        journal=Journal(accelerator, run.output_dir, run.max_train_steps, every),
        bad_images=BadImages(run.output_dir, args.data.max_bad_images, data.size, writes),
        stop=StopRequest(args.precision.ddp_timeout),
        publisher=publisher,
    )
