"""What serves pages: on this machine alone unless told otherwise, then with a token, and encrypted if given keys."""

import contextlib
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.requests import HTTPConnection
from websockets.exceptions import InvalidState

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Web:
    """Serves what `app` gives, in a thread, from construction until `close`.

    Elsewhere than on this machine a request needs the token that is in `url`. With `certificate` and `key` (PEM files)
    all of it is encrypted. ValueError for files that are not there and ports that are taken.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 8900, certificate: str | None = None, key: str | None = None
    ):
        self.token = "" if host in LOOPBACK else secrets.token_urlsafe(12)
        for name, file in (("certificate", certificate), ("key", key)):
            if (certificate is None) != (key is None) or (file is not None and not Path(file).is_file()):
                raise ValueError(f"page.{name}={file}: needs a certificate and its key, both PEM files")
        options: dict[str, Any] = {"log_level": "warning", "ws": "websockets-sansio", "lifespan": "off"}
        config = uvicorn.Config(self.app(), ssl_certfile=certificate, ssl_keyfile=key, **options)
        self.listening = _listen(host, port)
        port = self.listening.getsockname()[1]
        scheme = "http" if certificate is None else "https"
        self.asked = f"?token={self.token}" if self.token else ""
        self.url = f"{scheme}://{host}:{port}/{self.asked}"
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def app(self) -> FastAPI:
        raise NotImplementedError

    def _serve(self) -> None:
        with contextlib.suppress(InvalidState):  # to close sockets that are closing already is an error to uvicorn
            self.server.run(sockets=[self.listening])

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(3.0)
        self.listening.close()

    def knows(self, asking: HTTPConnection) -> bool:
        return secrets.compare_digest(asking.query_params.get("token", ""), self.token)


def same_origin(asking: HTTPConnection) -> bool:
    """A page of another site, open in the same browser, must not move a robot, nor change anything."""
    origin = asking.headers.get("origin", "")
    return origin.partition("//")[2] == asking.headers.get("host", "") or not origin


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise ValueError(f"page.host={host} page.port={port}: cannot listen there ({error}); choose another") from error
