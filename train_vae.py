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

from modules.command_line import (
    exit_on_mistakes,
    for_trackers,
    parse_arguments,
    show_messages,
    to_yaml,
)
from modules.threads import undo_launchers_limit

if __name__ == "__main__":
    arguments = parse_arguments()  # before the slow imports: a mistyped flag is answered at once
    undo_launchers_limit(os.environ)

import logging
import sys
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from eval.latent_pass import measure_latents
from eval.protocol import Protocol, ProtocolImages
from eval.training_report import write_training_report
from eval.validation import Validation, ValidationResult
from modules.accelerator import make_accelerator
from modules.arguments import Arguments
from modules.autoencoder import TrainableVAE, latent_shape
from modules.bad_images import BadImages
from modules.banner import banner, summary
from modules.build import (
    make_discriminator,
    make_gan_schedule,
    make_optimizers,
    make_perceptual,
    make_schedulers,
    make_vae,
    training_length,
)
from modules.build_data import TrainingData, make_loader, open_data
from modules.checkpoint import save_checkpoint
from modules.compilation import compile_networks
from modules.ema import ExponentialMovingAverage
from modules.export import export_everything, export_vae, latent_config
from modules.gan_guard import GanGuard
from modules.guard import FiniteGuard
from modules.hardware import convolution_layout, device_name
from modules.hub import planned_push
from modules.journal import Journal
from modules.losses import batch_psnr, discriminator_loss, generator_loss, kl_loss, rec_loss
from modules.meter import Meter
from modules.model_card import Provenance
from modules.modes import frozen
from modules.output_dir import check_output_dir, clear_output_dir, resume_path
from modules.progress import resume, trainer_state
from modules.publisher import Publisher
from modules.reduce import gather_from_processes
from modules.run import Run
from modules.signals import StopRequest
from modules.trackers import start_trackers
from modules.update import backward_through, loss_scale

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

    def provenance(self) -> Provenance:
        """What the model card says of where its numbers come from and where it lies."""
        repository = self.publisher.repository if self.publisher else None
        if self.validation is None:
            return Provenance(repository=repository)
        protocol = self.validation.protocol
        return Provenance(protocol.describe(), protocol.stamp(), repository)

    def write_report(self, output_dir: Path, result: ValidationResult) -> None:
        """Refreshes report.html: all curves so far, and the pictures of this validation."""
        write_training_report(
            output_dir / "report.html",
            output_dir.name,
            self.journal.metrics_log.rows(),
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
        share = run.adversarial_share()
        images, noise = run.to_device(batch)

        with accelerator.accumulate(run.vae, run.discriminator):
            # Generator: reconstruct through the prepared module. The losses act on a leaf copy, so
            # that each of their networks is run backward once, and freed before the VAE's own.
            with torch.set_grad_enabled(vae_turn):
                reconstructions, posterior = run.vae(images, noise)
            output = reconstructions.detach().requires_grad_()
            if vae_turn:
                nll = rec = rec_loss(losses.rec_loss, images, output)
                if run.perceptual is not None:
                    p_loss = run.perceptual(images, output).mean()
                    nll = rec + losses.perceptual_scale * p_loss
                    run.record(p_loss=p_loss)
                kl, scale = kl_loss(posterior.kl(), images[0].numel()), loss_scale(accelerator)
                (gradient,) = torch.autograd.grad(scale * nll, output)
                run.record(rec_loss=rec, kl_loss=kl, psnr=batch_psnr(images, output))

                # The discriminator judges, frozen; both gradients are balanced at the last layer.
                if share:
                    with frozen(run.raw_discriminator):
                        g_loss = generator_loss(run.raw_discriminator(output))
                    (g_gradient,) = torch.autograd.grad(scale * g_loss, output)
                    weight = run.adversarial_weight(reconstructions, gradient, g_gradient, scale)
                    gradient = gradient + share * weight * g_gradient
                    run.record(g_loss=g_loss)

                # One backward through the VAE carries every term.
                backward_through(
                    accelerator, [reconstructions, losses.kl_scale * kl], [gradient, scale]
                )

            # Discriminator: both halves in one forward, so that DDP sees one graph.
            if disc_turn:
                both = torch.cat([images, output.detach()])
                logits_real, logits_fake = run.discriminator(both).chunk(2)
                d_loss = discriminator_loss(disc.disc_loss, logits_real, logits_fake)
                accelerator.backward(d_loss)
                run.record(d_loss=d_loss, logits_real=logits_real.mean(),
                           logits_fake=logits_fake.mean())  # fmt: skip

        # One optimizer step is complete: update the VAE, then the discriminator; then look around.
        if accelerator.sync_gradients:
            run.update(vae_turn, disc_turn)
            if not look_around(run, watch):
                return False
    return True


def look_around(run: Run, watch: Watch) -> bool:
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
    watch.journal.write(run.step, {f"train/{name}": value for name, value in means.items()})
    watch.journal.show(means)


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
        watch.journal.write(run.step, {f"val/{name}": value for name, value in metrics.items()})
        if result.grid is not None:
            watch.journal.draw(run.step, result.grid)
            watch.journal.draw_latents(run.step, result.latent_grid, result.grid_latents)
        if run.accelerator.is_main_process:
            watch.write_report(run.output_dir, result)
        if watch.validation.improves(metrics, run.best, run.args.validation.best_metric):
            run.best = {"step": run.step, **metrics}
            if run.accelerator.is_main_process:
                config = latent_config(run.args, result.latents)
                export_vae(run.raw_vae.vae, run.output_dir / "best", **config)
    run.meter.restart_clock()


def save(run: Run, watch: Watch) -> None:
    """Writes a checkpoint from which the run continues bit for bit."""
    name_bad_images(run, watch)
    save_checkpoint(
        run.accelerator,
        run.output_dir / "checkpoints",
        run.step,
        run.ema,
        trainer_state(run, watch.data.size, watch.data.fingerprint),
        run.args.checkpoints.checkpoints_total_limit,
    )
    run.meter.restart_clock()


def push(run: Run, watch: Watch) -> None:
    """Sends the best weights so far to the Hub when due; training does not wait for it."""
    watch.publisher.report()
    if watch.publisher.is_due(run.step):
        watch.publisher.push(run, watch.journal.metrics_log.rows(), watch.provenance())


def export(run: Run, watch: Watch) -> None:
    """Writes what diffusers loads: the averaged weights, and a config with measured latents."""
    args, latents = run.args, None
    with run.averaged_weights():
        if not args.model.decoder_only:
            count = args.checkpoints.num_latent_images
            latents = measure_latents(
                run.raw_vae.vae,
                ProtocolImages(watch.data.finite(count), Protocol(args.data.resolution), count),
                batch_size=args.validation.validation_batch_size,
                device=run.accelerator.device,
                progress=False,
            )
        if run.accelerator.is_main_process:
            watch.journal.close()
            rows = watch.journal.metrics_log.rows()
            vae = export_everything(run, latents, rows, watch.provenance())
            print(summary(vae, run.output_dir, rows), file=sys.stderr)
    run.accelerator.wait_for_everyone()


def make_run(args: Arguments, vae: TrainableVAE, num_train_images: int | None) -> Run:
    """Builds what trains and lets accelerate prepare it, all of it with weights on the device."""
    accelerator = make_accelerator(args)
    discriminator = make_discriminator(args, accelerator)
    layout = convolution_layout(accelerator.device, vae.vae.config.block_out_channels[0])
    for network in (vae, discriminator):
        network.to(memory_format=layout)
    perceptual = make_perceptual(args)
    schedule = make_gan_schedule(args)
    steps = training_length(args, num_train_images, accelerator.num_processes)
    optimizers = make_optimizers(args, vae, discriminator, accelerator.num_processes)
    schedulers = make_schedulers(args, *optimizers, schedule, steps)
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
        gan_guard=GanGuard(args.discriminator.gan_guard, args.discriminator.disc_weight_max),
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
        batch_size=args.validation_batch_size,
        num_grid_images=args.num_grid_images,
        device=run.accelerator.device,
    )


