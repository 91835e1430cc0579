"""An autoencoder is loaded strictly from wherever it lies, and written for other programs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from hub_stand_in import StandIn, stand_in
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from vaes import SCALE, assert_same_weights, ldm_tensors, small_vae

from modules.weights.tensor_files import UnusableModel, read_tensors
from modules.weights.vae_files import load_vae, save_fp16_variant, save_ldm

FLAG = "--pretrained_model_name_or_path="
WEIGHTS = "diffusion_pytorch_model.safetensors"
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_attention_names(state_dict: dict, convolutions: bool) -> dict:
    renamed = {}
    for key, tensor in state_dict.items():
        is_weight = ".attentions." in key and tensor.ndim == 2
        for new, old in OLD_NAMES.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[key] = (tensor[:, :, None, None] if convolutions and is_weight else tensor).clone()
    return renamed


def public_config(vae: AutoencoderKL) -> dict:
    entries = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    return json.loads(json.dumps(entries))


@pytest.fixture
def vae() -> AutoencoderKL:
    return small_vae()


@pytest.fixture
def folder(vae, tmp_path) -> Path:
    vae.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


# Folders


def test_a_vae_folder_loads_quietly_trainable_and_in_eval_mode(vae, folder, caplog, capfd):
    found = load_vae(folder)
    assert_same_weights(found, vae)
    assert found.config.scaling_factor == SCALE
    assert not found.training
    assert all(parameter.requires_grad for parameter in found.parameters())
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "content"),
    [("model_index.json", '{"_class_name": "StableDiffusionPipeline"}'),
     ("config.json", '{"model_type": "clip"}')],
)  # fmt: skip
def test_a_pipeline_folder_gives_its_vae(vae, folder, name, content):
    (folder.parent / name).write_text(content)
    assert_same_weights(load_vae(folder.parent), vae)


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_old_attention_names_give_the_same_images(vae, folder, convolutions, suffix):
    old = old_attention_names(vae.state_dict(), convolutions)
    (folder / WEIGHTS).unlink()
    if suffix == "safetensors":
        save_file(old, folder / WEIGHTS)
    else:
        torch.save(old, folder / "diffusion_pytorch_model.bin")
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(load_vae(folder)(images).sample, vae(images).sample)


def test_missing_and_unexpected_tensors_are_errors_that_name_them(vae, folder):
    tensors = load_file(folder / WEIGHTS)
    dropped = {key: value for key, value in tensors.items() if key != "decoder.conv_in.bias"}
    save_file(dropped, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"{FLAG}.*missing tensors: decoder\.conv_in\.bias$"):
        load_vae(folder)

    save_file(tensors | {"decoder.foo.bias": torch.ones(1)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"{FLAG}.*found decoder\.foo\.bias"):
        load_vae(folder)

    extra_layer = "decoder.up_blocks.0.resnets.2.conv1.bias"
    save_file(tensors | {extra_layer: torch.ones(64)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"unexpected tensors: {extra_layer}"):
        load_vae(folder)


def test_a_configuration_of_other_shapes_is_an_error(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"latent_channels": 8}))
    with pytest.raises(ValueError, match=r"decoder\.conv_in\.weight \[64, 4, 3, 3\] instead of"):
        load_vae(folder)
    (folder / "config.json").write_text(json.dumps(config | {"norm_num_groups": 31}))
    with pytest.raises(ValueError, match=f"{FLAG}.*norm_num_groups is 31 and must be a divisor"):
        load_vae(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=f"{FLAG}.*config.json is damaged"):
        load_vae(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="not a JSON object"):
        load_vae(folder)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.tensor(torch.nan), "NaN or infinite values"),
        (torch.tensor(torch.inf), "NaN or infinite values"),
        (torch.tensor(7, dtype=torch.int8), "not floating point"),
    ],
)
def test_weights_that_are_no_finite_fractions_are_an_error(folder, bad, message):
    tensors = load_file(folder / WEIGHTS)
    tensors["encoder.conv_in.bias"] = bad.repeat(32)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"{message}: encoder\.conv_in\.bias"):
        load_vae(folder)


@pytest.mark.parametrize("name", ["AutoencoderTiny", "AsymmetricAutoencoderKL"])
def test_other_classes_of_autoencoder_are_refused_by_name(folder, name):
    config = json.loads((folder / "config.json").read_text()) | {"_class_name": name}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"only an AutoencoderKL .* config.json describes {name}"):
        load_vae(folder)
    with pytest.raises(ValueError, match=f"vae/config.json describes {name}"):
        load_vae(folder.parent)


def test_a_folder_that_is_no_vae_is_listed(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "weights.bin").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=rf"{FLAG}{tmp_path}.*found notes\.txt, unet/weights\.bin"):
        load_vae(tmp_path)


def test_a_folder_with_only_a_variant_asks_for_the_flag(vae, folder):
    save_fp16_variant(vae, folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"fp16\.safetensors .*--variant=fp16"):
        load_vae(folder)
    assert_same_weights(load_vae(folder, variant="fp16"), small_vae().half())
    with pytest.raises(ValueError, match=r"no diffusion_pytorch_model\.bf16\.safetensors"):
        load_vae(folder, variant="bf16")


@pytest.mark.parametrize("path", ["missing.safetensors", "./nowhere", "/no/such/folder", "~/nope"])
def test_a_missing_path_is_reported_without_asking_the_hub(path, monkeypatch):
    monkeypatch.delattr("modules.weights.sources.hf_hub_download")
    with pytest.raises(ValueError, match=f"{FLAG}{path}: no such file or folder"):
        load_vae(path)


def shard(folder: Path, vae: AutoencoderKL, suffix: str = "safetensors", variant: str = "") -> list:
    """Cuts a folder's weights in two, as save_pretrained(max_shard_size=...) does."""
    names = sorted(vae.state_dict())
    files, places = [], {}
    for number, part in enumerate((names[:50], names[50:]), start=1):
        file = folder / f"diffusion_pytorch_model{variant}-0000{number}-of-00002.{suffix}"
        tensors = {name: vae.state_dict()[name].contiguous() for name in part}
        save_file(tensors, file) if suffix == "safetensors" else torch.save(tensors, file)
        files.append(file)
        places |= dict.fromkeys(part, file.name)
    index = folder / f"diffusion_pytorch_model.{suffix}.index{variant}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    (folder / WEIGHTS).unlink(missing_ok=True)
    return [*files, index]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_several_files_load_and_a_missing_one_is_named(vae, folder, suffix):
    first, second, index = shard(folder, vae, suffix)
    assert_same_weights(load_vae(folder), vae)
    assert_same_weights(load_vae(folder.parent), vae)
    second.unlink()
    with pytest.raises(ValueError, match=f"{FLAG}{folder}: .*names 2 files.*{second.name} cannot"):
        load_vae(folder)
    index.write_text(json.dumps({"weight_map": {"decoder.conv_in.bias": f"../vae/{first.name}"}}))
    with pytest.raises(ValueError, match="cannot be found"):
        load_vae(folder)
    for damaged in ("{}", "[", '{"weight_map": []}'):
        index.write_text(damaged)
        with pytest.raises(ValueError, match=r"index\.json is damaged"):
            load_vae(folder)


