"""Which part of a training step takes how long, by watching it from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from eval.speed.stopwatch import Stopwatch
from modules.training.run import Run

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
        marks = [mark for _, mark in self.began] + [self.stopwatch.mark()]
        times = dict.fromkeys(PHASES, 0.0)
        for (name, _), time in zip(self.began, self.stopwatch.milliseconds(marks), strict=True):
            times[name] += time
        self.began.clear()
        return times


@contextmanager
def watched(run: Run, clock: PhaseClock) -> Iterator[None]:
    """Within, `clock` is told what the script's step is doing; afterwards nothing is left of it."""
    vae, judge = run.raw_vae.vae, run.raw_discriminator

    def judging(*_: Any) -> None:
        frozen = not any(p.requires_grad for p in judge.parameters())
        clock.begin(ADVERSARIAL if frozen else DISCRIMINATOR)

    def backward() -> None:
        if clock.began[-1][0] != DISCRIMINATOR:  # whose backward belongs to its own step
            clock.begin(BACKWARD)

    contexts = [
        vae.encoder.register_forward_pre_hook(lambda *_: clock.begin(ENCODE)),
        vae.decoder.register_forward_pre_hook(lambda *_: clock.begin(DECODE)),
        vae.decoder.register_forward_hook(lambda *_: clock.begin(LOSSES)),
        judge.register_forward_pre_hook(judging),
        _announced(run.accelerator, "backward", backward),
        _announced(run, "update", partial(clock.begin, UPDATE)),
    ]
    if run.ema is not None:
        contexts.append(_announced(run.ema, "update", partial(clock.begin, AVERAGE)))
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def _announced(owner: Any, name: str, announce: Callable[[], None]) -> AbstractContextManager:
    """Within, `announce` is called before each call of that method."""
    method = getattr(owner, name)

    def announced(*args: Any, **kwargs: Any) -> Any:
        announce()
        return method(*args, **kwargs)

    return patch.object(owner, name, announced)
