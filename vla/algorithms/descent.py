"""Steps of gradient descent, the same for every algorithm."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from vla.algorithms.together import average_gradients


def adamw(*modules: object, lr: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW over every parameter that is not frozen, each once; ValueError if there is none."""
    parameters = [p for module in modules if isinstance(module, nn.Module) for p in module.parameters()]
    trainable = [p for p in dict.fromkeys(parameters) if p.requires_grad]
    if not trainable:
        raise ValueError(f"nothing to train in {', '.join(type(x).__name__ for x in modules)}: all is frozen or fixed")
    return torch.optim.AdamW(trainable, lr=lr, weight_decay=weight_decay, fused=True)


def add_to(optimizer: torch.optim.Optimizer, module: nn.Module, *, lr: float) -> None:
    """Train it too, at a rate of its own; what is trained already stays as it is."""
    known = {p for group in optimizer.param_groups for p in group["params"]}
    new = [p for p in module.parameters() if p.requires_grad and p not in known]
    if new:
        optimizer.add_param_group({"params": new, "lr": lr})


def descend(optimizer: torch.optim.Optimizer, loss: Float[Tensor, ""], max_grad_norm: float) -> float:
    """One step down `loss`, or the mean of all processes' losses; return its gradient's norm before it was clipped."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(optimizer)
    return step(optimizer, max_grad_norm)


def step(optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
    """One step along the gradients there are; return their norm before they were clipped."""
    grad_norm = clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_grad_norm)
    optimizer.step()
    return (grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm).item()


def device_of(optimizer: torch.optim.Optimizer) -> torch.device:
    """Where what it trains lives."""
    return optimizer.param_groups[0]["params"][0].device
