"""The training script's own loop, to be measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import train_vae
from modules.training.run import Run


def train_on(run: Run, batches: Sequence[dict[str, Any]]) -> Run:
    """The script's loop over `batches`, with nothing between its steps."""
    run.loader = batches
    with patch.object(train_vae, "after_step", lambda run, watch: True):
        train_vae.train(run, watch=None)
    return run
