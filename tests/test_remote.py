"""A policy on another machine: the same decisions, in time or an error, whatever either side sends or suffers."""

import csv
import io
import json
import os
import pickle
import random
import signal
import socket as sockets
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import msgpack
import PIL.Image
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from programs import run
from tensordict import TensorDict
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve as listen

from policies.flow import FlowPolicy
from policies.gaussian import GaussianPolicy
from policies.residual import ResidualPolicy
from policies.token import TokenPolicy
from simulators.point import PointEnv
from vla import encoding
from vla.checkpoint import build_policy, load_policy, save_policy
from vla.encoding import PROTOCOL, decoded_observation, encoded_observation, packed, unpacked
from vla.models.denoisers import UNet1D
from vla.models.film_cnn import FilmCNN
from vla.models.state_mlp import StateMLP
from vla.program import CONFIGS
from vla.recipes import serve as recipe
from vla.recipes.evaluate import evaluate, player
from vla.recipes.serve import PolicyServer, main
from vla.remote import FailedDecision, LateAnswer, LostConnection, RefusedConnection, RemotePolicy
from vla.rollout import Greedy, decide, rollout
from vla.types import Action

SECRET = "swordfish"
LONG = 60  # seconds: what is not meant to be late must not be, on a busy machine
SPEC = PointEnv(num_targets=2).spec
STATE = {"_target_": "vla.models.state_mlp.StateMLP", "_partial_": True}
CONFIG = {"_target_": "policies.token.TokenPolicy", "horizon": 2, "bins": 8, "encoder": STATE}
SmallGaussian = partial(GaussianPolicy, encoder=StateMLP, horizon=3)
POLICIES = {
    "token": lambda: TokenPolicy(SPEC, StateMLP, 3, bins=16),
    "gaussian": lambda: SmallGaussian(SPEC),
    "gaussian, seeing": lambda: GaussianPolicy(SPEC, partial(FilmCNN, channels=(8, 16)), 3),
    "flow": lambda: FlowPolicy(
        SPEC, StateMLP, 3, partial(UNet1D, channels=(32, 32), time_width=16), steps=4, chain="sde"
    ),
    "residual": lambda: ResidualPolicy(SPEC, SmallGaussian(SPEC), SmallGaussian),
}


class Counting:
    """Its k-th decision is k; it can be made to wait or fail, and two at once are too many for it."""

    spec, horizon = SPEC, 1

    def __init__(self):
        self.count, self.fails, self.deciding = 0, False, threading.Lock()
        self.go_on = threading.Event()
        self.go_on.set()

    def parameters(self):
        return iter(())

    def act(self, obs):
        assert self.deciding.acquire(blocking=False), "two at once"
        with closing(SimpleNamespace(close=self.deciding.release)):
            assert self.go_on.wait(LONG)
            if self.fails:
                raise RuntimeError("out of memory")
            self.count += 1
        commands = torch.full((len(obs), 1, 2), float(self.count))
        return Action(
            commands=commands,
            log_prob=torch.zeros(len(obs), 0),
            latent=TensorDict({}, obs.batch_size),
            batch_size=obs.batch_size,
        )


class Remembering(Counting):
    """Counts from the seed of the episode."""

    def begin(self, seed):
        self.count = seed


@contextmanager
def serving(policy, name="here", token=None, port=0):
    """Its address, while a thread serves it."""
    with PolicyServer(policy, name, token).listen("127.0.0.1", port) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    thread.join()


@contextmanager
def pretending(*answers):
    """The address of a server that welcomes, then sends these bytes after each question."""
    welcome = packed(PolicyServer(Counting(), "here")._introduction())

    def meet(socket):
        with suppress(ConnectionClosed):
            socket.recv()
            socket.send(welcome)
            while True:
                socket.recv()
                for answer in answers:
                    socket.send(answer)

    with listen(meet, "127.0.0.1", 0, close_timeout=1) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    thread.join()


