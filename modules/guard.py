"""Keeps numbers that are not finite out of the weights, and says which term they came from."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from modules.errors import RunStopped

TERMS = (
    "rec_loss", "p_loss", "kl_loss", "g_loss", "d_weight", "d_loss",
    "grad_norm_vae", "grad_norm_disc",
)  # fmt: skip


class TrainingDiverged(RunStopped):
    """Too many updates in a row were skipped; nothing written before is affected."""


class FiniteGuard:
    """Decides on the device whether an update happens; the host reads the tally at log points.

    One process's NaN stops the update of both networks on all of them, so that weights stay equal
    across processes and finite everywhere.
    """

    def __init__(self, accelerator: Accelerator, max_skipped_steps: int) -> None:
        self.accelerator = accelerator
        self.max_skipped_steps = max_skipped_steps
        self.zero = torch.zeros((), device=accelerator.device)
        self.seen = torch.zeros(len(TERMS), device=accelerator.device)
        # Updates skipped in a row (now, at most), in all, and how often each term was to blame.
        self.tally = torch.zeros(3 + len(TERMS), device=accelerator.device)

    def watch(self, **terms: Tensor) -> None:
        """Notes which of these scalars are not finite; names that are not TERMS are let pass."""
        values = [terms[name].detach().float() if name in terms else self.zero for name in TERMS]
        self.seen += (~torch.isfinite(torch.stack(values))).float()

    def verdict(self) -> Tensor:
        """1 where this update must be skipped, else 0: a scalar on the device, equal everywhere.

        Collective: every process must call it, once for each optimizer step.
        """
        blamed = (self.accelerator.reduce(self.seen, "sum") > 0).float()
        skip = blamed.max()
        in_a_row = (self.tally[0] + 1) * skip
        most = torch.maximum(self.tally[1], in_a_row)
        self.tally = torch.cat([torch.stack([in_a_row, most, self.tally[2] + skip]),
                                self.tally[3:] + blamed])  # fmt: skip
        self.seen.zero_()
        return skip

    def check(self) -> dict[str, float]:
        """The number of skipped updates so far, if any; the host waits here.

        Raises TrainingDiverged when `max_skipped_steps` in a row were skipped.
        """
        _, most, skipped, *blamed = self.tally.tolist()
        if most >= self.max_skipped_steps:
            names = [name for name, times in zip(TERMS, blamed, strict=True) if times]
            raise TrainingDiverged(
                f"{most:.0f} updates in a row were skipped because {', '.join(names)} was not "
                f"finite (--max_skipped_steps={self.max_skipped_steps}); lower --learning_rate or "
                "--disc_scale, use --mixed_precision bf16 or no, or look for broken images. The "
                "last checkpoint holds only finite weights"
            )
        return {"skipped_steps": skipped} if skipped else {}

    def state_dict(self) -> list[float]:
        """The tally as plain numbers."""
        return self.tally.tolist()

    def load_state_dict(self, state: list[float]) -> None:
        """Continues from `state_dict`'s tally."""
        self.tally = torch.tensor(state, device=self.accelerator.device)
