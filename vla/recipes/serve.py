"""A policy for robots elsewhere: `python -m vla.recipes.serve policy=CHECKPOINT`, and there `policy=ws://HOST:8765`.

After the opening of a WebSocket, which needs the token if there is one, every message is one of `vla.encoding`: hello
and welcome, or a refusal; then questions and answers, by number. A question that a newer one has overtaken is not
answered: who asked it has given up.
"""

import hmac
import ipaddress
import logging
import os
import sys
import threading
import time
from http import HTTPStatus
from typing import Any

import torch
from omegaconf import DictConfig
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection
from websockets.sync.server import serve as listen

from vla.chance import Stream, drawing_from
from vla.checkpoint import Policy, find_policy
from vla.encoding import (
    LARGEST,
    PROTOCOL,
    decoded_observation,
    decoded_spec,
    encoded_action,
    packed,
    unpacked,
)
from vla.program import Figures, program
from vla.remote import TOKEN
from vla.rollout import Greedy
from vla.run import find_device, load_policy
from vla.types import Seeded, require_agreement

log = logging.getLogger(__name__)
CLIENTS = 16  # at once
WAITING = 4  # questions that are kept of each
HELLO = 10.0  # seconds that a client has for it


def serve(cfg: DictConfig) -> Figures:
    """Decide until interrupted. Other machines are only let in with a token."""
    token = str(cfg.token or os.environ.get(TOKEN) or "") or None
    _require_secret(cfg.host, token)
    place = find_policy(cfg.policy.path)
    served = PolicyServer(load_policy(place).to(find_device(cfg.device)), str(place), token)
    try:
        server = served.listen(cfg.host, cfg.port)
    except OSError as error:
        raise ValueError(f"cannot listen at host={cfg.host} port={cfg.port} ({error}): name others") from error
    with server:
        host, port, *_ = server.socket.getsockname()
        sys.stderr.write(f"serve: {place} at ws://{f'[{host}]' if ':' in host else host}:{port}\n")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.warning("interrupted: clients lose their connections")
    return {"policy": str(place), "decisions": served.decisions, "failures": served.failures}


