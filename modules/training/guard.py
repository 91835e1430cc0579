"""Keeps numbers that are not finite out of the weights, and says which term they came from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from modules.distributed.reduce import sum_over_processes
from modules.errors import RunStopped

TERMS = (
    "rec_loss", "p_loss", "kl_loss", "g_loss", "d_weight", "d_loss",
    "grad_norm_vae", "grad_norm_disc",
)  # fmt: skip


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
        # Updates skipped in a row (now, at most since the launch) and in all; how often each term
        # was to blame since the last check.
        self.tally = torch.zeros(3 + len(TERMS), device=accelerator.device)

    def watch(self, **terms: Tensor) -> None:
        """Notes which of these scalars are not finite; names that are not TERMS are let pass."""
        values = [terms[name].detach().float() if name in terms else self.zero for name in TERMS]
        self.seen += (~torch.isfinite(torch.stack(values))).float()

    def verdict(self, rider: Tensor) -> tuple[Tensor, Tensor]:
        """1 where this update must be skipped, else 0: a scalar on the device, equal everywhere.

        rider: [n], returned summed over processes by the same message. Collective: every process
        must call it, once for each optimizer step.
        """
        summed = self.accelerator.reduce(torch.cat([self.seen, rider]), "sum")
        blamed = (summed[: len(TERMS)] > 0).float()
        skip = blamed.max()
        in_a_row = (self.tally[0] + 1) * skip
        most = torch.maximum(self.tally[1], in_a_row)
        self.tally = torch.cat([torch.stack([in_a_row, most, self.tally[2] + skip]),
                                self.tally[3:] + blamed])  # fmt: skip
        self.seen.zero_()
        return skip, summed[len(TERMS) :]

    def check(self) -> dict[str, float]:
        """The number of skipped updates so far, if any; the host waits here.

        Raises RunStopped when `max_skipped_steps` in a row were skipped.
        """
        _, most, skipped, *blamed = self.tally.tolist()
        self.tally[3:] = 0
        if most >= self.max_skipped_steps:
            names = [name for name, times in zip(TERMS, blamed, strict=True) if times]
            raise RunStopped(
                f"{most:.0f} updates in a row were skipped because {', '.join(names)} was not "
                f"finite (--max_skipped_steps={self.max_skipped_steps}); lower --learning_rate or "
                "--disc_scale, use --mixed_precision bf16 or no, or look for broken images. The "
                "last checkpoint holds only finite weights; if the run ends so again right after "
                "--resume_from_checkpoint latest, they are too large: continue from an earlier "
                "one, or start anew"
            )
        return {"skipped_steps": skipped} if skipped else {}

    def state_dict(self) -> list[float]:
        """The tally as plain numbers."""
        return self.tally.tolist()

    def load_state_dict(self, state: list[float]) -> None:
        """Continues from `state_dict`'s tally; a row that had ended there is no reason to stop."""
        self.tally = torch.tensor(state, device=self.accelerator.device)
        self.tally[1] = 0


def require_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    """Raises RunStopped where one of them is not finite, in every process alike; the host waits.

    The last guard before something is written: gradients can be finite and a step too large.
    """
    rotten = torch.stack([~tensor.isfinite().all() for tensor in tensors.values()]).int()
    counts = sum_over_processes(rotten).tolist()
    names = [name for name, count in zip(tensors, counts, strict=True) if count]
    if names:
        raise RunStopped(
            f"the weights are not finite at step {step} ({names[0]}, {len(names)} tensors in all), "
            "so nothing was written of them; lower --learning_rate and --disc_learning_rate, and "
            "continue with --resume_from_checkpoint latest: earlier checkpoints are finite"
        )
