"""A point that must reach a target: the smallest environment with everything a test needs."""

import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from vla.types import Action, Camera, Command, EnvSpec, Observation, Step

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}


class PointEnv:
    """A white point on a black table with a red and a blue target; the instruction says which one to reach.

    Commands move the point by at most 0.2 m per axis; a reach within 0.1 m is a success. The picture shows the square
    from -1 to 1 m. With `targets_seen` the positions of both targets are in proprio too, so that state policies can
    solve it. Unless `ends_on_success` an episode lasts `max_steps`, and the point may leave the target again.
    """

    def __init__(
        self,
        num_envs: int = 4,
        max_steps: int = 16,
        image_size: int = 16,
        num_targets: int = 1,
        targets_seen: bool = True,
        ends_on_success: bool = True,
    ):
        if not 1 <= num_targets <= len(COLOURS):
            raise ValueError(f"num_targets must be from 1 to {len(COLOURS)}, got {num_targets}")
        self.num_targets = num_targets
        self.targets_seen = targets_seen
        self.ends_on_success = ends_on_success
        self.spec = EnvSpec(
            num_envs=num_envs,
            control_hz=10.0,
            max_steps=max_steps,
            cameras=(Camera("top", image_size, image_size),),
            proprio=(("position", 2), *((("targets", 2 * num_targets),) if targets_seen else ())),
            command=Command("ee_delta", size=2, max_translation=0.2),
        )

    def reset(self, seed: int) -> Observation:
        draws = [self._draw(seed + i) for i in range(self.spec.num_envs)]
        self.position = torch.stack([x[0] for x in draws])
        self.targets = torch.stack([x[1] for x in draws])
        self.wanted = torch.stack([x[2] for x in draws])
        self.steps = torch.zeros(self.spec.num_envs, dtype=torch.long)
        return self._observe()

    def step(self, command: Float[Tensor, "env action"]) -> Step:
        executed = command.clamp(-0.2, 0.2)
        self.position = self.position + executed
        self.steps = self.steps + 1
        goal = self.targets[torch.arange(self.spec.num_envs), self.wanted]
        distance = (self.position - goal).norm(dim=-1)
        success = distance < 0.1
        over = success & self.ends_on_success
        return Step(
            obs=self._observe(),
            reward=-distance,
            success=success,
            terminated=over,
            truncated=~over & (self.steps >= self.spec.max_steps),
            executed=executed,
            batch_size=[self.spec.num_envs],
        )

    def step_or_reset(self, orders: list[Float[Tensor, " action"] | int]) -> Step:
        begins = torch.tensor([isinstance(order, int) for order in orders])
        step = self.step(torch.stack([torch.zeros(2) if isinstance(order, int) else order for order in orders]))
        for i, order in enumerate(orders):
            if isinstance(order, int):
                self.position[i], self.targets[i], self.wanted[i] = self._draw(order)
                self.steps[i] = 0
        flags = {name: getattr(step, name) & ~begins for name in ("success", "terminated", "truncated")}
        return step.replace(obs=self._observe(), reward=step.reward.masked_fill(begins, 0), **flags)

    def close(self) -> None:
        pass

    def _draw(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = torch.Generator().manual_seed(seed)
        position = torch.rand(2, generator=rng) * 2 - 1
        targets = torch.rand(self.num_targets, 2, generator=rng) * 1.8 - 0.9
        return position, targets, torch.randint(self.num_targets, (), generator=rng)

    def _observe(self) -> Observation:
        b = [self.spec.num_envs]
        goal = self.targets[torch.arange(*b), self.wanted]
        colours = list(COLOURS)
        return Observation(
            images=TensorDict({"top": self._draw_pictures()}, b),
            proprio=torch.cat([self.position, *([self.targets.flatten(1)] if self.targets_seen else [])], -1),
            instruction=[f"reach the {colours[i]} target" for i in self.wanted.tolist()],
            privileged=TensorDict({"goal": torch.cat([goal, goal.new_tensor([0, 0, 0, 0, 1]).expand(*b, 5)], -1)}, b),
            batch_size=b,
        )

    def _draw_pictures(self) -> Tensor:
        size = self.spec.cameras[0].height
        pictures = torch.zeros(self.spec.num_envs, size, size, 3, dtype=torch.uint8)
        env = torch.arange(self.spec.num_envs)
        marks = [
            (self.targets[:, i], colour) for i, colour in zip(range(self.num_targets), COLOURS.values(), strict=False)
        ]
        for where, colour in [*marks, (self.position, (255, 255, 255))]:
            column = ((where[:, 0] + 1) / 2 * (size - 2)).round().long().clamp(0, size - 2)
            row = ((1 - where[:, 1]) / 2 * (size - 2)).round().long().clamp(0, size - 2)
            for i in (0, 1):
                for j in (0, 1):
                    pictures[env, row + i, column + j] = torch.tensor(colour, dtype=torch.uint8)
        return pictures


class Homing:
    """Walks straight to the target, in `horizon` equal commands per decision."""

    def __init__(self, horizon: int = 2):
        self.horizon = horizon

    def act(self, obs: Observation) -> Action:
        b = obs.batch_size
        assert obs.privileged is not None
        way = obs.privileged["goal"][..., :2] - obs.proprio[..., :2]
        return Action(
            commands=(way / self.horizon).clamp(-0.2, 0.2)[..., None, :].expand(*b, self.horizon, 2),
            log_prob=way.new_zeros(*b, 0),
            latent=TensorDict({}, b),
            batch_size=b,
        )
