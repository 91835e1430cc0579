"""Which part of a training step takes how long, by watching it from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
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
def watched(script: ModuleType, run: Run, clock: PhaseClock) -> Iterator[None]:
    """Within, `clock` is told what the script's step is doing; afterwards nothing is left of it."""
    vae = run.raw_vae.vae
    hooks = [
        _before(vae.encoder, lambda: clock.begin(ENCODE)),
        _before(vae.decoder, lambda: clock.begin(DECODE)),
        vae.decoder.register_forward_hook(lambda *_: clock.begin(LOSSES)),
        _before(run.raw_discriminator, lambda: clock.begin(_judge_or_learner(run))),
    ]
    originals = [(script, "backward_through", script.backward_through)]
    if run.ema is not None:
        originals.append((run.ema, "update", run.ema.update))
    originals.append((run, "update", run.update))
    phases = {"backward_through": BACKWARD, "update": UPDATE}
    for owner, name, function in originals:
        phase = AVERAGE if owner is run.ema else phases[name]
        setattr(owner, name, _announced(function, phase, clock))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        script.backward_through = originals[0][2]
        for owner, name, _ in originals[1:]:
            delattr(owner, name)  # the class's own method is seen again


def _judge_or_learner(run: Run) -> str:
    frozen = not any(p.requires_grad for p in run.raw_discriminator.parameters())
    return ADVERSARIAL if frozen else DISCRIMINATOR


def _before(module: nn.Module, action: Callable[[], None]) -> Any:
    def announce(*_: Any) -> None:
        action()

    return module.register_forward_pre_hook(announce)


def _announced(function: Callable, phase: str, clock: PhaseClock) -> Callable:
    def announced(*args: Any, **kwargs: Any) -> Any:
        clock.begin(phase)
        return function(*args, **kwargs)

    return announced
