"""The objective as pure functions: tensors in, tensors out, everything in float32.

One convention throughout: the objective of latent-diffusion (Rombach et al. 2022) divided by
N = K H W. Adam does not see the constant; the clipping threshold then means the same at every
resolution, and `kl_scale` and `disc_scale` keep the values they have in latent-diffusion.
Images and reconstructions are [B, K, H, W] in [-1, 1], logits [B, *, h', w'], results scalars.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PIXEL_LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}  # the choices of --rec_loss
WEIGHT_EPSILON = 1e-4  # latent-diffusion's guard against a vanishing adversarial gradient


def rec_loss(kind: str, images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean over all elements of the absolute ("l1") or squared ("l2") error; without LPIPS."""
    return PIXEL_LOSSES[kind](reconstructions, images)


def kl_loss(kl_per_image: Tensor, elements_per_image: int) -> Tensor:
    """KL(q(z|x) || N(0, 1)): sum over each image's latents, mean over the batch, divided by N.

    kl_per_image: [B] in nats, `posterior.kl()` of float32 moments. With the division by
    N = `elements_per_image`, `--kl_scale 1e-6` weighs the KL against the per-element
    reconstruction error exactly as latent-diffusion's 1e-6 weighs it against the summed error.
    """
    return kl_per_image.mean() / elements_per_image


def generator_loss(logits_fake: Tensor) -> Tensor:
    """What the generator minimises, `-mean(D(reconstructions))`; hinge and vanilla share it."""
    return -logits_fake.mean()


def hinge_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator (Lim & Ye 2017), halved as in taming-transformers.

    Mean over all logits; 1.0 for an undecided network.
    """
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


def vanilla_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Half the binary cross-entropy (Goodfellow et al. 2014), mean over all logits: real is 1."""
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


def discriminator_loss(kind: str, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """`hinge_d_loss` or `vanilla_d_loss` by name."""
    return (hinge_d_loss if kind == "hinge" else vanilla_d_loss)(logits_real, logits_fake)


def adaptive_d_weight(
    nll_gradient: Tensor, g_gradient: Tensor, elements_per_image: int, maximum: float
) -> Tensor:
    """Ratio of two gradients' norms at the decoder's last layer (VQGAN, Esser et al. 2021, eq. 7).

    nll_gradient, g_gradient: gradients of the mean-reduced nll and of the generator's loss with
    respect to `decoder.conv_out.weight`. Returns latent-diffusion's number, in [0, maximum]: its
    nll is summed over an image, N = `elements_per_image` times ours, and epsilon and clamp act on
    that. The weight in our objective is this over N.
    """
    ratio = elements_per_image * nll_gradient.norm() / (g_gradient.norm() + WEIGHT_EPSILON)
    return torch.clamp(ratio, 0.0, maximum)


def gradient_share(nll_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """The second's norm over the sum of both norms, from 0 to 1: what the adversary pulls."""
    ours, theirs = nll_gradient.norm(), adversarial_gradient.norm()
    return theirs / (ours + theirs).clamp(min=torch.finfo(ours.dtype).tiny)


def batch_psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean over the batch of the PSNR in dB, of clamped but not rounded reconstructions.

    Their peak is 2. A quick look for the log; the numbers to report are validation's.
    """
    error = (images - reconstructions.clamp(-1.0, 1.0)).square().mean(dim=(1, 2, 3))
    return (10.0 * torch.log10(4.0 / error.clamp(min=1e-10))).mean()
