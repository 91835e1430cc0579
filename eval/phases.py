"""Which part of a training step takes how long, by watching it from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from eval.stopwatch import Stopwatch
from modules.run import Run

DATA = "data, copy to device"
ENCODE = "VAE forward: encode"
DECODE = "VAE forward: decode"
LOSSES = "losses: pixels, LPIPS, KL"
ADVERSARIAL = "generator's adversarial pass"
BACKWARD = "VAE backward"
DISCRIMINATOR = "discriminator's step"
UPDATE = "clipping, optimizers"
AVERAGE = "EMA"
PHASES = (
    DATA, ENCODE, DECODE, LOSSES, ADVERSARIAL, BACKWARD, DISCRIMINATOR, UPDATE, AVERAGE,
)  # fmt: skip


class PhaseClock:
    """Every moment of a step belongs to the phase that began last."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch
        self.began: list[tuple[str, Any]] = []

    def begin(self, phase: str) -> None:
        """What happens from now on belongs to `phase`."""
        self.began.append((phase, self.stopwatch.mark()))

    def begin_unless(self, present: str, phase: str) -> None:
        """As `begin`, but for a `present` phase that goes on."""
        if self.began[-1][0] != present:
            self.begin(phase)

    def milliseconds(self) -> dict[str, float]:
        """Time in each phase until now."""
        names = [phase for phase, _ in self.began]
        marks = [mark for _, mark in self.began] + [self.stopwatch.mark()]
        times = dict.fromkeys(PHASES, 0.0)
        for name, time in zip(names, self.stopwatch.milliseconds(marks), strict=True):
            times[name] += time
        self.began.clear()
        return times


@contextmanager
def watched(run: Run, clock: PhaseClock) -> Iterator[None]:
    """Within, `clock` is told what the script's step is doing; afterwards nothing is left of it."""
    vae = run.raw_vae.vae
    hooks = [
        _before(vae.encoder, lambda: clock.begin(ENCODE)),
        _before(vae.decoder, lambda: clock.begin(DECODE)),
        vae.decoder.register_forward_hook(lambda *_: clock.begin(LOSSES)),
        _before(run.raw_discriminator, lambda: clock.begin(_judge_or_learner(run))),
    ]
    # The discriminator's backward belongs to its own step.
    backward = partial(clock.begin_unless, DISCRIMINATOR, BACKWARD)
    announced = [(run.accelerator, "backward", backward),
                 (run, "update", partial(clock.begin, UPDATE))]  # fmt: skip
    if run.ema is not None:
        announced.append((run.ema, "update", partial(clock.begin, AVERAGE)))
    for owner, name, announce in announced:
        setattr(owner, name, _announced(getattr(owner, name), announce))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for owner, name, _ in announced:
            delattr(owner, name)  # the class's own method is seen again


def _judge_or_learner(run: Run) -> str:
    frozen = not any(p.requires_grad for p in run.raw_discriminator.parameters())
    return ADVERSARIAL if frozen else DISCRIMINATOR


def _before(module: nn.Module, action: Callable[[], None]) -> Any:
    def announce(*_: Any) -> None:
        action()

    return module.register_forward_pre_hook(announce)


def _announced(function: Callable, announce: Callable[[], None]) -> Callable:
    def announced(*args: Any, **kwargs: Any) -> Any:
        announce()
        return function(*args, **kwargs)

    return announced
