"""Shared by the tests: folders of generated pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.synthetic import SyntheticImages


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of 10 pictures, a little larger than the crops."""
    folder = tmp_path_factory.mktemp("pictures")
    source = SyntheticImages(10, 24, seed=7)
    for index in range(10):
        source.open(index).save(folder / f"{index}.png")
    return folder
