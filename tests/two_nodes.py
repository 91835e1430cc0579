"""Two nodes on this machine, by hand: torchrun, accelerate and modules/README.md's Slurm script.

    python tests/two_nodes.py                   # all of it, some minutes on the CPU
    python tests/two_nodes.py --only torchrun

Each launcher starts two nodes of one process, and its run must end like one that two plain
processes make. With torchrun one node is killed besides, and both are started again. `srun` and
`scontrol` are stand-ins that start the same tasks with the same variables as Slurm.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))
sys.path.insert(0, str(Path(__file__).parent.parent))

from launching import ROOT, SCRIPT, launch_together
from survival import RESUME, Variant, command, differences

STEPS = 30
VARIANT = Variant(workers=1, gan=True, accumulation=1)
SMALL_IMAGES = ("--min_image_size", "1")  # the recipe wants large ones
ENVIRONMENT = {
    **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}  # fmt: skip
# As Slurm does: every task knows its number, and a signal reaches all of a task's processes.
SRUN = """#!/usr/bin/env python3
import os, signal, subprocess, sys
count = int(os.environ["STAND_IN_TASKS"])
tasks = [
    subprocess.Popen(sys.argv[1:], env={**os.environ, "SLURM_PROCID": str(n), "SLURM_LOCALID": "0",
                                        "SLURM_NTASKS": str(count)},
                     start_new_session=True)
    for n in range(count)
]
signal.signal(signal.SIGUSR1, lambda *_: [os.killpg(task.pid, signal.SIGUSR1) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = "#!/bin/sh\necho 127.0.0.1\n"


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(argv: Sequence[object], log: Path, **environment: str) -> subprocess.Popen:
    """One node; what it says goes to `log`."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            [*map(str, argv)], cwd=ROOT, env={**ENVIRONMENT, **environment}, stdout=stream,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def torchrun(folder: Path, more: Sequence[str] = (), restarts: int = 0) -> list[subprocess.Popen]:
    """The two agents of a run, as the README has them."""
    endpoint = f"localhost:{free_port()}"
    return [
        start(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes", 2,
                "--nproc_per_node", 1, "--max_restarts", restarts, "--rdzv_backend", "c10d",
                "--rdzv_endpoint", endpoint,
                SCRIPT, *command(folder, STEPS, VARIANT, *more),
            ],
            folder.with_suffix(f".node{node}.log"),
        )
        for node in range(2)
    ]  # fmt: skip


def accelerate(folder: Path) -> list[subprocess.Popen]:
    """The two launchers of a run, as the README has them."""
    port = free_port()
    argv = command(folder, STEPS, VARIANT)
    at = argv.index("--mixed_precision")
    del argv[at : at + 2]  # the launcher says it
    return [
        start(
            [
                sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
                "--num_machines", 2, "--num_processes", 2, "--machine_rank", node,
                "--main_process_ip", "127.0.0.1", "--main_process_port", port,
                "--mixed_precision", "no", SCRIPT, *argv,
            ],
            folder.with_suffix(f".node{node}.log"),
        )
        for node in range(2)
    ]  # fmt: skip


def slurm_block() -> str:
    """The script for Slurm, as modules/README.md has it."""
    text = (ROOT / "modules" / "README.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```bash\n(.*?)```", text, flags=re.S) if "srun" in b]
    return block.rstrip()


def slurm_flags() -> list[str]:
    """What it tells train_vae.py."""
    return shlex.split(slurm_block().split("train_vae.py")[1].replace("\\\n", " "))


def slurm_script(folder: Path) -> tuple[Path, dict[str, str]]:
    """That script with a tiny run behind it, and the environment with the stand-ins."""
    stand_ins = folder.parent / "stand-ins"
    stand_ins.mkdir(exist_ok=True)
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (stand_ins / name).write_text(content, encoding="utf-8")
        (stand_ins / name).chmod(0o755)
    script = folder.with_suffix(".sbatch")
    block = slurm_block().replace("MASTER_PORT=29500", f"MASTER_PORT={free_port()}")
    tiny = shlex.join(command(folder, STEPS, VARIANT, *SMALL_IMAGES))
    script.write_text(f"{block} {tiny}\n", encoding="utf-8")
    path = os.pathsep.join([str(stand_ins), str(Path(sys.executable).parent), os.environ["PATH"]])
    return script, {"PATH": path, "STAND_IN_TASKS": "2", "SLURM_JOB_NODELIST": "node[0-1]"}


def plain(argv: list[str]) -> None:
    """Two processes without a launcher, to the end."""
    for process in launch_together(argv, 2):
        code, output = process.wait(timeout=900)
        assert code == 0, output


def ends(nodes: Sequence[subprocess.Popen], timeout: float = 900) -> list[int]:
    """Their exit codes, once all have ended."""
    return [node.wait(timeout) for node in nodes]


def descendants(pid: int) -> list[int]:
    """All processes below `pid`; torchrun's workers have sessions of their own."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def lose_power(node: subprocess.Popen) -> None:
    """SIGKILL to the agent and everything below it."""
    for pid in (node.pid, *descendants(node.pid)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended by itself, its parent being dead


def wait_for_checkpoint(folder: Path, step: int, nodes: Sequence[subprocess.Popen]) -> None:
    """Returns once the run has one at `step` or later."""
    deadline = time.monotonic() + 600
    while not any(int(p.name[5:]) >= step for p in (folder / "checkpoints").glob("step-*")):
        if any(node.poll() is not None for node in nodes) or time.monotonic() > deadline:
            raise RuntimeError(folder.with_suffix(".node0.log").read_text())
        time.sleep(0.05)


def verdict(name: str, codes: list[int], folder: Path, alone: Path) -> bool:
    """Prints one line; whether all ended well, and as the undisturbed run did."""
    wrong = [] if not any(codes) else [f"exit codes {codes}"]
    wrong += differences(folder, alone) if not wrong else []
    print(f"{name}: {'; '.join(wrong[:5]) or 'bit-equal to two plain processes'}", flush=True)
    if any(codes):
        for log in sorted(folder.parent.glob(f"{folder.name}.*log")):
            print(log.name, *log.read_text(errors="replace").splitlines()[-30:], sep="\n  ")
    return not wrong


def check_torchrun(folder: Path, alone: Path) -> bool:
    """Both nodes to the end; then with one killed on the way, and both started again."""
    whole = folder / "torchrun" / "run"
    whole.parent.mkdir()
    good = verdict("torchrun", ends(torchrun(whole)), whole, alone)
    for lost in (0, 1):
        killed = folder / f"torchrun-without-{lost}" / "run"
        killed.parent.mkdir()
        nodes = torchrun(killed)
        wait_for_checkpoint(killed, STEPS // 3, nodes)
        lose_power(nodes[lost])
        began = time.monotonic()
        codes, seconds = ends(nodes), time.monotonic() - began
        print(f"node {lost} killed: exit codes {codes} after {seconds:.0f} s", flush=True)
        name = f"torchrun, node {lost} killed, both started again"
        good &= verdict(name, ends(torchrun(killed, RESUME)), killed, alone)
    crashed = folder / "torchrun-restarts" / "run"
    crashed.parent.mkdir()
    nodes = torchrun(crashed, RESUME, restarts=3)
    wait_for_checkpoint(crashed, STEPS // 3, nodes)
    os.kill(descendants(nodes[1].pid)[0], signal.SIGKILL)
    name = "torchrun --max_restarts 3, a process of node 1 killed"
    return verdict(name, ends(nodes), crashed, alone) and good


def check_accelerate(folder: Path, alone: Path) -> bool:
    """accelerate launch on both machines."""
    run = folder / "accelerate" / "run"
    run.parent.mkdir()
    return verdict("accelerate launch", ends(accelerate(run)), run, alone)


def check_slurm(folder: Path, alone: Path) -> bool:
    """The job is warned before its time is over, ends, and is submitted again."""
    del alone  # the script names a recipe
    run, undisturbed = folder / "slurm" / "run", folder / "slurm-alone" / "run"
    run.parent.mkdir()
    plain([*slurm_flags(), *command(undisturbed, STEPS, VARIANT, *SMALL_IMAGES)])
    script, environment = slurm_script(run)
    log = run.with_suffix(".node0.log")
    job = start(["bash", script], log, **environment)
    wait_for_checkpoint(run, STEPS // 3, [job])
    commands = {p: Path(f"/proc/{p}/cmdline").read_text().split("\0") for p in descendants(job.pid)}
    (srun,) = (pid for pid, words in commands.items() if words[1].endswith("/srun"))
    os.kill(srun, signal.SIGUSR1)
    codes = ends([job])
    steps = max(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*"))
    print(f"Slurm's SIGUSR1: exit codes {codes} at step {steps}", flush=True)
    return verdict("Slurm, submitted again", ends([start(["bash", script], log, **environment)]),
                   run, undisturbed)  # fmt: skip


CHECKS: dict[str, Callable[[Path, Path], bool]] = {
    "torchrun": check_torchrun, "accelerate": check_accelerate, "slurm": check_slurm,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="two-nodes-") as name:
        folder = Path(name)
        alone = folder / "alone" / "run"
        plain(command(alone, STEPS, VARIANT))
        return int(not all([CHECKS[check](folder, alone) for check in args.only]))


if __name__ == "__main__":
    raise SystemExit(main())
