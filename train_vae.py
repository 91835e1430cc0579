"""Train an image autoencoder (AutoencoderKL) that diffusers loads.

Try it, on any machine, in minutes:
    python train_vae.py --recipe quickstart

The SD 1.5 VAE from scratch on one 8 GB card:
    python train_vae.py --recipe 8gb --train_data_dir photos

On 4 GPUs:
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_vae.py \
        --recipe imagenet100

Fine-tune Stable Diffusion's decoder:
    python train_vae.py --recipe ft-mse --train_data_dir photos

Continue after whatever happened: the same command, and
    --resume_from_checkpoint latest
"""

from __future__ import annotations

import os
import sys

from modules.config.terminal import leave_when_interrupted, outlive_the_terminal

if __name__ == "__main__":
    outlive_the_terminal()
    leave_when_interrupted("train_vae.py: interrupted before training; there was nothing to save")

from modules.builders.first_checks import check_first
from modules.builders.outline import outline
from modules.config.answers import exit_on_mistakes
from modules.config.command_line import for_trackers, resolve_arguments, show_messages, to_yaml
from modules.distributed.launch_environment import undo_launchers_limit

if __name__ == "__main__":  # before the slow imports: most mistakes are answered at once
    with exit_on_mistakes():
        arguments = resolve_arguments(sys.argv[1:])
        show_messages()
        output_lock = check_first(arguments)
        if arguments.launch.dry_run:
            print(outline(arguments))
    undo_launchers_limit(os.environ)

from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import torch

from eval.dry_run import needs
from eval.export import latent_config
from eval.protocol.latents import measure_latents
from eval.protocol.protocol import Protocol, ProtocolImages
from eval.rehearsal import explained, rehearse
from eval.validation import make_validation
from eval.watch import Watch, begin
from modules.builders.accelerator import refuse_together, settle_precision
from modules.builders.banner import interrupted
from modules.builders.data import open_data
from modules.builders.loader import check_shared_memory, make_loader
from modules.builders.networks import make_vae
from modules.builders.output_dir import resume_path
from modules.builders.run import make_run
from modules.config.arguments import Arguments
from modules.config.terminal import continuing
from modules.data.bad_images import warn_of_upscaling
from modules.errors import ArgumentError, dispensable
from modules.export.vae import export_vae
from modules.image_modes import mode_of
from modules.models.autoencoder import TrainableVAE
from modules.models.latents import posterior_spread
from modules.output.folder_lock import FolderLock
from modules.output.owned_files import OwnedFiles
from modules.tracking.trackers import end_trackers, start_trackers
from modules.training.checkpoint import save_checkpoint
from modules.training.losses import batch_psnr, discriminator_loss, kl_loss, rec_loss
from modules.training.resume import reached_by, resume, trainer_state
from modules.training.run import Run


def train(run: Run, watch: Watch) -> bool:
    """Takes optimizer steps until the last one; False if a signal asked to stop before it."""
    accelerator, losses, disc = run.accelerator, run.args.losses, run.args.discriminator
    for batch in run.loader:
        if run.finished:
            return True
        vae_turn = run.schedule.trains_vae(run.step)
        disc_turn = run.schedule.trains_discriminator(run.step)
        images, noise = run.to_device(batch)
        change, elements, terms = run.change(images, noise), images[0].numel(), {}

        with accelerator.accumulate(run.vae, run.discriminator):
            # Generator: reconstruct through the prepared module, with --eq_prob from latents that
            # change as the images do, and let the frozen discriminator judge; one backward for all.
            with torch.set_grad_enabled(vae_turn):
                reconstructions, posterior = run.vae(images, noise, change)
            images, fakes = change(images), reconstructions.detach()
            if vae_turn:
                nll = terms["rec_loss"] = rec_loss(losses.rec_loss, images, reconstructions)
                if run.perceptual is not None:
                    p_loss = terms["p_loss"] = run.perceptual(images, reconstructions).mean()
                    nll = nll + losses.perceptual_scale * p_loss
                kl = terms["kl_loss"] = kl_loss(posterior.kl(), elements)
                loss = nll + losses.kl_scale * kl
                if run.schedule.adversarial_share(run.step):
                    g_loss = terms["g_loss"] = run.judge(reconstructions)
                    weight, health = run.adversarial_weight(nll, g_loss, elements)
                    loss, terms = loss + weight * g_loss, terms | health
                accelerator.backward(loss)
                terms |= {"psnr": batch_psnr(images, fakes), **posterior_spread(posterior)}

            # Discriminator: real and fake in one forward, so that DDP sees one graph.
            if disc_turn:
                logits_real, logits_fake = run.discriminator(images, fakes)
                d_loss = discriminator_loss(disc.disc_loss, logits_real, logits_fake)
                accelerator.backward(d_loss)
                terms |= {"d_loss": d_loss, **run.adversary.watch(logits_real, logits_fake)}
            run.record(**terms)

        # One optimizer step is complete: update the VAE, then the discriminator; then look around.
        if accelerator.sync_gradients:
            run.update(vae_turn, disc_turn)
            if not after_step(run, watch):
                return False
    return True


