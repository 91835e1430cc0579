"""Every mistake that a user can mend ends in one line: what libraries raise is turned into it."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import sys
import tarfile

import datasets
import pytest
import torch
from eval_fixtures import tiny_vae
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from eval.__main__ import main
from eval.metrics.networks import backbone_of
from modules.builders.networks import make_discriminator, make_vae
from modules.config.answers import answer_to, exit_on_mistakes
from modules.config.command_line import resolve_arguments
from modules.data import shared_memory
from modules.data.shared_memory import end_rather_than_drop, require_shared_memory
from modules.data.sources.hf_dataset import NamedDataset
from modules.data.sources.open import open_rows
from modules.errors import ArgumentError, RunStopped, blaming
from modules.models.lpips import build_lpips
from modules.weights.model_config import network_of
from modules.weights.tensor_files import UnusableModel, read_tensors
from modules.weights.vae_files import load_vae

NONSENSE = [None, [], {}, "", "x", -1, 0, 0.5, 10**9, 2**70, float("nan"), True, [0], [-1] * 4,
            ["x"] * 4, [10**9] * 4, [[8]] * 4, {"a": 1}]  # fmt: skip
# Anything that the network still runs with, and numbers that only say how latents are scaled.
ANY = ("_class_name", "act_fn", "force_upcast", "mid_block_add_attention", "sample_size",
       "scaling_factor", "shift_factor", "latents_mean", "latents_std")  # fmt: skip


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, "Input/output error", "/mnt/photos/a.jpg"), "/mnt/photos/a.jpg"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/y"), "/x/y"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), "--train_batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "--train_batch_size"),
        (MemoryError(), "--recompute"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "/dev/shm"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "/dev/shm"),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."
                      "\nPlease increase"), "ulimit -n"),
        (OSError(errno.ENOSPC, "No space left"), "make room"),
        (RunStopped("a\nb"), "a b"),
        (ArgumentError("--x=1"), "--x=1"),
    ],
)  # fmt: skip
def test_what_the_user_can_mend_ends_with_one_line(error, words, capsys):
    with pytest.raises(SystemExit) as ended, exit_on_mistakes():
        raise error
    assert ended.value.code == (2 if isinstance(error, ArgumentError) else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train_vae.py: error: ")
    assert words in line


def test_a_bug_keeps_its_traceback():
    for error in (ValueError("bug"), RuntimeError("bug"), OSError(5, "Input/output error")):
        with pytest.raises(type(error)), exit_on_mistakes():
            raise error


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("by zero"), KeyError("x"), UnicodeDecodeError("utf-8", b"", 0, 1, "")],
)
def test_a_library_is_blamed_by_flag_value_and_fix_and_our_own_words_are_kept(error):
    with pytest.raises(ArgumentError, match=r"--x=1: .+; mend it"), blaming("--x=1", "mend it"):
        raise error
    with pytest.raises(RunStopped, match=r"^stop$"), blaming("--x=1", "mend it"):
        raise RunStopped("stop")
    with pytest.raises(KeyboardInterrupt), blaming("--x=1", "mend it"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "entry",
    ["in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups",
     "block_out_channels", "down_block_types", "up_block_types", *ANY],
)  # fmt: skip
def test_a_configuration_with_nonsense_in_it_is_one_line_or_works(entry):
    right = json.loads(tiny_vae().to_json_string())
    for value in NONSENSE[::2] if entry in ANY else NONSENSE:
        try:
            network_of(right | {entry: value}, "--model=x")
        except ArgumentError as error:
            assert re.fullmatch(r"--model=x: [^\n]+; mend its config.json", str(error))  # noqa: PT017
        else:
            assert entry in ANY or value is None


@pytest.mark.parametrize(
    ("entry", "value"),
    [("act_fn", None), ("sample_size", None), ("use_quant_conv", "no"), ("force_upcast", "false")],
)
def test_an_entry_that_would_be_taken_for_another_is_named(entry, value):
    right = json.loads(tiny_vae().to_json_string())
    with pytest.raises(ArgumentError, match=f"--model=x: {entry} is {value} and must be "):
        network_of(right | {entry: value}, "--model=x")


def test_networks_beyond_the_machines_memory_are_refused_before_they_are_built():
    small = ["--perceptual_scale=0", "--resolution=64"]
    with pytest.raises(ArgumentError, match=r"--block_out_channels=16384.* GB"):
        make_vae(resolve_arguments([*small, "--block_out_channels", *["16384"] * 4]))
    args = resolve_arguments([*small, "--disc_hidden_channels=4096", "--disc_num_layers=4"])
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 100e9:
        with pytest.raises(ArgumentError, match=r"--disc_hidden_channels=4096.* GB"):
            make_discriminator(args, None)


def test_the_narrowest_bucket_must_be_wide_enough_as_well():
    argv = ["--resolution=32", "--lpips_backbone=alex", "--disc_factor=0"]
    argv += ["--block_out_channels", "8", "8", "8", "8", "--aspect_ratio_bucketing"]
    with pytest.raises(ArgumentError, match=r"--resolution=32 with --aspect.* 24 pixels; LPIPS"):
        make_vae(resolve_arguments(argv))


@settings(max_examples=60, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.sampled_from([".safetensors", ".ckpt", ".bin"]), st.binary(max_size=100), st.data())
def test_a_damaged_file_of_tensors_is_one_line(tmp_path, suffix, content, data):
    whole = tmp_path / "whole.bin"
    if not whole.exists():
        torch.save({"a": torch.zeros(3), "b": [1, {"c": torch.ones(2)}]}, whole)
    if data.draw(st.booleans()):  # some bytes of a good one exchanged
        good = bytearray(whole.read_bytes())
        place = data.draw(st.integers(0, len(good) - 1))
        content = bytes(good[:place] + content + good[place + len(content) :])
    file = tmp_path / f"damaged{suffix}"
    file.write_bytes(content)
    try:
        read_tensors(file)
    except UnusableModel:
        with pytest.raises(ArgumentError, match=r"^--lpips_weights="):
            backbone_of(str(file))
    with pytest.raises(ArgumentError, match=r"^--lpips_weights=[^\n]*$"):
        build_lpips("squeeze", str(file))
    with pytest.raises(ArgumentError, match=r"^--pretrained_model_name_or_path=[^\n]*$"):
        load_vae(file)


def test_a_data_set_that_its_library_cannot_read_is_one_line(pictures, tmp_path):
    scripted = tmp_path / "scripted"
    scripted.mkdir()
    (scripted / "scripted.py").write_text("")
    saved = tmp_path / "saved"
    picture = {"bytes": (pictures / "0.png").read_bytes(), "path": None}
    rows = datasets.Dataset.from_dict({"image": [picture] * 8})
    rows.save_to_disk(saved)
    (arrow,) = saved.glob("*.arrow")
    whole, state = arrow.read_bytes(), (saved / "state.json").read_text()
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "train.tar", "w") as tar:
        tar.add(pictures / "0.png", "0.png")
    content = (packed / "train.tar").read_bytes()
    (packed / "train.tar").write_bytes(content[:512] + os.urandom(512) + content[1024:])

    def refused(folder):
        with pytest.raises(ArgumentError, match=f"^--dataset_name={folder}[^\n]*$"):
            open_rows(NamedDataset(str(folder), cache_dir=str(tmp_path / "cache")))

    refused(scripted)
    for content in (whole[:-300], whole[:10], b"", b"x" * len(whole)):
        arrow.write_bytes(content)
        refused(saved)
    arrow.write_bytes(whole)
    for content in ("", "{", "[]", "{}", state.replace("data-", "nowhere-")):
        (saved / "state.json").write_text(content)
        refused(saved)


def test_loaders_may_open_as_many_files_as_the_system_lets_them():
    limit, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 512), allowed))
    try:
        require_shared_memory("--workers", 0, 2, 1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(limit, 512)
        require_shared_memory("--workers", 1, 2, 1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(allowed, 65536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, allowed))


@pytest.mark.parametrize("found", ["InvalidCxxCompiler: No working C++ compiler found in cpp.cxx",
                                   "RuntimeError: Failed to find C compiler."])  # fmt: skip
def test_a_machine_without_a_compiler_is_no_bug_and_other_errors_of_compilers_are(found):
    code, message = answer_to(RuntimeError(f"{found}\n\nSet TORCHDYNAMO_VERBOSE=1"))
    assert code == 2
    assert "\n" not in message
    assert message.startswith("--compile finds no compiler")
    assert message.endswith("or drop --compile")
    assert answer_to(RuntimeError("LoweringException: assertion failed")) is None


def test_a_worker_that_may_open_no_more_files_ends_with_one_line(monkeypatch, capfd):
    """multiprocessing's thread asks the hook about each error, and tries again at once."""

    def leave(code):
        raise SystemExit(code)

    queue = shared_memory.multiprocessing.queues.Queue
    monkeypatch.setattr(queue, "_on_queue_feeder_error", queue._on_queue_feeder_error)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(os, "_exit", leave)
    end_rather_than_drop()
    with pytest.raises(SystemExit, match="1"):
        sys.excepthook(OSError, OSError(errno.EMFILE, "Too many open files"), None)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("a loaded batch cannot be handed over")
    sys.excepthook(ValueError, ValueError("a bug"), None)
    assert "ValueError: a bug" in capfd.readouterr().err


