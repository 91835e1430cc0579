"""What both READMEs show is there: commands run, flags, files, recipes and tests exist."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from diffusers import AutoencoderKL
from launching import ROOT, TINY, succeed
from torch.distributed.run import get_args_parser as torchrun_parser

from eval.__main__ import build_parser
from eval.__main__ import main as evaluate
from modules.config.arguments import GROUPS
from modules.config.command_line import recipe_names, resolve_arguments
from modules.data.images.synthetic import SyntheticImages

READMES = ("README.md", "README.zh.md")
# Programs that only prepare or watch; what they are told is not for us to check.
BESIDE = ("python3 -m venv", ". .venv", "pip install", "ruff", "python -m pytest", "export")
# Over every training command: a run of one step that needs nothing from the network.
SMALL = [
    *TINY, "--norm_num_groups", "1", "--max_train_steps", "1", "--train_batch_size", "2",
    "--gradient_accumulation_steps", "1", "--dataloader_num_workers", "0", "--min_image_size", "1",
]  # fmt: skip

MEASURE_SMALL = ["--resolution", "16", "--num_images", "4", "--no_progress", "--device", "cpu"]
# The same for every command of the evaluation.
EVALUATION_SMALL = {
    "reconstruction": [*MEASURE_SMALL, "--metrics", "psnr", "ssim", "frequency"],
    "latents": MEASURE_SMALL,
    "precision": MEASURE_SMALL,
    "export": [],
    "memory": [*TINY, "--resolutions", "16", "--batches", "1"],
    "benchmark": [*TINY, "--steps", "1", "--phase_steps", "1"],
    "loader": shlex.split("--resolution 16 --workers 0 --rounds 1 --images 2 --batch_size 2"),
}


@cache
def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text(name), flags=re.M | re.S)
    return [block for of, block in found if of == language]


def without_blocks(name: str) -> str:
    return re.sub(r"^```.*?^```$", "", text(name), flags=re.M | re.S)


def commands(name: str) -> list[list[str]]:
    """Every command of every bash block, as its words; comments and line ends are resolved."""
    found = []
    for block in blocks(name, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            ends = [i for i, word in enumerate(words) if word == "&&"]
            starts = [0, *(end + 1 for end in ends)]
            found += [words[a:b] for a, b in zip(starts, [*ends, len(words)], strict=True) if words]
    return found


ALL = commands("README.md")
TRAINING = [c[c.index("train_vae.py") + 1 :] for c in ALL if "train_vae.py" in c]
EVALUATION = [c[3:] for c in ALL if c[:3] == ["python", "-m", "eval"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "model"
    succeed(["--recipe", "quickstart", *SMALL, "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder that is a dataset with two splits, and a folder of images to search as well."""
    folder = tmp_path_factory.mktemp("photos")
    source = SyntheticImages(12, 24, seed=3)
    for index in range(12):
        place = folder / ("validation" if index < 4 else "train")
        place.mkdir(exist_ok=True)
        source.open(index).save(place / f"{index}.png")
    return folder


def test_both_languages_show_the_same_blocks_of_code():
    for language in ("bash", "python"):
        assert blocks("README.md", language) == blocks("README.zh.md", language), language
    assert len(ALL) >= 20


def test_the_python_that_is_shown_is_python():
    for block in blocks("README.md", "python"):
        ast.parse(block)


def test_no_command_escapes_these_tests():
    for command in ALL:
        line = shlex.join(command)
        known = "train_vae.py" in command or command[:3] == ["python", "-m", "eval"]
        assert known or line.startswith(BESIDE), line


