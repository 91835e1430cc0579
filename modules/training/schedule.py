"""Which network moves at which step, and how much of the adversarial term the VAE feels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Reached:
    """How far a run has come: optimizer steps, images used, updates that each network has had.

    Updates are None, and taken to be as scheduled, where an earlier version's checkpoint says none.
    lengths: those of the GAN, in steps, that were shares of a run whose GAN had begun.
    """

    step: int = 0
    samples: int = 0
    vae_updates: int | None = None
    disc_updates: int | None = None
    lengths: Mapping[str, int] = field(default_factory=dict)


BEGINNING = Reached()


@dataclass(frozen=True)
class GanSchedule:
    """The discriminator trains from `start`; the VAE feels it `warmup_steps` later, ramped in.

    A discriminator that has never seen an image has nothing to say, and a VAE that is made to
    listen at full volume from one step to the next loses its reconstruction. All numbers are in
    optimizer steps, counted from 0. `in_turns` gives each step to one network, as diffusers' script
    does: even steps to the VAE and odd ones to the discriminator.
    """

    enabled: bool
    start: int
    warmup_steps: int
    ramp_steps: int
    in_turns: bool

    def continued(self, reached: Reached) -> GanSchedule:
        """The schedule of a run that has come so far, perhaps by another one.

        A discriminator that would have begun already, and has not, begins now: moved to an earlier
        step or turned on when resuming, it has its head start all the same.
        """
        had = reached.disc_updates
        if had is None or had >= self.discriminator_updates(reached.step):
            return self
        begun = reached.step - had
        if self.in_turns:
            begun = (begun - had) // 2 * 2
        return replace(self, start=max(self.start, begun))

    @property
    def lengths(self) -> tuple[int, int, int]:
        """The start, and how long warm-up and ramp are; their sum is when the VAE feels it all."""
        return self.start, self.warmup_steps, self.ramp_steps

    def trains_discriminator(self, step: int) -> bool:
        """Whether the discriminator is updated at `step`."""
        return self.enabled and step >= self.start and (not self.in_turns or step % 2 == 1)

    def trains_vae(self, step: int) -> bool:
        """Whether the VAE is updated at `step`."""
        gives_way = self.enabled and self.in_turns and step >= self.start
        return not gives_way or step % 2 == 0

    def adversarial_share(self, step: int) -> float:
        """Share of the adversarial term in the VAE's objective at `step`, from 0 to 1.

        The first step that feels it has 1 / (ramp_steps + 1), and `ramp_steps` later all counts.
        """
        felt_for = step - self.start - self.warmup_steps
        if not self.enabled or felt_for < 0:
            return 0.0
        return min(1.0, (felt_for + 1) / (self.ramp_steps + 1))

    def vae_updates(self, steps: int) -> int:
        """Updates that the VAE gets in `steps` steps: the length of its learning-rate schedule."""
        gives_way = self.enabled and self.in_turns
        return steps - self._turns(steps) if gives_way else steps

    def discriminator_updates(self, steps: int) -> int:
        """Updates that the discriminator gets in `steps` steps."""
        return self._turns(steps) if self.enabled else 0

    def _turns(self, steps: int) -> int:
        """Of the discriminator, if it is enabled."""
        begin, end = min(self.start, steps), steps
        return end // 2 - begin // 2 if self.in_turns else end - begin
