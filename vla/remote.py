"""A policy on another machine, served by `python -m vla.recipes.serve`: every decision is in time, or is an error."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.protocol import State

from vla import chance
from vla.encoding import (
    LARGEST,
    PICTURES,
    PROTOCOL,
    decoded_action,
    decoded_spec,
    encoded_observation,
    packed,
    unpacked,
)
from vla.types import Action, EnvSpec, Observation

SCHEMES = ("ws://", "wss://")
TOKEN = "ARMATURE_TOKEN"  # where programs find the secret, so that it is in no file and no command line
REMEMBERED = 10_000  # timings


class LateAnswer(TimeoutError):
    """A decision was not there by its deadline."""


class LostConnection(ConnectionError):
    """There is no connection, or it ended before the answer."""


class RefusedConnection(ValueError):
    """The server will not decide for this client, or serves another policy than before."""


class FailedDecision(RuntimeError):
    """The policy itself failed, over there."""


@dataclass(frozen=True)
class Timing:
    """Seconds that a decision took: from question to answer, and what of it the policy needed."""

    number: int
    round_trip: float
    inference: float


class RemotePolicy:
    """Decides as the policy served at `url` (`ws://HOST:PORT`), bit for bit, for environments like `spec`.

    Every call, the first connection too, has `deadline` seconds; then LateAnswer is raised, and an answer that comes
    later is dropped. Without a connection a call makes one; where that fails, or it is lost, LostConnection is raised
    and the next call tries again. Raises RefusedConnection where the two sides disagree. `token` is the server's
    secret, `pictures` (raw, png, jpeg) how images travel. `timings` are of the latest decisions. One call at a time.

    A policy that remembers (`Seeded`) has `begin` here too. It forgets when the connection is lost, and then fails
    until `begin`; it may remember a decision that came too late. What is drawn twice from the same streams
    (`vla.chance`) is the same.
    """

    def __init__(
        self,
        url: str,
        spec: EnvSpec,
        deadline: int | float = 0.5,
        token: str | None = None,
        *,
        pictures: str = "raw",
    ):
        if not is_address(url):
            raise ValueError(f"a policy is served at ws://HOST:PORT (or wss://), got {url!r}")
        if deadline <= 0:
            raise ValueError(f"deadline must be more than 0 seconds, got {deadline}")
        if pictures not in PICTURES:
            raise ValueError(f"pictures must be one of {', '.join(PICTURES)}, got {pictures!r}")
        self.url, self.deadline, self.pictures = url, deadline, pictures
        self.number = 0
        self.timings: deque[Timing] = deque(maxlen=REMEMBERED)
        self.line = _Line(url, {"protocol": PROTOCOL, "spec": spec.to_dict()}, token)
        try:
            self._in_time(None)
            welcome: dict[str, Any] = self.line.welcome or {}
            self.spec = decoded_spec(welcome["spec"])
            self.name, self.horizon = str(welcome["name"]), int(welcome["horizon"])
        except BaseException:
            self.close()
            raise
        if welcome["remembers"]:
            self.begin = self._begin
        self._to_begin: int | None = None

    def act(self, obs: Observation) -> Action:
        return self._decide(obs, greedy=False)

    def mode(self, obs: Observation) -> Action:
        return self._decide(obs, greedy=True)

    def close(self) -> None:
        self.line.close()

    def _begin(self, seed: int) -> None:
        """Told with the next decision, and again with the one after if that was lost."""
        self._to_begin = int(seed)

    def _decide(self, obs: Observation, *, greedy: bool) -> Action:
        began = time.monotonic()
        self.number += 1
        question = {
            "number": self.number,
            "greedy": greedy,
            "begin": self._to_begin,
            "streams": [[int(x) for x in stream] for stream in chance.streams(len(obs))],
            "obs": encoded_observation(obs, self.pictures),
        }
        answer = self._in_time(question)
        if "error" in answer:
            raise FailedDecision(f"call {self.number}: the policy at {self.url} failed there: {answer['error']}")
        self._to_begin = None
        action = decoded_action(answer.get("action"), len(obs), (self.horizon, self.spec.action_dim))
        self.timings.append(Timing(self.number, time.monotonic() - began, float(answer["seconds"])))
        return action.to(obs.proprio.device)

    def _in_time(self, question: Mapping[str, Any] | None) -> dict[str, Any]:
        call = f"call {self.number} to {self.url}" if question else f"the first connection to {self.url}"
        began = time.monotonic()
        try:
            return self.line.ask(question, self.deadline)
        except TimeoutError as error:
            raise LateAnswer(
                f"{call}: no answer after {time.monotonic() - began:.3f} s, with a deadline of {self.deadline:g} s. "
                "Give a longer one, smaller pictures (pictures=jpeg), or the policy a faster machine"
            ) from error
        except (WebSocketException, OSError) as error:
            raise LostConnection(
                f"{call}: no connection ({error}). Is `python -m vla.recipes.serve` running there, and the network up? "
                "The next call tries again"
            ) from error


def is_address(path: str) -> bool:
    """Whether that is where a policy is served, and no checkpoint."""
    return path.startswith(SCHEMES)


class _Line:
    """A connection, in a thread of its own: a deadline holds whatever the other side does, and pings are answered."""

    def __init__(self, url: str, hello: Mapping[str, Any], token: str | None):
        self.url, self.hello = url, packed(hello)
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.connection: ClientConnection | None = None
        self.welcome: dict[str, Any] | None = None
        self.loop = asyncio.new_event_loop()
        self.over = asyncio.Event()
        self.thread = threading.Thread(target=self._keep, name=f"line to {url}", daemon=True)
        self.thread.start()

    def ask(self, question: Mapping[str, Any] | None, deadline: int | float) -> dict[str, Any]:
        """The answer to just this question; without one, only connect."""
        message = None if question is None else packed(question)
        number = None if question is None else question["number"]
        if not self.thread.is_alive():
            raise ConnectionError("it was closed here")
        call = asyncio.run_coroutine_threadsafe(self._ask(message, number, deadline), self.loop)
        try:
            return call.result()
        finally:
            call.cancel()  # if this was interrupted; else it is done

    def close(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.over.set)
            self.thread.join(timeout=1)  # longer only if a name server is being waited for

    def _keep(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._until_over())

    async def _until_over(self) -> None:
        await self.over.wait()
        connection = self.connection
        self._drop()
        if connection is not None:
            await connection.wait_closed()

    async def _ask(self, message: bytes | None, number: int | None, deadline: int | float) -> dict[str, Any]:
        async with asyncio.timeout(deadline):
            if self.connection is None or self.connection.state is not State.OPEN:
                self.connection = await self._connected()
            if message is None:
                return {}
            try:
                await self.connection.send(message)
            except BaseException:  # late too: what was not sent in time must not be sent at all
                self._drop()
                raise
            while True:
                answer = self._understood(await self.connection.recv())
                if answer.get("number") == number:
                    return answer

    async def _connected(self) -> ClientConnection:
        try:
            connection = await connect(
                self.url,
                additional_headers=self.headers,
                max_size=LARGEST,
                compression=None,
                proxy=None,
                open_timeout=None,
            )
        except InvalidStatus as error:
            if error.response.status_code != HTTPStatus.UNAUTHORIZED:
                raise
            said = (error.response.body or b"").decode(errors="replace").strip()
            raise RefusedConnection(f"{self.url} refuses: {said or error}") from error
        try:
            await connection.send(self.hello)
            welcome = self._understood(await connection.recv())
            self._require_welcome(welcome)
        except BaseException:
            connection.transport.abort()
            raise
        self.welcome = welcome
        return connection

    def _require_welcome(self, welcome: dict[str, Any]) -> None:
        if "refused" in welcome:
            raise RefusedConnection(f"{self.url} refuses: {welcome['refused']}")
        if welcome.get("protocol") != PROTOCOL or not {"spec", "name", "horizon", "remembers"} <= welcome.keys():
            raise RefusedConnection(
                f"{self.url} speaks version {welcome.get('protocol')!r} of the protocol, this side {PROTOCOL}: run the "
                "same version of this project on both"
            )
        if self.welcome is not None and self.welcome != welcome:
            raise RefusedConnection(
                f"{self.url} serves another policy now: {_in_words(welcome)}; before it was {_in_words(self.welcome)}. "
                "Make a new RemotePolicy (or start the program again) to use that"
            )

    def _understood(self, message: object) -> dict[str, Any]:
        try:
            return unpacked(message)
        except ValueError as error:
            self._drop()
            raise ConnectionError(f"what answers there is no server of policies: {error}") from error

    def _drop(self) -> None:
        if self.connection is not None:
            self.connection.transport.abort()
            self.connection = None


def _in_words(welcome: Mapping[str, Any]) -> str:
    return f"{welcome['name']} (chunks of {welcome['horizon']}; {decoded_spec(welcome['spec']).command})"
