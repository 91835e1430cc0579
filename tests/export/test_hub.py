"""The run on the Hub: refused before it costs anything, pushed on the way, complete at the end."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from hub_stand_in import TOKEN, StandIn, stand_in, take_it_for_the_hub, without_patience
from huggingface_hub import ModelCard
from launching import ROOT, TINY, Launched, launch

from eval.export import describe_training
from modules.builders.output_dir import check_output_dir
from modules.config.command_line import resolve_arguments
from modules.config.outputs import LoggingArguments
from modules.errors import ArgumentError
from modules.export.model_card import write_model_card
from modules.export.vae import export_vae
from modules.models.autoencoder import build_autoencoder
from modules.output.run_files import (
    AT_THE_END,
    KEPT_AT_HOME,
    RECORD,
    UPLOADED,
    WHILE_TRAINING,
    top_names,
)

PROTOCOL = "a protocol: with a colon"
COUNTS = {"val/num_images": 4, "val/nan_images": 0}


@pytest.fixture
def hub(monkeypatch) -> Iterator[StandIn]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with stand_in() as running:
        yield running


def flags(output_dir: Path, *more: object) -> list[str]:
    return [
        *TINY, "--output_dir", str(output_dir), "--train_batch_size", "2", "--max_train_steps", "6",
        "--checkpointing_steps", "2", "--validation_steps", "2", "--push_to_hub",
        *map(str, more),
    ]  # fmt: skip


def start(hub: StandIn, argv: list[str], token: str = TOKEN, hurry: bool = False) -> Launched:
    before = without_patience if hurry else take_it_for_the_hub
    return launch([*argv, "--hub_token", token], before=before, **hub.environment)


def local_files(folder: Path) -> dict[str, bytes]:
    """What a finished run has to have uploaded."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.relative_to(folder).parts[0] not in (*KEPT_AT_HOME, "diary.txt", RECORD)
    }


