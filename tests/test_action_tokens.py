"""Commands as tokens, and experts as distributions over tokens, against scipy."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from policies.gaussian import GaussianPolicy
from policies.teacher import TokenTeacher, frozen
from policies.token import TokenPolicy
from simulators.point import Homing, PointEnv
from vla.checkpoint import save_policy
from vla.data.normalise import Statistics
from vla.models.action_tokens import ActionBins, command_range
from vla.models.state_mlp import StateMLP
from vla.types import Command, Observation

ARM = Command("ee_delta", size=7, max_translation=0.1, max_rotation=0.5)
STATE_POLICY = {
    "_target_": "policies.token.TokenPolicy",
    "horizon": 2,
    "bins": 8,
    "encoder": {"_target_": "vla.models.state_mlp.StateMLP", "_partial_": True},
}


def statistics(low: list[float], high: list[float], q01: list[float] | None = None, q99: list[float] | None = None):
    low, high = torch.tensor(low), torch.tensor(high)
    middle = (low + high) / 2
    inner = (torch.tensor(q01) if q01 else low, torch.tensor(q99) if q99 else high)
    return Statistics(middle, torch.ones_like(low), low, high, *inner)


@pytest.fixture
def bins():
    bins = ActionBins(Command("ee_delta", size=2, max_translation=0.2), bins=4)
    bins.set_statistics(statistics([-1.0, 0.0], [1.0, 8.0]))
    return bins


def test_numbers_fall_into_equal_intervals_and_come_back_as_their_centres(bins):
    commands = torch.tensor([[-1.0, 0.0], [-0.51, 1.9], [-0.49, 2.1], [0.1, 5.0], [0.99, 7.9]])
    tokens = bins.encode(commands)
    assert tokens.tolist() == [[0, 0], [0, 0], [1, 1], [2, 2], [3, 3]]
    torch.testing.assert_close(
        bins.decode(tokens), torch.tensor([[-0.75, 1.0], [-0.75, 1.0], [-0.25, 3.0], [0.25, 5.0], [0.75, 7.0]])
    )


def test_what_lies_beyond_the_range_is_clipped_to_the_outermost_bins(bins):
    assert bins.encode(torch.tensor([[-9.0, 99.0], [1.0, 8.0]])).tolist() == [[0, 3], [3, 3]]
    torch.testing.assert_close(bins.clip(torch.tensor([-9.0, 99.0])), torch.tensor([-1.0, 8.0]))


@given(st.integers(2, 257), st.floats(-5, 5), st.floats(1e-3, 10))
def test_every_token_survives_decoding_and_encoding(num_bins, low, span):
    bins = ActionBins(Command("joint_delta", size=1), num_bins)
    bins.set_statistics(statistics([low], [low + span]))
    tokens = torch.arange(num_bins)[:, None]
    assert torch.equal(bins.encode(bins.decode(tokens)), tokens)


def test_decoding_is_at_most_half_a_bin_off(bins):
    commands = torch.rand(1000, 2) * torch.tensor([2.0, 8.0]) - torch.tensor([1.0, 0.0])
    error = (bins.decode(bins.encode(commands)) - commands).abs()
    assert (error <= bins.width / 2 + 1e-6).all()
    assert (error.max(0).values > 0.4 * bins.width).all()


def test_ranges_are_the_extremes_or_the_quantiles_of_the_data():
    data = statistics([-1.0], [1.0], q01=[-0.5], q99=[0.25])
    extremes, quantiles = (
        ActionBins(Command("joint_delta", size=1), 4, limits) for limits in ("extremes", "quantiles")
    )
    extremes.set_statistics(data)
    quantiles.set_statistics(data)
    assert (extremes.low.item(), extremes.high.item()) == (-1.0, 1.0)
    assert (quantiles.low.item(), quantiles.high.item()) == (-0.5, 0.25)


def test_before_any_data_the_ranges_are_the_limits_of_the_command():
    low, high = command_range(ARM)
    torch.testing.assert_close(low, torch.tensor([-0.1] * 3 + [-0.5] * 3 + [0.0]))
    torch.testing.assert_close(high, torch.tensor([0.1] * 3 + [0.5] * 3 + [1.0]))
    joint_low, joint_high = command_range(Command("joint_delta", size=8, max_rotation=0.2))
    assert joint_low.tolist()[-2:] == pytest.approx([-0.2, 0.0])
    assert joint_high.tolist()[-2:] == pytest.approx([0.2, 1.0])


def test_a_number_that_never_changed_in_the_data_is_reproduced():
    bins = ActionBins(Command("joint_delta", size=1), 64)
    bins.set_statistics(statistics([0.3], [0.3]))
    assert bins.decode(bins.encode(torch.tensor([0.3]))).item() == pytest.approx(0.3, abs=1e-4)


def test_bins_refuse_what_they_cannot_be():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        ActionBins(ARM, bins=1)
    with pytest.raises(ValueError, match="'extremes' or 'quantiles', got 'std'"):
        ActionBins(ARM, limits="std")
    with pytest.raises(ValueError, match="statistics of 2 numbers do not fit commands of 7"):
        ActionBins(ARM).set_statistics(statistics([0.0, 0.0], [1.0, 1.0]))


@pytest.mark.parametrize("std", [0.05, 0.5, 3.0])
def test_the_mass_of_a_bin_is_that_of_the_gaussian_over_it_and_the_outermost_take_the_tails(bins, std):
    mean = torch.tensor([[0.3, 1.0], [-1.0, 8.0]])
    edges = bins.edges().numpy().astype(float)
    edges[:, 0], edges[:, -1] = -np.inf, np.inf
    expected = np.diff(norm.cdf(edges[None], mean.numpy()[..., None], std), axis=-1)
    mass = bins.log_mass(mean, torch.tensor([std, std])).exp()
    np.testing.assert_allclose(mass.numpy(), expected, atol=1e-6)


def test_far_bins_have_a_finite_log_mass_that_agrees_with_scipy():
    bins = ActionBins(Command("joint_delta", size=1), 64)
    bins.set_statistics(statistics([-1.0], [1.0]))
    std = 0.2 * bins.width  # the farthest edge is 320 standard deviations away
    mass = bins.log_mass(torch.tensor([-1.0]), std)[0]
    edges = bins.edges()[0].double().numpy()
    # In the right tail log(S(a) - S(b)) is log S(a) to double precision, for bins 5 standard deviations wide.
    expected = norm.logsf(edges[10:-1], -1.0, std.item())
    assert mass.isfinite().all()
    np.testing.assert_allclose(mass[10:].numpy(), expected, rtol=1e-4)
    mirrored = bins.log_mass(torch.tensor([1.0]), std)[0].flip(-1)
    torch.testing.assert_close(mirrored, mass, rtol=1e-4, atol=1e-4)


@given(st.floats(-30, 30), st.floats(1e-3, 50))
def test_the_masses_of_all_bins_sum_to_one(mean, std):
    bins = ActionBins(Command("joint_delta", size=1, max_rotation=1.0), 1 + 1)
    bins.set_statistics(statistics([-1.0], [1.0]))
    total = bins.log_mass(torch.tensor([mean], dtype=torch.float64), torch.tensor([std])).exp().sum(-1)
    assert total.item() == pytest.approx(1.0, abs=1e-12)


# ---- the expert as a distribution over the student's tokens


@pytest.fixture
def student():
    return TokenPolicy(PointEnv().spec, StateMLP, horizon=2, bins=8)


@pytest.fixture
def obs():
    return PointEnv(num_envs=5).reset(seed=3)


@pytest.mark.parametrize("doubt", [0.0, 0.05])
def test_a_teacher_scores_tokens_by_the_gaussian_around_its_command_and_its_doubt(student, obs, doubt):
    teacher = TokenTeacher(student, Homing(2), std=1.5, doubt=doubt)
    action = student.act(obs)
    command = Homing(2).act(obs).commands.numpy().astype(float)
    width = 0.4 / 8
    token = action.latent["tokens"].unflatten(-1, (2, 2)).numpy()
    below = np.where(token == 0, -np.inf, -0.2 + token * width)
    above = np.where(token == 7, np.inf, -0.2 + (token + 1) * width)
    mass = norm.cdf(above, command, 1.5 * width) - norm.cdf(below, command, 1.5 * width)
    expected = np.log((1 - doubt) * mass + doubt / 8)
    np.testing.assert_allclose(teacher.log_prob(obs, action).numpy(), expected.reshape(5, 4), rtol=1e-3, atol=1e-4)


def test_a_teachers_scores_are_those_of_its_distribution_at_any_leading_shape(student, obs):
    teacher = TokenTeacher(student, Homing(2))
    both = Observation.stack([obs, PointEnv(num_envs=5).reset(seed=50)])
    action = student.act(both)
    whole = teacher.distribution(both)
    assert whole.shape == (2, 5, 4, 8)
    torch.testing.assert_close(
        teacher.log_prob(both, action), whole.gather(-1, action.latent["tokens"][..., None]).squeeze(-1)
    )
    torch.testing.assert_close(whole[0], teacher.distribution(obs))


def test_a_command_beyond_the_students_range_counts_as_the_nearest_within(student, obs):
    class Far:
        def act(self, obs):
            action = Homing(2).act(obs)
            return action.replace(commands=torch.full_like(action.commands, 9.0))

    torch.testing.assert_close(
        TokenTeacher(student, Far(), doubt=0.0).distribution(obs)[0, 0],
        student.bins.log_mass(torch.tensor([0.2, 0.2]), student.bins.width)[0],
    )


def test_a_teacher_follows_the_ranges_of_its_student(student, obs):
    teacher = TokenTeacher(student, Homing(2))
    before = teacher.distribution(obs)
    student.bins.set_statistics(statistics([-0.4, -0.4], [0.4, 0.4]))
    assert not torch.allclose(before, teacher.distribution(obs))


def test_a_teacher_that_does_not_fit_its_student_is_refused(student, obs):
    with pytest.raises(ValueError, match="Homing gives chunks of 3 commands, the student of 2"):
        TokenTeacher(student, Homing(3))
    expert = Homing(2)
    teacher = TokenTeacher(student, expert)
    expert.horizon = 3
    with pytest.raises(ValueError, match="chunks of 3 commands"):
        teacher.distribution(obs)
    with pytest.raises(TypeError, match="GaussianPolicy is none"):
        TokenTeacher(GaussianPolicy(PointEnv().spec, StateMLP, 2), Homing(2))
    with pytest.raises(ValueError, match="std must be positive"):
        TokenTeacher(student, Homing(2), std=0.0)


def test_a_frozen_policy_teaches_at_the_students_temperature(student, obs, tmp_path):
    save_policy(tmp_path, student, STATE_POLICY)
    pupil = TokenPolicy(PointEnv().spec, StateMLP, horizon=2, bins=8, temperature=1.6)
    pupil.load_state_dict(student.state_dict())
    teacher = frozen(pupil, tmp_path)
    action = pupil.act(obs)
    torch.testing.assert_close(teacher.log_prob(obs, action), action.log_prob)
    assert not any(p.requires_grad for p in teacher.parameters())


OTHERS = {
    "number of bins": {"bins": 16},
    "horizon": {"horizon": 3},
    "command": {"spec": replace(PointEnv().spec, command=Command("ee_delta", size=2, max_translation=0.3))},
}


@pytest.mark.parametrize("what", [*OTHERS, "lowest commands"])
def test_a_frozen_policy_whose_tokens_mean_something_else_is_refused(student, tmp_path, what):
    save_policy(tmp_path, student, STATE_POLICY)
    make = partial(TokenPolicy, **{"spec": PointEnv().spec, "encoder": StateMLP, "horizon": 2, "bins": 8})
    other = make(**OTHERS.get(what, {}))
    if what == "lowest commands":
        other.bins.set_statistics(statistics([-0.1, -0.1], [0.2, 0.2]))
    with pytest.raises(ValueError, match=f"cannot grade this student's tokens: {what}"):
        frozen(other, tmp_path)
