"""The losses, the discriminator and the wrapper in a loop that somebody else wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from launching import ROOT

from modules.autoencoder import build_autoencoder

MARK = "<!-- from another trainer -->"
STEPS = 3


def example(name: str) -> str:
    """The block of Python after MARK in a README."""
    (code,) = re.findall(rf"{MARK}\n```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"),
                         flags=re.S)  # fmt: skip
    return code


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A folder in which runs/quickstart/ is a VAE."""
    folder = tmp_path_factory.mktemp("library")
    torch.manual_seed(0)
    vae = build_autoencoder(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2)
    vae.save_pretrained(folder / "runs" / "quickstart")
    return folder


def executed(start: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the example's names stand for after STEPS batches; `batches` is all that it is given."""
    monkeypatch.chdir(start)
    torch.manual_seed(1)
    image = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4) * 2 - 1, size=32)
    names: dict[str, Any] = {"batches": [image] * STEPS}
    exec(compile(example("README.md"), "README.md", "exec"), names)
    return names


def test_the_example_trains_both_networks(start, monkeypatch):
    names = executed(start, monkeypatch)
    before = AutoencoderKL.from_pretrained(start / "runs" / "quickstart").state_dict()
    after = names["vae"].vae.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before)
    for network in (names["vae"], names["discriminator"]):
        for parameter in network.parameters():
            assert parameter.isfinite().all()
            assert parameter.requires_grad


def test_the_examples_networks_stay_out_of_each_others_gradients(start, monkeypatch):
    """After its last line each optimizer has what its own loss gave, and nothing else moved."""
    stepped: dict[int, int] = {}
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
        mine = {id(p) for group in self.param_groups for p in group["params"]}
        assert all(p.grad is not None for group in self.param_groups for p in group["params"])
        stepped[id(self)] = len(mine)
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    names = executed(start, monkeypatch)
    assert len(stepped) == 2
    counts = [len(list(names[name].parameters())) for name in ("vae", "discriminator")]
    assert sorted(stepped.values()) == sorted(counts)


def test_the_example_learns(start, monkeypatch):
    """The picture is always the same: after more steps it is nearer than after fewer."""
    monkeypatch.setattr("test_as_a_library.STEPS", 2)
    first = executed(start, monkeypatch)["nll"].item()
    monkeypatch.setattr("test_as_a_library.STEPS", 30)
    assert executed(start, monkeypatch)["nll"].item() < 0.9 * first


def test_the_example_is_short():
    lines = [line for line in example("README.md").splitlines() if line.strip()]
    assert len(lines) <= 36
    assert all(len(line) <= 100 for line in lines)
