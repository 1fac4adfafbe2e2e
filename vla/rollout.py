"""Playing episodes: the one loop behind training, evaluation, teleoperation and real-robot runs."""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.chance import Stream, drawing_from
from vla.types import Action, Actor, ChunkEnv, Env, Observation, Rollout, Seeded, Step

# Episodes to test on, in every environment: nothing is learned from them, and simulators with official test episodes
# map those to these seeds.
TEST_SEEDS = range(10_000, 20_000)

TRIES = 3  # of one episode, before a simulator that fails in it is given up


@torch.no_grad()
def rollout(env: Env, actor: Actor, *, seed: int, draw: int = 0, batch: int | None = None) -> Rollout:
    """Play one episode in every environment, each to its own end; episode i is the one of `seed + i`.

    The same seed and weights play the same episodes anywhere: what a policy draws through `vla.chance` belongs to the
    episode, and the caller's random state is left as it was. With another `draw` episodes begin alike, and the policy's
    chance is another. `batch` is that of `decide`. A column whose simulator failed on the way is not valid in any row.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(actor, Seeded):
            actor.begin(seed)
        under_way = UnderWay(env.reset(seed), seed, draw)
        while under_way.alive.any():
            action = decide(actor, under_way.obs, under_way.streams, batch)
            under_way.add(action, execute(env, action.commands, under_way.alive))
        return under_way.rollout()


class UnderWay:
    """Episodes being played, one per column, until none of them is `alive`; `obs` is what to decide upon next."""

    def __init__(self, obs: Observation, seed: int, draw: int = 0):
        self.obs, self.seed, self.draw = obs, seed, draw
        self.alive = torch.ones(len(obs), dtype=torch.bool)
        self.failed = torch.zeros_like(self.alive)
        self.played: list[tuple[Observation, Action, Step, Tensor]] = []

    @property
    def streams(self) -> list[Stream]:
        """Where the chance of each column's next decision comes from."""
        return [(self.seed + i, self.draw, len(self.played)) for i in range(len(self.alive))]

    def add(self, action: Action, step: Step) -> None:
        """What was decided upon `obs`, and what came of it."""
        self.played.append((self.obs, action, step, self.alive))
        self.failed = self.failed if step.failed is None else self.failed | step.failed & self.alive
        self.obs = step.obs
        self.alive = self.alive & ~step.terminated & ~step.truncated

    def rollout(self) -> Rollout:
        """All of it, and a last row for where the last decision ended."""
        rows = [*self.played, (self.obs, *self.played[-1][1:3], self.alive)]
        return Rollout.stack(
            [_row(obs, action, step, alive & ~self.failed, self.failed) for obs, action, step, alive in rows]
        )


def decide(actor: Actor, obs: Observation, streams: Sequence[Stream], batch: int | None = None) -> Action:
    """What the actor does, row i drawing from `streams[i]`.

    The last bits of what a network computes depend on how many rows it computes at once. With `batch` it is always so
    many, the last ones padded, so that nothing at all depends on the company a row is in. An actor that remembers what
    it decided (`Seeded`) knows its rows by their places, so it always decides for all.
    """
    if batch is None or isinstance(actor, Seeded):
        with drawing_from(streams):
            return actor.act(obs)
    actions = []
    for first in range(0, len(streams), batch):
        rows = [min(row, len(streams) - 1) for row in range(first, first + batch)]
        with drawing_from([streams[row] for row in rows]):
            actions.append(actor.act(obs[rows])[: len(streams) - first])
    return Action.cat(actions) if len(actions) > 1 else actions[0]


def complete(episodes: Rollout, again: Callable[[], Rollout], *, seed: int, lost: Counter[int]) -> Rollout:
    """`episodes` (those from `seed` on) with what was lost put in from `again`, which plays the same ones once more.

    All are played again, as only then random decisions are the same. `lost` counts, by seed, how often each was lost:
    after TRIES a RuntimeError names the seed.
    """
    while missing := episodes.lost():
        lost.update(seed + i for i in missing)
        for i in missing:
            if lost[seed + i] >= TRIES:
                raise RuntimeError(
                    f"the episode of seed {seed + i} was lost {TRIES} times with the simulator that played it: "
                    "the warnings before say what happened to it"
                )
        other = again()
        episodes = join([(other if i in missing else episodes)[:, i : i + 1] for i in range(episodes.shape[1])])
    return episodes


