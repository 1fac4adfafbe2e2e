"""Supervised fine-tuning beyond one step of AdamW: averages, parts of a batch, precision, what memory it takes."""

import copy

import pytest
import torch
import torch.multiprocessing as mp
from tiny_sft import SPEC, batch, learn_sharded, new

from policies.flow import FlowPolicy
from vla.algorithms.memory import training_bytes
from vla.algorithms.sft import SFT
from vla.models.state_mlp import StateMLP


def weights(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_average_is_the_running_average_of_what_is_trained():
    algorithm = new(ema=0.5)
    expected = weights(algorithm.policy).clone()
    for i in range(4):
        algorithm.update(batch(seed=i))
        share = min(0.5, (2 + i) / (11 + i))
        expected = share * expected + (1 - share) * weights(algorithm.learner)
    torch.testing.assert_close(weights(algorithm.policy), expected)
    assert not torch.allclose(weights(algorithm.policy), weights(algorithm.learner), atol=1e-5)


def test_what_is_trained_does_not_depend_on_its_average():
    plain, averaged = new(), new(ema=0.9)
    for i in range(3):
        plain.update(batch(seed=i))
        averaged.update(batch(seed=i))
    torch.testing.assert_close(weights(averaged.learner), weights(plain.policy), rtol=0, atol=0)


def test_an_average_goes_on_where_it_stopped():
    whole = new(ema=0.9)
    for i in range(4):
        whole.update(batch(seed=i))
        if i == 1:
            saved = copy.deepcopy({name: part.state_dict() for name, part in whole.parts.items()})
    resumed = new(ema=0.9)
    for name, part in resumed.parts.items():
        part.load_state_dict(saved[name])
    for i in (2, 3):
        resumed.update(batch(seed=i))
    torch.testing.assert_close(weights(resumed.policy), weights(whole.policy), rtol=0, atol=0)


def test_a_batch_in_parts_is_the_batch():
    whole, parts = new(), new(accumulate=4)
    for i in range(3):
        a, b = whole.update(batch(seed=i)), parts.update(batch(seed=i))
        assert a["sft_loss"] == pytest.approx(b["sft_loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    torch.testing.assert_close(weights(whole.policy), weights(parts.policy), rtol=1e-4, atol=1e-5)


def test_bfloat16_learns_nearly_the_same_and_keeps_full_weights():
    exact, rough = new(), new(precision="bfloat16")
    losses = [(exact.update(batch(seed=i))["sft_loss"], rough.update(batch(seed=i))["sft_loss"]) for i in range(3)]
    assert all(abs(a - b) < 0.05 * a for a, b in losses)
    assert any(a != b for a, b in losses)
    assert {p.dtype for p in rough.policy.parameters()} == {torch.float32}


def test_validation_draws_the_same_chance_each_time_and_disturbs_no_other():
    torch.manual_seed(0)
    algorithm = SFT(FlowPolicy(SPEC, StateMLP, 2), total_steps=50, warmup_steps=2)
    state = torch.get_rng_state()
    assert algorithm.validate(batch()) == algorithm.validate(batch())
    assert torch.equal(torch.get_rng_state(), state)


def test_two_processes_with_half_the_weights_each_learn_what_one_does_and_go_on_where_they_stopped(tmp_path):
    mp.spawn(learn_sharded, (str(tmp_path),), nprocs=2)
    told = torch.load(tmp_path / "told.pt", weights_only=True)
    whole = new(ema=0.9)
    losses = [whole.update(batch(seed=i))["sft_loss"] for i in range(4)]
    assert told["loss"] == pytest.approx(losses[2:], rel=1e-4)
    through, resumed = told["weights"]
    for name, ours in whole.policy.state_dict().items():
        torch.testing.assert_close(resumed[name], through[name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(through[name], ours, rtol=1e-4, atol=1e-5)
    size = sum(p.numel() for p in whole.policy.parameters())
    assert told["share"] == pytest.approx(size / 2, rel=0.02)


def test_a_model_that_cannot_recompute_is_refused():
    with pytest.raises(ValueError, match="TokenPolicy has no pretrained model that can recompute"):
        new(recompute=True)


def test_memory_is_told_beforehand():
    algorithm = new(ema=0.9)
    told = training_bytes(algorithm, batch(1), rows=64)
    size = 4 * sum(p.numel() for p in algorithm.policy.parameters())
    buffers = 4 * sum(b.numel() for b in algorithm.policy.buffers())
    assert told["weights"] == 2 * (size + buffers)
    assert told["gradients"] == size
    assert told["optimizer"] == 2 * size
    one, many = (training_bytes(algorithm, batch(1), rows=rows)["activations"] for rows in (1, 64))
    assert many == 64 * one
    assert one >= 4 * (64 + 64 + 256)  # what the layers put out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ema": 1.0}, "ema must be between 0 and 1"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"precision": "half"}, "precision must be one of float32, bfloat16, got 'half'"),
    ],
)
def test_sft_refuses_what_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        new(**wrong)
    with pytest.raises(ValueError, match="a batch of 12 does not divide into accumulate=5"):
        new(accumulate=5).update(batch())