def write_all(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_run_pushes_its_best_on_the_way_and_everything_at_the_end(hub, pictures, tmp_path):
    folder, photos = tmp_path / "my run", tmp_path / "photos"
    shutil.copytree(pictures, photos)
    (photos / "broken.png").write_text("no picture")
    folder.mkdir()
    (folder / "diary.txt").write_text("not written by the run")
    process = start(
        hub,
        flags(folder, "--push_every", 1, "--hub_model_id", "mine", "--hub_license", "apache-2.0",
              "--export_ldm", "--train_data_dir", photos, "--max_bad_images", 1),
    )  # fmt: skip
    code, output = process.wait()
    assert code == 0, output
    assert (folder / "bad_images.txt").exists()
    assert (folder / "diary.txt").exists()
    received = hub.repositories["someone/mine"]
    assert received == local_files(folder)
    assert {"README.md", "config.json", "best/config.json", "train_config.yaml"} <= received.keys()
    assert not (folder / ".push").exists()

    # On the way: a whole, loadable state, and a card of it.
    message, midway = hub.commits[0]
    assert message == "Step 2"
    assert "diffusion_pytorch_model.safetensors" not in midway
    copy = write_all(midway, tmp_path / "midway")
    AutoencoderKL.from_pretrained(copy, subfolder="best")
    card = ModelCard.load(copy / "README.md")
    assert 'from_pretrained("someone/mine", subfolder="best")' in card.text
    assert "Training is under way" in card.text
    steps = [json.loads(line)["step"] for line in midway["metrics.jsonl"].splitlines()]
    assert steps[-1] == 2
    config = json.loads(midway["best/config.json"])
    assert f"{config['scaling_factor']:.5g}" in card.text

    # Nothing of this machine, and not the token.
    final = ModelCard.load(folder / "README.md")
    assert 'from_pretrained("someone/mine")' in final.text
    assert final.data.license == "apache-2.0"
    assert "pushed step 2 to someone/mine" in output
    for text in (output.encode(), *received.values(), *midway.values()):
        assert TOKEN.encode() not in text
    for name, content in received.items():
        if name != "train_config.yaml":  # which repeats every flag as it was given
            assert str(tmp_path).encode() not in content, name


def test_a_wrong_token_ends_the_run_before_it_starts(hub, tmp_path):
    old = tmp_path / "metrics.jsonl"
    old.write_text('{"step": 1}\n')
    code, output = start(hub, flags(tmp_path, "--overwrite_output_dir"), "hf_wrong").wait()
    assert code == 2, output
    assert "train_vae.py: error: --push_to_hub: the repository" in output
    assert "hf auth login" in output
    assert "Traceback" not in output
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert old.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--hub_model_id", "other/theirs"], "cannot be created or written to"),
        (["--hub_model_id", "someone/shown", "--hub_private"], "exists already and is public"),
        (["--hub_license", "mine alone"], "--hub_license=mine alone: the Hub refuses"),
        (["--hub_model_id", "a/b/c"], "--hub_model_id=a/b/c is no name of a repository"),
    ],
)
def test_what_the_hub_would_refuse_later_is_refused_at_once(hub, tmp_path, more, message):
    hub.repositories |= {"other/theirs": {}, "someone/shown": {}}
    hub.private |= {"other/theirs": False, "someone/shown": False}
    hub.foreign.add("other/theirs")
    code, output = start(hub, flags(tmp_path / "run", *more)).wait()
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_hub_that_is_gone_costs_the_upload_and_not_the_run(hub, tmp_path):
    folder = tmp_path / "run"
    hub.open.clear()
    process = start(hub, flags(folder, "--push_every", 1))
    process.wait_until(lambda: hub.commit_attempts == 1)
    hub.close()
    code, output = process.wait()
    assert code == 1, output
    assert "Traceback" not in output
    AutoencoderKL.from_pretrained(folder)
    (command,) = {line.split("`")[1] for line in output.splitlines() if "repeat it with" in line}

    with stand_in() as again:  # and the command that it names does what it says
        again.repositories["someone/run"] = {}
        python, *rest = shlex.split(command)
        assert python == "python"
        subprocess.run([sys.executable, *rest], check=True, cwd=ROOT, timeout=60,
                       env={**again.environment, "HF_TOKEN": TOKEN})  # fmt: skip
        assert again.repositories["someone/run"] == local_files(folder)


def test_a_push_that_fails_is_told_and_made_good_by_a_later_one(hub, tmp_path):
    hub.refused_commits.add(1)
    hub.large = ()
    folder = tmp_path / "run"
    code, output = start(hub, flags(folder, "--push_every", 1, "--hub_private")).wait()
    assert code == 0, output
    assert hub.private == {"someone/run": True}
    assert "no --hub_license" in output
    assert "the push of step 2 to someone/run failed (" in output
    assert "no commits today" in output
    assert hub.repositories["someone/run"] == local_files(folder)


def test_training_does_not_wait_for_a_slow_push_and_leaves_others_out(hub, tmp_path):
    hub.open.clear()
    folder = tmp_path / "run"
    process = start(hub, flags(folder, "--push_every", 1, "--max_train_steps", 10))
    process.wait_until(lambda: (folder / "checkpoints" / "step-000010").exists())
    process.wait_until(lambda: hub.commit_attempts == 1)
    hub.open.set()
    code, output = process.wait()
    assert code == 0, output
    assert output.count("is left out") == 1
    assert [message for message, _ in hub.commits] == ["Step 2", "End of training, step 10"]
    _, midway = hub.commits[0]
    rows = [json.loads(line) for line in midway["metrics.jsonl"].splitlines()]
    assert rows[-1]["step"] == 2  # as it was, not as it has become
    assert hub.repositories["someone/run"] == local_files(folder)


