"""A long run takes no more memory, files, threads or pictures than a short one."""

from __future__ import annotations

from functools import partial

from launching import launch
from survival import Variant, command, resources, tell_resources

from modules.tracking.journal import MOST_PICTURES, picture_spacing


def test_memory_files_and_threads_stay_as_they_are(tmp_path):
    argv = command(tmp_path, 60, Variant(0, True, 1), "--logging_steps", 5,
                   "--checkpointing_steps", 10, "--validation_steps", 10)  # fmt: skip
    code, output = launch(argv, partial(tell_resources, 10)).wait()
    assert code == 0, output
    steady = resources(output)[1:]
    assert len(steady) == 5
    assert max(told[1] for told in steady) <= 1.03 * steady[0][1]
    assert len({told[2:] for told in steady}) == 1


def draw(kept: set[int], step: int, every: int) -> set[int]:
    """The steps whose pictures are left after one of `step` was drawn."""
    return {old for old in kept if old % picture_spacing(step, every) == 0} | {step}


def test_pictures_are_bounded_and_spread_over_the_run():
    kept: set[int] = set()
    for step in range(0, 300_001, 500):
        kept = draw(kept, step, 500)
        assert len(kept) <= MOST_PICTURES + 1
        assert {0, step} <= kept
    gaps = [b - a for a, b in zip(sorted(kept), sorted(kept)[1:], strict=False)]
    assert len(kept) > MOST_PICTURES / 2
    assert len(set(gaps[:-1])) == 1


def test_a_resumed_run_keeps_the_same_pictures():
    def draw_all(kept: set[int], start: int, end: int) -> set[int]:
        for step in range(start, end + 1, 10):
            kept = draw(kept, step, 10)
        return kept

    alone = draw_all(set(), 0, 5000)
    assert draw_all(draw_all(set(), 0, 2100), 900, 5000) == alone
