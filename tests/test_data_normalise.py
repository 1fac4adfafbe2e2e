"""Statistics are exact and survive JSON."""

import json

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from vla.data.normalise import Statistics
from vla.models.state_mlp import StateMLP
from vla.types import Command, EnvSpec, Observation


def test_statistics_of_a_known_column():
    statistics = Statistics.of(torch.arange(101.0)[:, None] * torch.tensor([1.0, -2.0]))
    expected = {
        "mean": [50, -100],
        "std": [np.sqrt(850), 2 * np.sqrt(850)],  # of 0..n-1: (n^2 - 1) / 12
        "low": [0, -200],
        "high": [100, 0],
        "q01": [1, -198],
        "q99": [99, -2],
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(statistics, name), torch.tensor(value, dtype=torch.float32))


def test_percentiles_are_those_of_all_rows_together():
    """Two tasks at -1 and +1: averages over the two would be their own values, far too narrow for either."""
    statistics = Statistics.of(torch.cat([torch.full((50, 1), -1.0), torch.full((50, 1), 1.0)]))
    assert (statistics.q01.item(), statistics.q99.item()) == (-1.0, 1.0)


def test_a_large_offset_does_not_spoil_the_deviation():
    values = 1e6 + torch.tensor([[0.0], [0.0], [1.0]])
    assert Statistics.of(values).std.item() == pytest.approx(np.sqrt(2) / 3, rel=1e-6)


def test_statistics_come_back_from_json_exactly():
    statistics = Statistics.of(torch.randn(37, 5, generator=torch.Generator().manual_seed(1)))
    again = Statistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    assert all(torch.equal(getattr(statistics, name), getattr(again, name)) for name in statistics.to_dict())


def test_what_is_not_finite_is_refused_by_place():
    values = torch.zeros(4, 3)
    values[2, 1] = torch.nan
    with pytest.raises(ValueError, match="row 2, column 1 is nan"):
        Statistics.of(values)
    with pytest.raises(ValueError, match="at least one row"):
        Statistics.of(values[:0])


def test_proprio_is_divided_by_a_guess_until_there_are_statistics():
    spec = EnvSpec(1, 20.0, 50, (), (("state", 2),), Command("ee_delta", 7, 0.05, 0.2))
    guessed, plain = StateMLP(spec, std=0.25), StateMLP(spec)
    plain.net.load_state_dict(guessed.net.state_dict())
    small, large = (
        Observation(images=TensorDict({}, [1]), proprio=x, instruction=["do it"], batch_size=[1])
        for x in (torch.tensor([[0.1, -0.2]]), torch.tensor([[0.4, -0.8]]))
    )
    torch.testing.assert_close(guessed(small), plain(large))
    known = Statistics.of(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    guessed.set_statistics(known)
    plain.set_statistics(known)
    torch.testing.assert_close(guessed(small), plain(small))
