"""Whatever a flag is given, the answer is a value it allows, or one line that names the flag."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.config.arguments import FLAGS as DECLARED
from modules.config.arguments import GROUPS
from modules.config.command_line import resolve_arguments, to_yaml, value_type
from modules.config.config_file import LARGEST_FILE
from modules.config.limits import in_steps, number
from modules.config.objective import GAN_LENGTHS
from modules.errors import ArgumentError

FLAGS = {name: (f, value_type(name)[0]) for name, f in DECLARED.items()}
BAD_NUMBERS = ["nan", "inf", "-inf", "1e400", "1e308", "-1e308", str(-(2**64)), str(2**64),
               str(10**400), "", " ", "one", "0x", "1,5", "--", "\0", "\n"]  # fmt: skip
BAD_TEXTS = ["", " ", "\t", "a\0b", "a\nb", "\x7f", "\u2028", os.fsdecode(b"na\xefve"), "x" * 5000]
# One value of each kind that YAML knows, and that no flag of another kind may take.
YAML_KINDS = ["[]", "[[1]]", "{a: 1}", "2020-01-01", "2020-99-99", "010", "1:30", "!!binary aGk=",
              "!!set {a}", "~", ".nan", "-.inf", "1" * 5000, "!!python/name:os.system ''",
              '"a\\0b"', "''", "'a\n\n b'", "*a", "&a [*a]", "no", "-1.5"]  # fmt: skip
NUMBERS = [name for name, (_, kind) in FLAGS.items() if kind in (int, float, number)]
TEXTS = [name for name, (f, kind) in FLAGS.items() if kind is str and not f.metadata["choices"]]


def answer(argv: list[str]) -> str | None:
    """What resolve_arguments says against `argv`, on one line; None where it accepts it."""
    try:
        resolve_arguments(argv)
    except ArgumentError as error:
        message = str(error)
    else:
        return None
    assert "\n" not in message
    assert len(message) < 1000
    return message


def beyond(name: str) -> list[str]:
    """The numbers just outside of a flag's own limits."""
    f, kind = FLAGS[name]
    limits, step = f.metadata["limits"], 1e-3 if kind is float else 1
    ends = [(limits.minimum, -1), (limits.maximum, 1)]
    found = [str(kind(end + side * step * max(1, abs(end)))) for end, side in ends]
    return found + [str(end) for end in (limits.above, limits.below) if end is not None]


def test_no_number_outside_of_its_limits_is_taken(tmp_path):
    file = tmp_path / "mine.yaml"
    for name in NUMBERS:
        for text in BAD_NUMBERS + beyond(name):
            found = answer([f"--{name}={text}"])
            assert found is not None, (name, text)
            assert f"--{name}" in found
            file.write_text(yaml.safe_dump({name: text}), encoding="utf-8")
            found = answer([f"--config={file}"])
            assert found is not None, (name, text)
            assert name in found or "cannot be read as YAML" in found


@pytest.mark.parametrize("text", ["1.5", "1.0", "0.0", "-0.5", "2000.0", "5e2"])
def test_what_is_neither_a_whole_number_of_steps_nor_a_share_is_refused(tmp_path, text):
    file = tmp_path / "mine.yaml"
    for name in (*GAN_LENGTHS, "lr_warmup_steps"):
        file.write_text(f"{name}: {text}\n", encoding="utf-8")
        for argv in ([f"--{name}={text}"], [f"--config={file}"]):
            assert f"--{name}={float(text)} must be a whole number of steps" in answer(argv)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6) | st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_length_is_typed_written_and_read_as_it_is(tmp_path, length):
    typed = resolve_arguments([f"--disc_start={length!r}"])
    file = tmp_path / "train_config.yaml"
    file.write_text(to_yaml(typed), encoding="utf-8")
    for arguments in (typed, resolve_arguments([f"--config={file}"])):
        start = arguments.discriminator.disc_start
        assert (start, type(start)) == (length, type(length))
    assert in_steps(length, 10) == (
        length if isinstance(length, int) else max(1, round(10 * length))
    )


def test_no_text_that_cannot_be_written_down_is_taken(tmp_path):
    file = tmp_path / "mine.yaml"
    for name in TEXTS:
        for text in BAD_TEXTS:
            assert f"--{name}" in answer([f"--{name}", text])
            file.write_bytes(f"{name}: {yaml.safe_dump(text)}".encode(errors="surrogateescape"))
            found = answer([f"--config={file}"])
            assert name in found or "cannot be read as YAML" in found


