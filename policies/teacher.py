"""Teachers: a scripted expert as a distribution over tokens, or a policy trained before; and advisers, of any head."""

import math
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from policies.token import TokenHead
from vla.checkpoint import load_policy
from vla.rollout import Greedy
from vla.types import Action, Actor, EnvSpec, Observation


class TokenTeacher:
    """A deterministic actor as a distribution over the student's tokens.

    Each number is a Gaussian of `std` bin widths around the actor's command, integrated over the bins, mixed with a
    uniform distribution of weight `doubt`. Without doubt the Gaussian's tails rule the reverse KL: a student unsure
    whether to close the gripper is then taught to half close it. The bins are read from the student each time, so the
    two cannot drift apart.
    """

    def __init__(self, student: nn.Module, actor: Actor, std: float = 1.0, doubt: float = 0.01):
        if std <= 0:
            raise ValueError(f"std must be positive (in bin widths), got {std}")
        if not 0 <= doubt < 1:
            raise ValueError(f"doubt must be a share from 0 up to 1, got {doubt}")
        self.bins = _tokenised(student).bins
        self.horizon = _tokenised(student).horizon
        self.actor = actor
        self.std = std
        self.doubt = doubt
        self._require_horizon(getattr(actor, "horizon", self.horizon))

    def act(self, obs: Observation) -> Action:
        """What the actor would do."""
        return self.actor.act(obs)

    def log_prob(self, obs: Observation, action: Action) -> Float[Tensor, "*batch tokens"]:
        tokens = action.latent["tokens"]
        return self.distribution(obs, tokens).gather(-1, tokens[..., None]).squeeze(-1)

    def distribution(
        self, obs: Observation, tokens: Int[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch tokens bins"]:
        """The log-probability of every token; they are independent, so `tokens` does not matter."""
        commands = self.actor.act(obs).commands
        self._require_horizon(commands.shape[-2])
        mass = self.bins.log_mass(self.bins.clip(commands.to(self.bins.low)), self.std * self.bins.width)
        anything = torch.full_like(mass, self.doubt / self.bins.bins).log()
        return torch.logaddexp(math.log1p(-self.doubt) + mass, anything).flatten(-3, -2)

    def _require_horizon(self, theirs: int) -> None:
        if theirs != self.horizon:
            raise ValueError(
                f"{type(self.actor).__name__} gives chunks of {theirs} commands, the student of {self.horizon}: build "
                f"the teacher with horizon={self.horizon}"
            )


def frozen(student: nn.Module, directory: str | Path) -> TokenHead:
    """The policy of a checkpoint as a teacher, at the student's temperature.

    ValueError, naming both sides, if its tokens do not mean what the student's do.
    """
    student, teacher = _tokenised(student), _tokenised(load_policy(directory))
    ours, theirs = student.bins, teacher.bins
    sides = {
        "command": (student.spec.command, teacher.spec.command),
        "horizon": (student.horizon, teacher.horizon),
        "number of bins": (ours.bins, theirs.bins),
        "lowest commands": (ours.low.tolist(), theirs.low.tolist()),
        "highest commands": (ours.high.tolist(), theirs.high.tolist()),
    }
    for what, (student_side, teacher_side) in sides.items():
        if student_side != teacher_side:
            raise ValueError(
                f"the teacher in {directory} cannot grade this student's tokens: {what} {teacher_side}, the student "
                f"has {student_side}. Train both with the same command, horizon, bins and dataset statistics."
            )
    teacher.temperature = student.temperature
    return teacher.requires_grad_(requires_grad=False).to(ours.low.device)


def advised_by(student: nn.Module, actor: Actor) -> Actor:
    """An actor, of whatever kind, as the adviser of a student."""
    return actor


def advised_by_checkpoint(student: nn.Module, directory: str | Path) -> Actor:
    """The most likely commands of a policy trained before, with any head.

    ValueError, naming both sides, if its commands do not mean what the student's do.
    """
    teacher = load_policy(directory).requires_grad_(requires_grad=False)
    ours, theirs = (cast(EnvSpec, cast(Any, x).spec).command for x in (student, teacher))
    if ours != theirs:
        raise ValueError(f"the teacher in {directory} gives commands {theirs}, the student {ours}")
    return Greedy(teacher.to(next(student.parameters()).device))


def _tokenised(policy: nn.Module) -> TokenHead:
    if not isinstance(policy, TokenHead):
        raise TypeError(f"distillation over tokens needs a policy of tokens, {type(policy).__name__} is none")
    return policy