def join(rollouts: list[Rollout]) -> Rollout:
    """Put episodes side by side; those that ended earlier repeat their last row, which is not valid."""
    rows = max(len(x) for x in rollouts)
    return Rollout.cat([Rollout.cat([x, *[x[-1:]] * (rows - len(x))], dim=0) for x in rollouts], dim=1)


def execute(env: Env, chunk: Float[Tensor, "env horizon action"], alive: Bool[Tensor, " env"]) -> Step:
    """Play a chunk open loop as one step; what an episode did after its end does not count."""
    if isinstance(env, ChunkEnv):
        return env.play(chunk)
    total = _first(env.step(chunk[:, 0]), chunk, alive)
    num_steps = alive.long()
    for command in chunk[:, 1:].unbind(1):
        alive = alive & ~total.terminated & ~total.truncated
        if not alive.any():
            break
        total = _next(total, env.step(command), alive, num_steps)
        num_steps = num_steps + alive
    return total.replace(num_steps=num_steps)


def require_no_test_seed(seeds: range, remedy: str) -> None:
    """ValueError if episodes that are to be learned from are among those to test on."""
    if max(seeds.start, TEST_SEEDS.start) < min(seeds.stop, TEST_SEEDS.stop):
        raise ValueError(
            f"episodes {seeds.start} to {seeds.stop - 1} reach into {TEST_SEEDS.start} to {TEST_SEEDS.stop - 1}, which "
            f"are kept for tests: {remedy}"
        )


class Greedy:
    """The most likely decision of a policy that has a `mode`, for evaluation; any other actor is left as it is."""

    def __init__(self, actor: Actor):
        self.decide = getattr(actor, "mode", actor.act)
        if isinstance(actor, Seeded):
            self.begin = actor.begin

    def act(self, obs: Observation) -> Action:
        return self.decide(obs)


def _first(step: Step, chunk: Float[Tensor, "env horizon action"], alive: Bool[Tensor, " env"]) -> Step:
    executed, rewards = torch.zeros_like(chunk), torch.zeros(chunk.shape[:2])
    executed[:, 0] = step.executed
    rewards[:, 0] = step.reward * alive
    return step.replace(
        rewards=rewards,
        executed=executed * alive[:, None, None],
        reward=step.reward * alive,
        success_at_end=step.success if step.success_at_end is None else step.success_at_end,
        steps_to_success=(step.success & alive).long(),
    )


def _next(total: Step, step: Step, alive: Bool[Tensor, " env"], done: Int[Tensor, " env"]) -> Step:
    env = alive.nonzero().squeeze(-1)
    assert total.rewards is not None  # `_first` gave them
    total.executed[env, done[env]] = step.executed[env]
    total.rewards[env, done[env]] = step.reward[env]
    at_end = step.success if step.success_at_end is None else step.success_at_end
    first = step.success & alive & ~total.success
    assert total.success_at_end is not None  # `_first` gave both
    assert total.steps_to_success is not None
    return Step(
        obs=step.obs.where(alive, total.obs),
        reward=total.reward + step.reward * alive,
        success=total.success | step.success & alive,
        terminated=total.terminated | step.terminated & alive,
        truncated=total.truncated | step.truncated & alive,
        executed=total.executed,
        rewards=total.rewards,
        failed=None if step.failed is None or total.failed is None else total.failed | step.failed & alive,
        success_at_end=at_end.where(alive, total.success_at_end),
        steps_to_success=(done + 1).where(first, total.steps_to_success),
        batch_size=total.batch_size,
    )


def _row(
    obs: Observation, action: Action, step: Step, valid: Bool[Tensor, " env"], failed: Bool[Tensor, " env"]
) -> Rollout:
    assert step.num_steps is not None  # `execute` counts them
    return Rollout(
        obs=obs,
        action=action,
        reward=step.reward * valid,
        success=step.success & valid,
        terminated=step.terminated & valid,
        valid=valid,
        executed=step.executed * valid[:, None, None],
        success_at_end=None if step.success_at_end is None else step.success_at_end & valid,
        steps_to_success=None if step.steps_to_success is None else step.steps_to_success * valid,
        num_steps=step.num_steps * valid,
        rewards=None if step.rewards is None else step.rewards * valid[:, None],
        failed=None if step.failed is None else failed,
        batch_size=obs.batch_size,
    )