@pytest.mark.parametrize("text", YAML_KINDS, ids=range(len(YAML_KINDS)))
def test_yaml_of_another_kind_is_refused_for_every_flag(tmp_path, text):
    file = tmp_path / "mine.yaml"
    for name, (f, kind) in FLAGS.items():
        file.write_text(f"{name}: {text}\n", encoding="utf-8")
        found = answer([f"--config={file}"])
        right = (text == "no" and kind is bool) or (text == "~" and f.default is None)
        assert (found is None) == right, (name, found)
        assert right or name in found or "cannot be read as YAML" in found


@settings(max_examples=100, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.sampled_from(sorted(FLAGS)), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=5,
))  # fmt: skip
def test_any_value_in_a_configuration_is_taken_or_refused(tmp_path, name, value):
    file = tmp_path / "mine.yaml"
    dumper = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    file.write_text(yaml.dump({name: value}, Dumper=dumper), encoding="utf-8")
    answer([f"--config={file}"])


@settings(max_examples=100, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.binary(max_size=200) | st.text("[]{}&*!?:,-#|>'\"\n a0", max_size=60).map(str.encode))
def test_any_bytes_are_a_configuration_or_one_line(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    answer([f"--config={file}"])


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "aliases"),
        ("[" * 10_000, "nested too deeply"),
        ("seed: 1\nseed: 2\n", "seed is given twice"),
        ("#" * LARGEST_FILE + "\n", "a configuration at most"),
        ("seed: !!python/object/apply:os.system [true]", "cannot be read as YAML"),
        ("seed: \x00", "cannot be read as YAML"),
        ("mixed_precision: no", "put it in quotes"),
        ("output_dir: 2024-01-01", "put it in quotes"),
    ],
    ids=("bomb", "deep", "twice", "large", "tag", "nul", "bool", "date"),
)
def test_a_hostile_configuration_is_refused(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    assert message in answer([f"--config={file}"])


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: opening it would wait for ever
    for path in ("/dev/zero", tmp_path, tmp_path / "pipe"):
        assert "not a regular file" in answer([f"--config={path}"])
    assert "does not exist" in answer(["--config=~/no/such/file.yaml"])


def test_other_encodings_that_name_themselves_are_read(tmp_path):
    file = tmp_path / "mine.yaml"
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_text("seed: 3\n", encoding=encoding)
        assert resolve_arguments([f"--config={file}"]).optimization.seed == 3


def test_the_home_folder_is_written_as_a_tilde_in_every_path(tmp_path):
    paths = [name for name, (f, _) in FLAGS.items() if f.metadata["limits"].path]
    assert {"output_dir", "cache_dir", "validation_image", "lpips_weights"} <= set(paths)
    file = tmp_path / "mine.yaml"
    for name in paths:
        beside = {"num_validation_images": "0"}
        beside |= {"dataset_name": "imagefolder"} if name == "data_files" else {}
        file.write_text("".join(f"{k}: {v}\n" for k, v in {name: "~/x", **beside}.items()))
        typed = [f"--{name}", "~/x", *(f"--{k}={v}" for k, v in beside.items())]
        for argv in (typed, [f"--config={file}"]):
            try:
                found = resolve_arguments(argv)
            except ArgumentError as error:  # it wants another flag beside it
                raise AssertionError(name) from error
            groups = [vars(getattr(found, group)) for group in GROUPS]
            (value,) = (values[name] for values in groups if name in values)
            assert value in (str(Path.home() / "x"), (str(Path.home() / "x"),))


def test_a_secret_is_not_shown(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("hub_token: [hf_hidden]\n")
    assert "hidden" not in answer(["--hub_token=hf_hidden\n"]) + answer([f"--config={file}"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--resolution=8 --perceptual_scale=0 --disc_factor=0",
         "8 pixels; SSIM needs 11: raise it, or leave it out of --val"),
        ("--resolution=8", "8 pixels; LPIPS with --lpips_backbone=vgg needs 16"),
        ("--resolution=24 --lpips_backbone=alex", "24 pixels; LPIPS with --lpips_backbone=alex"),
        ("--resolution=64 --disc_type=patch --disc_num_layers=5",
         "64 pixels; a discriminator with --disc_num_layers=5 needs 96"),
        ("--train_resolutions 8 64", "--train_resolutions=8 gives images whose shorter side"),
        ("--resolution=8 --perceptual_scale=0 --disc_type=features",
         "LPIPS with --lpips_backbone=vgg needs 16: raise it, or choose --disc_type patch"),
    ],
)  # fmt: skip
def test_images_too_small_for_what_looks_at_them_are_refused_with_numbers(argv, message):
    assert message in answer(argv.split())


def test_a_discriminator_that_never_starts_looks_at_no_image():
    argv = ["--resolution=16", "--disc_type=patch", "--max_train_steps=9", "--disc_start"]
    assert resolve_arguments([*argv, "9"]).data.resolution == 16
    for start in ("8", "0.5"):
        assert "a discriminator with --disc_num_layers=3 needs 24" in answer([*argv, start])