def remote(url, spec=SPEC, deadline=LONG, **settings):
    return closing(RemotePolicy(url, spec, deadline, **settings))


def observe(seed=0, num_envs=3, **settings):
    return PointEnv(num_envs=num_envs, num_targets=2, **settings).reset(seed)


def number(action) -> float:
    return action.commands[0, 0, 0].item()


def assert_same(one: Action, other: Action) -> None:
    assert torch.equal(one.commands, other.commands)
    assert torch.equal(one.log_prob, other.log_prob)
    assert set(one.latent.keys()) == set(other.latent.keys())
    for name, x in one.latent.items():
        if isinstance(x, Action):
            assert_same(x, other.latent[name])
        else:
            assert torch.equal(x, other.latent[name])


# ---- the same decisions


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("pictures", ["raw", "png"])
def test_a_served_policy_decides_the_same_bit_for_bit(name, pictures):
    policy = POLICIES[name]()
    with serving(policy) as url, remote(url, pictures=pictures) as there, torch.no_grad():
        assert (there.name, there.horizon, there.spec) == ("here", 3, SPEC)
        for i in range(3):
            obs, streams = observe(seed=10 * i), [(4, 0, i), (7, 1, i), (5, 0, i)]
            for actor in (there, policy):
                getattr(actor, "begin", int)(0)
            assert_same(decide(there, obs, streams), decide(policy, obs, streams))
            assert_same(there.mode(obs), policy.mode(obs))


def test_episodes_played_by_a_served_policy_are_those_of_the_policy():
    policy, env = POLICIES["token"](), PointEnv(num_envs=3, num_targets=2)
    with serving(policy) as url, remote(url) as there:
        for draw in (0, 1):
            here, far = rollout(env, policy, seed=5, draw=draw), rollout(env, there, seed=5, draw=draw)
            assert torch.equal(here.action.commands, far.action.commands)
            assert torch.equal(here.valid, far.valid)
        one_by_one = rollout(env, there, seed=5, draw=1, batch=1)
        torch.testing.assert_close(one_by_one.action.commands, far.action.commands)


def test_outside_of_episodes_chance_follows_from_the_seed_on_this_side():
    with serving(POLICIES["gaussian"]()) as url, remote(url) as there:
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append([there.act(observe()).commands for _ in range(2)])
        assert torch.equal(drawn[0][0], drawn[1][0])
        assert torch.equal(drawn[0][1], drawn[1][1])
        assert not torch.equal(drawn[0][0], drawn[0][1])
        assert not torch.equal(drawn[0][0], drawn[2][0])


