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
LEAVES = ["modules.losses", "modules.discriminator", "modules.modes", "eval.metrics"]
WITHOUT_TORCH = [
    f"modules.{name}"
    for name in ("answers", "arguments", "command_line", "config_file", "errors", "fates",
                 "folder_lock", "launch_environment", "limits", "precedence", "smallest_sides",
                 "threads")
]  # fmt: skip
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
    assert {"train_vae", "modules.run", "eval.evaluate", "eval.commands"} <= imports().keys()
    assert "modules.arguments" in imports()["modules.command_line"]


@pytest.mark.parametrize("name", sorted(imports()))
def test_layers_import_downwards_only(name):
    forbidden = {"modules": ("eval", "train_vae"), "eval": ("train_vae",)}
    for imported in imports()[name]:
        assert imported.split(".")[0] not in forbidden.get(name.split(".")[0], ())


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
    assert external(name) <= {"yaml", "safetensors"}
    for imported in imports()[name]:
        if imported.startswith("modules."):
            assert imported in WITHOUT_TORCH


def test_the_evaluation_is_imported_by_name():
    """`import eval` would hide the builtin."""
    assert not [name for name, imported in imports().items() if "eval" in imported]