def main(args: Arguments) -> None:
    """Build, prepare, resume, train, export."""
    show_messages()
    # Build what can be wrong first: nothing has touched a GPU or been written to yet.
    check_output_dir(args.checkpoints, create=not args.dry_run)
    vae = TrainableVAE(make_vae(args), args.model.decoder_only)
    if args.dry_run:
        print(to_yaml(args), banner(args, vae.vae), planned_push(args), sep="\n")
        return
    data = open_data(args)

    # Prepare.
    run = make_run(args, vae, data.size)
    accelerator, output_dir, publisher = run.accelerator, run.output_dir, None
    if accelerator.is_main_process:
        if args.logging.push_to_hub:  # first: a refusal must not cost what an old run left
            publisher = Publisher(args)
        clear_output_dir(args.checkpoints)
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
        checkpoint = resume_path(args.checkpoints)
        if checkpoint is not None:
            resume(run, checkpoint, data.size, data.fingerprint)
        start_trackers(accelerator, args.logging.tracker_project_name, for_trackers(args), run.step)
        watch.journal.start_at(run.step)
        if run.validation_due:
            validate(run, watch)
        if accelerator.is_main_process:  # not before: a refused resume leaves the old one as it was
            (output_dir / "train_config.yaml").write_text(to_yaml(args), encoding="utf-8")

        # Train and export.
        shape = latent_shape(vae.vae, args.data.resolution)
        run.loader = make_loader(args, data, shape, accelerator, run.samples, run.stream)
        run.meter.restart_clock()  # the loader may have looked at the sizes of all images
        if not run.validation_due and train(run, watch):
            export(run, watch)
            if publisher is not None:
                publisher.finish(run.step)
        else:
            logger.info("stopped at step %d by a signal; --resume_from_checkpoint latest goes on "
                        "from there", run.step)  # fmt: skip
        # The networks first: where DDP is the last to let go of the processes' group, as when this
        # function returns, PyTorch waits for the group's threads while they wait for Python.
        run.vae, run.discriminator = accelerator.free_memory(run.vae, run.discriminator)
        accelerator.end_training()


if __name__ == "__main__":
    with exit_on_mistakes():
        main(arguments)