@pytest.mark.parametrize("argv", TRAINING, ids=shlex.join)
def test_every_training_command_trains(argv, model, photos, tmp_path):
    given = resolve_arguments(argv)
    small = [*SMALL, "--output_dir", tmp_path]
    if given.model.pretrained_model_name_or_path:
        small += ["--pretrained_model_name_or_path", model]
    if given.model.downsample_factor == 16:
        small += ["--block_out_channels", *(8, 8, 8, 8, 8)]
    if given.data.dataset_name not in (None, ("synthetic",)):
        small += ["--dataset_name", photos]
    argv = [str(photos) if word == "path/to/photos" else word for word in argv]
    succeed([*argv, *map(str, small)])
    if not given.dry_run:
        AutoencoderKL.from_pretrained(tmp_path)


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("argv", EVALUATION, ids=shlex.join)
def test_every_evaluation_command_measures(argv, model, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"path/to/photos": photos, "path/to/unseen": photos}
    argv = [
        str(model if word.startswith(("runs/", "stabilityai/")) else places.get(word, word))
        for word in argv
    ]
    small = EVALUATION_SMALL[argv[0]]
    if argv[0] == "loader":  # by itself it makes large photographs
        SyntheticImages(1, 24, seed=3).open(0).save(tmp_path / "0.jpg")
        small = [*small, "--data", str(tmp_path)]
    assert evaluate([*argv, *small]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", ALL, ids=shlex.join)
def test_launchers_understand_what_stands_before_the_script(command):
    if command[:2] == ["accelerate", "launch"]:
        assert launch_command_parser().parse_args(command[2:]).training_script == "train_vae.py"
    if command[0] == "torchrun":
        assert torchrun_parser().parse_args(command[1:]).training_script == "train_vae.py"


@pytest.mark.parametrize("name", READMES)
def test_every_flag_in_the_running_text_exists(name):
    training = {f"--{f.name}" for group in GROUPS.values() for f in fields(group)}
    switches = {f"--no_{flag[2:]}" for flag in training}
    others = {"--recipe", "--config", "--dry_run", "--help", "--no_", "--logdir"}
    evaluation = {
        option
        for subparser in build_parser()._subparsers._group_actions[0].choices.values()
        for option in subparser._option_string_actions
    }
    launchers = {"--num_cpu_threads_per_process"} & set(
        launch_command_parser()._option_string_actions
    )
    known = training | switches | others | evaluation | launchers
    shown = {
        flag
        for code in re.findall(r"`([^`\n]+)`", without_blocks(name))
        for flag in re.findall(r"(?<![\w-])--\w+", code)
    }
    assert len(shown) > 60
    assert shown <= known, shown - known


@pytest.mark.parametrize("name", READMES)
def test_values_beside_flags_in_the_running_text_are_accepted(name):
    """`--disc_loss vanilla` and the like resolve, whatever else a run would need with them."""
    shown = set()
    for code in re.findall(r"`(--[^`\n]+)`", without_blocks(name)):
        argv = shlex.split(code)
        if len(argv) > 1 and "..." not in code:
            shown.add(code)
            resolve_arguments(argv)
    assert len(shown) > 15


@pytest.mark.parametrize("name", READMES)
def test_every_link_leads_somewhere(name):
    headings = re.findall(r"^#+ (.*)$", without_blocks(name), flags=re.M)
    anchors = {"#" + re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    links = re.findall(r"\]\(([^)]+)\)", without_blocks(name))
    assert len(links) > 10
    for link in links:
        if link.startswith("#"):
            assert link in anchors, link
        elif not link.startswith("http"):
            assert (ROOT / link).exists(), link


@pytest.mark.parametrize("name", READMES)
def test_every_recipe_has_its_line_and_every_line_its_recipe(name):
    table = text(name).split("\n|---|---|\n", 1)[1].split("\n\n", 1)[0]
    assert sorted(re.findall(r"^\| `([^`]+)`", table, flags=re.M)) == recipe_names()


@pytest.mark.parametrize("name", READMES)
def test_every_test_that_is_cited_exists(name):
    cited = set(re.findall(r"\btest_\w+", text(name)))
    source = "\n".join(file.read_text(encoding="utf-8") for file in ROOT.glob("tests/test_*.py"))
    assert len(cited) > 20
    assert cited <= set(re.findall(r"^def (test_\w+)", source, flags=re.M))


@pytest.mark.parametrize("name", READMES)
def test_every_module_of_requirements_is_in_the_table(name):
    required = re.findall(r"^([\w-]+)", text("requirements.txt"), flags=re.M)
    table = text(name).rsplit("|---|---|\n", 1)[1].split("\n\n", 1)[0]
    listed = re.findall(r"[\w-]+", " ".join(re.findall(r"^\| ([^|]+)\|", table, flags=re.M)))
    assert sorted(listed) == sorted(required)


def test_the_test_command_stands_where_the_machine_looks_for_it():
    for name in READMES:
        (block,) = re.findall(r"<!-- test command -->\n```bash\n(.*?)```", text(name), flags=re.S)
        assert "python -m pytest" in block
