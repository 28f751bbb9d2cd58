"""What every process of a distributed training knows, told to all of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def gathered(values: Tensor, model: nn.Module) -> list[Tensor]:
    """The ``values`` of every rank, in the order of the ranks, on the CPU.

    Without :mod:`torch.distributed` that is one. All ranks must call this, with values alike in
    shape and type.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return [values.cpu()]
    if "gloo" not in dist.get_backend():  # the others take tensors of their own device
        device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
        values = values.to(device)
    shares = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, values)
    return [share.cpu() for share in shares]
