"""The operator's page: one file that a browser shows, and a WebSocket with the board's state, pictures and messages."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, Response

from real.board import Board
from real.reviewing import Reviewing
from real.web import Web, same_origin

PAGE = Path(__file__).with_name("page.html")
EVERY = 0.05  # seconds between looks at the board


class Page(Web):
    """Serves a board until `close`, see `Web`; and below `/review` the dataset in the directory `review`, if any.

    One page operates, the first; others watch, and can only stop what moves. When it goes, the next that says
    something operates. A browser is only listened to on pages that came from here: the origin of its socket must be
    this address.
    """

    def __init__(
        self,
        board: Board,
        host: str = "127.0.0.1",
        port: int = 8900,
        certificate: str | None = None,
        key: str | None = None,
        page: Path = PAGE,
        review: Path | None = None,
    ):
        self.board, self.page, self.operator = board, page, cast(WebSocket | None, None)
        self.review = review
        super().__init__(host, port, certificate, key)

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)

        @app.get("/")
        def page(request: Request) -> Response:
            return HTMLResponse(self.page.read_text()) if self.knows(request) else Response(status_code=403)

        @app.websocket("/socket")
        async def speak(socket: WebSocket) -> None:
            if not self.knows(socket) or not same_origin(socket):
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

        if self.review is not None:
            app.include_router(Reviewing(self.review).router(self.knows))
        return app

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
