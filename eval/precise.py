"""Full float32 arithmetic for a while, whatever the program around it has chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """No autocast, no TF32 or bfloat16 inside float32 operations; all settings are put back.

    A number then does not depend on `--mixed_precision` or `--allow_tf32` of the run it stands in.
    """
    backends = torch.backends
    operations = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )
    before = [operation.fp32_precision for operation in operations]
    with ExitStack() as stack:
        for device_type in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device_type, enabled=False))
        for operation in operations:
            operation.fp32_precision = "ieee"
        try:
            yield
        finally:
            for operation, precision in zip(operations, before, strict=True):
                operation.fp32_precision = precision
