"""What leaves a run takes its place in diffusers' pipelines, and comes back out of them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from launching import ADVERSARIAL, TINY, succeed
from tiny import tiny_run
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from modules.data.images.synthetic import SyntheticImages
from modules.export.vae import export_vae
from modules.models.lean_blocks import LeanResnetBlock

SIDE = 32  # a tile of 4 latents, the smallest whose overlap of a quarter is whole
FLAGS = [*TINY, "--resolution", str(SIDE), "--train_batch_size", "2", "--mid_block_add_attention"]
PROMPT = "ab a"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """What the script wrote after a few steps, the adversarial ones among them."""
    folder = tmp_path_factory.mktemp("exported")
    succeed([*FLAGS, *ADVERSARIAL, "--max_train_steps", "5", "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def components(tmp_path_factory) -> dict[str, Any]:
    """The parts of Stable Diffusion beside the VAE, tiny and random."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(tmp_path_factory.mktemp("tokenizer"))
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2,
        cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(text).eval(),
        "unet": unet.eval(),
        "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
    }


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's, over an alphabet of two letters and one pair."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokens = ["a", "b", "a</w>", "b</w>", "ab</w>", start, end]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=8)
    assert tokenizer(PROMPT).input_ids == [vocabulary[t] for t in (start, "ab</w>", "a</w>", end)]
    return tokenizer


@pytest.fixture
def vae(exported) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(exported)


def quietly(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline, output_type: str = "np", **inputs: Any):
    """A picture of 64 x 32 after two steps from fixed noise; or its latents, as torch's tensor."""
    inputs = {"height": 2 * SIDE, "width": SIDE, "num_inference_steps": 2, **inputs}
    generator = torch.Generator().manual_seed(1)
    return pipeline(PROMPT, output_type=output_type, generator=generator, **inputs).images


def noise_images(count: int, height: int, width: int) -> torch.Tensor:
    """Images [count, 3, height, width] in [-1, 1]."""
    shape = (count, 3, height, width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1


def reconstruct(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae.decode(vae.encode(images).latent_dist.mode()).sample


def test_stable_diffusion_decodes_with_the_exported_network_and_its_scale(components, vae):
    assert vae.config.scaling_factor != 1.0
    pipeline = quietly(StableDiffusionPipeline(**components, vae=vae))
    images = generate(pipeline)
    assert images.shape == (1, 2 * SIDE, SIDE, 3)
    assert np.isfinite(images).all()
    assert images.std() > 0
    latents = generate(pipeline, "latent")
    with torch.no_grad():
        expected = vae.decode(latents / vae.config.scaling_factor).sample
    expected = (expected / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(images, expected)


def test_image_to_image_encodes_with_the_exported_network_and_its_scale(components, vae):
    pipeline = quietly(StableDiffusionImg2ImgPipeline(**components, vae=vae))
    picture = SyntheticImages(1, SIDE, seed=5).open(0)
    inputs = {"image": picture, "strength": 0.5, "num_inference_steps": 4}
    generator = torch.Generator().manual_seed(1)
    images = pipeline(PROMPT, output_type="np", generator=generator, **inputs).images
    assert images.shape == (1, SIDE, SIDE, 3)
    assert np.isfinite(images).all()
    tensor = pipeline.image_processor.preprocess(picture)
    prepared = pipeline.prepare_latents(
        tensor, torch.tensor([0]), 1, 1, torch.float32, "cpu", torch.Generator().manual_seed(3)
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        latents = vae.encode(tensor).latent_dist.sample(generator) * vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=generator)
    expected = pipeline.scheduler.add_noise(latents, noise, torch.tensor([0]))
    torch.testing.assert_close(prepared, expected, rtol=0, atol=0)


def test_the_result_runs_inside_a_diffusion_transformers_pipeline(vae):
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=1, sample_size=4,
        patch_size=1, num_embeds_ada_norm=1000, out_channels=4,
    )  # fmt: skip
    pipeline = quietly(DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler()))
    images = pipeline([1, 2], num_inference_steps=2, output_type="np").images
    assert images.shape == (2, SIDE, SIDE, 3)
    assert ((images >= 0) & (images <= 1)).all()


def test_slicing_gives_the_same_bits(vae):
    images = noise_images(3, SIDE, 2 * SIDE)
    plain = torch.cat([reconstruct(vae, image[None]) for image in images])
    together = reconstruct(vae, images)
    vae.enable_slicing()
    sliced = reconstruct(vae, images)
    assert torch.equal(sliced, plain)
    torch.testing.assert_close(sliced, together, rtol=0, atol=1e-5)


def test_tiling_changes_nothing_within_a_tile_and_keeps_the_size_beyond(vae):
    small, large = noise_images(2, SIDE, SIDE), noise_images(1, 3 * SIDE, 2 * SIDE)
    plain, whole = reconstruct(vae, small), reconstruct(vae, large)
    vae.enable_tiling()
    assert vae.tile_sample_min_size == SIDE
    assert torch.equal(reconstruct(vae, small), plain)
    tiled = reconstruct(vae, large)
    assert tiled.shape == whole.shape
    assert tiled.isfinite().all()
    assert not torch.equal(tiled, whole)  # it was cut into tiles


def test_a_saved_pipeline_is_fine_tuned_and_takes_its_decoder_back(
    components, vae, pictures, tmp_path
):
    pipeline = quietly(StableDiffusionPipeline(**components, vae=vae))
    before, latents = generate(pipeline), generate(pipeline, "latent")
    pipeline.save_pretrained(tmp_path / "pipeline")
    succeed([*FLAGS, "--pretrained_model_name_or_path", str(tmp_path / "pipeline"),
             "--decoder_only", "--max_train_steps", "3", "--train_data_dir", str(pictures),
             "--output_dir", str(tmp_path / "run")])  # fmt: skip

    tuned = AutoencoderKL.from_pretrained(tmp_path / "run")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline", vae=tuned)
    after = generate(quietly(loaded))
    assert torch.equal(generate(loaded, "latent"), latents)
    assert after.shape == before.shape
    assert np.isfinite(after).all()
    assert not np.array_equal(after, before)
    assert tuned.config.scaling_factor == vae.config.scaling_factor
    images = noise_images(2, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(tuned.encode(images)[0].parameters, vae.encode(images)[0].parameters)


def test_the_class_that_is_exported_is_diffusers_own(exported, tmp_path):
    run = tiny_run()
    trained = run.raw_vae.vae
    assert any(isinstance(module, LeanResnetBlock) for module in trained.modules())
    copy = export_vae(trained, tmp_path)
    for network in (copy, AutoencoderKL.from_pretrained(tmp_path)):
        homes = {type(module).__module__.split(".")[0] for module in network.modules()}
        assert homes <= {"diffusers", "torch"}
    known = set(inspect.signature(AutoencoderKL.__init__).parameters)
    for folder in (tmp_path, exported, exported / "best"):
        config = json.loads((folder / "config.json").read_text())
        assert config.keys() <= known | {"_class_name", "_diffusers_version"}
        assert config["_class_name"] == "AutoencoderKL"
    images = noise_images(2, SIDE, SIDE)
    trained.eval()
    torch.testing.assert_close(reconstruct(copy, images), reconstruct(trained, images))
