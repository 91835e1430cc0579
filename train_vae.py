"""Train an image autoencoder (AutoencoderKL) that diffusers loads.

Try it, on any machine, in minutes:
    accelerate launch --config_file accelerate_config.yaml train_vae.py --recipe quickstart

The SD 1.5 VAE from scratch on one 8 GB card:
    accelerate launch --config_file accelerate_config.yaml train_vae.py --recipe 8gb \
        --train_data_dir photos

On 4 GPUs:
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_vae.py \
        --recipe imagenet100

Fine-tune Stable Diffusion's decoder:
    accelerate launch --config_file accelerate_config.yaml train_vae.py --recipe ft-mse \
        --train_data_dir photos

Continue after whatever happened: the same command, and
    --resume_from_checkpoint latest
"""

from __future__ import annotations

import os

from modules.config.terminal import leave_when_interrupted, outlive_the_terminal

if __name__ == "__main__":
    outlive_the_terminal()
    leave_when_interrupted("train_vae.py: interrupted before training; there was nothing to save")

from modules.config.answers import exit_on_mistakes
from modules.config.command_line import for_trackers, parse_arguments, show_messages, to_yaml
from modules.config.threads import undo_launchers_limit
from modules.output.folder_lock import PATIENCE, FolderLock

if __name__ == "__main__":  # before the slow imports: some mistakes are answered at once
    arguments = parse_arguments()
    with exit_on_mistakes():
        output_lock = None
        if not arguments.dry_run:
            patience = PATIENCE if arguments.checkpoints.resume_from_checkpoint else 0.0
            output_lock = FolderLock(arguments.checkpoints.output_dir, patience)
    undo_launchers_limit(os.environ)

import logging
import math
import sys
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cache, partial

import torch

from eval.protocol.latents import measure_latents
from eval.protocol.loading import Interrupted
from eval.protocol.protocol import Protocol, ProtocolImages
from eval.rehearsal import explained, rehearse
from eval.report.training import write_training_report
from eval.validation import Validation, ValidationResult
from modules.builders.accelerator import make_accelerator
from modules.builders.banner import banner, summary
from modules.builders.data import TrainingData, check_shared_memory, make_loader, open_data
from modules.builders.export import (
    describe_training,
    latent_config,
    make_publisher,
    planned_push,
)
from modules.builders.networks import (
    make_discriminator,
    make_gan_schedule,
    make_optimizers,
    make_perceptual,
    make_schedulers,
    make_vae,
    training_length,
)
from modules.builders.output_dir import (
    check_output_dir,
    clear_output_dir,
    owned_files,
    refuse_together,
    resume_path,
)
from modules.config.arguments import Arguments
from modules.data.bad_images import BadImages
from modules.distributed.device import convolution_layout, device_name
from modules.distributed.launch_environment import check_environment
from modules.distributed.reduce import gather_from_processes
from modules.distributed.signals import StopRequest
from modules.errors import ArgumentError, dispensable
from modules.export.model_card import Training, write_model_card
from modules.export.publisher import Publisher
from modules.export.vae import export_everything, export_vae
from modules.models.autoencoder import TrainableVAE, describe, latent_shape
from modules.models.compilation import compile_networks
from modules.output.run_files import AT_THE_END
from modules.tracking.journal import Journal
from modules.tracking.metrics_log import comparable
from modules.tracking.trackers import end_trackers, start_trackers
from modules.training.checkpoint import save_checkpoint
from modules.training.ema import ExponentialMovingAverage
from modules.training.gan_guard import GanGuard
from modules.training.guard import FiniteGuard
from modules.training.losses import batch_psnr, discriminator_loss, kl_loss, rec_loss
from modules.training.meter import Meter
from modules.training.resume import reached_by, resume, trainer_state
from modules.training.run import Run
from modules.training.schedule import BEGINNING, Reached

logger = logging.getLogger("modules.train_vae")


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
            )


