"""Ways to execute chunks: which command is played when, with decisions that take time, and guided chunks."""

import math
import threading
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial

import pytest
import torch
from tensordict import TensorDict

from policies.deterministic import DeterministicPolicy
from policies.flow import FlowPolicy
from policies.gaussian import GaussianPolicy
from policies.realtime import guidance, guided_velocity
from policies.residual import ResidualPolicy
from simulators.point import Homing, PointEnv
from vla.chunking import Asynchronous, Ensembled, Synchronous, soft_mask
from vla.data.normalise import Statistics
from vla.latency import Measured
from vla.models.denoisers import TransformerDenoiser, UNet1D
from vla.models.state_mlp import StateMLP
from vla.rollout import Greedy, rollout
from vla.sanity import Blind, Told, staying_after
from vla.types import Action, Command, Observation, Seeded

SPEC = PointEnv().spec
FR3 = replace(SPEC, command=Command("ee_delta", 7))
SCHEDULES = ("zeros", "ones", "linear", "exp")


class Telling:
    """Its k-th command upon the observation of step t says 100 t + k; in row r, 10,000 r more."""

    def __init__(self, horizon: int = 6, spec=SPEC):
        self.horizon, self.spec = horizon, spec
        self.asked: list[int] = []
        self.told: list[tuple] = []

    def act(self, obs: Observation) -> Action:
        return self._say(obs, 0.0)

    def mode(self, obs: Observation) -> Action:
        return self._say(obs, 0.5)

    def act_along(self, obs, previous, weights, max_guidance):
        self.told.append((previous, weights, max_guidance))
        return self.act(obs)

    def mode_along(self, obs, previous, weights, max_guidance):
        self.told.append((previous, weights, max_guidance))
        return self.mode(obs)

    def _say(self, obs: Observation, more: float) -> Action:
        self.asked.append(int(obs.proprio[0, 0]))
        numbers = 100 * obs.proprio[:, :1] + torch.arange(self.horizon) + more
        numbers = numbers + 10_000 * torch.arange(len(obs))[:, None]
        commands = numbers[..., None].expand(-1, -1, self.spec.action_dim)
        return Action(
            commands=commands, log_prob=torch.zeros(len(obs), 0), latent=TensorDict({}, [len(obs)]), batch_size=len(obs)
        )


class Remembering(Telling):
    """One that is told when other episodes begin."""

    def begin(self, seed: int) -> None:
        self.seed = seed


