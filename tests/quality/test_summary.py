"""Seeds made into numbers, and curves read off."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.quality.measure import measure_all, own_curve, peers_curve
from eval.quality.report import mean_curve
from eval.quality.training import Training
from eval.report.over_seeds import OverSeeds, paired, verdict

NUMBERS = st.integers(-1000, 1000).map(lambda n: n / 8)  # their sums and differences are exact
SEEDS = st.dictionaries(st.integers(0, 5), NUMBERS, min_size=1)
PAIRS = st.integers(1, 6).flatmap(
    lambda n: st.tuples(*[st.lists(NUMBERS, min_size=n, max_size=n).map(enumerate).map(dict)] * 2)
)
OPPOSITE = {"better": "worse", "worse": "better"}
MIRRORED = {"higher": "lower", "lower": "higher"}


@given(PAIRS, st.sampled_from(["higher", "lower", "one", ""]))
def test_a_difference_is_antisymmetric_and_so_is_its_verdict(pair, better):
    there, back = paired(*pair), paired(*pair[::-1])
    assert there.mean == -back.mean
    assert (there.low, there.high) == (-back.high, -back.low)
    assert there.std == pytest.approx(back.std, nan_ok=True)
    words = verdict(there, better), verdict(back, better)
    assert words[1] == OPPOSITE.get(words[0], words[0])
    assert verdict(there, MIRRORED.get(better, better)) == words[1]


@given(SEEDS, NUMBERS, st.sampled_from(["higher", "lower"]))
def test_what_a_seed_does_to_both_is_not_in_the_spread(values, shift, better):
    shifted = {seed: value + shift for seed, value in values.items()}
    difference = paired(shifted, values)
    assert difference.low == difference.high == difference.mean == shift
    if shift == 0:
        assert verdict(difference, better) == "no difference"
    elif len(values) > 1:
        assert difference.std == 0
        assert verdict(difference, better) == ("better" if (shift > 0) == (better == "higher")
                                               else "worse")  # fmt: skip
    else:
        assert verdict(difference, better) == "one seed"


@given(SEEDS, SEEDS)
def test_only_seeds_that_both_have_are_compared(values, reference):
    common = values.keys() & reference.keys()
    difference = paired(values, reference)
    assert (difference.seeds if difference else 0) == len(common)


@given(st.lists(NUMBERS, min_size=1))
def test_a_spread_says_what_statistics_say(values):
    spread = OverSeeds.of(values)
    assert spread.low <= spread.mean <= spread.high
    assert spread.seeds == len(values)
    variance = sum((v - spread.mean) ** 2 for v in values) / max(1, len(values) - 1)
    expected = math.sqrt(variance) if len(values) > 1 else math.nan
    assert spread.std == pytest.approx(expected, nan_ok=True)


def test_a_spread_is_written_where_there_are_several_seeds():
    assert OverSeeds.of([1.0, 3.0]).text(2) == "2.00 ± 1.41"
    assert (OverSeeds.of([1.5]).text(1), OverSeeds.of([1.5]).text(1, "+")) == ("1.5", "+1.5")


def test_a_difference_within_the_spread_of_the_seeds_is_none():
    noise = OverSeeds(mean=0.1, std=0.2, low=-0.1, high=0.3, seeds=3)
    assert verdict(noise, "higher") == "no difference"
    assert verdict(OverSeeds(0.3, 0.2, 0.1, 0.5, 3), "higher") == "better"
    assert verdict(OverSeeds(0.3, 0.2, 0.1, 0.5, 3), "one") == "different"


@given(st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1), min_size=1))
def test_a_mean_curve_goes_as_far_as_all_curves_and_between_them(curves):
    mean = mean_curve(curves)
    assert mean_curve([curves[0], curves[0]]) == curves[0]
    assert len(mean) == min(map(len, curves))
    for at, (x, y) in enumerate(mean):
        xs, ys = zip(*(curve[at] for curve in curves), strict=True)
        assert min(xs) <= x <= max(xs)
        assert min(ys) <= y <= max(ys)


def test_time_is_that_of_the_steps_alone():
    rows = [{"step": 0, "val/psnr": 10.0}, {"step": 2, "train/images_per_s": 4.0},
            {"step": 4, "train/images_per_s": 8.0}, {"step": 4, "val/psnr": 12.0}]  # fmt: skip
    assert own_curve(rows, images_per_step=4) == [(0, 0.0, 10.0), (4, 3.0, 12.0)]


def left(folder: Path, times: dict[str, int]) -> Training:
    """A peer's training of 8 steps that wrote its models, by folder, at these times."""
    for name, written in times.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").touch()
        os.utime(folder / name / "config.json", (written, written))
    return Training(folder.name, 0, folder, (), steps=8, images_per_step=4)


def evaluate(model: str) -> SimpleNamespace:
    psnr = {"step-2": 11.0, "step-4": 12.0}.get(os.path.basename(model), 13.0)
    return SimpleNamespace(summary=lambda: {"psnr": psnr}, latents=None)


def test_a_peers_curve_is_of_the_models_it_left_at_the_times_it_wrote_them(tmp_path):
    training = left(tmp_path, {"step-2": 100, "step-4": 102, ".": 106})
    assert peers_curve(training, evaluate) == [(2, 2.0, 11.0), (4, 4.0, 12.0), (8, 8.0, 13.0)]


def test_every_arm_is_read_off_at_the_time_when_the_fastest_was_over(tmp_path):
    slow = left(tmp_path / "slow", {"step-2": 100, "step-4": 102, ".": 106})  # over after 8 s
    quick = left(tmp_path / "quick", {"step-4": 100, ".": 103})  # after 6 s
    found = measure_all([slow, quick], evaluate)
    assert found["quick"][0].numbers == {"psnr": 13.0, "psnr_equal_time": 13.0, "seconds": 6.0}
    assert found["slow"][0].numbers == {"psnr": 13.0, "psnr_equal_time": 12.5, "seconds": 8.0}