def test_clients_share_a_policy_without_memory_and_its_chance_is_each_ones_own():
    policy = POLICIES["gaussian"]()
    with serving(policy) as url, remote(url) as one, remote(url) as other, torch.no_grad():
        expected = [decide(policy, observe(), [(0, 0, i)] * 3).commands for i in range(8)]
        found = {}

        def play(name, actor):
            with torch.no_grad():
                found[name] = [decide(actor, observe(), [(0, 0, i)] * 3).commands for i in range(8)]

        threads = [threading.Thread(target=play, args=x) for x in (("one", one), ("other", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name in ("one", "other"):
        assert all(torch.equal(a, b) for a, b in zip(found[name], expected, strict=True))


def test_one_decision_is_made_at_a_time():
    policy = Counting()
    policy.go_on.clear()
    with serving(policy) as url, remote(url) as one, remote(url) as other:
        found = []
        threads = [threading.Thread(target=lambda x=x: found.append(number(x.act(observe())))) for x in (one, other)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        policy.go_on.set()
        for thread in threads:
            thread.join()
    assert sorted(found) == [1, 2]


def test_what_only_a_simulator_knows_never_travels():
    obs = observe()
    obs.privileged = TensorDict({"cube": torch.zeros(3, 7)}, [3])
    assert set(encoded_observation(obs)) == {"images", "proprio", "instruction"}


def test_jpeg_is_small_and_nearly_the_same():
    obs = observe(image_size=128)
    spec = PointEnv(num_targets=2, image_size=128).spec
    raw, png, jpeg = (packed(encoded_observation(obs, x)) for x in ("raw", "png", "jpeg"))
    assert len(jpeg) < len(raw) / 5
    assert len(png) < len(raw) / 5
    assert torch.equal(decoded_observation(unpacked(png), spec).images["top"], obs.images["top"])
    near = decoded_observation(unpacked(jpeg), spec).images["top"].float()
    assert 0 < (near - obs.images["top"].float()).abs().mean() < 2


def test_every_decision_is_timed():
    with serving(POLICIES["token"]()) as url, remote(url) as there:
        for _ in range(3):
            there.mode(observe())
        assert [x.number for x in there.timings] == [1, 2, 3]
        assert all(0 < x.inference < x.round_trip < LONG for x in there.timings)


# ---- memory


def test_a_policy_that_remembers_has_one_client_at_a_time_and_begins_with_its_episodes():
    with serving(Remembering()) as url, remote(url) as there:
        with pytest.raises(FailedDecision, match="begin another"):
            there.act(observe())
        there.begin(7)
        assert [number(there.act(observe())) for _ in range(2)] == [8, 9]
        there.begin(20)
        assert number(there.mode(observe())) == 21
        with pytest.raises(RefusedConnection, match="another client, and its policy remembers"):
            RemotePolicy(url, SPEC, LONG)
        there.close()
        second = patiently(lambda: RemotePolicy(url, SPEC, LONG), RefusedConnection)
        with closing(second), pytest.raises(FailedDecision, match="begin another"):
            second.act(observe())


def test_a_beginning_whose_decision_was_lost_is_told_again():
    policy = Remembering()
    with serving(policy) as url, remote(url) as there:
        there.begin(3)
        policy.fails = True
        with pytest.raises(
            FailedDecision, match=r"call 1: the policy at ws://.* failed there: RuntimeError: out of memory"
        ):
            there.act(observe())
        policy.fails, policy.count = False, 100
        assert number(there.act(observe())) == 4


def test_only_a_policy_that_remembers_is_told_of_episodes():
    with serving(Counting()) as url, remote(url) as there:
        assert not hasattr(there, "begin")


def patiently(call, error):
    """What a call gives as soon as it no longer raises `error`."""
    until = time.monotonic() + LONG
    while True:
        try:
            return call()
        except error:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


# ---- late and lost


def test_a_late_answer_is_an_error_and_is_never_taken_for_a_later_one():
    policy = Counting()
    with serving(policy) as url, remote(url) as there:
        policy.go_on.clear()
        there.deadline = 0.1
        with pytest.raises(LateAnswer, match=r"call 1 to ws://.*: no answer after 0\.\d+ s, with a deadline of 0.1 s"):
            there.act(observe())
        there.deadline = LONG
        policy.go_on.set()
        assert number(there.act(observe())) == 2
        assert [x.number for x in there.timings] == [2]


def test_decisions_that_nobody_waits_for_any_more_are_not_made():
    policy = Counting()
    with serving(policy) as url, remote(url) as there:
        policy.go_on.clear()
        there.deadline = 0.1
        for _ in range(4):
            with pytest.raises(LateAnswer):
                there.act(observe())
        threading.Timer(0.3, policy.go_on.set).start()
        there.deadline = LONG
        assert number(there.act(observe())) < 5  # all five would be 5
        assert there.number == 5


def test_answers_to_other_questions_are_passed_over():
    right = {"number": 1, "action": encoding.encoded_action(Counting().act(observe())), "seconds": 0.5}
    others = [packed({**right, "number": n, "action": None}) for n in (0, 2, None, "1", 1.5)]
    with pretending(*others, packed(right)) as url, remote(url) as there:
        assert number(there.act(observe())) == 1
        assert there.timings[0].inference == 0.5


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        ("text", LostConnection, "no server of policies: a message is bytes, got str"),
        (b"\xc1", LostConnection, "no server of policies: not a message"),
        (packed({"number": 1, "seconds": 0.1}), ValueError, "an action is a mapping from names, got NoneType"),
        (packed({"number": 1, "action": {}, "seconds": 0.1}), ValueError, "an action has commands, log_prob, latent"),
    ],
)
def test_an_answer_that_is_none_is_an_error(answer, error, match):
    with pretending(answer) as url, remote(url) as there, pytest.raises(error, match=match):
        there.act(observe())


def test_an_action_for_others_is_refused():
    two = packed({"number": 1, "action": encoding.encoded_action(Counting().act(observe(num_envs=2))), "seconds": 0.1})
    with pretending(two) as url, remote(url) as there, pytest.raises(ValueError, match="3 rows, as many as were asked"):
        there.act(observe())


def test_where_nothing_or_something_else_answers_it_is_said_in_time():
    with sockets.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            LostConnection, match=r"first connection to ws://.*Is `python -m vla.recipes.serve` running"
        ):
            RemotePolicy(url, SPEC, LONG)
        silent.listen()
        with pytest.raises(LateAnswer, match="first connection"):
            RemotePolicy(url, SPEC, 0.2)


def test_a_closed_one_decides_no_more():
    with serving(Counting()) as url, remote(url) as there:
        there.close()
        with pytest.raises(LostConnection, match="it was closed here"):
            there.act(observe())


def test_after_its_server_has_ended_it_finds_the_next_one_at_the_same_place():
    with serving(Counting(), "one") as url:
        there = RemotePolicy(url, SPEC, LONG)
        there.act(observe())
    for _ in range(2):
        with pytest.raises(LostConnection, match="The next call tries again"):
            there.act(observe())
    port = int(url.rpartition(":")[2])
    with closing(there):
        with serving(Counting(), "one", port=port):
            assert number(there.act(observe())) == 1
        with (
            serving(Counting(), "two", port=port),
            pytest.raises(RefusedConnection, match=r"another policy now: two .*; before it was one .*chunks of 1"),
        ):
            there.act(observe())


# ---- refusals


def test_sides_that_disagree_are_refused_with_both_named():
    other = PointEnv(num_targets=2, image_size=32).spec
    with (
        serving(Counting()) as url,
        pytest.raises(
            RefusedConnection, match=r"made for \[\('top', 16, 16\)\], the environment has \[\('top', 32, 32\)\]"
        ),
    ):
        RemotePolicy(url, other, LONG)


def test_another_version_is_refused_with_both_named(monkeypatch):
    with serving(Counting()) as url:
        monkeypatch.setattr("vla.remote.PROTOCOL", 99)
        with pytest.raises(RefusedConnection, match="it speaks version 1 of the protocol, the client 99"):
            RemotePolicy(url, SPEC, LONG)
        with connect(url) as client:
            client.send(packed({"protocol": PROTOCOL, "spec": SPEC.to_dict()}))
            assert unpacked(client.recv())["protocol"] == PROTOCOL


@pytest.mark.parametrize("wrong", [None, "", "swordfis", "swordfishes", "SWORDFISH"])
def test_a_wrong_token_is_refused_before_anything_is_said(wrong):
    with serving(Counting(), token=SECRET) as url:
        with remote(url, token=SECRET) as there:
            assert number(there.act(observe())) == 1
        with pytest.raises(RefusedConnection, match="the token is wrong: set ARMATURE_TOKEN"):
            RemotePolicy(url, SPEC, LONG, wrong)


def test_a_page_in_a_browser_is_refused():
    with serving(Counting()) as url, pytest.raises(InvalidStatus, match="403"):
        connect(url, origin="http://evil.example")


def test_what_makes_no_sense_is_refused_here():
    with pytest.raises(ValueError, match="served at ws://HOST:PORT"):
        RemotePolicy("http://127.0.0.1:1", SPEC)
    with pytest.raises(ValueError, match="deadline must be more than 0 seconds, got 0"):
        RemotePolicy("ws://127.0.0.1:1", SPEC, 0)
    with pytest.raises(ValueError, match="pictures must be one of raw, png, jpeg, got 'gif'"):
        RemotePolicy("ws://127.0.0.1:1", SPEC, pictures="gif")
    with pytest.raises(ValueError, match="one leading axis"):
        encoded_observation(observe().reshape(3, 1))


# ---- strangers


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def question(**changes):
    obs = {**encoded_observation(observe()), **changes.pop("obs", {})}
    return {"number": 1, "greedy": True, "begin": None, "streams": [[0, 0, 0]] * 3, "obs": obs, **changes}


def array(dtype="float32", shape=(3, 6), data=None):
    return {"dtype": dtype, "shape": list(shape), "bytes": bytes(72) if data is None else data}


def png(height, width, mode="RGB", form="png"):
    file = io.BytesIO()
    PIL.Image.new(mode, (width, height)).save(file, format=form)
    return {"images": {"top": {"files": [file.getvalue()] * 3}}}


WRONG = {
    "number must be a whole number, got None": {},
    "number must be a whole number, got True": question(number=True),
    "greedy must be true or false, got 1": question(greedy=1),
    "streams must be three numbers for each of 3": question(streams=[[0, 0, 0]]),
    "stream must be a whole number, got 0.5": question(streams=[[0, 0, 0.5]] * 3),
    "an observation is a mapping from names, got NoneType": {"number": 1},
    "an observation has images, proprio, instruction, got images, instruction, proprio, weight": question(
        obs={"weight": 1}
    ),
    "one text as instruction": question(obs={"instruction": []}),
    "one text as instruction for each": question(obs={"instruction": [1, 2, 3]}),
    "images has top, got side, top": question(obs={"images": {"top": array(), "side": array()}}),
    "proprio has dtype, shape, bytes, got nothing": question(obs={"proprio": {}}),
    "proprio must be float32, got 'object'": question(obs={"proprio": array("object")}),
    "proprio must be float32, got 'float64'": question(obs={"proprio": array("float64")}),
    "proprio must be float32, got \\['float32'\\]": question(obs={"proprio": array(["float32"])}),
    "proprio must have 72 bytes as its type and shape say, got 71": question(obs={"proprio": array(data=bytes(71))}),
    "proprio must have 72 bytes as its type and shape say, got str": question(obs={"proprio": array(data="x" * 72)}),
    "proprio must have the shape \\(3, 6\\), got \\(6, 3\\)": question(obs={"proprio": array(shape=(6, 3))}),
    "must be a short list of sizes, got \\[-3, -6\\]": question(obs={"proprio": array(shape=(-3, -6))}),
    "must be a short list of sizes, got \\[4611": question(obs={"proprio": array(shape=(2**62, 4))}),
    "must be a short list of sizes, got \\[True": question(obs={"proprio": array(shape=(True, 6))}),
    "must be a short list of sizes, got \\[0, 0": question(obs={"proprio": array(shape=[0] * 99, data=b"")}),
    "top must have one PNG or JPEG for each of 3": question(obs={"images": {"top": {"files": [b""]}}}),
    "a picture of top is neither PNG nor JPEG": question(obs={"images": {"top": {"files": [b"GIF89a"] * 3}}}),
    "a picture of top is neither PNG nor JPEG: Unid": question(obs=png(16, 16, form="bmp")),
    "RGB of 16 x 16 pixels, got RGB of 4000 x 4000": question(obs=png(4000, 4000)),
    "RGB of 16 x 16 pixels, got L of 16 x 16": question(obs=png(16, 16, "L")),
}


@pytest.fixture(scope="module")
def counting():
    with serving(Counting()) as url:
        yield url


@contextmanager
def greeted(url):
    with connect(url, max_size=None, close_timeout=1) as client:
        client.send(packed({"protocol": PROTOCOL, "spec": SPEC.to_dict()}))
        assert unpacked(client.recv(timeout=LONG))["name"] == "here"
        yield client


@pytest.mark.parametrize("match", WRONG)
def test_a_question_that_is_none_gets_a_clear_answer_and_the_next_one_is_answered(match, counting):
    with greeted(counting) as client:
        client.send(msgpack.packb(WRONG[match]))
        with pytest.raises(ValueError, match=match):
            raise ValueError(unpacked(client.recv(timeout=LONG))["error"])
        client.send(packed(question(number=2)))
        assert unpacked(client.recv(timeout=LONG)).keys() == {"number", "action", "seconds"}


@pytest.mark.parametrize(
    "garbage",
    [
        "text",
        b"",
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\x81" * 5000,
        msgpack.packb([1, 2, 3]),
        msgpack.packb({1: 2}, use_bin_type=True),
        msgpack.packb(msgpack.ExtType(5, b"x")),
        random.Random(0).randbytes(2000),
    ],
    ids=lambda x: repr(x[:8]),
)
def test_garbage_is_refused_as_a_greeting_and_as_a_question(garbage, counting):
    with connect(counting) as client:
        client.send(garbage)
        assert "refused" in unpacked(client.recv(timeout=LONG))
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=LONG)
    with greeted(counting) as client:
        client.send(garbage)
        assert unpacked(client.recv(timeout=LONG)).keys() == {"number", "error"}


