"""The losses, the discriminator and the wrapper in a loop that somebody else wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from launching import ROOT

from modules.models.autoencoder import build_autoencoder

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


def execute(start: Path, monkeypatch: pytest.MonkeyPatch, names: dict[str, Any]) -> None:
    """Runs the example over STEPS batches, which are all that it is given; fills `names`."""
    monkeypatch.chdir(start)
    torch.manual_seed(1)
    image = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4) * 2 - 1, size=32)
    names["batches"] = [image] * STEPS
    exec(compile(example("modules/README.md"), "modules/README.md", "exec"), names)


def test_the_example_trains_both_networks(start, monkeypatch):
    names: dict[str, Any] = {}
    execute(start, monkeypatch, names)
    before = AutoencoderKL.from_pretrained(start / "runs" / "quickstart").state_dict()
    after = names["vae"].vae.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before)
    for network in (names["vae"], names["discriminator"]):
        for parameter in network.parameters():
            assert parameter.isfinite().all()
            assert parameter.requires_grad


def test_the_examples_losses_stay_in_their_own_network(start, monkeypatch):
    """When one network is updated, its weights have gradients and the other's have none."""
    names: dict[str, Any] = {}
    step, turns = torch.optim.AdamW.step, []

    def watched(self: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
        vae_turn = self is names["optimizer"]
        turns.append(vae_turn)
        assert all((p.grad is not None) == vae_turn for p in names["vae"].parameters())
        assert all((p.grad is None) == vae_turn for p in names["discriminator"].parameters())
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    execute(start, monkeypatch, names)
    assert turns == [True, False] * STEPS


def test_the_example_learns(start, monkeypatch):
    """The picture is always the same: after more steps it is nearer than after fewer."""
    names: dict[str, Any] = {}
    monkeypatch.setattr("test_as_a_library.STEPS", 2)
    execute(start, monkeypatch, names)
    first = names["nll"].item()
    monkeypatch.setattr("test_as_a_library.STEPS", 30)
    execute(start, monkeypatch, names)
    assert names["nll"].item() < 0.9 * first


def test_the_example_is_short():
    lines = [line for line in example("modules/README.md").splitlines() if line.strip()]
    assert len(lines) <= 36
    assert all(len(line) <= 100 for line in lines)
