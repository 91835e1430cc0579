"""A small diffusion model of latents, always the same, to see how well they are learnt.

A transformer as DiT (Peebles & Xie 2023) with one token for each latent position, trained by flow
matching (Lipman et al. 2023; rectified flow, Liu et al. 2023): z_t = (1 - t) z + t noise, and the
network says noise - z. It is far too small for good pictures; it compares latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.seeding import seed_for

WIDTH, DEPTH, HEADS = 96, 3, 4
BATCH, LEARNING_RATE, WARMUP = 32, 1e-3, 50
EULER_STEPS = 25


class Denoiser(nn.Module):
    """(z_t [B, C, h, w], t [B]) to the velocity [B, C, h, w]; at first 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(channels, WIDTH), nn.Linear(WIDTH, channels)
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        nn.init.zeros_(self.outward.weight), nn.init.zeros_(self.outward.bias)

    def forward(self, latents: Tensor, time: Tensor) -> Tensor:
        """time: in [0, 1]; 1 is noise."""
        height, width = latents.shape[2:]
        rows = waves(torch.arange(height, device=latents.device), WIDTH // 2)
        columns = waves(torch.arange(width, device=latents.device), WIDTH // 2)
        places = torch.cat([rows[:, None].expand(-1, width, -1),
                            columns[None].expand(height, -1, -1)], dim=-1)  # fmt: skip
        tokens = self.inward(latents.flatten(2).mT) + places.flatten(0, 1)
        condition = self.time(waves(1000 * time, WIDTH))[:, None]
        for block in self.blocks:
            tokens = block(tokens, condition)
        return self.outward(F.layer_norm(tokens, (WIDTH,))).mT.unflatten(2, (height, width))


class Block(nn.Module):
    """Attention, then two layers; time shifts, scales and gates both, which are 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.qkv, self.mixed = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        nn.init.zeros_(self.modulation.weight), nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """tokens: [B, h w, WIDTH]; condition: [B, 1, WIDTH]."""
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        x = F.layer_norm(tokens, (WIDTH,)) * (1 + scale) + shift
        heads = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        tokens = tokens + gate * self.mixed(x)
        x = F.layer_norm(tokens, (WIDTH,)) * (1 + scale2) + shift2
        return tokens + gate2 * self.layers(x)


def waves(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines [n, width] of positions [n], wavelengths from 2 pi to 20000 pi."""
    frequencies = torch.exp(torch.arange(width // 2, device=positions.device)
                            * (-math.log(1e4) / (width // 2)))  # fmt: skip
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def flow_loss(network: Denoiser, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Mean squared error of the velocity; 2 for latents of unit variance and a network that says 0.

    latents, noise: [B, C, h, w]; time: [B].
    """
    t = time.view(-1, 1, 1, 1)
    return F.mse_loss(network((1 - t) * latents + t * noise, time), noise - latents)


@torch.enable_grad()
def train_denoiser(latents: Tensor, steps: int, seed: int, device: torch.device) -> Denoiser:
    """A Denoiser after `steps` of AdamW on batches drawn from latents [N, C, h, w]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "denoiser"))
        network = Denoiser(latents.shape[1]).to(device)
    generator = torch.Generator().manual_seed(seed_for(seed, "denoiser's batches"))
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.0)
    for step in range(steps):
        rate = min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate
        batch = latents[torch.randint(len(latents), (BATCH,), generator=generator)]
        noise = torch.randn(batch.shape, generator=generator)
        given = batch, noise, torch.rand(BATCH, generator=generator)
        loss = flow_loss(network, *(tensor.to(device) for tensor in given))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network.eval()


def validation_loss(network: Denoiser, latents: Tensor, device: torch.device) -> float:
    """Mean of `flow_loss` over latents [N, C, h, w], times spread evenly, the draws the same."""
    generator, total = torch.Generator().manual_seed(seed_for(0, "validation")), 0.0
    for part in latents.split(BATCH):
        for place in range(8):
            time = (torch.rand(len(part), generator=generator) + place) / 8
            noise = torch.randn(part.shape, generator=generator)
            given = (tensor.to(device) for tensor in (part, noise, time))
            total += len(part) * flow_loss(network, *given).item() / 8
    return total / len(latents)


def sampled(
    network: Denoiser, count: int, shape: tuple[int, ...], seed: int, device: torch.device
) -> Iterator[Tensor]:
    """Batches of `count` latents [B, *shape] in all, by Euler's method from noise at t = 1."""
    generator = torch.Generator().manual_seed(seed_for(seed, "samples"))
    for start in range(0, count, BATCH):
        latents = torch.randn(min(BATCH, count - start), *shape, generator=generator).to(device)
        for step in range(EULER_STEPS):
            time = torch.full((len(latents),), 1 - step / EULER_STEPS, device=device)
            latents = latents - network(latents, time) / EULER_STEPS
        yield latents.cpu()