def deep(levels):
    """A spec with far too many lists in lists."""
    nested = []
    for _ in range(levels):
        nested = [nested]
    return {**SPEC.to_dict(), "cameras": [{"name": nested, "height": 16, "width": 16}]}


@pytest.mark.parametrize(
    "spec",
    [None, [], {}, {"cameras": 5}, {**SPEC.to_dict(), "command": {"__class__": "os"}}, deep(400)],
    ids=lambda x: str(x)[:20],
)
def test_a_greeting_without_a_spec_is_refused(spec, counting):
    with connect(counting) as client:
        client.send(packed({"protocol": PROTOCOL, "spec": spec}))
        assert "spec" in unpacked(client.recv(timeout=LONG))["refused"]


def test_a_pickle_is_never_opened(counting, tmp_path):
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    for message in (
        trap,
        packed({"number": 1, "obs": trap}),
        packed(question(obs={"proprio": array("object", data=trap)})),
    ):
        with greeted(counting) as client:
            client.send(message)
            assert "error" in unpacked(client.recv(timeout=LONG))
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # it was one


def test_what_is_too_large_ends_that_connection_only(monkeypatch):
    monkeypatch.setattr(recipe, "LARGEST", 20_000)
    with serving(Counting()) as url, remote(url) as there:
        with greeted(url) as client:
            client.send(bytes(20_001))
            with pytest.raises(ConnectionClosed, match="1009"):
                client.recv(timeout=LONG)
        assert number(there.act(observe())) == 1
        monkeypatch.setattr(encoding, "LARGEST", 5_000)
        with pytest.raises(ValueError, match=r"a message of \d+ bytes is more than the 5000 that are taken: use fewer"):
            there.act(observe(num_envs=8))
        assert there.act(observe(num_envs=1)).batch_size == (1,)


