"""The imports between our own files: one direction, no circles, light leaves."""

from __future__ import annotations

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "train_vae.py", *ROOT.glob("modules/**/*.py"), *ROOT.glob("eval/**/*.py")]
LEAVES = [
    "modules.training.losses",
    "modules.models.discriminator",
    "modules.models.modes",
    "eval.metrics.image",
]
WITHOUT_TORCH = [
    "modules.errors", "modules.distributed.launch_environment", "modules.data.sources.folder_walk",
    "modules.data.images.image_kinds",
    *(f"modules.builders.{name}" for name in ("first_checks", "output_dir", "overlap", "outline")),
    *(f"modules.output.{file.stem}" for file in ROOT.glob("modules/output/*.py")),
    *(f"modules.config.{file.stem}" for file in ROOT.glob("modules/config/*.py")),
]  # fmt: skip
LIGHT = {"yaml", "safetensors", "PIL", "pillow_heif", "pillow_jxl"}
# Who may import whom, by folder; a folder always may import itself, and everybody FOUNDATION.
FOUNDATION = {"modules.errors", "modules.output", "modules.image_modes"}
MODELS = {"modules.weights", "modules.distributed"}
DATA = {"modules.distributed", "modules.seeding"}
TRAINING = {"modules.models", "modules.data", *MODELS, *DATA}
EXPORT = {"modules.models", "modules.weights", "modules.tracking"}
MAY_IMPORT = {
    "modules.errors": set(),
    "modules.seeding": set(),
    "modules.image_modes": set(),
    "modules.output": set(),
    "modules.config": set(),
    "modules.weights": set(),
    "modules.tracking": set(),
    "modules.distributed": set(),
    "modules.models": MODELS,
    "modules.data": DATA,
    "modules.training": TRAINING,
    "modules.export": EXPORT,
    "modules.builders": {"modules.config", "modules.training", "modules.tracking", *TRAINING},
    "eval.metrics": {"modules"},
    "eval.protocol": {"modules", "eval.metrics"},
    "eval.report": {"modules", "eval.metrics", "eval.protocol"},
    "eval.diffusability": {"modules", "eval.metrics", "eval.protocol", "eval.report"},
    "eval.validation": {"modules", "eval.metrics", "eval.protocol", "eval.report"},
    "eval.export": {"modules"},
    "eval.watch": {"modules", "eval.protocol", "eval.report", "eval.validation", "eval.export"},
    "eval.quality": {"modules", "eval.metrics", "eval.protocol", "eval.report"},
    "eval.rehearsal": {"modules", "eval.metrics", "eval.protocol", "eval.validation"},
    "eval.memory": {"modules", "eval.metrics", "eval.validation", "eval.rehearsal"},
    "eval.dry_run": {"modules", "eval.memory", "eval.export"},
}
# They turn flags into a run, and compare a checkpoint's flags with the present ones.
SEE_FLAGS = {"modules.training.run", "modules.training.resume"}
STANDARD = sys.stdlib_module_names


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports() -> dict[str, set[str]]:
    """What each of our files imports when it runs, anywhere in it, by dotted name."""
    return {name_of(file): imported_by(file) for file in FILES}


def imported_by(file: Path) -> set[str]:
    found = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in node.body
    }
    for node in set(ast.walk(tree)) - for_types_only:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} is a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = {name for name in names if (ROOT / name.replace(".", "/")).exists()
                    or (ROOT / f"{name.replace('.', '/')}.py").exists()}  # fmt: skip
            found |= ours or {node.module}
    return found


def external(name: str) -> set[str]:
    """Packages that a file imports, without the standard library and our own."""
    packages = {imported.split(".")[0] for imported in imports()[name]}
    return packages - STANDARD - {"modules", "eval", "train_vae"}


def test_there_is_something_to_look_at():
    assert {
        "train_vae",
        "modules.training.run",
        "eval.protocol.evaluate",
        "eval.commands",
    } <= imports().keys()
    assert "modules.config.arguments" in imports()["modules.config.command_line"]


def folder(name: str) -> str:
    """The part of a dotted name by which the table knows it: "modules.data" of all data folders."""
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("name", sorted(imports()))
def test_folders_import_those_below_them_only(name):
    ours = folder(name)
    allowed = {ours, *FOUNDATION, *MAY_IMPORT.get(ours, ("modules", "eval"))}
    if name in SEE_FLAGS:
        allowed.add("modules.config")
    for imported in (i for i in imports()[name] if i.split(".")[0] in ("modules", "eval")):
        assert {folder(imported), imported.split(".")[0]} & allowed, imported


@pytest.mark.parametrize("name", sorted(imports()))
def test_the_script_is_above_all_but_what_measures_it(name):
    speed = folder(name) in ("eval.speed", "eval.commands")
    for imported in imports()[name]:
        assert imported != "train_vae" or speed
        assert folder(imported) != "eval.speed" or speed


@pytest.mark.parametrize("name", [n for n in imports() if n.count(".") == 3])
def test_folders_of_the_data_do_not_know_what_uses_them(name):
    outer = {n for n in imports() if n.startswith("modules.data.") and n.count(".") == 2}
    assert not imports()[name] & outer


def test_every_folder_has_its_line_in_the_table_and_at_most_14_files():
    folders = {folder(name) for name in imports() if name.count(".")}
    assert folders - {"eval.commands", "eval.speed", "eval.__main__"} == MAY_IMPORT.keys()
    for place in {file.parent for file in FILES}:
        assert len(list(place.glob("*.py"))) <= 14, place


def test_no_file_imports_itself_in_a_circle():
    ours = imports().keys()
    graph = {name: (imported & ours) - {name} for name, imported in imports().items()}
    assert list(TopologicalSorter(graph).static_order())  # CycleError names the circle


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_know_torch_and_nothing_else(name):
    assert external(name) == {"torch"}
    assert not {i for i in imports()[name] if i.startswith(("modules.", "eval."))}


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_checks_the_command_line_is_light(name):
    assert external(name) <= LIGHT
    for imported in imports()[name]:
        if imported.startswith("modules."):
            assert imported in WITHOUT_TORCH


def test_the_evaluation_is_imported_by_name():
    """`import eval` would hide the builtin."""
    assert not [name for name, imported in imports().items() if "eval" in imported]
