"""What a launcher or `accelerate config` says through the environment, beside the flags."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping

from modules.errors import ArgumentError

logger = logging.getLogger(__name__)

PRECISIONS = ("no", "fp16", "bf16")
PRECISION = "ACCELERATE_MIXED_PRECISION"
THREADS = "OMP_NUM_THREADS"  # read by PyTorch when it is imported
# They take one network apart; here two train in one step, and a gradient is read at one layer.
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
FIX = "launch with distributed_type MULTI_GPU (`accelerate launch --multi_gpu`), or with torchrun"


def chosen_precision(flag: str | None, environment: Mapping[str, str]) -> str:
    """--mixed_precision, or else what the launcher says. Raises ArgumentError for another word."""
    precision = flag or environment.get(PRECISION, "no").lower()
    if precision not in PRECISIONS:
        raise ArgumentError(
            f"{PRECISION}={precision}, from accelerate's configuration, is not supported; give "
            f"--mixed_precision, one of {', '.join(PRECISIONS)}"
        )
    return precision


def check_environment(environment: Mapping[str, str], accumulation: int, compiled: bool) -> None:
    """Refuses what cannot be obeyed, and names what is not obeyed because a flag decides.

    accumulation, compiled: --gradient_accumulation_steps and --compile.
    """
    for variable in NUMBERS:
        if not environment.get(variable, "0").isdecimal():
            raise ArgumentError(
                f"{variable}={environment[variable]!r} in the environment is no number; unset it, "
                "or let `accelerate launch` or torchrun set it"
            )
    rank, count = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    if rank >= count:
        raise ArgumentError(
            f"RANK={rank} and WORLD_SIZE={count} in the environment: ranks count from 0, so this "
            "process would wait for ever; unset both, or let a launcher set them"
        )
    for variable, name in UNSUPPORTED.items():
        if environment.get(variable, "").lower() in ("1", "true", "yes", "on"):
            raise ArgumentError(
                f"{variable}={environment[variable]}: this trainer does not work with {name}; {FIX}"
            )
    decided = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps", accumulation),
        "ACCELERATE_DYNAMO_BACKEND": ("compile", compiled),
    }
    for variable, (flag, value) in decided.items():
        said = environment.get(variable)
        if said is not None and said.lower() not in (str(value).lower(), "no"):
            logger.warning("%s=%s is not obeyed: --%s decides (%s)", variable, said, flag, value)


def undo_launchers_limit(environment: MutableMapping[str, str]) -> None:
    """Lets PyTorch use all cores where `accelerate launch` has limited one process to one thread.

    Its default is one thread for each process even when that is the only one, which leaves all
    cores but one idle. `OMP_NUM_THREADS` of the user is obeyed with `python train_vae.py`, and with
    the launcher wherever it is not 1: the launcher passes both on under the same name.
    """
    alone = environment.get("WORLD_SIZE", "1") == "1"
    if PRECISION in environment and alone and environment.get(THREADS) == "1":
        del environment[THREADS]
