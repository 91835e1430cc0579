"""Shared by the tests: what a process reads only once, and folders of generated pictures.

Torch is imported in the fixtures: the process that only hands out the tests needs none.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Networks are tiny and tests run side by side; and the number of threads decides the last digit of
# a sum, which is compared with that of launched processes. Read when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
# Kernels for GPUs run on the CPU, step by step in Python. Read when Triton is imported.
os.environ["TRITON_INTERPRET"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also where there is a GPU

# No example has to be quick: other work may run beside it.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

gc.disable()  # what is imported stays; the collector would look through all of it many times


def pytest_collection_finish() -> None:
    """And leaves it alone from here on."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def fresh_accelerator() -> None:
    """What is measured in this process must not meet the settings of an earlier test's run."""
    from tiny import forget_accelerator

    forget_accelerator()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Iterator[Path]:
    """A folder of 10 pictures, a little larger than the crops; no test may change it."""
    from modules.data.images.synthetic import SyntheticImages

    folder = tmp_path_factory.mktemp("pictures")
    source = SyntheticImages(10, 24, seed=7)
    for index in range(10):
        source.open(index).save(folder / f"{index}.png")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    yield folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
