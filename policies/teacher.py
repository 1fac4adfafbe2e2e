"""Teachers for a student with tokens: a scripted expert made stochastic, or a policy trained before."""

from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor, nn

from vla.models.action_tokens import ActionBins
from vla.types import Action, Actor, Observation, Stochastic


class TokenTeacher:
    """A deterministic actor as a distribution over the student's tokens.

    Each number is a Gaussian of `std` bin widths around the actor's command, integrated over the bins. The widths and
    ranges are read from the student each time, so they cannot drift apart.
    """

    def __init__(self, student: nn.Module, actor: Actor, std: float = 1.0):
        if std <= 0:
            raise ValueError(f"std must be positive (in bin widths), got {std}")
        self.bins = _bins_of(student)
        self.horizon = student.horizon
        self.actor = actor
        self.std = std
        if getattr(actor, "horizon", self.horizon) != self.horizon:
            raise ValueError(_other_horizon(actor, actor.horizon, self.horizon))

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
        if commands.shape[-2] != self.horizon:
            raise ValueError(_other_horizon(self.actor, commands.shape[-2], self.horizon))
        mass = self.bins.log_mass(self.bins.clip(commands.to(self.bins.low)), self.std * self.bins.width)
        return mass.flatten(-3, -2)


def frozen(student: nn.Module, directory: str | Path) -> Stochastic:
    """The policy of a checkpoint as a teacher, at the student's temperature.

    ValueError, naming both sides, if its tokens do not mean what the student's do.
    """
    from vla.run import load_policy

    ours = _bins_of(student)
    teacher = load_policy(directory).eval().requires_grad_(requires_grad=False)
    theirs = _bins_of(teacher)
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
    return teacher


def _bins_of(policy: nn.Module) -> ActionBins:
    bins = getattr(policy, "bins", None)
    if not isinstance(bins, ActionBins):
        raise TypeError(f"distillation over tokens needs a policy with action bins, {type(policy).__name__} has none")
    return bins


def _other_horizon(actor: Actor, theirs: int, ours: int) -> str:
    return (
        f"{type(actor).__name__} gives chunks of {theirs} commands, the student of {ours}: build the teacher with "
        f"horizon={ours}"
    )
