"""The order of trials, what counts, and what is concluded from them, without a robot."""

import io
from dataclasses import replace

import pytest

from real import session
from real.board import Board, Quit
from real.session import Result, Trial
from real.terminal import Terminal, understood
from vla.statistics import better

PLAIN = Result(
    number=1,
    seed=0,
    policy="A",
    ended="time",
    success=True,
    verdict=None,
    progress=100,
    intervened=False,
    tag="",
    note="",
    fault="",
    steps=10,
    late=0,
    cut=0,
    decision_ms=1.0,
    began="",
)


def result(number, seed, policy, **more):
    return replace(PLAIN, number=number, seed=seed, policy=policy, **more)


def test_every_policy_plays_every_scene_and_neither_is_always_first():
    trials = session.schedule("ABC", range(5, 45), chance=0)
    assert len(trials) == len({(x.seed, x.policy) for x in trials}) == 120
    assert [x.seed for x in trials] == sorted(x.seed for x in trials)
    assert [x.number for x in trials] == list(range(1, 121))
    first = [x.policy for x in trials[::3]]
    assert min(first.count(x) for x in "ABC") >= 5
    assert session.schedule("ABC", range(5, 45), chance=0) == trials
    assert session.schedule("ABC", range(5, 45), chance=1) != trials


def test_letters_hide_which_policy_is_which():
    assert {session.letters(["a", "b"], chance)["A"] for chance in range(8)} == {"a", "b"}


def test_what_is_void_is_played_again_and_counts_nowhere():
    trials = [Trial(1, 0, "A"), Trial(2, 0, "B")]
    results = [result(1, 0, "A", ended="void"), result(2, 0, "B")]
    assert session.left(trials, results) == trials[:1]
    told = session.figures({"A": "one", "B": "two"}, results)
    assert told["void"] == 1
    assert (told["policies"]["one"]["n"], told["policies"]["two"]["n"]) == (0, 1)


def test_help_and_faults_are_no_successes_and_are_counted_as_what_they_are():
    results = [
        result(1, 0, "A"),
        result(2, 1, "A", intervened=True),
        result(3, 2, "A", ended="fault", fault="reflex"),
        result(4, 3, "A", success=False, progress=40, tag="dropped", ended="abort", verdict=True),
    ]
    told = session.figures({"A": "one"}, results)["policies"]["one"]
    assert (told["k"], told["n"], told["faults"], told["aborts"], told["interventions"]) == (1, 4, 1, 1, 1)
    assert told["mean_progress"] == 85.0
    assert told["disagreements"] == 1
    assert told["failures"] == {"dropped": 1, "untagged": 2}


def test_pairs_are_of_the_same_scene():
    results = [
        *(result(1, 0, "A"), result(2, 0, "B", success=False)),
        *(result(3, 1, "B"), result(4, 1, "A", success=False)),
        *(result(5, 2, "A"), result(6, 2, "B")),
        result(7, 3, "A"),
    ]
    assert session.pairs("A", "B", results) == [1, -1, 0]
    told = session.figures({"A": "one", "B": "two"}, results)["comparison"]
    assert (told["pairs"], told["only_first"], told["only_second"], told["p"]) == (3, 1, 1, 1.0)


def test_the_better_of_two_rates():
    assert better((5, 10), (5, 10)) == pytest.approx(0.5, abs=0.01)
    assert better((1, 1), (0, 1)) == pytest.approx(5 / 6, abs=0.01)  # Beta(2, 1) over Beta(1, 2)


def test_results_are_read_as_they_were_written(tmp_path):
    results = [result(1, 0, "A", verdict=None, note='said "no",\nthen yes'), result(2, 0, "B", verdict=False)]
    session.save(tmp_path / "trials.jsonl", results)
    assert session.load(tmp_path / "trials.jsonl") == results
    assert session.load(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("wrong", [{"ended": "luck"}, {"progress": 101}])
def test_a_result_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        replace(PLAIN, **wrong)


def test_the_board_waits_for_what_is_wanted_and_says_so():
    board = Board()
    for message in ({"say": "label"}, {"say": "ready"}):
        board.tell(message)
    assert board.wait("ready") == {"say": "ready"}
    board.tell({"say": "undo"})
    board.tell({"say": "quit"})
    with pytest.raises(Quit):
        board.wait("ready")
    assert board.state["notice"] == "undo is not possible now: ready"
    with pytest.raises(ValueError, match=r"say one of .*, got 'dance'"):
        board.tell({"say": "dance"})


def test_stop_and_abort_act_at_once():
    stopped = []
    board = Board(stopped.append)
    board.tell({"say": "abort"})
    assert board.aborted.is_set()
    assert stopped == []
    board.tell({"say": "stop"})
    assert stopped == ["the operator stopped it"]


@pytest.mark.parametrize(
    ("line", "phase", "message"),
    [
        ("", "clear", {"say": "clear"}),
        ("", "scene", {"say": "ready"}),
        ("", "running", {"say": "abort"}),
        ("undo", "scene", {"say": "undo"}),
        ("s", "label", {"say": "label", "success": True}),
        ("f 40% let it fall", "label", {"say": "label", "success": False, "progress": 40, "tag": "let it fall"}),
        ("v", "label", {"say": "label", "success": False, "void": True}),
        ("stop", "label", {"say": "stop"}),
    ],
)
def test_what_is_typed_is_understood(line, phase, message):
    assert understood(line, {"phase": phase}) == message


def test_what_is_typed_wrongly_is_answered_with_what_can_be_said():
    with pytest.raises(ValueError, match="what came of it"):
        understood("maybe", {"phase": "label"})
    with pytest.raises(ValueError, match="percent, got 'half'"):
        understood("f half", {"phase": "label"})


def test_a_terminal_says_what_is_asked_and_its_end_ends_the_session():
    board, said = Board(), []
    terminal = Terminal(board, io.StringIO("\n"), said.append)
    board.show(phase="scene", trial=2, trials=4)
    assert "trial 2 of 4: set the scene" in "".join(said)
    with pytest.raises(Quit):  # the only line said too early what is not possible in this phase
        board.wait("clear")
    terminal.close()