def test_pictures_may_not_be_larger_than_messages_when_decoded(monkeypatch):
    monkeypatch.setattr(encoding, "LARGEST", 3 * 16 * 16 * 3 - 1)
    with pytest.raises(ValueError, match="top would have 2304 bytes, more than 2303"):
        decoded_observation(encoded_observation(observe(), "png"), SPEC)


def test_who_says_nothing_is_sent_away(monkeypatch):
    monkeypatch.setattr(recipe, "HELLO", 0.1)
    with serving(Counting()) as url, connect(url) as client:
        assert unpacked(client.recv(timeout=LONG))["refused"] == "no hello within 0.1 s"


def test_a_policy_that_fails_says_so_and_lives_on():
    policy = Counting()
    with serving(policy) as url, remote(url) as there:
        policy.fails = True
        for _ in range(2):
            with pytest.raises(FailedDecision, match="RuntimeError: out of memory"):
                there.act(observe())
        policy.fails = False
        assert number(there.act(observe())) == 1


def test_only_so_many_clients_are_served(monkeypatch):
    monkeypatch.setattr(recipe, "CLIENTS", 2)
    with (
        serving(Counting()) as url,
        remote(url),
        remote(url),
        pytest.raises(RefusedConnection, match="it serves 2 other clients"),
    ):
        RemotePolicy(url, SPEC, LONG)