def train(run: Run, watch: Watch) -> bool:
    """Takes optimizer steps until the last one; False if a signal asked to stop before it."""
    accelerator, losses, disc = run.accelerator, run.args.losses, run.args.discriminator
    for batch in run.loader:
        if run.step >= run.max_train_steps:
            return True
        vae_turn = run.schedule.trains_vae(run.step)
        disc_turn = run.schedule.trains_discriminator(run.step)
        images, noise = run.to_device(batch)
        elements, terms = images[0].numel(), {}
        share = run.adversarial_share(elements)

        with accelerator.accumulate(run.vae, run.discriminator):
            # Generator: reconstruct through the prepared module, and let the frozen discriminator
            # judge; one backward carries every term through the VAE.
            with torch.set_grad_enabled(vae_turn):
                reconstructions, posterior = run.vae(images, noise)
            fakes = reconstructions.detach()
            if vae_turn:
                nll = terms["rec_loss"] = rec_loss(losses.rec_loss, images, reconstructions)
                if run.perceptual is not None:
                    p_loss = terms["p_loss"] = run.perceptual(images, reconstructions).mean()
                    nll = nll + losses.perceptual_scale * p_loss
                kl = terms["kl_loss"] = kl_loss(posterior.kl(), elements)
                loss = nll + losses.kl_scale * kl
                if share:
                    g_loss = terms["g_loss"] = run.judge(reconstructions)
                    d_weight = terms["d_weight"] = run.d_weight(nll, g_loss, elements)
                    loss = loss + share * d_weight * g_loss
                accelerator.backward(loss)
                terms["psnr"] = batch_psnr(images, fakes)

            # Discriminator: real and fake in one forward, so that DDP sees one graph.
            if disc_turn:
                logits_real, logits_fake = run.discriminator(images, fakes)
                d_loss = discriminator_loss(disc.disc_loss, logits_real, logits_fake)
                accelerator.backward(d_loss)
                terms |= {"d_loss": d_loss, "logits_real": logits_real.mean(),
                          "logits_fake": logits_fake.mean()}  # fmt: skip
            run.record(**terms)

        # One optimizer step is complete: update the VAE, then the discriminator; then look around.
        if accelerator.sync_gradients:
            run.update(vae_turn, disc_turn)
            if not after_step(run, watch):
                return False
    return True


def after_step(run: Run, watch: Watch) -> bool:
    """Between two optimizer steps: logs, validates and saves when due; False if asked to stop."""
    args, last = run.args, run.step == run.max_train_steps
    watch.journal.advance()
    if run.step % args.logging.logging_steps == 0 or last:
        log(run, watch)
    if run.step % args.validation.validation_steps == 0 or last:
        run.validation_due = True
    if run.validation_due:
        validate(run, watch)
    stop = watch.stop.agreed()
    if run.step % args.checkpoints.checkpointing_steps == 0 or last or stop:
        save(run, watch)
    if watch.publisher is not None and not (last or stop):
        push(run, watch)
    return (last and not run.validation_due) or not stop


def log(run: Run, watch: Watch) -> None:
    """Writes the means since the last row; the only place of the loop where the host waits."""
    name_bad_images(run, watch)
    means = run.meter.flush() | run.guard.check() | run.learning_rates()
    means |= run.gan_guard.judge(means)
    if means["upscaled"]:
        warn_of_upscaling(max(run.args.data.training_resolutions))
    watch.journal.write(run.step, "train", means)


@cache
def warn_of_upscaling(resolution: int) -> None:
    """Says once that some images were too small; their share is logged as train/upscaled."""
    logger.warning(
        "some training images are smaller than %d pixels and are enlarged, which teaches blur; "
        "their share is train/upscaled, --min_image_size %d drops them", resolution, resolution,
    )  # fmt: skip


def name_bad_images(run: Run, watch: Watch) -> None:
    """Lists the images that no process could use since the last time; stops if they are many."""
    rejected, run.rejected = run.rejected, []
    watch.bad_images.add(gather_from_processes(rejected), run.samples)


def validate(run: Run, watch: Watch) -> None:
    """Measures the weights that would be exported, draws them, and keeps them if they are best.

    Where a signal asks to stop it gives up, and stays due: the resumed run begins with it.
    """
    if watch.validation is None:
        run.validation_due = False
        return
    with run.averaged_weights():
        result = watch.validation.run(run.raw_vae.vae, watch.stop.agreed)
        if result is None:
            return
        run.validation_due, metrics = False, result.metrics
        watch.journal.write(run.step, "val", metrics)
        if result.grid is not None:
            watch.journal.draw(run.step, result.grid)
            watch.journal.draw_latents(run.step, result.latent_grid, result.grid_latents)
        if run.accelerator.is_main_process:
            watch.write_report(run, result)
        if watch.validation.improves(metrics, run.best, run.args.validation.best_metric):
            run.require_finite_weights()
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            run.best = {"step": run.step, **finite}
            if run.accelerator.is_main_process:
                with dispensable(str(run.output_dir / "best"), (OSError, ArgumentError)):
                    config = latent_config(run.args, result.latents)
                    export_vae(run.raw_vae.vae, run.output_dir / "best", **config)
    run.meter.restart_clock()


