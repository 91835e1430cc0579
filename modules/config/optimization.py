"""How training goes about it: the flags of optimizers, precision and memory."""

from __future__ import annotations

from dataclasses import dataclass

from modules.config.limits import FlagGroup, flag
from modules.errors import ArgumentError

SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
             "constant_with_warmup")  # fmt: skip


@dataclass(frozen=True)
class OptimizationArguments(FlagGroup):
    """Optimization"""

    seed: int = flag(0, "seed of weights, order, crops and noise", maximum=2**63 - 2)
    train_batch_size: int = flag(4, "images per device and micro-batch", minimum=1, maximum=65536)
    gradient_accumulation_steps: int = flag(
        1, "micro-batches per optimizer step", minimum=1, maximum=10**6
    )
    num_train_epochs: int = flag(
        1, "passes over the data, unless --max_train_steps is given", minimum=1, maximum=10**9
    )
    max_train_steps: int | None = flag(None, "optimizer steps in all")
    learning_rate: float | None = flag(
        None,
        "peak learning rate of the VAE; by default 1e-4 from scratch, and 4.5e-6 for a pretrained "
        "one or as the base of --scale_lr",
        maximum=10**6,
    )
    disc_learning_rate: float | None = flag(
        None, "peak learning rate of the discriminator; by default the VAE's", maximum=10**6
    )
    scale_lr: bool = flag(
        False, "multiply both learning rates by accumulation x processes x batch size"
    )
    lr_scheduler: str = flag(
        "constant_with_warmup", "schedule of the VAE's learning rate", choices=SCHEDULES
    )
    disc_lr_scheduler: str = flag(
        "constant_with_warmup",
        "schedule of the discriminator's, over the updates that it gets",
        choices=SCHEDULES,
    )
    lr_warmup_steps: int | float = flag(
        0.05,
        "updates over which each learning rate rises from 0, or below 1 their share of the updates "
        "that its network gets; the schedule constant has none",
        length=True,
    )
    lr_num_cycles: int = flag(1, "restarts of cosine_with_restarts", minimum=1, maximum=10**6)
    lr_power: float = flag(1.0, "power of the polynomial schedule", maximum=100)
    adam_beta1: float = flag(0.9, "AdamW's beta1, both networks", below=1)
    adam_beta2: float = flag(0.999, "AdamW's beta2, both networks", below=1)
    disc_adam_beta1: float | None = flag(None, "beta1 for the discriminator, if another", below=1)
    disc_adam_beta2: float | None = flag(None, "beta2 for the discriminator, if another", below=1)
    adam_weight_decay: float = flag(1e-2, "AdamW's decoupled weight decay", maximum=1000)
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon", minimum=1e-30, maximum=1)
    max_grad_norm: float = flag(1.0, "clip each network's gradient to this norm; 0 never clips")
    alternation: str = flag(
        "every_step",
        "update both networks at every step, or in turns as diffusers' script does",
        choices=("every_step", "every_other_step"),
    )
    use_ema: bool = flag(True, "average the VAE's weights; the average is validated and exported")
    ema_half_life: float = flag(
        0.05,
        "half-life of the average, as a share of the updates so far: the same in a short run as in "
        "a long one",
        above=0,
        maximum=1,
    )
    ema_decay: float = flag(0.9999, "largest decay of the average for one update", below=1)
    max_skipped_steps: int = flag(
        10,
        "stop after this many updates in a row were skipped because a number was not finite",
        minimum=1,
    )

    def images_per_step(self, num_processes: int) -> int:
        """Images of one optimizer step over all processes: the total batch size."""
        return self.train_batch_size * self.gradient_accumulation_steps * num_processes


@dataclass(frozen=True)
class PrecisionArguments(FlagGroup):
    """Precision and memory"""

    mixed_precision: str | None = flag(
        None,
        "autocast of the networks; weights, losses and EMA stay float32. By default accelerate's "
        "configuration decides",
        choices=("no", "fp16", "bf16"),
    )
    allow_tf32: bool = flag(False, "TensorFloat-32 matrix products on Ampere and later GPUs")
    gradient_checkpointing: bool = flag(False, "the same as --recompute full")
    recompute: str = flag(
        "none",
        "what the backward pass computes again instead of keeping it: norm (normalisation and "
        "activation, which is cheap) or full (every block, which saves most)",
        choices=("none", "norm", "full"),
    )
    compile: bool = flag(
        False,
        "compile the networks' blocks, norms included, for minutes at the start; whether it pays, "
        'python -m eval benchmark --compare_flags=" --compile" tells',
    )
    perceptual_slice_size: int | None = flag(
        None,
        "images that LPIPS looks at together; fewer need less memory; by default all",
        minimum=1,
        maximum=65536,
    )
    deterministic: bool = flag(
        False,
        "use only GPU kernels that give the same bits every time, slower: the same seed and number "
        "of processes then repeat a run exactly, as they do on the CPU in any case",
    )
    ddp_timeout: float = flag(
        1800,
        "seconds that processes wait for one of them before the run ends with an error",
        above=0,
        maximum=365 * 86400,
    )
    memory_limit_gb: float | None = flag(
        None,
        "most memory PyTorch may take on each GPU: shows whether a run fits a smaller card",
        above=0,
        maximum=10**4,
    )
    set_grads_to_none: bool = flag(True, "free gradients after each update instead of zeroing them")
    use_8bit_adam: bool = flag(False, "bitsandbytes' 8-bit AdamW (its package must be installed)")
    enable_xformers_memory_efficient_attention: bool = flag(
        False, "xformers' attention instead of PyTorch's (its package must be installed)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient_checkpointing and self.recompute == "norm":
            raise ArgumentError(
                "--gradient_checkpointing means --recompute=full; drop one of the two"
            )

    @property
    def recomputed(self) -> str:
        """ "none", "norm" or "full", whichever of the two flags said so."""
        return "full" if self.gradient_checkpointing else self.recompute
