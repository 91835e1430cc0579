"""The same bits on every launch, on a GPU too, at the price of speed."""

from __future__ import annotations

import os

import torch

from modules.errors import ArgumentError

WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


def make_deterministic() -> None:
    """Allows deterministic kernels only; to be called before anything touches a GPU.

    cuBLAS reads its setting from the environment when it starts. Raises ArgumentError when the
    environment holds another one.
    """
    if os.environ.setdefault(WORKSPACE, WORKSPACES[0]) not in WORKSPACES:
        raise ArgumentError(
            f"--deterministic needs {WORKSPACE} to be one of {', '.join(WORKSPACES)}, and it is "
            f"{os.environ[WORKSPACE]}; unset it"
        )
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