def test_a_signal_is_obeyed_though_a_push_never_ends(hub, tmp_path):
    hub.open.clear()
    folder = tmp_path / "run"
    argv = flags(folder, "--push_every", 1, "--max_train_steps", 100_000)
    process = start(hub, argv, hurry=True)
    process.wait_until(lambda: hub.commit_attempts == 1)
    process.signal(signal.SIGTERM)
    code, output = process.wait()
    assert code == 0, output
    assert "it took too long and was ended" in output
    assert hub.commits == []
    assert not (folder / ".push").exists()
    assert list((folder / "checkpoints").glob("step-*"))


def test_a_signal_ends_the_last_upload_too_and_it_can_be_repeated(hub, tmp_path):
    hub.open.clear()
    process = start(hub, flags(tmp_path / "run"), hurry=True)
    process.wait_until(lambda: hub.commit_attempts == 1)
    process.signal(signal.SIGTERM)
    code, output = process.wait(30)
    assert code == 1, output
    assert "the upload to someone/run failed (it took too long and was ended)" in output
    assert "repeat it with `python -m modules.export.upload someone/run" in output
    AutoencoderKL.from_pretrained(tmp_path / "run")


def test_of_several_processes_one_speaks_to_the_hub(hub, tmp_path):
    folder = tmp_path / "run"
    argv = [*flags(folder, "--push_every", 1, "--max_train_steps", 3), "--hub_token", TOKEN]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    group = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
             "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **hub.environment}  # fmt: skip
    together = [
        launch(argv, take_it_for_the_hub, RANK=rank, LOCAL_RANK=rank, **group) for rank in "01"
    ]
    for process in together:
        code, output = process.wait()
        assert code == 0, output
    assert hub.requests.count("POST /api/repos/create") == 1
    assert [message for message, _ in hub.commits] == ["Step 2", "End of training, step 3"]
    assert hub.repositories["someone/run"] == local_files(folder)


def test_a_dry_run_tells_what_it_would_push_asks_nobody_and_makes_no_folder(hub, tmp_path):
    folder = tmp_path / "deep" / "run"
    argv = flags(folder, "--push_every", 3, "--hub_private", "--dry_run")
    code, output = start(hub, argv).wait()
    assert code == 0, output
    assert "Would push to the Hub (a dry run does not ask it): run" in output
    assert "created before training as a private repository" in output
    assert "every 6 steps, in the background: README.md, best, samples" in output
    assert "never: checkpoints, logs, bad_images.txt" in output
    assert "no --hub_license" in output
    assert hub.requests == []
    assert not list(tmp_path.iterdir())


def test_a_dry_run_still_refuses_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    args = resolve_arguments(["--output_dir", str(tmp_path / "file" / "run")])
    with pytest.raises(ArgumentError, match=r"cannot be written to .*is not a folder"):
        check_output_dir(args, create=False)


@pytest.mark.parametrize(
    "argv",
    ["--push_every 2", "--push_every 0 --push_to_hub", "--hub_private",
     "--push_every 2 --push_to_hub --num_validation_images 0"],
)  # fmt: skip
def test_flags_of_uploads_without_uploads_are_refused(argv):
    with pytest.raises(ArgumentError, match=argv.split()[0]):
        resolve_arguments(argv.split())


@pytest.mark.parametrize("tracker", ["wandb", "all"])
def test_a_token_is_not_put_beside_a_tracker_that_could_expose_it(tracker):
    with pytest.raises(ArgumentError, match="hf auth login"):
        LoggingArguments(report_to=tracker, hub_token=TOKEN)


def test_only_what_a_run_writes_may_leave_and_not_what_is_private():
    written = set(top_names((*WHILE_TRAINING, *AT_THE_END)))
    visible = {name for name in written if not name.startswith(".")}
    assert set(top_names(UPLOADED)) == visible - set(KEPT_AT_HOME)


# The model card.


@pytest.fixture
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return build_autoencoder(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, mid_block_add_attention=False
    )