class Clock:
    """In seconds, and moved by the test."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class ByHand(Executor):
    """Does its work when the test says so; but the first takes `seconds`, and nobody sees them pass."""

    def __init__(self, clock: Clock, seconds: float | None = None):
        self.clock, self.seconds = clock, seconds

    def submit(self, work):
        self.work, self.future = work, Future()
        if self.seconds is not None:
            self.clock.now += self.seconds
            self.seconds = None
            self.finish()
        return self.future

    def finish(self) -> None:
        try:
            self.future.set_result(self.work())
        except ValueError as error:
            self.future.set_exception(error)


def at(step: int, rows: int = 1) -> Observation:
    return Observation(
        images=TensorDict({}, [rows]),
        proprio=torch.full((rows, 1), float(step)),
        instruction=["go"] * rows,
        batch_size=[rows],
    )


def said(action: Action) -> float:
    """The command of the only row, by its first number."""
    assert action.commands.shape[:2] == (1, 1)
    return action.commands[0, 0, 0].item()


def play(actor, steps) -> list[float]:
    return [said(actor.act(at(step))) for step in steps]


# ---- synchronous and ensembled


def state_policy(horizon: int = 4) -> DeterministicPolicy:
    return DeterministicPolicy(SPEC, StateMLP, horizon).eval()


def test_whole_chunks_are_played_as_without_a_wrapper():
    env = PointEnv(num_envs=3)
    gaussian = GaussianPolicy(SPEC, StateMLP, 3)
    for wrapped, plain in ((Synchronous(gaussian), gaussian), (Greedy(Synchronous(gaussian)), Greedy(gaussian))):
        ours, theirs = rollout(env, wrapped, seed=5), rollout(env, plain, seed=5)
        assert torch.equal(ours.executed, theirs.executed)
        assert torch.equal(ours.action.log_prob, theirs.action.log_prob)


def test_only_the_first_commands_of_each_chunk_are_played():
    actor = Synchronous(Telling(), execute=2)
    assert actor.horizon == 2
    assert actor.act(at(3)).commands[0, :, 0].tolist() == [300, 301]
    assert actor.mode(at(3)).commands[0, :, 0].tolist() == [300.5, 301.5]


def test_of_what_was_ever_said_about_a_step_the_oldest_counts_most():
    """Weights 1, 1/2, 1/4, worked out on paper."""
    actor = Ensembled(Telling(horizon=3), decay=math.log(2))
    expected = [0, (1 + 100 / 2) / 1.5, (2 + 101 / 2 + 200 / 4) / 1.75, (102 + 201 / 2 + 300 / 4) / 1.75]
    for _ in range(2):
        actor.begin(0)
        assert play(actor, range(4)) == pytest.approx(expected)


def test_without_decay_everything_said_counts_alike_in_each_row():
    actor = Ensembled(Telling(horizon=2), decay=0.0)
    actor.mode(at(0, rows=2))
    assert actor.mode(at(1, rows=2)).commands[:, 0, 0].tolist() == pytest.approx([51.0, 10_051.0])


def test_an_ensemble_of_a_policy_that_always_says_the_same_is_that_policy():
    env = PointEnv(num_envs=3, max_steps=5)
    ours, theirs = (rollout(env, x, seed=2) for x in (Ensembled(Homing(1)), Homing(1)))
    torch.testing.assert_close(ours.executed, theirs.executed)


# ---- with a delay


@pytest.mark.parametrize(("execute", "delay"), [(1, 0), (3, 0), (6, 0), (1, 1), (3, 1), (2, 2), (3, 3), (4, 2), (5, 1)])
def test_a_command_is_of_the_last_observation_whose_chunk_is_ready(execute, delay):
    policy = Telling()
    actor = Asynchronous(policy, execute, delay)
    for _ in range(2):
        actor.begin(0)
        policy.asked.clear()
        for step in range(20):
            seen = max([0, *(o for o in range(0, 20, execute) if o + delay <= step)])
            assert said(actor.act(at(step))) == 100 * seen + step - seen
        assert policy.asked == list(range(0, 20, execute))
    assert actor.starved == 0


def test_without_a_delay_it_is_synchronous():
    env, policy = PointEnv(num_envs=3, max_steps=11), state_policy()
    chunks, single = rollout(env, Synchronous(policy, 3), seed=1), rollout(env, Asynchronous(policy, 3, 0), seed=1)
    for ours, theirs in zip(single.episodes(), chunks.episodes(), strict=True):
        pieces = zip(theirs.executed[:-1], theirs.num_steps[:-1].tolist(), strict=True)
        played = torch.cat([chunk[:n] for chunk, n in pieces])
        torch.testing.assert_close(ours.executed[:-1].flatten(0, 1), played)


def test_episodes_are_the_same_with_any_number_of_copies():
    flow = FlowPolicy(SPEC, StateMLP, 4, partial(UNet1D, channels=(32,)), steps=2)
    actor = Asynchronous(flow, 2, 1, guided=True)
    many = rollout(PointEnv(num_envs=3, max_steps=9), actor, seed=4).episodes()
    for i, episode in enumerate(many):
        (alone,) = rollout(PointEnv(num_envs=1, max_steps=9), actor, seed=4 + i).episodes()
        torch.testing.assert_close(alone.executed, episode.executed, atol=1e-5, rtol=1e-4)


def test_rows_have_commands_of_their_own_and_cannot_change_without_a_new_beginning():
    actor = Asynchronous(Telling(), 3, 2)
    actor.act(at(0, rows=2))
    assert actor.act(at(1, rows=2)).commands[:, 0, 0].tolist() == [1, 10_001]
    with pytest.raises(ValueError, match=r"episodes of shape \(2,\), now there are \(3,\): call `begin`"):
        actor.act(at(2, rows=3))
    actor.begin(0)
    assert actor.mode(at(2, rows=3)).commands[:, 0, 0].tolist() == [200.5, 10_200.5, 20_200.5]


def test_an_actor_with_a_memory_is_told_when_episodes_begin_through_every_wrapper():
    for wrap in (Synchronous, Ensembled, Asynchronous, Blind, partial(Told, instruction={}), Greedy):
        policy = Remembering()
        wrapped = wrap(policy)
        assert isinstance(wrapped, Seeded)
        wrapped.begin(7)
        assert policy.seed == 7
    assert not isinstance(Synchronous(Telling()), Seeded)
    base = state_policy()
    residual = ResidualPolicy(SPEC, base, partial(GaussianPolicy, encoder=StateMLP), horizon=1)
    env = PointEnv(num_envs=2, max_steps=7)
    for seed in (0, 3):
        torch.testing.assert_close(
            rollout(env, Greedy(Asynchronous(residual, 1, 0)), seed=seed).executed,
            rollout(env, Greedy(residual), seed=seed).executed,
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Asynchronous(Telling(), 2, 3), r"delay 3 and .* horizon 6, execute must be from 3 .* to 3 .*, got 2"),
        (lambda: Asynchronous(Telling(), 5, 2), r"delay 2 and .* horizon 6, execute must be from 2 .* to 4 .*, got 5"),
        (lambda: Asynchronous(Telling(), 0, 0), r"execute must be from 1 .* to 6 .*, got 0"),
        (lambda: Asynchronous(Telling(), None, 4), r"from 4 .* to 2 .*, got 3: give another one, a shorter delay"),
        (lambda: Asynchronous(Telling(), 6, "measured"), r"delay 1 .* from 1 .* to 5 .*, got 6"),
        (lambda: Asynchronous(Telling(), 3, -1), "delay must be .* at least 0, or measured, got -1"),
        (lambda: Asynchronous(Telling(), 3, "soon"), "delay must be .* or measured, got 'soon'"),
        (lambda: Asynchronous(Homing(4), 2, "measured"), "control rate, Homing does not"),
        (lambda: Asynchronous(state_policy(), 2, 1, guided=True), "guided .* DeterministicPolicy cannot"),
        (lambda: Asynchronous(Telling(), 3, 1, schedule="cosine"), "one of zeros, ones, linear, exp, got 'cosine'"),
        (lambda: Asynchronous(Telling(), 3, 1, max_guidance=0.0), "max_guidance must be positive, got 0.0"),
        (lambda: Asynchronous(Blind(Homing()), 3, 1), "Blind has no `horizon`"),
        (lambda: Synchronous(Telling(), 7), "execute must be from 1 to the 6 commands of a chunk, got 7"),
        (lambda: Ensembled(Telling(), math.inf), "decay must be a finite number, got inf"),
    ],
)
def test_what_cannot_be_executed_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- with the delay there really is


def measured(policy, execute: int, planned: int = 1) -> tuple[Asynchronous, ByHand, Clock]:
    """At 10 Hz, with a first decision that takes `planned` steps."""
    clock = Clock()
    pool = ByHand(clock, planned / 10)
    return Asynchronous(policy, execute, Measured(10.0, clock, pool), guided=True), pool, clock


@pytest.mark.parametrize("really", [1, 2, 3, 4, 5])
def test_a_chunk_takes_over_at_the_command_of_the_step_it_arrives_in_whatever_was_planned(really):
    """Planned are 3 steps; cutting the new chunk there would play 305, not 302, where only 2 have passed, and so on."""
    policy = Telling(horizon=8)
    actor, pool, clock = measured(policy, execute=3, planned=3)
    assert play(actor, range(4)) == [0, 1, 2, 3]
    assert policy.told == []  # it is being decided
    rest = play(actor, range(4, 3 + really))
    assert rest == list(range(4, 3 + really))
    clock.now += really / 10
    pool.finish()
    previous, weights, _ = policy.told[0]
    assert previous[0, :, 0].tolist() == [3, 4, 5, 6, 7]
    assert torch.equal(weights, soft_mask(3, 5, "exp"))
    assert said(actor.act(at(3 + really))) == 300 + really
    assert said(actor.act(at(4 + really))) == 301 + really
    assert actor.starved == 0


def test_the_next_decision_is_asked_for_when_enough_steps_have_passed_since_the_last_observation():
    policy = Telling(horizon=8)
    actor, pool, _ = measured(policy, execute=3)
    play(actor, range(4))
    pool.finish()
    assert play(actor, range(4, 7)) == [301, 302, 303]
    pool.finish()
    assert policy.asked == [0, 3, 6]
    assert play(actor, range(7, 9)) == [601, 602]


def test_a_decision_that_is_late_lets_the_arm_stay_and_then_goes_on_in_its_own_time():
    policy = Telling(horizon=4, spec=FR3)
    actor, pool, clock = measured(policy, execute=2)
    assert play(actor, range(4)) == [0, 1, 2, 3]
    command = actor.act(at(4)).commands[0, 0]
    assert command[:-1].tolist() == [0.0] * 6
    assert command[-1].item() == 3  # the gripper's
    assert actor.starved == 1
    clock.now += 0.31  # begun an instant before step 2
    pool.finish()
    assert actor.latency.planned == 4
    assert said(actor.act(at(5))) == 203
    assert actor.starved == 1
    pool.finish()
    assert policy.asked == [0, 2, 5]
    assert said(actor.act(at(6))) == 501


def test_a_chunk_that_is_ready_after_its_last_command_was_due_is_not_played():
    policy = Telling(horizon=4, spec=FR3)
    actor, pool, _ = measured(policy, execute=2)
    play(actor, range(8))
    assert actor.starved == 4
    pool.finish()
    assert actor.act(at(8)).commands[0, 0, :-1].tolist() == [0.0] * 6
    pool.finish()
    assert policy.told[-1][0].shape == (1, 2, 7)  # that of step 2; the one of step 8 had nothing to go on from
    assert policy.asked == [0, 2, 8]
    assert play(actor, range(9, 11)) == [801, 802]
    assert actor.starved == 5


def test_delays_are_whole_steps_and_the_longest_of_the_last_five_is_expected():
    clock = Clock()
    pool = ByHand(clock)
    latency = Measured(10.0, clock, pool)
    expected = []
    for seconds in (0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.1, 0.3, 0.31, 0.1, 0.1, 0.1, 0.2, 0.1):
        latency.start(lambda: Telling().act(at(0)))
        clock.now += seconds
        pool.finish()
        expected.append(latency.planned)
    assert expected == [1, 1, 1, 1, 1, 1, 1, 3, 4, 4, 4, 4, 4, 2]


def test_an_arm_told_to_stay_keeps_its_last_position_where_commands_are_positions():
    last = torch.tensor([[0.3, 0.4, 1.0]])
    for kind, expected in (("joint_position", [0.3, 0.4, 1.0]), ("joint_delta", [0, 0, 1]), ("ee_delta", [0, 0, 0])):
        command = staying_after(last, replace(SPEC, command=Command(kind, 3)))
        torch.testing.assert_close(command, torch.tensor([expected], dtype=torch.float))


def test_decisions_in_the_background_go_on_while_commands_are_played():
    free = threading.Event()
    inside = []

    class Slow(Telling):
        def act(self, obs):
            inside.append((threading.current_thread().name, torch.is_grad_enabled()))
            assert free.wait(60)
            return super().act(obs)

    actor = Asynchronous(Slow(), 2, "measured")
    free.set()
    with torch.no_grad():
        assert play(actor, range(2)) == [0, 1]
        free.clear()
        assert play(actor, range(2, 5)) == [2, 3, 4]
        free.set()
        actor.waiting.future.result(60)
        assert play(actor, range(5, 6)) == [203]
    assert {name.startswith("decisions") for name, _ in inside} == {True}
    assert {differentiable for _, differentiable in inside} == {False}
    actor.begin(1)
    assert play(actor, [9]) == [900]


def test_chance_in_the_background_is_that_of_the_episode():
    env = PointEnv(num_envs=2, max_steps=2)
    policy = GaussianPolicy(SPEC, StateMLP, 2)
    first = [rollout(env, Asynchronous(policy, 1, delay), seed=3).executed[0] for delay in ("measured", 0)]
    assert torch.equal(*first)


def test_what_fails_in_the_background_fails_where_it_is_used():
    class Failing(Telling):
        def act(self, obs):
            if obs.proprio[0, 0] > 0:
                raise ValueError("the network is gone")
            return super().act(obs)

    actor, pool, _ = measured(Failing(), execute=2)
    for use in (partial(actor.act, at(3)), partial(actor.begin, 0)):  # an episode may end before
        play(actor, range(3))
        pool.finish()
        with pytest.raises(ValueError, match="the network is gone"):
            use()
        actor.begin(0)
        pool.seconds = 0.1
    assert play(actor, [0]) == [0]


# ---- guided


def test_weights_are_those_of_the_paper():
    """Two commands committed, six of ten left: 1, 1, 4/5, 3/5, 2/5, 1/5."""
    linear = torch.tensor([1, 1, 0.8, 0.6, 0.4, 0.2])
    torch.testing.assert_close(soft_mask(2, 6, "linear"), linear)
    torch.testing.assert_close(soft_mask(2, 6, "exp"), linear * (linear.exp() - 1) / (math.e - 1))
    assert soft_mask(2, 6, "zeros").tolist() == [1, 1, 0, 0, 0, 0]
    assert soft_mask(2, 6, "ones").tolist() == [1] * 6
    torch.testing.assert_close(soft_mask(0, 3, "linear"), torch.tensor([0.75, 0.5, 0.25]))
    for schedule in SCHEDULES:
        assert soft_mask(9, 3, schedule).tolist() == [1] * 3


def test_a_guided_decision_is_told_what_is_left_and_what_will_be_played_of_it():
    policy = Telling(horizon=8)
    actor = Asynchronous(policy, 4, 2, guided=True, schedule="linear", max_guidance=3.0)
    play(actor, range(9))
    (first, weights, most), (second, _, _) = policy.told
    assert first[0, :, 0].tolist() == [4, 5, 6, 7]
    assert second[0, :, 0].tolist() == [404, 405, 406, 407]
    torch.testing.assert_close(weights, torch.tensor([1, 1, 2 / 3, 1 / 3]))
    assert most == 3.0
    modes = [actor.mode(at(step)).commands[0, 0, 0].item() for step in range(9, 15)]
    assert modes == [405, 802, 803, 804, 805, 1202.5]


def test_a_flow_is_guided_as_the_paper_says():
    """In its own time, from 0 to 1, with the whole Jacobian of a small network that is not linear."""
    horizon, steps, most = 3, 7, 5.0
    rows, size = 2, horizon * 2
    wide = torch.randn(size, size, generator=torch.Generator().manual_seed(1))

    def ours(noisy, time, features=None):
        return torch.tanh(noisy.flatten(1) @ wide + time[:, None]).reshape(noisy.shape) * 2

    target, noise = torch.randn(rows, horizon, 2), torch.randn(rows, horizon, 2)
    weights = torch.tensor([1.0, 0.6, 0.0])[:, None].expand(horizon, 2)
    found, without = noise.clone(), noise.clone()
    for i in range(steps):
        time = torch.full((rows,), 1 - i / steps)
        found = found - guided_velocity(partial(ours, time=time), found, time, target, weights, most) / steps
        lacking = weights * (target - (without - time[:, None, None] * ours(without, time)))
        velocity = ours(without, time) - guidance(time, most)[:, None, None] * lacking
        without = without - velocity / steps
    for row in range(rows):
        x = noise[row].flatten()
        for i in range(steps):
            t = i / steps

            def chunk(x, t=t):
                return x + (1 - t) * paper(x, t)

            def paper(x, t):
                return -ours(x.reshape(1, horizon, 2), torch.tensor([1 - t])).flatten()

            jacobian = torch.autograd.functional.jacobian(chunk, x)
            lacking = weights.flatten() * (target[row].flatten() - chunk(x))
            scale = (t**2 + (1 - t) ** 2) / (1 - t) ** 2  # 1 / r^2
            strength = min(most, (1 - t) / t * scale) if t > 0 else most
            x = x + (paper(x, t) + strength * jacobian.T @ lacking) / steps
        torch.testing.assert_close(found[row].flatten(), x, atol=1e-4, rtol=1e-4)
        assert (without[row].flatten() - x).abs().max() > 0.1


def test_guidance_is_bounded_where_it_would_be_infinite():
    """Half way it is (1/4 + 1/4) / (1/4) = 2; at 0.2, 0.68 / 0.16 = 4.25."""
    torch.testing.assert_close(guidance(torch.tensor([1.0, 0.5, 0.2, 0.1]), 5.0), torch.tensor([5, 2, 4.25, 5]))


def flow(denoiser=UNet1D, **settings) -> FlowPolicy:
    policy = FlowPolicy(SPEC, StateMLP, 6, denoiser, **settings).eval()
    shown = torch.rand(100, 2, generator=torch.Generator().manual_seed(3)) * torch.tensor([0.3, 0.1]) - 0.1
    policy.set_statistics(Statistics.of(torch.randn(100, SPEC.proprio_dim)), Statistics.of(shown))
    return policy


@pytest.mark.parametrize("denoiser", [UNet1D, TransformerDenoiser])
@pytest.mark.parametrize("chain", ["ode", "sde", "noise"])
def test_a_guide_without_weight_changes_no_bit(denoiser, chain):
    obs, policy = PointEnv(num_envs=3).reset(0), flow(denoiser, chain=chain, steps=4)
    before = torch.rand(3, 4, 2)
    with torch.no_grad():
        assert torch.equal(policy.mode_along(obs, before, torch.zeros(4)).commands, policy.mode(obs).commands)
    assert torch.equal(policy.mode_along(obs, before, torch.zeros(4)).commands, policy.mode(obs).commands)
    if chain == "ode":
        torch.manual_seed(1)
        free = policy.act(obs).commands
        torch.manual_seed(1)
        assert torch.equal(policy.act_along(obs, before, torch.zeros(4)).commands, free)


def test_each_row_is_guided_by_its_own_chunk():
    obs, policy = PointEnv(num_envs=3).reset(0), flow()
    before, weights = torch.rand(3, 4, 2) * 0.1, soft_mask(2, 4)
    all_of_them = policy.mode_along(obs, before, weights).commands
    for row in range(3):
        alone = policy.mode_along(obs[row : row + 1], before[row : row + 1], weights).commands
        torch.testing.assert_close(alone, all_of_them[row : row + 1], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="a chunk of 6 commands cannot go on from 7"):
        policy.mode_along(obs, torch.zeros(3, 7, 2), torch.zeros(7))


@pytest.fixture(scope="module")
def two_ways():
    """A flow that has learned to go left or right, as often, by 5 to 15 cm per command."""
    torch.manual_seed(1)
    policy = FlowPolicy(SPEC, StateMLP, 6, partial(UNet1D, channels=(32,)), steps=10)
    obs = PointEnv(num_envs=1).reset(0).expand(128).reshape(-1)
    optimizer = torch.optim.Adam(policy.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        side = torch.tensor([-0.1, 0.1]).repeat(64)[:, None, None] + 0.1 * torch.rand(128, 1, 1) - 0.05
        optimizer.zero_grad()
        policy.imitation_loss(obs, side.expand(128, 6, 2)).mean().backward()
        optimizer.step()
        schedule.step()
    return policy.eval()


def test_a_guided_chunk_goes_on_as_the_one_before_and_does_not_change_sides(two_ways):
    many = PointEnv(num_envs=1).reset(0).expand(200).reshape(-1)
    before = torch.tensor([-0.1, 0.1]).repeat(100)[:, None, None].expand(200, 4, 2)
    with torch.no_grad():
        free = two_ways.act(many).commands
        guided = two_ways.act_along(many, before, soft_mask(2, 4)).commands
    away_free, away = ((x[:, :2] - before[:, :2]).abs().mean() for x in (free, guided))
    assert away < 0.02 < 0.06 < away_free
    same_side = (guided.mean((1, 2)).sign() == before.mean((1, 2)).sign()).float().mean()
    assert same_side > 0.95
