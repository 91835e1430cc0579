"""How far the VAE heeds its adversary: as far as that has shown skill, and has not run away."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MEMORY = 0.9  # of the accuracies from one update of the discriminator to the next
# Accuracies, mean of real and fake, between which the VAE begins to feel it and does in full. Below
# the first a reconstruction is lost to noise within 50 steps; equilibria lie at 0.6 to 0.9.
NO_SKILL, FULL_SKILL = 0.55, 0.7
PATIENCE = 3  # windows in a row that are wrong before anything is said
LOGIT_LIMIT = 100.0  # the hinge loss wants 1, and cross-entropy is settled at 10
CLAMPED = 0.99  # of the micro-batches of a window had the largest adaptive weight
LEAST_SHARE = 2.0**-10  # felt by no weight, and still measured, so that recovery is seen


class Adversary:
    """What the discriminator's answers say of it, and the factor on its term that follows.

    The adaptive weight makes any gradient as strong as the reconstruction's, also the noise of a
    discriminator that knows nothing. So its term counts by `skill`: 0 at chance and up to NO_SKILL,
    1 from FULL_SKILL on. A window between two log points is wrong when the adaptive weight sat on
    its clamp (the generator's gradient has vanished beside the reconstruction's) or the mean logits
    exceed LOGIT_LIMIT. From the PATIENCE-th in a row there is an alarm; `share` halves at each
    window of an alarm, and doubles, up to 1, at each that is right. Not `active`, it only watches.
    """

    def __init__(self, active: bool, device: torch.device) -> None:
        self.active = active
        self.share = 1.0
        self.wrong_in_a_row = 0
        # On real and on fake patches; at chance until it has shown anything else.
        self.accuracy = torch.full((2,), 0.5, device=device)
        self.seen = torch.zeros(3, device=device)  # sums of both and count, since the last update

    def watch(self, logits_real: Tensor, logits_fake: Tensor) -> dict[str, Tensor]:
        """Notes how many patches of a micro-batch it tells right; returns what to log of it.

        logits_real, logits_fake: [B, *, h', w']. Undecided (0) is wrong.
        """
        real, fake = (logits_real > 0).float().mean(), (logits_fake < 0).float().mean()
        self.seen += torch.stack([real, fake, torch.ones_like(real)])
        return {"logits_real": logits_real.mean(), "logits_fake": logits_fake.mean(),
                "disc_acc_real": real, "disc_acc_fake": fake}  # fmt: skip

    def learn(self, seen: Tensor, skip: Tensor) -> None:
        """Moves the accuracies by `seen`, summed over processes, of an update that was not skipped.

        Nothing happens where the discriminator judged nothing.
        """
        counts = (1 - skip) * (seen[2] > 0)
        now = seen[:2] / seen[2].clamp(min=1)
        self.accuracy = self.accuracy + (1 - MEMORY) * counts * (now - self.accuracy)
        self.seen.zero_()

    def skill(self) -> Tensor:
        """From 0 to 1, a scalar on the device."""
        return ((self.accuracy.mean() - NO_SKILL) / (FULL_SKILL - NO_SKILL)).clamp(0, 1)

    def felt(self) -> Tensor:
        """The factor on the adversarial term, from 0 to 1: a scalar on the device."""
        return self.share * self.skill() if self.active else torch.ones_like(self.seen[0])

    def judge(self, means: Mapping[str, float]) -> dict[str, float]:
        """Whether the window was wrong: gan_alarm, 0 or 1, to log; nothing before the GAN.

        means: those of the window, by name; "d_weight_clamped", "logits_real" and "logits_fake"
        count. The host has them anyway, and all processes the same.
        """
        if "logits_fake" not in means:
            return {}
        reasons = _reasons(means)
        self.wrong_in_a_row = self.wrong_in_a_row + 1 if reasons else 0
        alarm = self.wrong_in_a_row >= PATIENCE
        if self.wrong_in_a_row == PATIENCE:
            advice = "--gan_guard would turn it down"
            if self.active:
                advice = "the adversarial term is halved at each log point until it recovers"
            logger.warning("The GAN has run away: %s. %s", " and ".join(reasons), advice)
        if alarm:
            self.share = max(LEAST_SHARE, self.share / 2)
        elif not reasons:
            self.share = min(1.0, self.share * 2)
        return {"gan_alarm": float(alarm)}

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        return {"share": self.share, "wrong_in_a_row": self.wrong_in_a_row,
                "accuracy": self.accuracy.tolist()}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state_dict`'s numbers."""
        self.share, self.wrong_in_a_row = state["share"], state["wrong_in_a_row"]
        self.accuracy = torch.tensor(state["accuracy"], device=self.seen.device)


def _reasons(means: Mapping[str, float]) -> list[str]:
    reasons = []
    if means.get("d_weight_clamped", 0.0) >= CLAMPED:
        reasons.append("the adaptive weight sits on its clamp, --disc_weight_max")
    logits = max(abs(means.get(name, 0.0)) for name in ("logits_real", "logits_fake"))
    if logits > LOGIT_LIMIT:
        reasons.append(f"the discriminator's logits have reached {logits:.3g}")
    return reasons
