"""All there is to a model, so that a test can tell whether anything about it has changed."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NUMBERS = np.random.mtrand._rand  # the global generator


def state(model: nn.Module) -> list[Any]:
    """All there is to a model, by identity and by bits, and the random numbers to come."""
    modules = [
        (name, type(module), [(key, id(value)) for key, value in vars(module).items()])
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    containers = [
        [(key, [*value.items()] if isinstance(value, dict) else [*value])]
        for module in model.modules()
        for key, value in vars(module).items()
        if isinstance(value, dict | list | set) and key not in ("_buffers", "_parameters")
    ]
    plain = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    tensors = [
        (id(t), t._version, t.dtype, t.requires_grad, t.detach().numpy().tobytes(), id(t.grad))
        for t in (*model.parameters(), *model.buffers(), *plain)
    ]
    grads = [p.grad.numpy().tobytes() for p in model.parameters() if p.grad is not None]
    numbers = [torch.get_rng_state().tolist(), random.getstate(), NUMBERS.get_state()[1].tolist()]
    numbers.append(torch.is_grad_enabled())
    return [modules, containers, tensors, grads, numbers]
