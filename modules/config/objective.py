"""What training aims at: the flags of the losses and of the discriminator."""

from __future__ import annotations

from dataclasses import dataclass

from modules.config.limits import FlagGroup, flag, in_steps

GAN_LENGTHS = ("disc_start", "disc_warmup_steps", "disc_ramp_steps")


@dataclass(frozen=True)
class LossArguments(FlagGroup):
    """Losses"""

    rec_loss: str = flag("l2", "pixel error, mean over all elements", choices=("l1", "l2"))
    kl_scale: float = flag(
        1e-6,
        "weight of the KL (per-image sum over the pixels' number), as in latent-diffusion",
        maximum=10**6,
    )
    eq_prob: float = flag(
        0.0,
        "share of micro-batches that decode latents scaled (to a quarter at least), mirrored and "
        "turned, against images changed alike (EQ-VAE): a diffusion model learns them faster, and "
        "reconstructions lose PSNR; with --decoder_only the decoder alone learns it",
        maximum=1,
    )
    perceptual_scale: float = flag(
        0.5, "weight of LPIPS (mean over the batch); 0 never builds it", maximum=10**6
    )
    lpips_backbone: str = flag(
        "vgg",
        "network under LPIPS in training and validation, and under --disc_type features",
        choices=("vgg", "alex", "squeeze"),
    )
    lpips_weights: str | None = flag(
        None,
        "local file with torchvision's weights of that network, instead of a download",
        path=True,
    )


@dataclass(frozen=True)
class DiscriminatorArguments(FlagGroup):
    """Discriminator"""

    disc_start: int | float = flag(
        0.5,
        "when the discriminator begins to train: an optimizer step, or a share of the run",
        length=True,
    )
    disc_warmup_steps: int | float = flag(
        0.02,
        "how long it trains alone before the VAE feels it, in steps or as a share of the run; 0 "
        "starts both at once",
        length=True,
    )
    disc_ramp_steps: int | float = flag(
        0.02,
        "how long the adversarial term then takes to grow to full, in steps or as a share of the "
        "run",
        length=True,
    )
    disc_factor: float = flag(
        1.0, "factor on the adversarial term; 0 turns the GAN off", maximum=10**6
    )
    disc_scale: float = flag(
        0.25, "weight of the adversarial term, beside the adaptive weight", maximum=10**6
    )
    disc_loss: str = flag("hinge", "loss of the discriminator", choices=("hinge", "vanilla"))
    disc_adaptive_weight: bool = flag(
        True,
        "balance the adversarial gradient against the reconstruction's at the last layer, for each "
        "micro-batch; off, --disc_scale alone weighs it (against the per-element mean loss)",
    )
    disc_weight_max: float = flag(
        1e4, "clamp of the adaptive weight, in latent-diffusion's convention (summed loss)"
    )
    gan_guard: bool = flag(
        True,
        "let the VAE feel the discriminator only as far as it tells real from fake better than "
        "chance, and halve that at every log point while the adaptive weight sits on its clamp or "
        "the logits explode; without this the curves and train/gan_alarm tell",
    )
    disc_type: str | None = flag(
        None,
        "what it looks at: features of the frozen --lpips_backbone, or pixels (patch, a PatchGAN); "
        "by default features where LPIPS is among the losses",
        choices=("patch", "features"),
    )
    disc_norm_type: str = flag(
        "spectral_group",
        "normalisation in the discriminator; batch needs 2 images per device",
        choices=("spectral", "spectral_group", "batch", "group", "none"),
    )
    disc_hidden_channels: int = flag(
        64,
        "width of the discriminator's first layer (ndf), or of its heads on features",
        minimum=1,
        maximum=4096,
    )
    disc_num_layers: int = flag(
        3, "stride-2 layers of the patch discriminator (n_layers)", minimum=1, maximum=10
    )
    disc_num_groups: int = flag(
        32, "groups of the discriminator's GroupNorm", minimum=1, maximum=32768
    )

    def lengths(self, steps: int) -> dict[str, int]:
        """The flags that are lengths, all in optimizer steps, for a run of `steps`."""
        return {name: in_steps(getattr(self, name), steps) for name in GAN_LENGTHS}

    @property
    def enabled(self) -> bool:
        """Whether the adversarial term can ever count."""
        return self.disc_factor > 0 and self.disc_scale > 0
