"""How many bytes a run keeps: while it trains, and in each checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from modules.config.arguments import Arguments
from modules.training.run import Run

STATES_8BIT_BLOCK = 256  # elements that share one float32 scale in 8-bit AdamW
NOT_SAVED = ("gradients", "LPIPS", "Inception")


def moment_bytes(parameter: nn.Parameter, args: Arguments) -> int:
    """What AdamW keeps of a parameter; bitsandbytes leaves fewer than 4096 elements in float32."""
    count = parameter.numel()
    if not args.precision.use_8bit_adam:
        return 8 * count + 4  # and the number of steps
    return 8 * count if count < 4096 else 2 * (count + 4 * -(-count // STATES_8BIT_BLOCK))


def state_bytes(run: Run, judges: Mapping[str, nn.Module] | None = None) -> dict[str, int]:
    """Exact bytes of what a run keeps between steps or, for gradients, at the end of a backward.

    judges: frozen networks of its validation, by name; LPIPS is training's as well.
    """
    networks = {"VAE": run.raw_vae}
    if run.args.discriminator.enabled:
        networks["discriminator"] = run.raw_discriminator
    found = {}
    for name, network in networks.items():
        trained = [p for p in network.parameters() if p.requires_grad]
        found[f"{name}: weights"] = _whole(network)
        found[f"{name}: gradients"] = _bytes(trained)
        found[f"{name}: Adam's moments"] = sum(moment_bytes(p, run.args) for p in trained)
    if run.ema is not None:
        found["EMA"] = _bytes([*run.ema.averages, run.ema.num_updates])
    watching = {} if run.eyes is None else {"LPIPS": run.eyes}
    for name, network in (watching | (judges or {})).items():
        found[name] = _whole(network)
    return found


def checkpoint_bytes(run: Run) -> int:
    """Of a checkpoint once both networks train."""
    return sum(n for name, n in state_bytes(run).items() if not name.endswith(NOT_SAVED))


def _whole(network: nn.Module) -> int:
    return _bytes(network.parameters()) + _bytes(network.buffers())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