def after_step(run: Run, watch: Watch) -> bool:
    """Between two optimizer steps: logs, validates and saves when due; False if asked to stop."""
    args = run.args
    watch.journal.advance()
    if run.step % args.logging.logging_steps == 0 or run.finished:
        log(run, watch)
    if run.step % args.validation.validation_steps == 0 or run.finished:
        run.validation_due = True
    if run.validation_due:
        validate(run, watch)
    stop, last = watch.stop.agreed(), run.finished  # a validation may have ended it
    if run.step % args.checkpoints.checkpointing_steps == 0 or last or stop:
        save(run, watch)
    if watch.publisher is not None and not (last or stop):
        watch.push_when_due(run)
    return (last and not run.validation_due) or not stop


def log(run: Run, watch: Watch) -> None:
    """Writes the means since the last row; the only place of the loop where the host waits."""
    watch.name_bad_images(run)
    means = run.meter.flush() | run.guard.check() | run.learning_rates()
    means |= run.adversary.judge(means)
    if means["upscaled"]:
        warn_of_upscaling(max(run.args.data.training_resolutions))
    watch.journal.write(run.step, "train", means)


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
        better = watch.validation.improves(metrics, run.best)
        run.judge_validation(metrics, better)
        if better and run.accelerator.is_main_process:
            with dispensable(str(run.output_dir / "best"), (OSError, ArgumentError)):
                config = latent_config(run.args, result.latents)
                export_vae(run.raw_vae.vae, run.output_dir / "best", **config)
    watch.tell(run, result)
    run.meter.restart_clock()


def save(run: Run, watch: Watch) -> None:
    """Writes a checkpoint from which the run continues bit for bit."""
    run.require_finite_weights()
    watch.name_bad_images(run)
    save_checkpoint(
        run.accelerator,
        run.output_dir / "checkpoints",
        run.step,
        run.ema,
        trainer_state(run, watch.data.identity()),
        run.args.checkpoints.checkpoints_total_limit,
    )
    run.meter.restart_clock()


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
            latents = measure_latents(
                run.raw_vae.vae,
                ProtocolImages(images, Protocol.of(run.raw_vae.vae, args.data.resolution), count),
                batch_size=args.validation_batch_size,
                device=run.accelerator.device,
                progress=False,
                stop=watch.stop.agreed,
            )
            if latents is None:
                return False
        watch.write_result(run, latents)
    run.accelerator.wait_for_everyone()
    return True


def take_up(run: Run, watch: Watch, checkpoint: Path | None) -> None:
    """Resumes where there is a checkpoint, or measures what training starts from."""
    args = run.args
    if checkpoint is None or not resume(run, checkpoint, watch.data.identity()):
        watch.bad_images.forget()
    project = args.logging.tracker_project_name
    start_trackers(run.accelerator, project, for_trackers(args), run.step)
    watch.journal.start_at(run.step)
    if run.validation_due:
        validate(run, watch)
    if run.accelerator.is_main_process:  # not before: a refused resume leaves the old one as it was
        OwnedFiles(run.output_dir).write("train_config.yaml", to_yaml(args, run.history))


def main(args: Arguments, lock: FolderLock | None) -> None:
    """Build, prepare, resume, train, export. lock: of output_dir; None for a dry run."""
    # Build what can be wrong first: nothing has touched a GPU or been written to yet.
    if args.launch.dry_run:
        print(needs(args, partial(train, watch=None)))
        return
    args = settle_precision(args)
    vae = TrainableVAE(make_vae(args), args.model.decoder_only)
    checkpoint = resume_path(args.checkpoints)
    reached = reached_by(checkpoint, args, vae.vae)
    check_shared_memory(args, vae.vae)
    data = open_data(args, mode_of(vae.vae))

    # Prepare, and try what will need most.
    run = make_run(args, vae, data.size, reached)
    refuse_together(lock)
    validation = make_validation(run, data.validation)
    rehearse(run, partial(train, watch=None), validation)
    watch, accelerator = begin(run, data, validation), run.accelerator

    # Resume, train, export.
    with closing(watch.journal), watch.publisher or nullcontext():
        take_up(run, watch, checkpoint)
        run.loader = make_loader(args, data, vae.vae, accelerator, run.samples, run.stream)
        run.meter.restart_clock()  # the loader may have looked at the sizes of all images
        finished = not run.validation_due and train(run, watch) and export(run, watch)
        if finished and watch.publisher is not None:
            watch.publisher.finish(run.step, lambda: watch.stop.received is not None)
        # The networks first: where DDP is the last to let go of the processes' group, as when this
        # function returns, PyTorch waits for the group's threads while they wait for Python.
        run.vae, run.discriminator = accelerator.free_memory(run.vae, run.discriminator)
        end_trackers(accelerator.trackers)
        accelerator.end_training()
    if not finished and accelerator.is_main_process:
        print(interrupted(run), file=sys.stderr)


if __name__ == "__main__":
    go_on = f"continue with: {continuing(arguments.launch.command)}"
    with exit_on_mistakes(then=go_on), explained(arguments), output_lock or nullcontext():
        main(arguments, output_lock)
