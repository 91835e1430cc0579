"""Notices an adversary that has run away, and turns it down until it has come back."""

from __future__ import annotations

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)

PATIENCE = 3  # windows in a row that are wrong before anything is said
LOGIT_LIMIT = 100.0  # the hinge loss wants 1, and cross-entropy is settled at 10
CLAMPED = 0.99  # of the largest adaptive weight; the mean of a window, so all of it sat there
LEAST_SHARE = 2.0**-10  # felt by no weight, and still measured, so that recovery is seen


class GanGuard:
    """Looks at the means of each log point, which the host has anyway and all processes share.

    A window is wrong when the adaptive weight sits on `weight_max` (the generator's gradient has
    vanished beside the reconstruction's) or the mean logits exceed LOGIT_LIMIT. From the
    PATIENCE-th in a row there is an alarm. An `active` guard halves `share`, which multiplies the
    adversarial term, at each window of an alarm, and doubles it, up to 1, at each that is right.
    """

    def __init__(self, active: bool, weight_max: float) -> None:
        self.active, self.weight_max = active, weight_max
        self.share = 1.0
        self.wrong_in_a_row = 0

    def judge(self, means: Mapping[str, float]) -> dict[str, float]:
        """What to log: gan_alarm 0 or 1, and gan_share of an active guard; nothing before the GAN.

        means: those of the window, by name; "d_weight", "logits_real" and "logits_fake" count.
        """
        if "logits_fake" not in means:
            return {}
        reasons = self._reasons(means)
        self.wrong_in_a_row = self.wrong_in_a_row + 1 if reasons else 0
        alarm = self.wrong_in_a_row >= PATIENCE
        if self.wrong_in_a_row == PATIENCE:
            advice = "--gan_guard would turn it down"
            if self.active:
                advice = "the adversarial term is halved at each log point until it recovers"
            logger.warning("The GAN has run away: %s. %s", " and ".join(reasons), advice)
        if not self.active:
            return {"gan_alarm": float(alarm)}
        if alarm:
            self.share = max(LEAST_SHARE, self.share / 2)
        elif not reasons:
            self.share = min(1.0, self.share * 2)
        return {"gan_alarm": float(alarm), "gan_share": self.share}

    def _reasons(self, means: Mapping[str, float]) -> list[str]:
        reasons = []
        if self.weight_max > 0 and means.get("d_weight", 0.0) >= CLAMPED * self.weight_max:
            reasons.append(f"the adaptive weight sits on its clamp, {self.weight_max:g}")
        logits = max(abs(means.get(name, 0.0)) for name in ("logits_real", "logits_fake"))
        if logits > LOGIT_LIMIT:
            reasons.append(f"the discriminator's logits have reached {logits:.3g}")
        return reasons

    def state_dict(self) -> dict[str, float]:
        """The share, and how many windows in a row were wrong."""
        return {"share": self.share, "wrong_in_a_row": self.wrong_in_a_row}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continues from `state_dict`'s numbers; a guard that is now off turns nothing down."""
        self.share = state["share"] if self.active else 1.0
        self.wrong_in_a_row = state["wrong_in_a_row"]
