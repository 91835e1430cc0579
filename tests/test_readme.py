"""What the documents show is there: commands run, examples work, flags, files and tests exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
import sys
from dataclasses import fields
from functools import cache, partial
from pathlib import Path

import launching
import pytest
from accelerate.commands.launch import launch_command_parser
from diffusers import AutoencoderKL
from launching import ROOT, TINY, launch, succeed
from test_imports import FOUNDATION, MAY_IMPORT
from torch.distributed.run import get_args_parser as torchrun_parser

from eval.__main__ import build_parser, command_modules
from eval.__main__ import main as evaluate
from modules.config.arguments import GROUPS
from modules.config.command_line import recipe_names, resolve_arguments
from modules.config.fates import TABLE, TAKES_EFFECT
from modules.data.images.synthetic import SyntheticImages
from modules.tracking.metrics_log import read_rows

README, CHINESE, MODULES = "README.md", "README.zh.md", "modules/README.md"
ENGLISH = (README, MODULES, "eval/README.md", "tests/README.md")
DOCUMENTS = (*ENGLISH, CHINESE)
LONGEST = 280  # lines that a README may have
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
    "diffusability": [*MEASURE_SMALL, "--features", "random", "--denoiser_steps", "1"],
    "precision": MEASURE_SMALL,
    "export": ["--format", "fp16", "ldm"],  # ONNX, which takes seconds, is tested in test_onnx.py
    "picture": ["--device", "cpu"],
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


def code_in(name: str) -> list[str]:
    """What stands in backticks in the running text."""
    return re.findall(r"`([^`\n]+)`", without_blocks(name))


def numbers(name: str) -> list[str]:
    """Those in the running text outside of code, links and names of months, sorted."""
    words = re.sub(r"`[^`\n]+`|\(\S+\)| \d+ 月", "", without_blocks(name))
    return sorted(re.findall(r"\d[\d.,]*\d|\d", words))


def rows(name: str, header: str) -> list[list[str]]:
    """The cells of the table below this line."""
    table = text(name).split(f"{header}\n|---", 1)[1].split("\n\n", 1)[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[1:]]


def commands() -> list[list[str]]:
    """Every command of every bash block, once, as its words; comments and line ends resolved."""
    found = []
    for block in (block for name in ENGLISH for block in blocks(name, "bash")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            ends = [i for i, word in enumerate(words) if word == "&&"]
            starts = [0, *(end + 1 for end in ends)]
            found += [words[a:b] for a, b in zip(starts, [*ends, len(words)], strict=True) if words]
    return [list(command) for command in dict.fromkeys(map(tuple, found))]


def flags_of(command: list[str]) -> tuple[str, ...]:
    """What a training command tells the script, but for the folder."""
    words = command[command.index("train_vae.py") + 1 :]
    if "--output_dir" in words:
        place = words.index("--output_dir")
        words = words[:place] + words[place + 2 :]
    return tuple(words)


ALL = commands()
TRAINING = list(dict.fromkeys(flags_of(c) for c in ALL if "train_vae.py" in c))
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


def test_both_languages_show_the_same_code_and_the_same_numbers():
    for language in ("bash", "python"):
        assert blocks(README, language) == blocks(CHINESE, language), language
    assert set(code_in(README)) == set(code_in(CHINESE))
    assert numbers(README) == numbers(CHINESE)


@pytest.mark.parametrize("name", [README, CHINESE])
def test_a_readme_is_short(name):
    assert len(text(name).splitlines()) <= LONGEST


def test_the_python_that_is_shown_is_python():
    for block in (block for name in ENGLISH for block in blocks(name, "python")):
        ast.parse(block)


def test_no_command_escapes_these_tests():
    assert len(ALL) >= 25
    for command in ALL:
        line = shlex.join(command)
        known = "train_vae.py" in command or command[:3] == ["python", "-m", "eval"]
        assert known or line.startswith(BESIDE), line
        assert all((ROOT / word).exists() for word in command if word.endswith(".py")), line


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
    if not given.launch.dry_run:
        AutoencoderKL.from_pretrained(tmp_path)


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("argv", EVALUATION, ids=shlex.join)
def test_every_evaluation_command_measures(argv, model, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture = photos / "validation" / "0.png"
    places = {"path/to/photos": photos, "path/to/unseen": photos, "in.png": picture}
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


def apply(difference: str, folder: Path) -> None:
    """Changes copies of our files in `folder` as a block of `diff` says, wherever the lines are."""
    for part in re.split(r"^--- a/", difference, flags=re.M)[1:]:
        name, hunks = part.split("\n", 1)
        if not (file := folder / name).exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, file)
        for hunk in re.split(r"^@@.*\n", hunks, flags=re.M)[1:]:
            lines = hunk.splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] in f" {sign}")
                             for sign in "-+")  # fmt: skip
            source = file.read_text(encoding="utf-8")
            assert source.count(before) == 1, before
            file.write_text(source.replace(before, after), encoding="utf-8")


def take_files_of(folder: Path) -> None:
    """In a process to come: the script and the modules in `folder` instead of ours."""
    launching.SCRIPT = folder / "train_vae.py"
    for file in folder.glob("modules/**/*.py"):
        name = ".".join(file.relative_to(folder).with_suffix("").parts)
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


def test_what_the_examples_add_is_trained_with_and_logged(tmp_path):
    for block in blocks(MODULES, "diff"):
        apply(block, tmp_path)
    argv = [
        *SMALL,
        "--dataset_name",
        "synthetic",
        "--output_dir",
        str(tmp_path / "run"),
        "--max_train_samples",
        "8",
        "--num_validation_images",
        "4",
        "--max_train_steps",
        "3",
    ]
    code, output = launch(argv, partial(take_files_of, tmp_path)).wait()
    assert code == 0, output
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert {"train/edge_loss", "val/psnr_worst"} <= {name for row in rows for name in row}
    assert [row["step"] for row in rows if "val/psnr" in row] == [0, 2, 3]  # 2 ends an epoch


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_flag_in_the_running_text_exists(name):
    training = {f"--{f.name}" for group in GROUPS.values() for f in fields(group)}
    switches = {f"--no_{flag[2:]}" for flag in training}
    others = {"--recipe", "--config", "--dry_run", "--help", "--no_"}
    evaluation = {
        option
        for subparser in build_parser()._subparsers._group_actions[0].choices.values()
        for option in subparser._option_string_actions
    }
    launchers = {"--num_cpu_threads_per_process", "--quiet"} & set(
        launch_command_parser()._option_string_actions
    )
    known = training | switches | others | evaluation | launchers
    shown = {flag for code in code_in(name) for flag in re.findall(r"(?<![\w-])--\w+", code)}
    assert len(shown) > (40 if name in (README, CHINESE, MODULES) else 4)
    assert shown <= known, shown - known


@pytest.mark.parametrize("name", [README, CHINESE, MODULES])
def test_values_beside_flags_in_the_running_text_are_accepted(name):
    """`--disc_loss vanilla` and the like resolve, whatever else a run would need with them."""
    shown = {code for code in code_in(name) if code.startswith("--") and " " in code}
    for code in shown:
        resolve_arguments(shlex.split(code))
    assert len(shown) > 10


@cache
def anchors(name: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", without_blocks(name), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name):
    links = re.findall(r"\]\(([^)]+)\)", without_blocks(name))
    assert len(links) > (10 if name in (README, CHINESE, MODULES) else 0)
    for link in (link for link in links if not link.startswith("http")):
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), link


@pytest.mark.parametrize("name", [README, CHINESE])
def test_every_recipe_has_its_line_and_every_line_its_recipe(name):
    table = text(name).split("\n|---|---|\n", 1)[1].split("\n\n", 1)[0]
    assert sorted(re.findall(r"^\| `([^`]+)`", table, flags=re.M)) == recipe_names()


@pytest.mark.parametrize("name", [README, CHINESE])
def test_every_module_of_requirements_is_in_the_table(name):
    required = re.findall(r"^([\w-]+)", text("requirements.txt"), flags=re.M)
    table = text(name).rsplit("|---|---|\n", 1)[1].split("\n\n", 1)[0]
    listed = re.findall(r"[\w-]+", " ".join(re.findall(r"^\| ([^|]+)\|", table, flags=re.M)))
    assert sorted(listed) == sorted(required)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_test_that_is_cited_exists(name):
    cited = set(re.findall(r"\btest_\w+(?!\.py|\w)", text(name)))
    files = ROOT.glob("tests/**/test_*.py")
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert len(cited) > 40 or name != "tests/README.md"
    assert cited <= set(re.findall(r"^def (test_\w+)", source, flags=re.M))


def test_every_folder_has_its_line_with_what_it_may_import():
    shown = {cells[0].strip("`/"): re.findall(r"`(\w+)`", " ".join(cells[2:]))
             for cells in rows(MODULES, "| folder | what is in it | may import |")}  # fmt: skip
    rules = {key.removeprefix("modules."): {name.removeprefix("modules.") for name in allowed}
             for key, allowed in MAY_IMPORT.items() if key.startswith("modules.")}  # fmt: skip
    folders = rules.keys() - {"errors", "seeding", "image_modes"}
    assert {name: set(listed) for name, listed in shown.items()} == {n: rules[n] for n in folders}
    assert {"modules.errors", "modules.output", "modules.image_modes"} == FOUNDATION


def test_every_command_of_the_evaluation_has_its_line():
    table = rows("eval/README.md", "| command | what it answers |")
    assert sorted(cells[0].strip("`") for cells in table) == sorted(command_modules())


def test_what_becomes_of_each_flag_on_resume_is_in_the_table():
    expected = ["| on resume | because | flags |", "|---|---|---|"]
    for fate, reason, names in TABLE:
        if fate != TAKES_EFFECT:
            flags = ", ".join(f"`--{name}`" for name in names.split())
            expected.append(f"| {fate} | {reason} | {flags} |")
    assert "\n".join(expected) + "\n" in text(MODULES)


def test_the_test_command_stands_where_the_machine_looks_for_it():
    for name in (README, CHINESE):
        (block,) = re.findall(r"<!-- test command -->\n```bash\n(.*?)```", text(name), flags=re.S)
        assert "python -m pytest" in block