def save(run: Run, watch: Watch) -> None:
    """Writes a checkpoint from which the run continues bit for bit."""
    run.require_finite_weights()
    name_bad_images(run, watch)
    save_checkpoint(
        run.accelerator,
        run.output_dir / "checkpoints",
        run.step,
        run.ema,
        trainer_state(run, watch.data.identity()),
        run.args.checkpoints.checkpoints_total_limit,
    )
    run.meter.restart_clock()


def push(run: Run, watch: Watch) -> None:
    """Sends the best weights so far to the Hub when due; training does not wait for it."""
    watch.publisher.report()
    if watch.publisher.is_due(run.step):
        rows = [row for row in watch.rows(run) if row["step"] <= run.best.get("step", 0)]
        write_card = partial(write_model_card, training=watch.training(run), steps=run.step,
                             rows=rows, subfolder="best")  # fmt: skip
        watch.publisher.push(run.step, write_card)


def export(run: Run, watch: Watch) -> bool:
    """Writes what diffusers loads: the averaged weights, and a config with measured latents.

    False if a signal asked to stop while the latents were measured: nothing is written then.
    """
    args, latents = run.args, None
    run.require_finite_weights()
    with run.averaged_weights():
        if not args.model.decoder_only:
            count = args.checkpoints.num_latent_images
            images = watch.data.finite(args, count)
            try:
                latents = measure_latents(
                    run.raw_vae.vae,
                    ProtocolImages(images, Protocol(args.data.resolution), count),
                    batch_size=args.validation_batch_size,
                    device=run.accelerator.device,
                    progress=False,
                    stop=watch.stop.agreed,
                )
            except Interrupted:
                return False
        if run.accelerator.is_main_process:
            watch.journal.close()
            owned, rows = owned_files(args), watch.rows(run)
            owned.claim(AT_THE_END)
            vae = export_everything(
                run.raw_vae.vae,
                run.output_dir,
                discriminator=run.raw_discriminator if args.discriminator.enabled else None,
                ldm=args.checkpoints.export_ldm,
                fp16=args.checkpoints.export_fp16,
                **latent_config(args, latents),
            )
            write_model_card(run.output_dir, watch.training(run), run.step, rows, latents)
            owned.sign("README.md")  # people write on in it
            print(summary(vae, run.output_dir, rows), file=sys.stderr)
    run.accelerator.wait_for_everyone()
    return True


def make_run(
    args: Arguments, vae: TrainableVAE, num_train_images: int | None, reached: Reached = BEGINNING
) -> Run:
    """Builds what trains and lets accelerate prepare it, all of it with weights on the device."""
    accelerator = make_accelerator(args)
    discriminator = make_discriminator(args, accelerator)
    layout = convolution_layout(accelerator.device, vae.vae.config.block_out_channels[0])
    for network in (vae, discriminator):
        network.to(memory_format=layout)
    perceptual = make_perceptual(args)
    schedule = make_gan_schedule(args)
    steps = training_length(args, num_train_images, accelerator.num_processes, reached)
    optimizers = make_optimizers(args, vae, discriminator, accelerator.num_processes)
    schedulers = make_schedulers(args, *optimizers, schedule, steps, reached)
    if args.precision.compile:
        compile_networks(vae.vae, discriminator, perceptual, args.data.several_shapes)
    prepared = accelerator.prepare(vae, discriminator, *optimizers, *schedulers)
    for optimizer in prepared[2:4]:
        optimizer.scaler = None  # float16's loss scale is handled in `Run.update`, for both at once
    ema = None
    if args.optimization.use_ema:
        ema = ExponentialMovingAverage(vae.vae, args.optimization.ema_decay)
    return Run(
        args,
        accelerator,
        *prepared,
        perceptual=perceptual.to(accelerator.device) if perceptual else None,
        ema=ema,
        schedule=schedule,
        max_train_steps=steps,
        layout=layout,
        meter=Meter(accelerator),
        guard=FiniteGuard(accelerator, args.optimization.max_skipped_steps),
        gan_guard=GanGuard(
            args.discriminator.gan_guard,
            args.discriminator.disc_weight_max if args.discriminator.disc_adaptive_weight else 0.0,
        ),
    )


