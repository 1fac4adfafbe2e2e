"""Advantages against closed forms and against the definition, summed by brute force."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla.algorithms.advantages import gae, gae_per_command, group_advantage, normalised


def episode(length: int, rows: int, *, terminated: bool):
    """One column: reward 1 per decision for `length` decisions, then the end."""
    valid = torch.arange(rows) < length
    end = torch.arange(rows) == length - 1
    return valid.float()[:, None], (end & terminated)[:, None], valid[:, None]


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_a_terminated_episode_without_values_is_a_finite_geometric_series(gamma):
    reward, terminated, valid = episode(3, 6, terminated=True)
    discount = torch.full_like(reward, gamma)
    advantage = gae(reward, torch.zeros_like(reward), terminated, valid, discount, lam=1.0)
    expected = [1 + gamma + gamma**2, 1 + gamma, 1, 0, 0, 0]
    torch.testing.assert_close(advantage[:, 0], torch.tensor(expected))


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_a_truncated_episode_with_the_true_value_has_no_advantage(lam):
    reward, terminated, valid = episode(4, 5, terminated=False)
    value = torch.full_like(reward, 10.0)  # of an endless stream of ones at gamma 0.9
    advantage = gae(reward, value, terminated, valid, torch.full_like(reward, 0.9), lam)
    torch.testing.assert_close(advantage, torch.zeros_like(reward), atol=1e-5, rtol=0)


def test_a_chunk_discounts_by_the_commands_it_executed():
    reward = torch.tensor([[0.0], [1.0], [0.0]])
    valid, terminated = torch.tensor([[True], [True], [False]]), torch.tensor([[False], [True], [False]])
    num_steps = torch.tensor([[3.0], [1.0], [0.0]])
    advantage = gae(reward, torch.zeros(3, 1), terminated, valid, 0.5**num_steps, lam=1.0)
    torch.testing.assert_close(advantage, torch.tensor([[0.125], [1.0], [0.0]]))


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0.1, 1))
def test_advantages_are_the_weighted_sum_of_errors_up_to_the_end_of_the_episode(seed, lam, gamma):
    rng = torch.Generator().manual_seed(seed)
    rows, envs = 7, 5
    length = torch.randint(1, rows, (envs,), generator=rng)
    valid = torch.arange(rows)[:, None] < length
    ends = torch.arange(rows)[:, None] == length - 1
    terminated = ends & (torch.rand(envs, generator=rng) < 0.5)
    num_steps = torch.randint(1, 5, (rows, envs), generator=rng)
    reward = torch.randn(rows, envs, generator=rng)  # also after the end, where nothing may count
    value = torch.randn(rows, envs, generator=rng)
    advantage = gae(reward, value, terminated, valid, gamma ** num_steps.float(), lam)

    for env in range(envs):
        last = int(length[env])
        for t in range(last):
            expected, weight = 0.0, 1.0
            for k in range(t, last):
                next_value = 0.0 if terminated[k, env] else value[k + 1, env].item()
                discount = gamma ** int(num_steps[k, env])
                expected += weight * (reward[k, env].item() + discount * next_value - value[k, env].item())
                weight *= discount * lam
            assert advantage[t, env].item() == pytest.approx(expected, abs=1e-4)
        assert (advantage[last:, env] == 0).all()


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 0.0), (0.8, 1.0)])
def test_advantages_are_those_of_stable_baselines(gamma, lam):
    """Its buffer is filled with one whole episode at a time, half of them terminated and half out of time."""
    from gymnasium.spaces import Box
    from stable_baselines3.common.buffers import RolloutBuffer

    rows, envs = 9, 8
    length = torch.arange(1, rows)
    valid = torch.arange(rows)[:, None] < length
    terminated = (torch.arange(rows)[:, None] == length - 1) & (torch.arange(envs) % 2 == 0)
    reward, value = torch.randn(2, rows, envs)
    advantage = gae(reward, value, terminated, valid, torch.full_like(reward, gamma), lam)
    for env, steps in enumerate(length.tolist()):
        buffer = RolloutBuffer(steps, Box(-1, 1, (1,)), Box(-1, 1, (1,)), "cpu", gae_lambda=lam, gamma=gamma)
        buffer.rewards[:, 0], buffer.values[:, 0] = reward[:steps, env].numpy(), value[:steps, env].numpy()
        buffer.compute_returns_and_advantage(value[steps, env], terminated[steps - 1, env].numpy())
        torch.testing.assert_close(advantage[:steps, env], torch.from_numpy(buffer.advantages[:, 0]))


def test_normalised_advantages_have_mean_zero_and_deviation_one_and_keep_their_order():
    advantage = torch.tensor([1.0, 3.0, 5.0])
    torch.testing.assert_close(normalised(advantage), torch.tensor([-1.0, 0.0, 1.0]) * 1.5**0.5)
    assert normalised(torch.tensor([2.0])).tolist() == [0.0]


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0.1, 1))
def test_advantages_per_command_are_those_of_an_episode_told_command_by_command(seed, lam, gamma):
    rng = torch.Generator().manual_seed(seed)
    rows, horizon = 5, 3
    length = int(torch.randint(1, rows, (1,), generator=rng))
    num_steps = torch.randint(1, horizon + 1, (rows, 1), generator=rng)
    num_steps[length:] = 0
    terminated = torch.zeros(rows, 1, dtype=torch.bool)
    terminated[length - 1] = bool(torch.rand(1, generator=rng) < 0.5)
    reward, value = torch.randn(2, rows, 1, horizon, generator=rng)
    advantage = gae_per_command(reward, value, terminated, num_steps, gamma, lam)

    executed = torch.arange(horizon) < num_steps[..., None]
    told = [torch.cat([x[executed], x[length, 0, :1]])[:, None] for x in (reward, value)]
    steps = len(told[0])
    valid = (torch.arange(steps) < steps - 1)[:, None]
    end = (torch.arange(steps) == steps - 2)[:, None] & terminated.any()
    one_by_one = gae(told[0], told[1], end, valid, torch.full_like(told[0], gamma), lam)
    torch.testing.assert_close(advantage[executed], one_by_one[valid], atol=1e-5, rtol=1e-5)
    assert (advantage[~executed] == 0).all()


def test_a_group_is_compared_with_itself():
    returns = torch.tensor([[1.0, 0.1], [0.0, 0.1], [0.0, 0.1]])
    std = (2 / 9 * 3 / 2) ** 0.5
    for kind, expected in {
        "mean": [2 / 3, -1 / 3],
        "leave_one_out": [1.0, -0.5],
        "std": [2 / 3 / std, -1 / 3 / std],
    }.items():
        advantage = group_advantage(returns, kind)
        assert advantage[:2, 0].tolist() == pytest.approx(expected, abs=1e-5)
        assert (advantage[:, 1] == 0).all()  # exactly: alike is alike
    with pytest.raises(ValueError, match="one of std, mean, leave_one_out, got 'rank'"):
        group_advantage(returns, "rank")
    with pytest.raises(ValueError, match="at least 2 episodes, got 1"):
        group_advantage(returns[:1])
