"""Chunks line up with their observations, stay in their episode, and the stream can be resumed bit for bit."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from vla.data.chunks import Chunks, Mixture, chunks_at, recoloured, shifted, statistics
from vla.data.frames import Frames
from vla.types import Camera, Command, EnvSpec

SPEC = EnvSpec(1, 10.0, 50, (Camera("top", 6, 5),), (("clock", 1),), Command("ee_delta", 2, max_translation=1.0))


def counting(*lengths: int) -> Frames:
    """Frame t of episode e is seen as 100 e + t, and so is its command; the picture holds t; texts tell e."""
    clock = torch.cat([100 * e + torch.arange(n) for e, n in enumerate(lengths)]).float()
    return Frames(
        spec=SPEC,
        images={"top": (clock % 100).to(torch.uint8)[:, None, None, None].expand(-1, 6, 5, 3)},
        proprio=clock[:, None],
        action=torch.stack([clock, -clock], -1),
        reward=torch.zeros_like(clock),
        success=torch.cat([torch.arange(n) == (n - 1 if e % 2 == 0 else -1) for e, n in enumerate(lengths)]),
        terminated=torch.zeros_like(clock, dtype=torch.bool),
        task=(clock // 100).long(),
        instructions=tuple(f"task {e}" for e in range(len(lengths))),
        episode_start=torch.tensor([0, *lengths]).cumsum(0),
    )


def test_the_chunk_at_t_holds_the_commands_from_t_on():
    batch = chunks_at(counting(5, 4), torch.tensor([1, 5]), 3, Chunks(counting(5, 4), 3, 1).last)
    assert batch.obs.proprio[:, 0].tolist() == [1, 100]
    assert batch.chunk[..., 0].tolist() == [[1, 2, 3], [100, 101, 102]]
    assert batch.chunk[..., 1].tolist() == [[-1, -2, -3], [-100, -101, -102]]
    assert not batch.padded.any()


def test_beyond_the_end_the_last_command_is_repeated_and_marked():
    batch = chunks_at(counting(5, 4), torch.tensor([3, 4, 8]), 3, Chunks(counting(5, 4), 3, 1).last)
    assert batch.chunk[..., 0].tolist() == [[3, 4, 4], [4, 4, 4], [103, 103, 103]]
    assert batch.padded.tolist() == [[False, False, True], [False, True, True], [False, True, True]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 12), st.integers(1, 17), st.integers(0, 99))
def test_every_chunk_is_its_observations_and_every_epoch_gives_all_frames_once(lengths, horizon, batch_size, seed):
    frames = counting(*lengths)
    chunks = Chunks(frames, horizon, batch_size, seed=seed)
    seen = []
    while len(seen) < 2 * len(frames):
        batch = next(chunks)
        clock = batch.obs.proprio
        steps = clock + torch.arange(horizon)
        last = torch.tensor(lengths)[(clock // 100).long()] - 1 + clock // 100 * 100
        assert torch.equal(batch.chunk[..., 0], steps.minimum(last))
        assert torch.equal(batch.padded, steps > last)
        assert torch.equal(batch.obs.images["top"][:, 2, 3, 1], (clock[:, 0] % 100).to(torch.uint8))
        assert list(batch.obs.instruction) == [f"task {int(x)}" for x in clock[:, 0] // 100]
        seen += clock[:, 0].tolist()
    n = len(frames)
    everything = sorted(frames.proprio[:, 0].tolist())
    assert sorted(seen[:n]) == sorted(seen[n : 2 * n]) == everything


def test_epochs_and_seeds_have_different_orders():
    def order(seed: int) -> list[list[float]]:
        chunks = Chunks(counting(20, 20), 1, 40, seed=seed)
        return [next(chunks).obs.proprio[:, 0].tolist() for _ in range(2)]

    first, second = order(0)
    assert first != second
    assert order(0) == [first, second]
    assert order(1)[0] not in (first, second)


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_a_resumed_stream_is_the_uninterrupted_one_bit_for_bit(stop):
    frames = counting(7, 9, 3)
    whole = Chunks(frames, 4, 6, seed=3, shift=2)
    batches = [next(whole) for _ in range(10)]
    first = Chunks(frames, 4, 6, seed=3, shift=2)
    for _ in range(stop):
        next(first)
    second = Chunks(frames, 4, 6, seed=0, shift=2)
    next(second)  # has begun with another seed
    second.load_state_dict(first.state_dict())
    for expected in batches[stop:]:
        batch = next(second)
        assert torch.equal(batch.chunk, expected.chunk)
        assert torch.equal(batch.padded, expected.padded)
        assert torch.equal(batch.obs.proprio, expected.obs.proprio)
        assert torch.equal(batch.obs.images["top"], expected.obs.images["top"])


def test_resuming_on_other_data_is_refused():
    chunks = Chunks(counting(4), 1, 2)
    with pytest.raises(ValueError, match="over 5 frames, now there are 4"):
        chunks.load_state_dict(Chunks(counting(5), 1, 2).state_dict())


def test_shifting_moves_down_and_right_and_repeats_the_border():
    picture = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4, 1).expand(-1, -1, -1, 3)
    moved = shifted(picture.expand(2, -1, -1, -1), torch.tensor([[1, 0], [0, -2]]))
    assert moved[0, ..., 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert moved[1, ..., 2].tolist() == [[2, 3, 3, 3], [6, 7, 7, 7], [10, 11, 11, 11]]


def test_pictures_are_moved_where_they_are():
    pictures = torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device="meta")  # not mixed with indices from the CPU
    assert shifted(pictures, torch.zeros(2, 2, dtype=torch.long, device="meta")).device.type == "meta"


def test_the_stream_shifts_by_at_most_what_was_asked_in_all_directions():
    frames = counting(1)
    spot = torch.zeros(1, 6, 5, 3, dtype=torch.uint8)
    spot[0, 3, 2] = 255
    frames.images["top"] = spot
    chunks = Chunks(frames, 1, 200, seed=0, shift=1)
    places = next(chunks).obs.images["top"][..., 0].nonzero()[:, 1:].tolist()
    assert {tuple(x) for x in places} == {(row, column) for row in (2, 3, 4) for column in (1, 2, 3)}
    again = next(chunks).obs.images["top"][..., 0].nonzero()[:, 1:].tolist()
    assert again != places
    unmoved = next(Chunks(frames, 1, 5)).obs.images["top"]
    assert torch.equal(unmoved, spot.expand(5, -1, -1, -1))


def test_selecting_episodes_takes_all_of_them_and_nothing_else():
    frames = counting(3, 2, 4).select([2, 0])
    assert frames.proprio[:, 0].tolist() == [200, 201, 202, 203, 0, 1, 2]
    assert frames.episode_start.tolist() == [0, 4, 7]
    assert frames.images["top"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert [frames.instructions[i] for i in frames.task.tolist()] == ["task 2"] * 4 + ["task 0"] * 3
    assert counting(3, 2, 4).succeeded().tolist() == [True, False, True]


def test_statistics_are_over_frames_and_not_over_padded_chunks():
    proprio, action = statistics(counting(3, 1))
    assert proprio.mean.tolist() == [(0 + 1 + 2 + 100) / 4]
    assert (action.low.tolist(), action.high.tolist()) == ([0, -100], [100, 0])


def test_senseless_sizes_and_empty_data_are_refused():
    with pytest.raises(ValueError, match="horizon >= 1"):
        Chunks(counting(3), 0, 2)
    with pytest.raises(ValueError, match="no frames"):
        Chunks(counting(3).select([]), 1, 2)


def test_a_mixture_draws_each_dataset_by_its_weight_not_its_size():
    small, large = Chunks(counting(5), 2, 64), Chunks(counting(0, 90), 2, 64)
    mixture = Mixture([small, large], [3.0, 1.0], 64, seed=2)
    drawn = torch.cat([next(mixture).obs.proprio[:, 0] for _ in range(50)])
    assert (drawn < 100).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert len(drawn) == 50 * 64
    assert small.position + large.position == 50 * 64  # no frame of either was passed over


def test_a_mixture_goes_on_where_another_stopped():
    def mixture():
        return Mixture([Chunks(counting(5, 4), 2, 8, seed=1, shift=1), Chunks(counting(7), 2, 8)], [1.0, 1.0], 8)

    whole = mixture()
    first = [next(whole) for _ in range(3)]
    state = whole.state_dict()
    rest = [next(whole) for _ in range(3)]
    resumed = mixture()
    resumed.load_state_dict(state)
    for expected in rest:
        got = next(resumed)
        assert torch.equal(got.chunk, expected.chunk)
        assert torch.equal(got.obs.images["top"], expected.obs.images["top"])
    assert not torch.equal(first[0].chunk, rest[0].chunk)


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0]])
def test_a_mixture_refuses_weights_that_mean_nothing(weights):
    with pytest.raises(ValueError, match="need one weight for each of 2 datasets"):
        Mixture([Chunks(counting(5), 2, 4), Chunks(counting(5), 2, 4)], weights, 4)


def test_colours_change_by_what_was_drawn():
    pictures = torch.full((2, 4, 4, 3), 100, dtype=torch.uint8)
    pictures[:, :, :2] = 140
    changed = recoloured(pictures, torch.tensor([[1.0, 0.5], [0.5, 1.0]])).float()
    assert changed[0, 0].unique().tolist() == [110, 130]  # around the mean of 120
    assert changed[1, 0].unique().tolist() == [50, 70]


def test_colours_differ_from_batch_to_batch_and_come_again_with_the_seed():
    streams = [Chunks(counting(9), 2, 9, seed=3, colour=0.3) for _ in range(2)]
    ours, theirs = ([next(x).obs.images["top"] for _ in range(2)] for x in streams)
    assert torch.equal(ours[0], theirs[0])
    assert not torch.equal(ours[0].sum(), ours[1].sum())
    with pytest.raises(ValueError, match=r"colour must be a share from 0 up to 1, got 1\.5"):
        Chunks(counting(5), 2, 4, colour=1.5)
