"""Who trains when."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from modules.training.schedule import BEGINNING, GanSchedule, Reached

schedules = st.builds(
    GanSchedule,
    enabled=st.booleans(),
    start=st.integers(0, 20),
    warmup_steps=st.integers(0, 10),
    ramp_steps=st.integers(0, 10),
    in_turns=st.booleans(),
)


@given(schedules, st.integers(0, 60))
def test_every_step_trains_somebody_and_together_unless_in_turns(
    schedule: GanSchedule, step: int
) -> None:
    vae, disc = schedule.trains_vae(step), schedule.trains_discriminator(step)
    assert vae or disc
    if schedule.enabled and step >= schedule.start:
        assert (vae and disc) != schedule.in_turns


@given(schedules)
def test_vae_never_feels_a_discriminator_that_had_no_head_start(schedule: GanSchedule) -> None:
    felt = [step for step in range(60) if schedule.adversarial_share(step) > 0]
    if felt:
        assert felt[0] == schedule.start + schedule.warmup_steps
        assert felt == list(range(felt[0], 60))
        assert schedule.adversarial_share(felt[0] + schedule.ramp_steps) == 1.0
    else:
        assert not schedule.enabled


@given(schedules, st.integers(0, 60))
def test_lengths_count_the_updates_that_really_happen(schedule: GanSchedule, steps: int) -> None:
    assert schedule.vae_updates(steps) == sum(schedule.trains_vae(s) for s in range(steps))
    turns = [schedule.trains_discriminator(step) for step in range(steps)]
    assert schedule.discriminator_updates(steps) == sum(turns)
    assert schedule.discriminator_updates(steps) <= max(0, steps - schedule.start)


@given(schedules, st.integers(0, 60), st.integers(0, 60), st.integers(0, 40))
def test_a_discriminator_that_begins_late_has_its_head_start(
    schedule: GanSchedule, step: int, more: int, start_before: int
) -> None:
    """A run came to `step` with another start, goes on with this one, and is resumed once more."""
    before = replace(schedule, start=start_before)
    reached = Reached(step, 0, None, before.discriminator_updates(step))
    ours = schedule.continued(reached)
    if not reached.disc_updates and schedule.discriminator_updates(step):
        assert ours.start >= step - schedule.in_turns
    updates = reached.disc_updates + sum(map(ours.trains_discriminator, range(step, step + more)))
    again = schedule.continued(Reached(step + more, 0, None, updates))
    for n in range(step + more, 130):
        assert ours.adversarial_share(n) == again.adversarial_share(n)
        assert ours.trains_discriminator(n) == again.trains_discriminator(n)
    assert schedule.continued(BEGINNING) == schedule
    own = Reached(step, 0, None, schedule.discriminator_updates(step))
    assert schedule.continued(own) == schedule


def test_ramp_is_zero_before_the_start_and_one_after_the_ramp() -> None:
    schedule = GanSchedule(True, start=7, warmup_steps=3, ramp_steps=4, in_turns=False)
    shares = [schedule.adversarial_share(step) for step in (0, 9, 10, 11, 14, 15)]
    assert shares == [0, 0, 0.2, 0.4, 1, 1]


def test_disabled_adversary_never_trains_nor_counts() -> None:
    schedule = GanSchedule(False, 0, 0, 0, in_turns=True)
    assert schedule.vae_updates(10) == 10
    assert schedule.discriminator_updates(10) == 0
    assert not any(schedule.adversarial_share(step) for step in range(10))
