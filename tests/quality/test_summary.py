"""Seeds made into numbers, and curves read off."""

from __future__ import annotations

import math
import os
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.quality.measure import own_curve, peers_curve
from eval.quality.summary import Spread, mean_curve, paired, value_at, verdict
from eval.quality.training import Training

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
    spread = Spread.of(values)
    assert spread.low <= spread.mean <= spread.high
    assert spread.seeds == len(values)
    variance = sum((v - spread.mean) ** 2 for v in values) / max(1, len(values) - 1)
    expected = math.sqrt(variance) if len(values) > 1 else math.nan
    assert spread.std == pytest.approx(expected, nan_ok=True)


def test_a_difference_within_the_spread_of_the_seeds_is_none():
    noise = Spread(mean=0.1, std=0.2, low=-0.1, high=0.3, seeds=3)
    assert verdict(noise, "higher") == "no difference"
    assert verdict(Spread(0.3, 0.2, 0.1, 0.5, 3), "higher") == "better"
    assert verdict(Spread(0.3, 0.2, 0.1, 0.5, 3), "one") == "different"


@given(st.dictionaries(NUMBERS, NUMBERS, min_size=1), NUMBERS)
def test_a_curve_goes_through_its_points_and_stays_between_them(points, x):
    curve = sorted(points.items())
    assert all(value_at(curve, at) == y for at, y in curve)
    assert min(points.values()) - 1e-9 <= value_at(curve, x) <= max(points.values()) + 1e-9
    assert mean_curve([curve, curve]) == curve


def test_time_is_that_of_the_steps_alone():
    rows = [{"step": 0, "val/psnr": 10.0}, {"step": 2, "train/images_per_s": 4.0},
            {"step": 4, "train/images_per_s": 8.0}, {"step": 4, "val/psnr": 12.0}]  # fmt: skip
    assert own_curve(rows, images_per_step=4) == [(0, 0.0, 10.0), (4, 3.0, 12.0)]


def test_a_peers_curve_is_of_the_models_it_left_at_the_times_it_wrote_them(tmp_path):
    for folder, written in (("step-2", 100), ("step-4", 102), (".", 106)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "config.json").touch()
        os.utime(tmp_path / folder / "config.json", (written, written))
    quality = {"step-2": 11.0, "step-4": 12.0, tmp_path.name: 13.0}

    def evaluate(model: str) -> SimpleNamespace:
        return SimpleNamespace(summary=lambda: {"psnr": quality[os.path.basename(model)]})

    training = Training("peer", 0, tmp_path, (), steps=8, images_per_step=4)
    assert peers_curve(training, evaluate) == [(2, 2.0, 11.0), (4, 4.0, 12.0), (8, 8.0, 13.0)]