def card(
    folder: Path, vae: AutoencoderKL, *argv: object, last: dict[str, float] | None = None, **known
) -> ModelCard:
    """The card of weights that were validated at steps 0 and 9, read back without a network.

    last: other metrics of the last validation. known: what else `describe_training` is told.
    """
    rows = [{"step": step, "val/psnr": 20.0 + step, **COUNTS} for step in (0, 9)]
    rows[-1] |= {f"val/{name}": value for name, value in (last or {}).items()}
    training = describe_training(resolve_arguments([str(word) for word in argv]), **known)
    vae.save_config(folder)
    write_model_card(folder, training, steps=9, rows=rows)
    return ModelCard.load(folder / "README.md")


def code_in(found: ModelCard) -> str:
    return found.text.split("```python\n")[1].split("```")[0]


def test_the_hub_reads_metrics_and_protocol_from_the_card(vae, tmp_path):
    found = card(tmp_path, vae, "--dataset_name", "owner/photos", "--hub_license", "mit",
                 "--validation_split", "test", protocol=PROTOCOL,
                 stamp={"resolution": 16, "crop": "adm"},
                 last={"ssim": 0.5, "lpips_vgg": float("nan"), "kl": 7.0})  # fmt: skip
    assert found.data.license == "mit"
    assert found.data.datasets == ["owner/photos"]
    assert found.data.library_name == "diffusers"
    assert found.data.pipeline_tag is None
    results = {result.metric_type: result for result in found.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "psnr": 29.0, "ssim": 0.5,
    }  # fmt: skip
    assert results["psnr"].dataset_type == "owner/photos"
    assert results["psnr"].dataset_split == "test"
    assert results["psnr"].dataset_config == PROTOCOL
    assert results["psnr"].dataset_args == {"num_images": 4, "resolution": 16, "crop": "adm"}
    assert PROTOCOL in found.text


def test_no_licence_is_guessed(vae, tmp_path):
    assert card(tmp_path, vae).data.license is None
    assert "license" not in (tmp_path / "README.md").read_text()


def test_a_base_model_on_the_hub_is_named_and_a_path_is_not(vae, tmp_path):
    base = "--pretrained_model_name_or_path"
    found = card(tmp_path, vae, base, "stabilityai/sd-vae-ft-mse")
    assert found.data.base_model == "stabilityai/sd-vae-ft-mse"
    assert found.data.to_dict()["base_model_relation"] == "finetune"
    private = tmp_path / "private-vae"
    private.mkdir()
    found = card(tmp_path, vae, base, private)
    assert found.data.base_model is None
    assert "private-vae" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "argv",
    [
        ["--train_data_dir", "{private}"],
        ["--dataset_name", "{private}"],
        ["--dataset_name", "{private}/missing.parquet"],
        ["--dataset_name", "imagefolder", "--train_data_dir", "{private}"],
        ["--dataset_name", "parquet", "--data_files", "{private}/a.parquet"],
        ["--dataset_name", "owner/photos", "--validation_data_dir", "{private}"],
        ["--dataset_name", "{private}", "owner/photos", "synthetic"],
        ["--dataset_name", "my/private-data"],
        ["--pretrained_model_name_or_path", "my/private-data"],
    ],
)
def test_no_path_of_this_machine_gets_into_the_card(vae, tmp_path, argv, monkeypatch):
    monkeypatch.chdir(tmp_path)
    private = tmp_path / "my" / "private-data"
    private.mkdir(parents=True)
    found = card(tmp_path, vae, *(word.format(private=private) for word in argv))
    text = (tmp_path / "README.md").read_text()
    assert "private-data" not in text
    assert "imagefolder" not in text
    assert "parquet" not in text
    assert found.data.eval_results[0].dataset_type == "images"
    assert (found.data.datasets is None) == ("owner/photos" not in argv)


