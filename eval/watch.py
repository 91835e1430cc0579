"""What stands around a run while it trains: its data, records, validation, signals and uploads."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from functools import partial

from eval.export import describe_training, latent_config, make_publisher
from eval.report.training import write_training_report
from eval.validation import Validation, ValidationResult
from modules.builders.banner import banner, facts
from modules.builders.data import TrainingData
from modules.builders.farewell import farewell
from modules.builders.outline import changed_flags
from modules.builders.output_dir import clear_output_dir
from modules.data.bad_images import BadImages
from modules.distributed.reduce import gather_from_processes
from modules.distributed.signals import StopRequest
from modules.errors import dispensable
from modules.export.model_card import Training, write_model_card
from modules.export.publisher import Publisher
from modules.export.vae import export_everything
from modules.models.autoencoder import describe, downsample_factor
from modules.models.latents import LatentStatistics
from modules.output.owned_files import OwnedFiles
from modules.output.run_files import AT_THE_END
from modules.tracking.journal import Journal
from modules.tracking.metrics_log import comparable, whole_validations
from modules.tracking.verdict import validation_line, verdict
from modules.training.run import Run

logger = logging.getLogger("modules.watch")

FLAGS = "Flags that differ from the defaults"


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
            baselines=self.baselines,
            facts=facts(run, self.journal),
        )

    def rows(self, run: Run) -> list[dict[str, float]]:
        """Those of metrics.jsonl, with validations of the images that are validated on now."""
        return comparable(self.journal.metrics_log.rows(), run.measured_since)

    def tell(self, run: Run, result: ValidationResult) -> None:
        """Refreshes the report, and says in a line how the last validation went. Main process."""
        if not run.accelerator.is_main_process:
            return
        self.write_report(run, result)
        if run.step > self.journal.first_step:
            left = self.journal.left(run.step)
            also = f"{self.journal.speed:.3g} images/s, {left} left"
        else:
            baselines = self.baselines.items()
            also = ", ".join(f"{name}: {found['psnr']:.2f} dB" for name, found in baselines)
        line = validation_line(whole_validations(self.rows(run)))
        logger.info("step %d of %d: %s; %s", run.step, run.max_train_steps, line, also)
        if wrong := self.verdict(run):
            logger.warning("%s", wrong)

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """Summaries of what needs no training, by name; empty before the first validation."""
        baselines = self.validation.baselines if self.validation else {}
        return {name: found.summary() for name, found in baselines.items()}

    def verdict(self, run: Run) -> str:
        """What is wrong with the last validation; empty where nothing is, or there was none."""
        validations = whole_validations(self.rows(run))
        if not (self.validation and validations):
            return ""
        first, last = ({"nan_images": 0} | {name.removeprefix("val/"): value for name, value in
                                            validations[at].items()} for at in (0, -1))  # fmt: skip
        # What was measured at the start, too, can be compared.
        worse = last.keys() <= first.keys() and self.validation.improves(first, last)
        return verdict(validations, worse, self.baselines)

    def write_report(
        self, run: Run, result: ValidationResult, scaling_factor: float | None = None
    ) -> None:
        """Refreshes report.html: all curves so far, and the pictures of this validation.

        scaling_factor: the exported one, at the end.
        """
        flags = "  ".join(changed_flags(run.args, paths=False))
        with dispensable(str(run.output_dir / "report.html")):
            write_training_report(
                run.output_dir / "report.html",
                run.output_dir.name,
                self.rows(run),
                result.evaluation,
                self.validation.protocol,
                latent_grid=result.latent_grid,
                baselines=self.baselines,
                facts=facts(run, self.journal) | {FLAGS: flags},
                scaling_factor=scaling_factor,
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

        Collective; the main process writes. latents: None where the encoder was frozen.
        """
        args = run.args
        if self.validation:  # which a run that resumes at its last step has not called
            self.validation.measure_baselines(downsample_factor(run.raw_vae.vae))
        if not run.accelerator.is_main_process:
            return
        self.journal.close()
        owned, rows = OwnedFiles(run.output_dir), self.rows(run)
        owned.claim(AT_THE_END)
        vae = export_everything(
            run.raw_vae.vae,
            run.output_dir,
            discriminator=run.raw_discriminator if args.discriminator.enabled else None,
            ldm=args.checkpoints.export_ldm,
            fp16=args.checkpoints.export_fp16,
            **latent_config(args, latents),
        )
        scaling_factor = vae.config.scaling_factor
        if self.validation and self.validation.latest:
            self.write_report(run, self.validation.latest, scaling_factor)
        write_model_card(run.output_dir, self.training(run), run.step, rows, latents)
        owned.sign("README.md")  # people write on in it
        print(farewell(args, scaling_factor, rows, self.verdict(run)), file=sys.stderr)
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
