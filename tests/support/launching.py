"""Launches train_vae.py in processes of its own, which can be killed and can run side by side.

The processes are forked from a server that has the script's imports behind it: a launch takes a
tenth of a second instead of the several that torch and diffusers need.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "train_vae.py"
TINY = shlex.split(
    "--resolution 16 --block_out_channels 8 8 8 8 --layers_per_block 1 --norm_num_groups 2 "
    "--no_mid_block_add_attention --disc_hidden_channels 8 --disc_num_groups 4 "
    "--disc_num_layers 1 --perceptual_scale 0 --num_validation_images 4 --num_latent_images 4 "
    "--validation_batch_size 4 --num_grid_images 2 --report_to none --mixed_precision no "
    "--learning_rate 1e-3 --disc_learning_rate 1e-3 --lr_scheduler constant "
    "--disc_lr_scheduler constant --no_use_ema --logging_steps 1"
)
LAUNCHERS_OWN = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
ADVERSARIAL = shlex.split("--disc_start 1 --disc_warmup_steps 1 --disc_ramp_steps 2")


class Launched:
    """A running train_vae.py and everything it has printed."""

    def __init__(
        self, argv: Sequence[str], before: Callable[[], None] | None, environment: dict[str, str]
    ) -> None:
        handle, path = tempfile.mkstemp(prefix="train_vae-", suffix=".log")
        os.close(handle)
        self.log = Path(path)
        self.process = _server().Process(
            target=_become_script, args=(list(map(str, argv)), path, environment, before)
        )
        self.process.start()
        atexit.register(self._leave_nothing_behind)

    def _leave_nothing_behind(self) -> None:
        self.process.kill()
        self.log.unlink()

    @property
    def output(self) -> str:
        """stdout and stderr so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.process.pid, number)

    def wait(self, timeout: float = 120) -> tuple[int, str]:
        """(exit code, output) once it has ended; killed by signal n is -n."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(self.output)
        return self.process.exitcode, self.output

    def wait_until(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        """Returns once `condition` holds; fails if the process ends before it does."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.exitcode is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)


def launch(
    argv: Sequence[str], before: Callable[[], None] | None = None, **environment: str
) -> Launched:
    """Starts `train_vae.py *argv`, on pictures of its own where no flag names others.

    before: a function of a module, called in there first.
    """
    argv = list(map(str, argv))
    if not {"--train_data_dir", "--dataset_name", "--config", "--recipe"} & set(argv):
        argv += ["--dataset_name", "synthetic"]
    return Launched(argv, before, environment)


def succeed(argv: Sequence[str], **environment: str) -> str:
    """Runs `train_vae.py *argv` to its end, which must be a good one; returns what it printed."""
    code, output = launch(argv, **environment).wait()
    assert code == 0, output
    return output


def finish_together(together: Sequence[Launched], expected: int = 0) -> list[str]:
    """What the processes of one run printed, which must all end with this code."""
    outputs = []
    for process in together:
        code, output = process.wait()
        assert code == expected, output
        outputs.append(output)
    return outputs


def launch_together(
    argv: Sequence[str],
    num_processes: int,
    before: Callable[[], None] | None = None,
    use_cpu: bool = True,
) -> list[Launched]:
    """Starts the processes of one run with the environment that torchrun gives them."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    return [
        launch(
            argv,
            before,
            ACCELERATE_USE_CPU=str(use_cpu).lower(),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(num_processes),
            LOCAL_WORLD_SIZE=str(num_processes),
        )
        for rank in range(num_processes)
    ]


@cache
def _server() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    wanted = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
              "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}  # fmt: skip
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    forkserver.ensure_running()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    return context


def _become_script(
    argv: list[str], log: str, environment: dict[str, str], before: Callable[[], None] | None
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for name in LAUNCHERS_OWN:  # of a launcher around the tests, or left behind by one of them
        os.environ.pop(name, None)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # as the script finds it
    sys.argv = [str(SCRIPT), *argv]
    if before is not None:
        before()
    runpy.run_path(str(SCRIPT), run_name="__main__")
