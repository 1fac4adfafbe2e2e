"""The operator's page: one file that a browser shows, and a WebSocket with the board's state, pictures and messages."""

import asyncio
import contextlib
import json
import secrets
import socket
import threading
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, Response

from real.board import Board

PAGE = Path(__file__).with_name("page.html")
EVERY = 0.05  # seconds between looks at the board
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Page:
    """Serves a board until `close`. Elsewhere than on this machine it takes the token that is in its `url`.

    One page operates, the first; others watch, and can only stop what moves. When it goes, the next that says
    something operates. A browser is only listened to on pages that came from here: the origin of its socket must be
    this address. With `certificate` and `key` (PEM files) all of it is encrypted.
    """

    def __init__(
        self,
        board: Board,
        host: str = "127.0.0.1",
        port: int = 8900,
        certificate: str | None = None,
        key: str | None = None,
        page: Path = PAGE,
    ):
        self.board, self.page, self.operator = board, page, cast(WebSocket | None, None)
        self.token = "" if host in LOOPBACK else secrets.token_urlsafe(12)
        for name, file in (("certificate", certificate), ("key", key)):
            if (certificate is None) != (key is None) or (file is not None and not Path(file).is_file()):
                raise ValueError(f"page.{name}={file}: needs a certificate and its key, both PEM files")
        config = uvicorn.Config(
            self._app(), log_level="warning", ws="websockets-sansio", ssl_certfile=certificate, ssl_keyfile=key
        )
        self.listening = _listen(host, port)
        port = self.listening.getsockname()[1]
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://{host}:{port}/" + (f"?token={self.token}" if self.token else "")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(3.0)
        self.listening.close()

    def _app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)

        @app.get("/")
        def page(token: str = "") -> Response:
            return HTMLResponse(self.page.read_text()) if self._knows(token) else Response(status_code=403)

        @app.websocket("/socket")
        async def speak(socket: WebSocket, token: str = "") -> None:
            if not self._knows(token) or not _same_origin(socket):
                await socket.close(code=4003)
                return
            await socket.accept()
            await self._operate(socket)
            showing = asyncio.create_task(self._show(socket))
            try:
                while True:
                    await self._hear(socket, await socket.receive_text())
            except WebSocketDisconnect:
                return
            finally:
                showing.cancel()
                if self.operator is socket:
                    self.operator = None
                    self.board.gone()

        return app

    def _knows(self, token: str) -> bool:
        return secrets.compare_digest(token, self.token)

    async def _operate(self, socket: WebSocket) -> bool:
        """Whether this page operates, which it does from now on if no other one does."""
        if self.operator is None:
            self.operator = socket
        operates = self.operator is socket
        await socket.send_text(json.dumps({"operates": operates}))
        return operates

    async def _hear(self, socket: WebSocket, text: str) -> None:
        """A message with a time `sent` is answered with it, so that the page knows how long the way is."""
        try:
            message = json.loads(text)
            if not isinstance(message, dict):
                raise ValueError("a message is an object")
            if "sent" in message:
                await socket.send_text(json.dumps({"sent": message.pop("sent")}))
            operates = self.operator is socket or (self.operator is None and await self._operate(socket))
            if not operates and message.get("say") != "stop":
                raise ValueError("another page operates; this one only watches, but can stop")
            self.board.tell(message)
        except ValueError as error:
            await socket.send_text(json.dumps({"notice": str(error)}))

    async def _show(self, socket: WebSocket) -> None:
        """The state when it changes, then each picture: a line of JSON that names it, and the JPEG."""
        version = -1
        sent: dict[str, Any] = {}
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                if version != self.board.version:
                    version, state, pictures = self.board.version, self.board.state, self.board.pictures
                    await socket.send_text(json.dumps(state))
                    for name, jpeg in pictures.items():
                        if sent.get(name) is not jpeg:
                            sent[name] = jpeg
                            await socket.send_bytes(len(name).to_bytes(1) + name.encode() + jpeg)
                await asyncio.sleep(EVERY)


def _same_origin(socket: WebSocket) -> bool:
    """A page of another site, open in the same browser, must not move a robot."""
    origin = socket.headers.get("origin", "")
    return origin.partition("//")[2] == socket.headers.get("host", "") or not origin


def _listen(host: str, port: int) -> socket.socket:
    """ValueError if the port is taken."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise ValueError(f"page.host={host} page.port={port}: cannot listen there ({error}); choose another") from error
