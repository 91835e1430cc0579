"""What is chosen for a device, and what is said of it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import batch, largest_difference, tiny_run, train, weights
from torch.cuda._utils import _get_device_index

from eval.commands.common import device_and_processes
from eval.metrics.precise import full_precision
from modules.builders.accelerator import _limit_memory, settle_precision
from modules.config.command_line import resolve_arguments
from modules.distributed import device as hardware
from modules.distributed.device import convolution_layout, multiplies_bfloat16
from modules.errors import ArgumentError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def pretend(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    """The processor is one with "AVX2" or "AVX512"."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    bf16 = capability == "AVX512"
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("capability", "argv", "launcher", "settled"),
    [
        ("AVX2", "--recipe flowers", None, "no"),
        ("AVX2", "", "bf16", "no"),
        ("AVX2", "--recipe flowers --mixed_precision bf16", None, "bf16"),
        ("AVX2", "--recipe flowers --mixed_precision fp16", "bf16", "fp16"),
        ("AVX512", "--recipe flowers", None, "bf16"),
        ("AVX512", "", "bf16", "bf16"),
        ("AVX512", "", None, "no"),
    ],
)
def test_a_default_of_bfloat16_gives_way_where_it_is_emulated_and_a_flag_does_not(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capability: str,
    argv: str,
    launcher: str | None,
    settled: str,
) -> None:
    pretend(monkeypatch, capability)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    args = settle_precision(resolve_arguments(argv.split()))
    assert args.precision.mixed_precision == settled
    assert args.as_dict()["mixed_precision"] == settled  # what is written down
    gave_way = capability == "AVX2" and settled == "no"
    assert ("--mixed_precision bf16 insists" in caplog.text) == gave_way
    emulated = capability == "AVX2" and settled == "bf16"
    assert ("add --mixed_precision no" in caplog.text) == emulated


def test_a_precision_in_a_file_of_the_users_is_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, "AVX2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "mine.yaml").write_text("mixed_precision: bf16\n")
    args = resolve_arguments(["--config", str(tmp_path / "mine.yaml")])
    assert settle_precision(args).precision.mixed_precision == "bf16"


def test_emulation_on_a_gpu_does_not_count_as_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not multiplies_bfloat16(CUDA)


@pytest.mark.parametrize("device", [CUDA, torch.device("cuda:1")])
def test_the_memory_limit_needs_no_number_of_the_gpu(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """On a single GPU accelerate's device has none."""
    limits = []
    gpu = SimpleNamespace(total_memory=16 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", lambda *a: limits.append(a), False)
    for limit in (None, 8.0, 99.0):
        _limit_memory(limit, SimpleNamespace(device=device))
    assert limits == [(0.5, 1), (1.0, 1)]
    with pytest.raises(ArgumentError, match=r"--memory_limit_gb=8\.0 needs a CUDA device"):
        _limit_memory(8.0, SimpleNamespace(device=CPU))


@pytest.mark.parametrize(
    ("given", "rank", "expected"),
    [(None, 1, "cuda:1"), ("cuda", 1, "cuda:1"), ("cuda:0", 1, "cuda:0"), ("cpu", 1, "cpu"),
     ("cuda", None, "cuda:0")],
)  # fmt: skip
def test_each_process_of_a_command_gets_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, given: str | None, rank: int | None, expected: str
) -> None:
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: current.append(_get_device_index(d)))
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_: None)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    for name, value in (("WORLD_SIZE", 2), ("LOCAL_RANK", rank)):
        monkeypatch.delenv(name, raising=False)
        if rank is not None:
            monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.empty(1, device="cpu"))
    with device_and_processes(Namespace(device=given)) as device:
        assert device == torch.device(expected)
    assert current == ([] if rank is None or given == "cpu" else [device.index])


def test_a_device_that_there_is_not_is_named_with_its_flag() -> None:
    with pytest.raises(ValueError, match="--device=gpu: Expected one of cpu, cuda"):
        device_and_processes(Namespace(device="gpu")).__enter__()


@pytest.mark.parametrize(
    ("device", "capability", "width", "fused", "layout"),
    [
        (CUDA, "AVX512", 32, False, torch.contiguous_format),
        (CUDA, "AVX512", 32, True, torch.channels_last),
        (CPU, "AVX512", 128, False, torch.channels_last),
        (CPU, "AVX2", 128, False, torch.contiguous_format),
        (CPU, "AVX2", 32, False, torch.channels_last),
    ],
)
def test_layout_is_channels_last_but_where_a_kernel_is_missing(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    capability: str,
    width: int,
    fused: bool,
    layout: torch.memory_format,
) -> None:
    pretend(monkeypatch, capability)
    assert convolution_layout(device, width, fused) == layout


def test_either_layout_trains_both_networks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for capability in ("AVX2", "AVX512"):
        pretend(monkeypatch, capability)
        monkeypatch.setattr(hardware, "WIDE", 1)
        run = tiny_run()
        seen: list[bool] = []
        run.raw_vae.vae.encoder.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0].is_contiguous())
        )
        train(run, [batch(seed=seed) for seed in range(3)])
        plain = capability == "AVX2"
        assert seen == [plain] * 3
        for network in (run.raw_vae.vae.encoder.conv_in, run.raw_discriminator.model[-1]):
            assert network.weight.is_contiguous() == plain
        found.append(weights(run.raw_vae) | weights(run.raw_discriminator))
    assert largest_difference(*found) < 1e-4


@pytest.mark.parametrize("flags", ["", "--deterministic"])
def test_cudnn_looks_for_its_fastest_kernels_unless_bits_must_repeat(flags: str) -> None:
    deterministic = torch.backends.cudnn.deterministic
    try:
        tiny_run(flags)
        assert torch.backends.cudnn.benchmark == (not flags)
        with full_precision():
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark == (not flags)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = deterministic