def make_validation(run: Run, data: TrainingData) -> Validation | None:
    """The validation that the flags ask for, or None without validation images."""
    args = run.args.validation
    if data.validation is None:
        return None
    return Validation(
        data.validation,
        run.args.data.resolution,
        num_images=args.num_validation_images,
        lpips=run.perceptual,
        lpips_backbone=run.args.losses.lpips_backbone,
        batch_size=run.args.validation_batch_size,
        num_grid_images=args.num_grid_images,
        device=run.accelerator.device,
    )


def main(args: Arguments, lock: FolderLock | None) -> None:
    """Build, prepare, resume, train, export. lock: of output_dir; None for a dry run."""
    show_messages()
    check_environment(
        os.environ, args.optimization.gradient_accumulation_steps, args.precision.compile
    )
    # Build what can be wrong first: nothing has touched a GPU or been written to yet.
    check_output_dir(args, create=not args.dry_run)
    vae = TrainableVAE(make_vae(args), args.model.decoder_only)
    checkpoint = resume_path(args.checkpoints)
    reached = reached_by(checkpoint, args, vae.vae)
    if args.dry_run:
        print(to_yaml(args), banner(args, vae.vae), planned_push(args), sep="\n")
        return
    shape = latent_shape(vae.vae, args.data.resolution)
    check_shared_memory(args, shape)
    data = open_data(args)

    # Prepare.
    run = make_run(args, vae, data.size, reached)
    refuse_together(lock)
    rehearse(run, partial(train, watch=None), len(data.validation or ()))
    accelerator, output_dir, publisher = run.accelerator, run.output_dir, None
    if accelerator.is_main_process:
        if args.logging.push_to_hub:  # first: a refusal must not cost what an old run left
            publisher = make_publisher(args)
        clear_output_dir(args)
        situation = f"{accelerator.num_processes} x {device_name(accelerator.device)}, "
        situation += f"precision {accelerator.mixed_precision}"
        text = banner(args, vae.vae, data.describe(args), situation, run.max_train_steps)
        print(text, file=sys.stderr)
    accelerator.wait_for_everyone()
    watch = Watch(
        data=data,
        validation=make_validation(run, data),
        journal=Journal(
            accelerator, output_dir, run.max_train_steps, args.validation.validation_steps
        ),
        bad_images=BadImages(
            output_dir, args.data.max_bad_images, data.size, accelerator.is_main_process
        ),
        stop=StopRequest(args.precision.ddp_timeout),
        publisher=publisher,
    )

    with closing(watch.journal), publisher or nullcontext():
        # Resume, or measure what training starts from.
        if checkpoint is None or not resume(run, checkpoint, data.identity()):
            watch.bad_images.forget()
        start_trackers(accelerator, args.logging.tracker_project_name, for_trackers(args), run.step)
        watch.journal.start_at(run.step)
        if run.validation_due:
            validate(run, watch)
        if accelerator.is_main_process:  # not before: a refused resume leaves the old one as it was
            (output_dir / "train_config.yaml").write_text(
                to_yaml(args, run.history), encoding="utf-8"
            )

        # Train and export.
        run.loader = make_loader(args, data, shape, accelerator, run.samples)
        run.meter.restart_clock()  # the loader may have looked at the sizes of all images
        if not run.validation_due and train(run, watch) and export(run, watch):
            if publisher is not None:
                publisher.finish(run.step, lambda: watch.stop.received is not None)
        else:
            logger.info("stopped at step %d of %d by a signal; the same command with "
                        "--resume_from_checkpoint latest goes on from there", run.step,
                        run.max_train_steps)  # fmt: skip
        # The networks first: where DDP is the last to let go of the processes' group, as when this
        # function returns, PyTorch waits for the group's threads while they wait for Python.
        run.vae, run.discriminator = accelerator.free_memory(run.vae, run.discriminator)
        end_trackers(accelerator.trackers)
        accelerator.end_training()


if __name__ == "__main__":
    with exit_on_mistakes(), explained(arguments), output_lock or nullcontext():
        main(arguments, output_lock)
