"""Losses against numbers worked out on paper and against enumeration of every outcome."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from vla.algorithms.losses import (
    clipped_loss,
    executed_factors,
    importance_loss,
    k3_loss,
    kl,
    masked_mean,
    regroup,
    sampled_kl,
    value_loss,
)
from vla.types import Action, Observation, Rollout

TRUE = torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # gained enough: clipped, no gradient
        (0.5, 2.0, -1.0, -1.0),  # moved the wrong way: never clipped
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_the_surrogate_is_clipped_only_where_it_has_gained(ratio, advantage, loss, slope):
    log_ratio = torch.tensor([[ratio]]).log().requires_grad_()
    actual = clipped_loss(log_ratio, torch.tensor([[advantage]]), TRUE, (0.2, 0.2))
    actual.backward()
    assert actual.item() == pytest.approx(loss, abs=1e-5)
    assert log_ratio.grad.item() == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.25, 2.0, -2.5, -2.5),  # high clips later than low
        (1.5, 2.0, -2.6, 0.0),
        (0.7, -2.0, 1.6, 0.0),
        (2.5, -2.0, 5.0, 5.0),
        (4.0, -2.0, 6.0, 0.0),  # three times the advantage is enough
        (4.0, 2.0, -2.6, 0.0),
    ],
)
def test_both_sides_are_clipped_apart_and_harm_is_bounded(ratio, advantage, loss, slope):
    log_ratio = torch.tensor([[ratio]]).log().requires_grad_()
    actual = clipped_loss(log_ratio, torch.tensor([[advantage]]), TRUE, (0.2, 0.3), dual_clip=3.0)
    actual.backward()
    assert actual.item() == pytest.approx(loss, abs=1e-5)
    assert log_ratio.grad.item() == pytest.approx(slope, abs=1e-5)


def test_a_value_that_moved_far_is_held_to_the_clipped_one_where_that_is_worse():
    value, old = torch.tensor([2.0, 2.0, 0.1]), torch.tensor([0.0, 0.0, 0.0])
    target, mask = torch.tensor([2.5, 0.0, 9.0]), torch.tensor([True, True, False])
    assert value_loss(value, old, target, mask).item() == pytest.approx((0.25 + 4.0) / 2)
    assert value_loss(value, old, target, mask, clip=0.5).item() == pytest.approx((4.0 + 4.0) / 2)


def test_granularity_decides_of_what_a_ratio_is_formed():
    log_prob = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    every = torch.ones(1, 4, dtype=torch.bool)
    assert regroup(log_prob, every, "factor", 2)[0].tolist() == [[1, 2, 3, 4]]
    assert regroup(log_prob, every, "command", 2)[0].tolist() == [[3, 7]]
    assert regroup(log_prob, every, "chunk", 2)[0].tolist() == [[10]]


def test_factors_that_were_not_executed_add_nothing_at_any_granularity():
    log_prob = torch.tensor([[1.0, 2.0, float("nan"), 4.0]])
    mask = torch.tensor([[True, True, False, False]])
    assert regroup(log_prob, mask, "factor", 2)[0].tolist() == [[1, 2, 0, 0]]
    summed, counts = regroup(log_prob, mask, "command", 2)
    assert (summed.tolist(), counts.tolist()) == ([[3, 0]], [[True, False]])
    assert regroup(log_prob, mask, "chunk", 2)[0].tolist() == [[3]]


def test_granularity_that_the_head_cannot_give_is_refused():
    with pytest.raises(ValueError, match="5 factors are not those of 2 commands"):
        regroup(torch.zeros(1, 5), torch.ones(1, 5, dtype=torch.bool), "command", 2)
    with pytest.raises(ValueError, match="got 'token'"):
        regroup(torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool), "token", 2)


def test_a_masked_entry_has_neither_value_nor_gradient_even_if_it_is_infinite():
    x = torch.tensor([1.0, 3.0, float("inf")], requires_grad=True)
    mean = masked_mean(x, torch.tensor([True, True, False]))
    mean.backward()
    assert mean.item() == 2.0
    assert x.grad.tolist() == [0.5, 0.5, 0.0]
    assert masked_mean(torch.ones(2), torch.zeros(2, dtype=torch.bool)).item() == 0.0


def decisions(num_steps: list[int], factors: int) -> Rollout:
    n = len(num_steps)
    nothing = torch.zeros(n)
    return Rollout(
        obs=Observation(images=TensorDict({}, [n]), proprio=nothing[:, None], instruction=[""] * n, batch_size=[n]),
        action=Action(
            commands=torch.zeros(n, 3, 2), log_prob=torch.zeros(n, factors), latent=TensorDict({}, [n]), batch_size=[n]
        ),
        reward=nothing,
        success=nothing.bool(),
        terminated=nothing.bool(),
        valid=~nothing.bool(),
        num_steps=torch.tensor(num_steps),
        batch_size=[n],
    )


def test_tokens_count_up_to_the_end_of_the_episode():
    counts = executed_factors(decisions([1, 3, 2], factors=6)).int().tolist()
    assert counts == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]


def test_all_steps_of_a_chain_count_for_the_commands_that_were_executed():
    """Three commands of two numbers, each drawn in two steps."""
    counts = executed_factors(decisions([1, 3, 2], factors=12)).int().sum(-1).tolist()
    assert counts == [4, 12, 8]
    assert executed_factors(decisions([1, 3, 2], factors=12))[0, :4].all()


def test_factors_that_are_not_those_of_single_commands_all_count():
    assert executed_factors(decisions([1, 3], factors=1)).all()
    assert executed_factors(decisions([1, 3], factors=4)).all()


# ---- identities of the KL, by enumerating all tokens of a small categorical


def categoricals(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    student, teacher, old = torch.randn(3, 7, generator=rng, dtype=torch.float64)
    return student.requires_grad_(), teacher.log_softmax(-1), old.log_softmax(-1)


def exact_gradient(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(kl(logits.log_softmax(-1), teacher), logits)[0]


def test_kl_is_the_sum_over_all_tokens():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    assert kl(p.log(), q.log()).item() == pytest.approx(0.5 * torch.tensor(4 / 3).log().item(), abs=1e-6)
    assert kl(p.log(), p.log()).item() == 0.0


@given(st.integers(0, 10**6))
def test_the_sampled_loss_has_in_expectation_the_gradient_of_the_exact_kl(seed):
    logits, teacher, _ = categoricals(seed)
    old = logits.detach().log_softmax(-1)
    loss = expected_importance_loss(logits, old, teacher - old)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], exact_gradient(logits, teacher))


@given(st.integers(0, 10**6))
def test_after_drifting_from_the_policy_that_played_the_ratio_keeps_the_gradient_unbiased(seed):
    logits, teacher, old = categoricals(seed)
    now = logits.detach().log_softmax(-1)
    loss = expected_importance_loss(logits, old, teacher - now)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], exact_gradient(logits, teacher))


def expected_importance_loss(logits, old, advantage):
    """The loss of each token on its own, weighted by how often the old policy draws it."""
    log_ratio = (logits.log_softmax(-1) - old)[:, None]
    each = [importance_loss(log_ratio[i : i + 1], advantage[i].view(1, 1), TRUE) for i in range(len(logits))]
    return (torch.stack(each) * old.exp()).sum()


@given(st.integers(0, 10**6), st.booleans())
def test_k3_has_the_gradient_of_the_reverse_kl_through_its_ratio_and_without_it_that_of_the_forward_kl(seed, weighed):
    logits, teacher, old = categoricals(seed)
    now = logits.log_softmax(-1)
    played = old if weighed else now.detach()
    ratio = now - old if weighed else torch.zeros_like(now)
    each = [k3_loss(ratio[i].view(1, 1), (now - teacher)[i].view(1, 1), TRUE) for i in range(len(logits))]
    found = torch.autograd.grad((torch.stack(each) * played.exp()).sum(), logits, retain_graph=True)[0]
    forward = torch.autograd.grad(kl(teacher, now), logits)[0]
    torch.testing.assert_close(found, exact_gradient(logits, teacher) if weighed else forward)


@given(st.integers(0, 10**6))
def test_the_sampled_kl_is_never_negative_and_right_in_expectation(seed):
    logits, _, old = categoricals(seed)
    new = logits.detach().log_softmax(-1)
    each = torch.stack([sampled_kl((new - old)[i].view(1, 1), TRUE) for i in range(7)])
    assert (each >= 0).all()
    torch.testing.assert_close((each * old.exp()).sum(), kl(old, new))
