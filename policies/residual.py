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
from vla.types import Action, Actor, EnvSpec, Observation, Seeded


class ResidualPolicy(nn.Module):
    """Executes `base + residual`. Only the residual is trained and scored, and its mean starts at zero.

    The residual sees what the base wants as part of proprio; one standard unit of it is `scale` of the command's half
    range. That is part of the latent too: the base may be stochastic, so it cannot be recomputed.

    With a `horizon` shorter than the base's chunks the base is asked again only when all of one has been played, and
    the residual corrects every `horizon` commands by what is seen then (ResiP: 1). What waits of a chunk belongs to the
    episodes being played: `begin` drops it.
    """

    def __init__(
        self,
        spec: EnvSpec,
        base: Actor,
        residual: Callable[..., GaussianPolicy],
        scale: float = 0.1,
        horizon: int | None = None,
    ):
        super().__init__()
        self.spec = spec
        self.base = base.requires_grad_(requires_grad=False).eval() if isinstance(base, nn.Module) else base
        whole = _horizon_of(base)
        self.horizon = whole if horizon is None else horizon
        if self.horizon < 1 or whole % self.horizon:
            raise ValueError(f"horizon must divide the {whole} commands of the base's chunks, got {horizon}")
        seen = (*spec.proprio, ("base", self.horizon * spec.action_dim))
        self.residual = residual(replace(spec, proprio=seen), horizon=self.horizon)
        self.waiting: Tensor | None = None  # of the base's last chunk what has not been played
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

    def begin(self, seed: int) -> None:
        """Other episodes are played from now on."""
        self.waiting = None
        if isinstance(self.base, Seeded):
            self.base.begin(seed)

    def act(self, obs: Observation) -> Action:
        return self._correct(obs, self._next(obs, self.base.act), self.residual.act)

    def mode(self, obs: Observation) -> Action:
        """The base's most likely chunk with the mean correction."""
        return self._correct(obs, self._next(obs, Greedy(self.base).act), self.residual.mode)

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
            base = Greedy(self.base).act(obs).commands[..., : self.horizon, :]
        return self.residual.imitation_loss(_with_base(obs, base), chunk - base, padded)

    def _next(self, obs: Observation, ask: Callable[[Observation], Action]) -> Float[Tensor, "*batch horizon action"]:
        """The commands of the base that are due."""
        chunk = ask(obs).commands.detach() if self.waiting is None else self.waiting
        if chunk.shape[:-2] != obs.batch_size:
            raise ValueError(
                f"commands of the base wait for episodes of shape {tuple(chunk.shape[:-2])}, now there are "
                f"{tuple(obs.batch_size)}: call `begin` before other episodes"
            )
        due, rest = chunk[..., : self.horizon, :], chunk[..., self.horizon :, :]
        self.waiting = rest if rest.shape[-2] else None
        return due

    def _correct(
        self,
        obs: Observation,
        base_chunk: Float[Tensor, "*batch horizon action"],
        decide: Callable[[Observation], Action],
    ) -> Action:
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