def test_diffusers_own_shards_and_their_variant_load(vae, folder):
    (folder / WEIGHTS).unlink()
    vae.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*-of-*"))) > 1
    assert_same_weights(load_vae(folder), vae)
    with pytest.raises(ValueError, match=r"one of \d+ files that hold .*; give the folder"):
        load_vae(next(folder.glob("*-00001-of-*.safetensors")))
    half = small_vae().half()
    half.save_pretrained(folder, max_shard_size="200KB", variant="fp16")
    assert_same_weights(load_vae(folder, variant="fp16"), half)


# Single files


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt", "pt"])
def test_a_single_ldm_file_loads_with_the_architecture_inferred(
    vae, tmp_path, prefix, suffix, caplog
):
    path = tmp_path / f"checkpoint.{suffix}"
    tensors = ldm_tensors(vae, prefix) | {"model.diffusion_model.out.bias": torch.ones(4)}
    if suffix == "safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors, "global_step": 7, "epoch": [1, None]}, path)
    found = load_vae(path)
    assert_same_weights(found, vae)
    assert found.config.scaling_factor == 0.18215
    assert "0.13025" in caplog.text


def test_a_folders_weights_file_given_alone_takes_the_configuration_beside_it(vae, folder, caplog):
    found = load_vae(folder / WEIGHTS)
    assert_same_weights(found, vae)
    assert found.config.scaling_factor == SCALE
    assert not caplog.records


