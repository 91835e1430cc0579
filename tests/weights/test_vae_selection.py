"""Which weights of a checkpoint are taken, and that it is said."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from vaes import assert_same_weights, ldm_tensors, small_vae

from eval.__main__ import main
from modules.builders.networks import make_vae
from modules.config.command_line import resolve_arguments
from modules.errors import ArgumentError
from modules.weights.tensor_files import UnusableModel
from modules.weights.vae_files import load_vae
from modules.weights.vae_selection import select_vae


def two_vaes() -> tuple[AutoencoderKL, AutoencoderKL]:
    """Of one architecture: as trained, and its average."""
    raw = small_vae()
    averaged = AutoencoderKL.from_config(raw.config)
    return raw, averaged.eval()


def litema(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """As latent-diffusion writes an average: without the dots, which buffers may not have."""
    named = {key.replace(".", ""): tensor for key, tensor in ldm_tensors(vae).items()}
    named |= {"decay": torch.tensor(0.99), "num_updates": torch.tensor(7)}
    return {f"model_ema.{name}": tensor for name, tensor in named.items()}


LAYOUTS = {
    "latent-diffusion": lambda raw, ema: {"state_dict": ldm_tensors(raw) | litema(ema)},
    "inside a whole checkpoint": lambda raw, ema: {
        "first_stage_model": ldm_tensors(raw) | litema(ema)
    },
    "model and ema": lambda raw, ema: {"model": raw.state_dict(), "ema": ema.state_dict()},
    "state dicts": lambda raw, ema: {
        "state_dict": ldm_tensors(raw), "ema_state_dict": {"module": ldm_tensors(ema)}, "epoch": 3
    },
    "lucidrains": lambda raw, ema: {
        "vae": raw.state_dict(),
        "ema": {"online_model": raw.state_dict(), "ema_model": ema.state_dict()},
    },
    "swa": lambda raw, ema: {
        "vae": raw.state_dict(), "averaged_model": {"module": ema.state_dict()},
        "discriminator": {"main.0.weight": torch.ones(2)},
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_the_average_is_taken_and_said_and_the_raw_weights_on_demand(tmp_path, layout, caplog):
    raw, averaged = two_vaes()
    torch.save(LAYOUTS[layout](raw, averaged), tmp_path / "model.ckpt")
    assert_same_weights(load_vae(tmp_path / "model.ckpt"), averaged)
    (said,) = [r.getMessage() for r in caplog.records if "--pretrained_weights" in r.getMessage()]
    assert said.startswith("taking the averaged weights (")
    assert_same_weights(load_vae(tmp_path / "model.ckpt", weights="ema"), averaged)
    caplog.clear()
    if layout != "lucidrains":  # which holds the raw weights twice
        assert_same_weights(load_vae(tmp_path / "model.ckpt", weights="raw"), raw)
        assert "taking the raw weights (" in caplog.text
        assert "--pretrained_weights ema takes the others" in caplog.text


def test_what_an_average_leaves_out_was_frozen_and_is_taken_from_the_raw_weights():
    raw, averaged = two_vaes()
    for other in (ldm_tensors, AutoencoderKL.state_dict):
        names = [name for name in other(raw) if name.startswith(("decoder.", "post_quant"))]
        ema = {f"ema.{name}": other(averaged)[name] for name in names}
        found = select_vae({f"model.{key}": t for key, t in other(raw).items()} | ema)
        assert found.keys() == other(raw).keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, other(averaged if name in names else raw)[name]), name


@pytest.mark.parametrize("missing", ["raw", "ema"])
def test_weights_that_are_not_there_are_refused_with_the_flag(tmp_path, missing):
    prefix = {"raw": "ema.", "ema": "vae."}[missing]
    tensors = {f"{prefix}{key}": tensor for key, tensor in small_vae().state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"--pretrained_weights={missing}, but it holds the"):
        load_vae(tmp_path / "model.safetensors", weights=missing)
    assert_same_weights(load_vae(tmp_path / "model.safetensors"), small_vae())


def test_the_flag_reaches_training_and_the_commands(tmp_path, pictures, capsys):
    raw, averaged = two_vaes()
    file = tmp_path / "model.ckpt"
    torch.save(LAYOUTS["model and ema"](raw, averaged), file)
    flags = f"--resolution 16 --disc_factor 0 --pretrained_model_name_or_path {file} "
    flags += "--pretrained_weights"
    assert_same_weights(make_vae(resolve_arguments([*flags.split(), "raw"])), raw)
    assert_same_weights(make_vae(resolve_arguments([*flags.split(), "ema"])), averaged)
    with pytest.raises(ArgumentError, match="--pretrained_weights=raw needs --pretrained_model"):
        resolve_arguments(["--pretrained_weights", "raw"])
    for choice, expected in (("raw", raw), ("auto", averaged)):
        argv = ["export", "--model", str(file), "--output", str(tmp_path / choice), "--format",
                "diffusers", "--pretrained_weights", choice]  # fmt: skip
        assert main(argv) == 0
        assert_same_weights(load_vae(tmp_path / choice), expected)
    save_file(raw.state_dict(), tmp_path / "plain.safetensors")
    argv = ["--model", str(tmp_path / "plain.safetensors"), "--data", str(pictures)]
    for command in ("reconstruction", "latents", "precision"):
        assert main([command, *argv, "--pretrained_weights", "ema", "--no_progress"]) == 2
        assert "--pretrained_weights=ema, but it holds the raw weights" in capsys.readouterr().err


PREFIXES = ["vae", "module", "state_dict", "first_stage_model", "autoencoder", "model", "_orig_mod"]


@given(st.lists(st.sampled_from(PREFIXES), max_size=4), st.booleans())
def test_wrappers_and_prefixes_are_seen_through_wherever_they_stand(prefixes, compiled_halves):
    inner = {"encoder._orig_mod.conv_in.weight": 0, "decoder._orig_mod.conv_in.weight": 1}
    if not compiled_halves:
        inner = {name.replace("_orig_mod.", ""): value for name, value in inner.items()}
    found = select_vae({".".join([*prefixes, name]): value for name, value in inner.items()})
    assert found == {"encoder.conv_in.weight": 0, "decoder.conv_in.weight": 1}


@given(st.dictionaries(st.text(alphabet="abemodl_.conv", max_size=20), st.none(), max_size=8))
def test_foreign_names_are_refused_and_nothing_else_happens(names):
    with pytest.raises(UnusableModel):
        select_vae(names)
