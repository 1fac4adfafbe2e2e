"""Guided denoising: a chunk that goes on from the one being played (real-time chunking, Black et al. 2025)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

State = Float[Tensor, "rows length numbers"]


def guided_velocity(
    velocity: Callable[[State], State],
    noisy: State,
    time: Float[Tensor, " rows"],
    target: State,
    weights: Float[Tensor, "length numbers"],
    max_guidance: float,
) -> State:
    """The velocity that also leads towards `target`, as much as `weights` say (0 to 1), by pseudoinverse guidance.

    The paper's time runs from 0, noise, to 1, the chunk, so its velocity is ours with the other sign. What the chunk
    lacks of the target goes through the transposed Jacobian of the chunk one expects with respect to the noisy one:
    the network says how the noisy one must change for that. Works where gradients are switched off.
    """
    with torch.enable_grad():
        noisy = noisy.detach().requires_grad_()
        found = velocity(noisy)
        chunk = noisy - time[:, None, None] * found
        lacking = (weights * (target - chunk)).detach()
        (correction,) = torch.autograd.grad(chunk, noisy, lacking)
    return found.detach() - guidance(time, max_guidance)[:, None, None] * correction


def guidance(time: Float[Tensor, " rows"], most: float) -> Float[Tensor, " rows"]:
    """How much a correction counts at a time from 1, pure noise, to 0: infinitely much at both ends, but for `most`."""
    return ((time.square() + (1 - time).square()) / (time * (1 - time))).clamp(max=most)


def lengthened(
    previous: Float[Tensor, "rows left action"], weights: Float[Tensor, " left"], like: State
) -> tuple[State, Float[Tensor, "length numbers"]]:
    """The rest of a chunk and its weights as a whole state `like` another; what is not known of it weighs nothing."""
    if previous.shape[-2] > like.shape[-2]:
        raise ValueError(
            f"a chunk of {like.shape[-2]} commands cannot go on from {previous.shape[-2]}: give what is left of the "
            "one before, from the present observation on"
        )
    missing = (0, like.shape[-1] - previous.shape[-1], 0, like.shape[-2] - previous.shape[-2])
    weights = weights[:, None].expand(previous.shape[-2:])
    return pad(previous, missing).to(like), pad(weights, missing).to(like)
