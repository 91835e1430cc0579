"""Full float32 arithmetic for a while, whatever the program around it has chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """No autocast, no TF32 or bfloat16 inside float32 operations, nothing compiled; all put back.

    A number then does not depend on `--mixed_precision`, `--allow_tf32` or `--compile` of the run
    it stands in, nor on which of its kernels cuDNN found fastest there.
    """
    backends = torch.backends
    settings = (
        (backends.cuda.matmul, "allow_tf32", False),
        (backends.cudnn, "allow_tf32", False),
        (backends.cudnn, "benchmark", False),
        (backends.mkldnn.matmul, "fp32_precision", "ieee"),
        (backends.mkldnn.conv, "fp32_precision", "ieee"),
    )
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for device_type in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device_type, enabled=False))
        for owner, name, value in settings:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield
