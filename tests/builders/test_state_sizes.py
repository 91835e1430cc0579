"""The size of a checkpoint is known before there is one."""

from __future__ import annotations

import pytest
from tiny import batch, tiny_run, train

from modules.builders.state_sizes import checkpoint_bytes
from modules.training.checkpoint import save_checkpoint
from modules.training.resume import trainer_state


@pytest.mark.parametrize("flags", ["", "--use_ema", "--disc_factor 0 --use_ema"])
def test_a_checkpoint_is_as_large_as_predicted(flags, tmp_path):
    run = tiny_run(f"--block_out_channels 32 32 64 64 --disc_hidden_channels 32 {flags}")
    train(run, [batch()])
    state = trainer_state(run, {"num_train_images": 100})
    checkpoint = save_checkpoint(run.accelerator, tmp_path, run.step, run.ema, state, None)
    written = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert checkpoint_bytes(run) == pytest.approx(written, rel=0.02)
