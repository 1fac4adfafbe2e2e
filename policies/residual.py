"""A small stochastic correction over a frozen base policy (residual RL; ResiP, Ankile et al. 2024)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor, nn

from policies.gaussian import GaussianPolicy
from vla.data.normalise import Statistics
from vla.rollout import Greedy
from vla.types import Action, Actor, EnvSpec, Observation


class ResidualPolicy(nn.Module):
    """Executes `base + residual`. Only the residual is trained and scored, and its mean starts at zero.

    The residual sees the base chunk as part of proprio; one standard unit of it is `scale` of the command's half
    range. The base chunk is part of the latent: the base may be stochastic, so it cannot be recomputed.
    """

    def __init__(self, spec: EnvSpec, base: Actor, residual: Callable[[EnvSpec], GaussianPolicy], scale: float = 0.1):
        super().__init__()
        self.spec = spec
        self.base = base.requires_grad_(requires_grad=False).eval() if isinstance(base, nn.Module) else base
        self.horizon = _horizon_of(base)
        seen = (*spec.proprio, ("base", self.horizon * spec.action_dim))
        self.residual = residual(replace(spec, proprio=seen))
        if self.residual.horizon != self.horizon:
            raise ValueError(
                f"the residual has horizon {self.residual.horizon}, its base {self.horizon}: make them equal"
            )
        nn.init.zeros_(self.residual.head.weight)
        commands = self.residual.normaliser
        commands.set(torch.zeros_like(commands.mean), scale * commands.std)

    def train(self, mode: bool = True) -> "ResidualPolicy":
        """The base stays as it is in evaluation."""
        super().train(mode)
        if isinstance(self.base, nn.Module):
            self.base.eval()
        return self

    def set_statistics(self, proprio: Statistics, action: Statistics) -> None:
        """What the residual sees is normalised by them; the frozen base keeps its own."""
        seen = {
            name: torch.cat([value, getattr(action, name).repeat(self.horizon)])
            for name, value in vars(proprio).items()
        }
        self.residual.encoder.set_statistics(Statistics(**seen))

    def act(self, obs: Observation) -> Action:
        return self._correct(obs, self.base.act(obs), self.residual.act)

    def mode(self, obs: Observation) -> Action:
        """The base's most likely chunk with the mean correction."""
        return self._correct(obs, Greedy(self.base).act(obs), self.residual.mode)

    def log_prob(self, obs: Observation, action: Action) -> Float[Tensor, "*batch factors"]:
        return self.residual.log_prob(_with_base(obs, action.latent["base"]), action.latent["residual"])

    def imitation_loss(
        self,
        obs: Observation,
        chunk: Float[Tensor, "batch horizon action"],
        padded: Bool[Tensor, "batch horizon"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """That of the residual towards what the base lacks."""
        with torch.no_grad():
            base = Greedy(self.base).act(obs).commands
        return self.residual.imitation_loss(_with_base(obs, base), chunk - base, padded)

    def _correct(self, obs: Observation, base: Action, decide: Callable[[Observation], Action]) -> Action:
        base_chunk = base.commands.detach()
        residual = decide(_with_base(obs, base_chunk))
        return Action(
            commands=base_chunk + residual.commands,
            log_prob=residual.log_prob,
            latent=TensorDict({"base": base_chunk, "residual": residual}, obs.batch_size),
            batch_size=obs.batch_size,
        )


def _with_base(obs: Observation, base: Float[Tensor, "*batch horizon action"]) -> Observation:
    return obs.replace(proprio=torch.cat([obs.proprio, base.flatten(-2)], -1))


def _horizon_of(base: Actor) -> int:
    horizon = getattr(base, "horizon", None)
    if horizon is None:
        raise ValueError(f"a residual needs a base with a `horizon`, {type(base).__name__} has none")
    return horizon