def test_names_cannot_break_out_of_the_card(vae, tmp_path):
    name = 'a": b --- # <script>alert(1)</script>'
    for repository in (None, name):
        found = card(tmp_path, vae, "--hub_model_id", name, "--hub_license", name,
                     repository=repository)  # fmt: skip
        assert found.data.license == name
        assert "<script>" not in found.text


def test_the_card_tells_baselines_hardware_and_flags(vae, tmp_path):
    argv = ["--kl_scale", "0.5", "--image_column", "<b>", "--logging_steps", "7"]
    found = card(tmp_path, vae, *argv, last={"ssim": 0.5}, facts={"Time": "0:01:05"},
                 baselines={"downsample:8": {"psnr": 22.125, "ssim": 0.25}})  # fmt: skip
    lines = found.text.splitlines()
    assert "| PSNR (dB) | 20 | 29 |" in lines
    at = lines.index("| | PSNR (dB) | SSIM |")
    assert lines[at + 2 : at + 4] == [
        "| this model | 29 | 0.5 |",
        "| `downsample:8` | 22.12 | 0.25 |",
    ]
    assert "- Time: 0:01:05" in lines
    assert {"    --kl_scale 0.5", "    --image_column &#39;&lt;b&gt;&#39;"} <= set(lines)
    assert "logging_steps" not in "".join(lines)  # nothing of the weights


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.5},
        {"scaling_factor": 0.5, "shift_factor": 0.25},
        {"scaling_factor": 1.0, "latents_mean": [0.5] * 4, "latents_std": [2.0] * 4},
    ],
)
def test_the_code_in_the_card_runs_and_undoes_its_own_normalisation(vae, tmp_path, config):
    vae.register_to_config(**config)
    vae.save_pretrained(tmp_path)
    code = code_in(card(tmp_path, vae, repository="someone/mine"))
    code = code.replace("someone/mine", str(tmp_path))
    images = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    torch.manual_seed(1)
    plain = vae.eval().encode(images).latent_dist.sample()
    torch.manual_seed(1)
    names = {"images": images}
    exec(code, names)
    assert torch.allclose(names["latents"], plain, atol=1e-5)
    scaled = code.split("images = vae.decode")[0].rsplit("latents = ", 1)[0]
    names = {"images": images}
    torch.manual_seed(1)
    exec(scaled, names)
    mean = config.get("shift_factor") or (config.get("latents_mean") or [0.0])[0]
    std = (config.get("latents_std") or [1.0])[0]
    expected = (plain - mean) / std * config["scaling_factor"]
    assert torch.allclose(names["latents"], expected, atol=1e-5)


def test_without_a_repository_the_code_in_the_card_runs_in_its_folder(vae, tmp_path, monkeypatch):
    vae.save_pretrained(tmp_path)
    for name in ("mine", "a/b/c"):  # neither can be found on the Hub
        code = code_in(card(tmp_path, vae, "--hub_model_id", name))
        monkeypatch.chdir(tmp_path)
        names = {"images": torch.zeros(1, 3, 16, 16)}
        exec(code, names)
        assert names["images"].shape == (1, 3, 16, 16)


def test_a_repository_that_is_uploaded_to_later_is_named_already(vae, tmp_path):
    assert 'from_pretrained("me/my-vae")' in card(tmp_path, vae, "--hub_model_id", "me/my-vae").text


def test_the_scale_that_the_card_tells_is_the_exported_one(vae, tmp_path):
    text = card(tmp_path, export_vae(vae, tmp_path, scaling_factor=0.3125)).text
    assert re.findall(r"`scaling_factor` is ([\d.]+\d)", text) == ["0.3125"]


def test_other_forms_of_the_weights_are_named_where_they_are(vae, tmp_path):
    assert "fp16" not in card(tmp_path, vae).text
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").touch()
    (tmp_path / "vae_ldm.safetensors").touch()
    text = card(tmp_path, vae).text
    assert 'variant="fp16", torch_dtype=torch.float16' in text
    assert "ComfyUI" in text