def test_one_file_has_no_variants(folder):
    with pytest.raises(ValueError, match=f"{FLAG}.*this is one file"):
        load_vae(folder / WEIGHTS, variant="fp16")


class Bomb:
    """Creates a file when a pickle of it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "bin", "safetensors"])
def test_a_pickle_that_holds_code_is_refused_and_never_run(vae, tmp_path, suffix):
    path, trace = tmp_path / f"model.{suffix}", tmp_path / "trace"
    torch.save({"state_dict": ldm_tensors(vae), "callbacks": Bomb(trace)}, path)
    with pytest.raises(ValueError, match=f"{FLAG}.*is refused.*safetensors version"):
        load_vae(path)
    assert not trace.exists()
    # The bomb works: reading it carelessly would have set it off.
    torch.load(path.open("rb"), weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("kept", [0, 5, 200, 40_000])
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_truncated_file_is_called_damaged(vae, tmp_path, suffix, kept):
    path = tmp_path / f"model.{suffix}"
    if suffix == "safetensors":
        save_file(ldm_tensors(vae), path)
    else:
        torch.save(ldm_tensors(vae), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{FLAG}.*model\.{suffix} is .*damaged"):
        load_vae(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_misnamed_file_is_read_by_its_content_and_its_precision_is_said(tmp_path, dtype, caplog):
    cast = small_vae().to(dtype)
    save_file(ldm_tensors(cast), tmp_path / "vae.ckpt")
    torch.save(ldm_tensors(cast), tmp_path / "vae.safetensors")
    legacy = {"_use_new_zipfile_serialization": False}
    torch.save(ldm_tensors(cast), tmp_path / "vae.download", **legacy)
    for name in ("vae.ckpt", "vae.safetensors", "vae.download"):
        caplog.clear()
        assert_same_weights(load_vae(tmp_path / name), cast)
        assert f"the weights are {str(dtype)[6:]} and become float32" in caplog.text


def test_axes_of_one_that_say_nothing_are_harmless_and_others_are_not(vae, folder):
    tensors = load_file(folder / WEIGHTS)
    changed = dict(tensors)
    for name in ("quant_conv.weight", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight"):
        changed[name] = tensors[name].flatten(1)
    for name in ("encoder.conv_norm_out.weight", "decoder.conv_out.bias"):
        changed[name] = tensors[name].view(1, -1, 1, 1)
    name = "decoder.mid_block.attentions.0.to_k.weight"
    changed[name] = tensors[name][:, :, None]
    save_file(changed, folder / WEIGHTS)
    assert_same_weights(load_vae(folder), vae)
    for shape in ((64, 64, 2, 2), (64 * 64,), (32, 2, 64)):
        save_file(tensors | {name: torch.ones(shape)}, folder / WEIGHTS)
        with pytest.raises(ValueError, match=rf"{name} \[{shape[0]}.*instead of \[64, 64\]"):
            load_vae(folder)


def test_shapes_and_names_that_claim_the_memory_of_a_data_centre_are_refused(vae, tmp_path):
    tensors = ldm_tensors(vae)
    name = "encoder.conv_in.bias"
    huge = torch.zeros(1).expand(10**12)  # four bytes in the file
    torch.save(tensors | {name: huge}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"encoder\.conv_in\.bias \[1000000000000\] instead"):
        load_vae(tmp_path / "a.ckpt")
    for name in ("encoder.down.99999999.block.0.norm1.weight", "decoder.up.0.attn.99999999.q.bias"):
        torch.save(tensors | {name: torch.ones(1)}, tmp_path / "a.ckpt")
        with pytest.raises(ValueError, match="names count"):
            load_vae(tmp_path / "a.ckpt")
    torch.save(tensors | {"encoder.conv_out.weight": torch.ones(8)}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"encoder\.conv_out\.weight has shape \[8\]"):
        load_vae(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b'{"_class_name": "AutoencoderKL"}', "is JSON, not weights; give the folder"),
        ((2**63).to_bytes(8, "little") + b"{" + bytes(99), "is damaged or incomplete"),
        ((99 * 10**6).to_bytes(8, "little") + b"{" + bytes(99), "is damaged or incomplete"),
        ((90).to_bytes(8, "little") + b"{" * 90 + bytes(99), "is damaged or incomplete"),
        (b"PK\x03\x04" + bytes(99), "is damaged or incomplete"),
        (b"\x80\x02" + bytes(99), "damaged"),
        (b"GGUF" + bytes(99), r"is damaged, or of an unknown file type; expected .*\.safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_what_is_no_file_of_weights_is_answered_in_one_line(tmp_path, content, message, suffix):
    path = tmp_path / f"vae.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{FLAG}{path}: vae.{suffix} .*{message}") as raised:
        load_vae(path)
    assert "\n" not in str(raised.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kept=st.integers(0, 3000),
    flips=st.lists(st.integers(0, 2999), max_size=3),
    new=st.integers(0, 255),
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["safetensors", "ckpt", "legacy"])
def test_damage_anywhere_ends_in_tensors_or_in_one_kind_of_error(
    form, kept, flips, new, tmp_path_factory
):
    path = tmp_path_factory.getbasetemp() / f"damaged-{form}"
    if form == "safetensors":
        save_file({"a": torch.ones(9)}, path)
    else:
        torch.save({"a": {"b": torch.ones(9)}}, path,
                   _use_new_zipfile_serialization=form == "ckpt")  # fmt: skip
    data = bytearray(path.read_bytes()[:kept])
    for place in flips:
        if place < len(data):
            data[place] = new
    path.write_bytes(data)
    with suppress(UnusableModel):
        read_tensors(path)


def test_a_file_of_something_else_lists_what_it_holds(tmp_path):
    save_file({f"blocks.{i}.weight": torch.ones(1) for i in range(9)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=rf"{FLAG}.*found blocks\.0\.weight, .* and 3 more"):
        load_vae(tmp_path / "a.safetensors")
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(ValueError, match="found nothing"):
        load_vae(tmp_path / "a.pt")


def test_the_network_does_not_depend_on_its_file_afterwards(vae, folder):
    found = load_vae(folder)
    data = bytearray((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).write_bytes(bytes(len(data)))
    assert_same_weights(found, vae)


# Writing


@pytest.mark.parametrize(("quant", "attention"), [(True, True), (False, True), (True, False)])
def test_an_exported_ldm_file_is_bit_equal_for_diffusers_and_for_us(
    tmp_path, quant, attention, caplog
):
    vae = small_vae(quant=quant, attention=attention)
    vae.save_pretrained(tmp_path / "vae")
    path = tmp_path / "export" / "vae.safetensors"
    save_ldm(vae, path)
    assert_same_weights(
        AutoencoderKL.from_single_file(str(path), config=str(tmp_path / "vae")), vae
    )
    caplog.clear()
    ours = load_vae(path)
    assert_same_weights(ours, vae)
    assert public_config(ours) == public_config(vae)
    assert not caplog.records


def test_an_exported_file_is_float32_and_marked_as_pytorchs(tmp_path):
    save_ldm(small_vae().half(), tmp_path / "vae.safetensors")
    with safe_open(tmp_path / "vae.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert {file.get_tensor(key).dtype for key in list(file.keys())} == {torch.float32}
    assert_same_weights(load_vae(tmp_path / "vae.safetensors"), small_vae().half())


@pytest.mark.parametrize("step", ["weights.tensor_files.save_file", "output.durable.os.replace"])
def test_a_failed_write_leaves_the_old_file_and_no_debris(vae, tmp_path, monkeypatch, step):
    path = tmp_path / "vae.safetensors"
    save_ldm(vae, path)
    before = path.read_bytes()

    def fail(_, filename, **metadata):
        if step.endswith("save_file"):
            Path(filename).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(f"modules.{step}", fail)
    with pytest.raises(OSError, match="disk full"):
        save_ldm(vae, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["vae.safetensors"]


def test_groups_that_other_programs_cannot_know_are_warned_about(tmp_path, caplog):
    vae = AutoencoderKL(block_out_channels=[24], norm_num_groups=8)
    with caplog.at_level(logging.WARNING):
        save_ldm(vae, tmp_path / "vae.safetensors")
    assert "norm_num_groups 8" in caplog.text
    assert_same_weights(load_vae(tmp_path / "vae.safetensors"), vae)


def test_the_fp16_variant_lies_beside_the_fp32_weights(vae, folder):
    save_fp16_variant(vae, folder)
    found = AutoencoderKL.from_pretrained(folder, variant="fp16", torch_dtype=torch.float16)
    assert found.dtype == torch.float16
    assert_same_weights(found.float(), small_vae().half())
    assert_same_weights(load_vae(folder), vae)


def test_the_fp16_variant_is_refused_where_it_would_overflow(vae, folder):
    with torch.no_grad():
        vae.decoder.conv_in.weight[0, 0] = 70_000.0
    with pytest.raises(ValueError, match=r"65504.*decoder\.conv_in\.weight"):
        save_fp16_variant(vae, folder)


# The Hub, played by a local server


@pytest.fixture
def hub(monkeypatch) -> Iterator[StandIn]:
    with stand_in() as running:
        running.repositories |= {"lab/model": {"readme.md": b""}, "lab/gated": {}}
        running.gated.add("lab/gated")
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in (("ENDPOINT", running.endpoint), ("HF_HUB_OFFLINE", False),
                            ("HUGGINGFACE_CO_URL_TEMPLATE", template),
                            ("HF_HUB_DISABLE_TELEMETRY", True)):  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        yield running


def publish(hub: StandIn, folder: Path) -> None:
    hub.repositories["lab/model"] = {path.relative_to(folder).as_posix(): path.read_bytes()
                                     for path in folder.rglob("*") if path.is_file()}  # fmt: skip


@pytest.mark.parametrize("place", ["", "vae"])
def test_a_hub_id_loads_a_vae_or_the_vae_of_a_pipeline(hub, vae, tmp_path, monkeypatch, place):
    vae.save_pretrained(tmp_path / "served" / place)
    publish(hub, tmp_path / "served")
    assert_same_weights(load_vae("lab/model", cache_dir=tmp_path / "cache"), vae)
    assert_same_weights(load_vae("lab/model", revision="main", cache_dir=tmp_path / "cache"), vae)
    # Once downloaded, it loads offline.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert_same_weights(load_vae("lab/model", cache_dir=tmp_path / "cache"), vae)
    assert hub.requests == []


def test_a_hub_variant_downloads_no_other_weights(hub, vae, tmp_path):
    vae.save_pretrained(tmp_path / "served")
    save_fp16_variant(vae, tmp_path / "served")
    publish(hub, tmp_path / "served")
    found = load_vae("lab/model", variant="fp16", cache_dir=tmp_path / "cache")
    assert_same_weights(found, small_vae().half())
    assert not any(request.endswith(WEIGHTS) for request in hub.requests)


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("lab/typo", None, "Hub shows no such repository; .*hf auth login"),
        ("lab/gated", None, "gated: .*/lab/gated, then run `hf auth login`"),
        ("lab/model", "nowhere", "no branch, tag or commit --revision=nowhere"),
        ("lab/model", None, r"not a VAE: .*found readme\.md"),
        ("not a repo", None, "no hub id"),
        ("a/b/c", None, "no hub id"),
    ],
)
def test_what_the_hub_refuses_is_explained(hub, tmp_path, name, revision, message):
    with pytest.raises(ValueError, match=f"{FLAG}{name}: .*{message}"):
        load_vae(name, revision=revision, cache_dir=tmp_path / "cache")


def test_an_unreachable_hub_is_reported_with_the_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"{FLAG}lab/model: .*could not be reached.*offline"):
        load_vae("lab/model", cache_dir=tmp_path / "cache")


def test_a_hub_that_did_not_answer_is_not_asked_again(monkeypatch):
    asked = []

    def unreachable(repo_id, name, local_files_only, **options):
        asked.append((name, local_files_only))
        raise LocalEntryNotFoundError("no answer")

    monkeypatch.setattr("modules.weights.sources.hf_hub_download", unreachable)
    with pytest.raises(ValueError, match=r"could not be reached \(no answer\)"):
        load_vae("lab/model")
    assert asked == [("config.json", False), ("vae/config.json", True)]
