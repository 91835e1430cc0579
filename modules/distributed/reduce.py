"""Sums over processes, for measurements that every process takes on its own share of the data."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def process_index_and_count() -> tuple[int, int]:
    """(rank, world size) of torch.distributed, or (0, 1) where it is not initialised."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, on the device that `values` came from.

    values: any shape and numeric type, the same on every process. One process gets `values` back.
    Filling an array of zeros at one's own positions and summing gathers without duplicates: adding
    zeros changes nothing, not even NaN.
    """
    if process_index_and_count()[1] == 1:
        return values
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    total = values.to(device, copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def gather_from_processes(items: list[T]) -> list[T]:
    """The items of all processes, in the processes' order; small picklable things only."""
    count = process_index_and_count()[1]
    if count == 1:
        return items
    gathered: list[list[T]] = [[] for _ in range(count)]
    dist.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]