# ---- programs, in processes of their own


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A policy for small pictures, and one for pictures that fill every buffer on the way."""
    places = {}
    for name, size in (("kept", 16), ("doomed", 512)):
        places[name] = tmp_path_factory.mktemp(name)
        policy = build_policy(OmegaConf.create(CONFIG), PointEnv(num_targets=2, image_size=size).spec)
        save_policy(places[name], policy, CONFIG)
    return places


@pytest.fixture(scope="module", autouse=True)
def started(checkpoints, tmp_path_factory):
    """Both served, with a token. They take seconds to start, in which the other tests run."""
    environment = {**os.environ, "ARMATURE_TOKEN": SECRET, "OMP_NUM_THREADS": "1"}
    begun = {}
    for name, place in checkpoints.items():
        command = [sys.executable, "-m", "vla.recipes.serve", f"policy={place}", "port=0", "device=cpu"]
        command.append(f"run_dir={tmp_path_factory.mktemp('run')}")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun[name] = subprocess.Popen(command, env=environment, cwd=Path(CONFIGS).parent, **pipes)
    yield begun
    for process in begun.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def processes(started):
    """The process and the address of each."""
    return {name: (process, process.stderr.readline().split()[-1]) for name, process in started.items()}


def played(directory, policy, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        settings = ["videos=0", "++env.num_envs=4", "++env.num_targets=2", "episodes=6", *overrides]
        figures = evaluate(compose("evaluate", overrides=[*settings, f"policy.path={policy}", f"run_dir={directory}"]))
    with open(directory / "episodes.csv", newline="") as file:
        return figures, list(csv.DictReader(file))


@pytest.mark.parametrize("greedy", [True, False])
def test_an_evaluation_over_the_network_plays_the_same_episodes(greedy, processes, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("ARMATURE_TOKEN", SECRET)
    settings = (f"greedy={greedy}", "sanity=true", "sanity_episodes=2")
    here, episodes = played(tmp_path / "here", checkpoints["kept"], *settings)
    there, same = played(tmp_path / "there", processes["kept"][1], *settings)
    assert same == episodes
    assert there["sanity"] == here["sanity"]
    assert (there["policy"], there["served"]) == (processes["kept"][1], str(checkpoints["kept"]))
    assert "served" not in here
    assert SECRET not in "".join(x.read_text() for x in (tmp_path / "there").rglob("*") if x.is_file())


def test_an_evaluation_on_a_robot_finds_its_players_there_too(processes, checkpoints, monkeypatch):
    monkeypatch.setenv("ARMATURE_TOKEN", SECRET)
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("real_evaluate", overrides=["policies.a=any", "run_dir=any", "execution.execute=1"])
    env = PointEnv(num_envs=1, num_targets=2)
    paths = (processes["kept"][1], str(checkpoints["kept"]))
    there, here = (player(cfg, path, env.spec, torch.device("cpu")) for path in paths)
    played = [rollout(env, actor, seed=3).executed for actor in (there, here)]
    assert torch.equal(*played)
    there.decide.__self__.policy.close()


def test_an_evaluation_does_not_go_on_with_another_policy(processes, tmp_path, monkeypatch):
    monkeypatch.setenv("ARMATURE_TOKEN", SECRET)
    url = processes["kept"][1]
    whole, _ = played(tmp_path, url)
    again, _ = played(tmp_path, url, f"resume={tmp_path}", "deadline=50")
    assert again["k"] == whole["k"]
    (tmp_path / "served.json").write_text('"another"')
    with pytest.raises(ValueError, match=r"served another when this began, and now .*kept.*: start a new run"):
        played(tmp_path, url, f"resume={tmp_path}")


def test_an_evaluation_that_finds_nobody_or_is_refused_says_so_in_one_line(processes, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ARMATURE_TOKEN", raising=False)
    with pytest.raises(ValueError, match="the token is wrong"):
        played(tmp_path / "a", processes["kept"][1])
    with pytest.raises(ValueError, match=r"policy=ws://127.0.0.1:1: the first connection to ws://127.0.0.1:1: no conn"):
        played(tmp_path / "b", "ws://127.0.0.1:1")
    assert not (tmp_path / "a" / "config.yaml").exists()


def test_a_server_that_stalls_dies_and_comes_back(processes, checkpoints):
    process, url = processes["doomed"]
    env = PointEnv(num_envs=4, num_targets=2, image_size=512)
    obs, policy = env.reset(0), load_policy(checkpoints["doomed"])
    with remote(url, env.spec, token=SECRET) as there, torch.no_grad():
        expected = policy.mode(obs).commands
        assert torch.equal(there.mode(obs).commands, expected)
        process.send_signal(signal.SIGSTOP)
        there.deadline = 0.2
        while there.line.connection is not None:  # what nobody takes any more must not be kept to be sent some day
            assert_late_in_time(there, obs)
        assert_late_in_time(there, obs)
        process.send_signal(signal.SIGCONT)
        there.deadline = LONG
        other = env.reset(9)
        assert torch.equal(there.mode(other).commands, policy.mode(other).commands)
        process.kill()
        process.wait()
        for _ in range(2):
            with pytest.raises(LostConnection):
                there.mode(obs)
        with serving(policy, str(checkpoints["doomed"]), SECRET, int(url.rpartition(":")[2])):
            assert torch.equal(there.mode(obs).commands, expected)


def assert_late_in_time(there, obs):
    began = time.monotonic()
    with pytest.raises(LateAnswer):
        there.mode(obs)
    assert time.monotonic() - began < LONG / 2


def test_other_machines_need_a_secret(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ARMATURE_TOKEN", raising=False)
    base = [f"policy={checkpoints['kept']}", "device=cpu", f"run_dir={tmp_path / 'run'}"]
    for host in ("0.0.0.0", "192.0.2.1", "robot.example", "::"):
        with pytest.raises(SystemExit):
            run(main, *base, f"host='{host}'")
        assert f"serve: host={host} lets other machines in: set ARMATURE_TOKEN" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(main, *base, "token='two words'")
    assert "token must be printable ASCII without spaces" in capsys.readouterr().err


def test_a_port_in_use_is_said_to_be(checkpoints, tmp_path, capsys):
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            run(main, f"policy={checkpoints['kept']}", "device=cpu", f"run_dir={tmp_path / 'run'}", f"port={port}")
    assert f"cannot listen at host=127.0.0.1 port={port}" in capsys.readouterr().err


def test_an_interrupted_server_ends_with_what_it_did(processes):
    process, url = processes["kept"]
    with remote(url, token=SECRET) as there:
        there.act(observe())
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=LONG)
        assert process.returncode == 0
        assert json.loads(printed.splitlines()[-1])["decisions"] > 0
        with pytest.raises(LostConnection):
            there.act(observe())


def test_a_served_policy_takes_the_place_of_one_wherever_actors_are_asked():
    with serving(POLICIES["token"]()) as url, remote(url) as there:
        assert torch.equal(Greedy(there).act(observe()).commands, there.mode(observe()).commands)
    with serving(Remembering()) as url, remote(url) as there:
        assert Greedy(there).begin == there.begin