def test_the_end_of_other_workers_does_not_disturb_the_answer(capfd):
    before = signal.signal(signal.SIGCHLD, lambda *_: pytest.fail("raised while it ends"))
    try:
        with pytest.raises(SystemExit), exit_on_mistakes():
            raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly")
        os.kill(os.getpid(), signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert "--dataloader_num_workers" in capfd.readouterr().err


class Unsendable:
    """A picture that fails where it leaves its process, as any does without shared memory."""

    def __reduce__(self):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")


class Unsendables(torch.utils.data.Dataset):
    """Two of them."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Unsendable()


def test_a_worker_that_cannot_hand_over_a_batch_ends_the_run_instead_of_letting_it_wait(
    monkeypatch, capfd
):
    # The tests before have ended PyTorch's watch over the workers, which it begins once a process.
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    loader = DataLoader(Unsendables(), collate_fn=list, num_workers=1, timeout=20,
                        worker_init_fn=end_rather_than_drop)  # fmt: skip
    with pytest.raises(SystemExit), exit_on_mistakes():
        list(loader)
    printed = capfd.readouterr().err
    assert "a loaded batch cannot be handed over: unable to allocate shared memory" in printed
    assert "--shm-size" in printed.splitlines()[-1]


def test_shared_memory_is_compared_with_what_the_loader_may_fill(monkeypatch):
    class Found:
        f_bavail, f_frsize = 64 * 1024, 1024  # what Docker gives: 64 MiB

    monkeypatch.setattr(shared_memory.os, "statvfs", lambda path: Found)
    monkeypatch.setattr(shared_memory, "SHARED", shared_memory.Path("/"))
    batch = 10_000_000
    require_shared_memory("--workers", 0, 2, batch)
    require_shared_memory("--workers", 2, 2, batch)
    with pytest.raises(ArgumentError, match=r"--workers=3: .* need 80 MB .* --workers 2$"):
        require_shared_memory("--workers", 3, 2, batch)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ArgumentError, match=r"--workers=2: .* need 120 MB .* --workers 0$"):
        require_shared_memory("--workers", 2, 2, batch)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--json {tmp}", "is a folder; give a file"),
        ("--json {tmp}/file/x.json", "--json={tmp}/file/x.json cannot be written to"),
        ("--json {tmp}/a --report {tmp}/a", "name one file twice"),
        ("--grid {tmp}/a.xyz", "must end in what names a picture"),
        ("--resolution 0", "--resolution: 0 must be at least 1"),
        ("--batch_size -3", "--batch_size: -3 must be at least 1"),
        ("--num_workers=-1", "--num_workers: -1 must be at least 0"),
        ("--seed=18446744073709551616", "--seed: 18446744073709551616 must be"),
        ("--num_images=nan", "--num_images: invalid int value: 'nan'"),
        ("--resolution 8", "8 pixels; ssim needs 11: raise it, or leave it out of"),
        ("--metrics psnr --device nonsense", "--device=nonsense: "),
        ("--metrics psnr --device meta", "--device=meta: "),
        ("--metrics psnr --data_split=", "--data_split= is empty"),
    ],
)
def test_an_evaluation_checks_its_flags_before_it_opens_anything(argv, words, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = argv.format(tmp=tmp_path).split()
    try:
        code = main(["reconstruction", "--model=identity", "--data=synthetic", *argv])
    except SystemExit as error:
        code = error.code
    assert code == 2
    printed = capsys.readouterr()
    assert words.format(tmp=tmp_path) in printed.err
    assert not printed.out