def _require_secret(host: str, token: str | None) -> None:
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("token must be printable ASCII without spaces: it travels in a header")
    if token is None and not _is_this_machine(host):
        raise ValueError(
            f"host={host} lets other machines in: set {TOKEN} (or token=...) to a secret, there and here, or use "
            "host=127.0.0.1"
        )


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class PolicyServer:
    """One policy for several clients, one decision at a time; what it draws comes from streams that a question names.

    A policy that remembers what it decided (`Seeded`) has one memory and so takes one client at a time, who must begin
    an episode first. Whatever a client sends, and whatever fails in the policy, is an answer and ends nothing.
    """

    def __init__(self, policy: Policy, name: str, token: str | None = None):
        self.policy, self.name, self.token = policy, name, token
        self.device = next(iter(policy.parameters()), torch.zeros(0)).device
        self.remembers = isinstance(policy, Seeded)
        self.seats = threading.Semaphore(1 if self.remembers else CLIENTS)
        self.deciding = threading.Lock()
        self.begun = False
        self.decisions, self.failures = 0, 0

    def listen(self, host: str, port: int) -> Server:
        """Browsers, which say where a page came from, are kept out: a page must not talk to this machine's robots."""
        return listen(
            self.meet,
            host,
            port,
            process_request=self._admit,
            origins=[None],
            compression=None,
            max_size=LARGEST,
            max_queue=WAITING,
            close_timeout=1,
        )

    def meet(self, socket: ServerConnection) -> None:
        """All of one connection."""
        client = socket.remote_address
        try:
            self._welcome(socket)
        except ConnectionClosed as error:
            log.info(f"{client} has gone: {error}")

    def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        said = request.headers.get("Authorization", "")
        if self.token is None or hmac.compare_digest(said.encode(errors="replace"), f"Bearer {self.token}".encode()):
            return None
        log.warning(f"{socket.remote_address}: a wrong token")
        return socket.respond(HTTPStatus.UNAUTHORIZED, f"the token is wrong: set {TOKEN} to that of the server\n")

    def _welcome(self, socket: ServerConnection) -> None:
        try:
            self._require_understanding(socket.recv(timeout=HELLO))
        except TimeoutError:
            return _refuse(socket, f"no hello within {HELLO:g} s")
        except ValueError as error:
            return _refuse(socket, str(error))
        if not self.seats.acquire(blocking=False):
            others = "another client, and its policy remembers" if self.remembers else f"{CLIENTS} other clients"
            return _refuse(socket, f"it serves {others}: try again when one has gone")
        try:
            self.begun = not self.remembers
            socket.send(packed(self._introduction()))
            while True:
                socket.send(self._answer(_newest(socket)))
        finally:
            self.seats.release()

    def _require_understanding(self, message: object) -> None:
        hello = unpacked(message)
        if hello.get("protocol") != PROTOCOL:
            raise ValueError(
                f"it speaks version {PROTOCOL} of the protocol, the client {hello.get('protocol')!r}: run the same "
                "version of this project on both"
            )
        require_agreement(self.policy.spec, decoded_spec(hello.get("spec")))

    def _introduction(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "name": self.name,
            "horizon": getattr(self.policy, "horizon", 1),
            "spec": self.policy.spec.to_dict(),
            "remembers": self.remembers,
        }

    def _answer(self, message: object) -> bytes:
        number: int | None = None
        try:
            asked = unpacked(message)
            number = _whole(asked.get("number"), "number")
            return packed({"number": number, **self._decide(asked)})
        except Exception as error:  # of this decision: the next one may be right
            self.failures += 1
            log.warning(f"question {number}: {type(error).__name__}: {error}")
            return packed({"number": number, "error": f"{type(error).__name__}: {error}"})

    @torch.no_grad()
    def _decide(self, asked: dict[str, Any]) -> dict[str, Any]:
        obs = decoded_observation(asked.get("obs"), self.policy.spec)
        streams, greedy = _streams(asked.get("streams"), len(obs)), asked.get("greedy")
        if not isinstance(greedy, bool):
            raise ValueError(f"greedy must be true or false, got {greedy!r}")
        with self.deciding:
            self._begin(asked.get("begin"))
            began = time.perf_counter()
            with drawing_from(streams):
                action = (Greedy(self.policy) if greedy else self.policy).act(obs.to(self.device)).cpu()
            seconds = time.perf_counter() - began
            self.decisions += 1
        return {"action": encoded_action(action), "seconds": seconds}

    def _begin(self, seed: Any) -> None:
        if seed is not None and self.remembers:
            self.policy.begin(_whole(seed, "begin"))
            self.begun = True
        if not self.begun:
            raise ValueError(
                "this policy remembers what it decided, and nothing is known of this episode: begin another"
            )


def _refuse(socket: ServerConnection, why: str) -> None:
    log.warning(f"{socket.remote_address} refused: {why}")
    socket.send(packed({"refused": why, "protocol": PROTOCOL}))


def _newest(socket: ServerConnection) -> object:
    """The last question that has come. Only the newest matters: decisions that are late must not make others late."""
    message: object = socket.recv()
    try:
        while True:
            message = socket.recv(timeout=0)
    except TimeoutError:
        return message


def _streams(plain: Any, rows: int) -> list[Stream]:
    if not isinstance(plain, list) or len(plain) != rows or not all(isinstance(x, list) and len(x) == 3 for x in plain):
        raise ValueError(f"streams must be three numbers for each of {rows} environments")
    return [(_whole(a, "stream"), _whole(b, "stream"), _whole(c, "stream")) for a, b, c in plain]


def _whole(value: Any, what: str) -> int:
    if type(value) is not int:
        raise ValueError(f"{what} must be a whole number, got {value!r}")
    return value


main = program("serve", serve, short={"policy": "policy.path"})

if __name__ == "__main__":
    main()
