"""The two layouts of an autoencoder's tensors: exact, both ways, for every architecture."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from diffusers import AutoencoderKL
from vaes import ldm_tensors, small_vae

from modules.weights.ldm_layout import guess_family, infer_config, to_diffusers, to_ldm
from modules.weights.tensor_files import UnusableModel
from modules.weights.vae_selection import select_vae

ARCHITECTURE = (
    "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups",
    "down_block_types", "up_block_types", "mid_block_add_attention", "use_quant_conv",
    "use_post_quant_conv", "in_channels", "out_channels",
)  # fmt: skip


def inferred(checkpoint: dict) -> dict:
    vae = to_diffusers(checkpoint)
    return infer_config(vae, guess_family(vae, checkpoint)[0])


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].shape == tensor.shape, key
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize(
    ("levels", "layers", "attention", "quant", "attending"),
    [
        *product((1, 2, 3, 4), (1, 2), (True, False), (True, False), (None,)),
        *product((2, 3), (1, 2), (True, False), (True,), (0, 1, 2)),
    ],
)
def test_a_round_trip_through_the_ldm_layout_changes_no_bit(
    levels, layers, attention, quant, attending
):
    vae = small_vae(levels, layers, attention, quant, attending=attending)
    state_dict = vae.state_dict()
    ldm = to_ldm(state_dict, vae.config)
    assert len(ldm) == len(state_dict)
    assert_same(to_diffusers(ldm), state_dict)
    assert not any("_block" in key and "mid.block_" not in key for key in ldm)
    assert f"decoder.up.0.block.{layers}.conv1.weight" in ldm
    config = inferred(ldm)
    assert {name: vae.config[name] for name in ARCHITECTURE} == {
        name: config[name] for name in ARCHITECTURE}  # fmt: skip


def test_the_decoders_levels_are_numbered_by_resolution_and_attention_is_a_convolution():
    vae = small_vae(levels=3)
    ldm = to_ldm(vae.state_dict(), vae.config)
    # The last level that runs in the decoder is the one at full resolution: no upsampling there.
    assert "decoder.up.0.upsample.conv.weight" not in ldm
    assert torch.equal(
        ldm["decoder.up.2.upsample.conv.weight"],
        vae.decoder.up_blocks[0].upsamplers[0].conv.weight,
    )
    assert torch.equal(
        ldm["decoder.mid.block_1.conv1.weight"], vae.decoder.mid_block.resnets[0].conv1.weight
    )
    assert list(ldm["encoder.mid.attn_1.proj_out.weight"].shape) == [32, 32, 1, 1]
    assert torch.equal(
        ldm["encoder.mid.attn_1.k.weight"][:, :, 0, 0],
        vae.encoder.mid_block.attentions[0].to_k.weight,
    )


@pytest.mark.parametrize(
    "prefix", ["", "vae.", "first_stage_model.", "state_dict.first_stage_model.", "module.vae."]
)
def test_the_autoencoder_is_found_behind_any_prefix_among_foreign_tensors(prefix):
    vae = small_vae()
    foreign = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.ones(2),
        "cond_stage_model.transformer.text_model.encoder.conv_in.bias": torch.ones(2),
        f"{prefix}loss.discriminator.main.0.weight": torch.ones(2),
        "model_ema.decay": torch.ones(()),
    }
    inside = to_ldm(vae.state_dict(), vae.config)
    checkpoint = foreign | {f"{prefix}{key}": tensor for key, tensor in inside.items()}
    assert_same(to_diffusers(checkpoint), vae.state_dict())


def test_the_present_layout_passes_through_unchanged_in_any_dtype():
    state_dict = small_vae().half().state_dict()
    assert_same(to_diffusers(state_dict), state_dict)
    assert_same(to_diffusers(to_ldm(state_dict, small_vae().config)), state_dict)


@pytest.mark.parametrize(
    ("latent", "quant", "neighbour", "scaling", "shift"),
    [
        (4, True, None, 0.18215, None),
        (4, True, "cond_stage_model.x", 0.18215, None),
        (4, True, "conditioner.embedders.0.x", 0.13025, None),
        (16, False, None, 0.3611, 0.1159),
        (16, False, "model.diffusion_model.double_blocks.0.x", 0.3611, 0.1159),
        (16, False, "model.diffusion_model.joint_blocks.0.x", 1.5305, 0.0609),
        (8, True, None, 1.0, None),
        (4, False, None, 1.0, None),
        (8, True, "conditioner.embedders.0.x", 1.0, None),
    ],
)
def test_the_scale_of_the_latents_follows_the_family(latent, quant, neighbour, scaling, shift):
    vae = small_vae(quant=quant, latent=latent)
    checkpoint = to_ldm(vae.state_dict(), vae.config)
    if neighbour:
        checkpoint[neighbour] = torch.ones(1)
    config = inferred(checkpoint)
    assert (config["scaling_factor"], config["shift_factor"]) == (scaling, shift)
    _, note = guess_family(checkpoint, checkpoint)
    assert f"scaling_factor {scaling}" in note
    if neighbour is None and scaling == 0.18215:
        assert "SDXL" in note
        assert "0.13025" in note


def test_an_unknown_layout_is_refused_with_what_was_found_and_expected():
    with pytest.raises(UnusableModel, match=r"expected .*decoder\.conv_in\.weight.* found a\.0\.b"):
        to_diffusers({"a.0.b": torch.ones(1), "layers.1.weight": torch.ones(1)})
    with pytest.raises(UnusableModel, match=r"found codecoder\.conv_in\.weight"):
        select_vae(dict.fromkeys(["codecoder.conv_in.weight", "coencoder.conv_in.weight"]))
    with pytest.raises(UnusableModel, match="found nothing"):
        to_diffusers({})
    vae = small_vae()
    ldm = ldm_tensors(vae)
    for strange in ("encoder.down.0.attn.0.w.weight", "encoder.conv_in.weight_scale"):
        with pytest.raises(UnusableModel, match=strange):
            to_diffusers(ldm | {strange: torch.ones(1)})


def test_a_tensor_given_under_both_names_is_refused():
    vae = small_vae()
    both = vae.state_dict() | to_ldm(vae.state_dict(), vae.config)
    with pytest.raises(UnusableModel, match=r"each once; found decoder\.mid\.attn_1"):
        to_diffusers(both)


def test_other_kinds_of_autoencoders_are_named():
    vae = small_vae()
    ldm = ldm_tensors(vae)
    with pytest.raises(UnusableModel, match="vector-quantised"):
        to_diffusers(ldm | {"quantize.embedding.weight": torch.ones(1)})
    with pytest.raises(UnusableModel, match="AutoencoderKLFlux2"):
        to_diffusers(ldm | {"bn.running_mean": torch.ones(1)})
    with pytest.raises(UnusableModel, match="twice"):
        inferred(ldm | {"encoder.conv_out.weight": torch.ones(4, 64, 3, 3)})


def test_several_autoencoders_are_refused_unless_one_is_the_first_stage():
    state_dict = small_vae().state_dict()
    two = {f"{name}.{key}": tensor for name in ("vae", "old") for key, tensor in state_dict.items()}
    with pytest.raises(UnusableModel, match=r"'old\.', 'vae\.'"):
        to_diffusers(two)
    first = {f"first_stage_model.{key}": "first" for key in state_dict}
    assert set(select_vae(two | first).values()) == {"first"}


def test_widths_that_do_not_divide_into_groups_and_missing_ends_are_refused():
    state_dict = small_vae().state_dict()
    narrow = AutoencoderKL(block_out_channels=[24], norm_num_groups=8).state_dict()
    with pytest.raises(UnusableModel, match=r"\[24\] do not divide into 32 GroupNorm groups"):
        inferred(narrow)
    del state_dict["decoder.conv_out.weight"]
    with pytest.raises(UnusableModel, match=r"decoder\.conv_out\.weight is missing"):
        inferred(state_dict)


def test_the_names_of_stable_diffusions_autoencoder_are_the_published_ones():
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
        )
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83_653_863
    state_dict = vae.state_dict()
    ldm = to_ldm(state_dict, vae.config)
    back = to_diffusers(ldm)
    assert {key: tensor.shape for key, tensor in back.items()} == {
        key: tensor.shape for key, tensor in state_dict.items()
    }
    assert len(ldm) == 248
    # Names in the published kl-f8 checkpoint, one of each kind.
    for name in (
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down.2.downsample.conv.bias",
        "encoder.mid.attn_1.norm.weight",
        "decoder.mid.block_2.norm2.bias",
        "decoder.up.0.block.0.nin_shortcut.weight",
        "decoder.up.3.upsample.conv.weight",
        "decoder.norm_out.weight",
        "post_quant_conv.bias",
    ):
        assert name in ldm, name
    assert inferred(ldm)["block_out_channels"] == [128, 256, 512, 512]
