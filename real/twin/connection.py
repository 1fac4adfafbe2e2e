"""A TCP port with one client, whose commands come in whole."""

import socket
import struct


class Connection:
    """The one client of a TCP port; another one that comes takes its place."""

    def __init__(self, host: str, port: int, header: struct.Struct):
        self.listening = socket.create_server((host, port))
        self.listening.settimeout(0)
        self.port: int = self.listening.getsockname()[1]
        self.header = header
        self.client: socket.socket | None = None
        self.address = ""
        self.received = b""

    def messages(self) -> list[tuple[int, int, bytes]]:
        """Commands that came in whole: what, its number, its body."""
        self._accept()
        if self.client is None:
            return []
        try:
            while data := self.client.recv(65536):
                self.received += data
            self.leave()
        except BlockingIOError:
            pass
        except OSError:
            self.leave()
        found = []
        while len(self.received) >= self.header.size:
            command, number, size = self.header.unpack_from(self.received)
            if len(self.received) < size:
                break
            found.append((command, number, self.received[self.header.size : size]))
            self.received = self.received[max(size, self.header.size) :]
        return found

    def reply(self, command: int, number: int, body: bytes) -> None:
        if self.client is not None:
            try:
                self.client.sendall(self.header.pack(command, number, self.header.size + len(body)) + body)
            except OSError:
                self.leave()

    def leave(self) -> None:
        if self.client is not None:
            self.client.close()
        self.client, self.received = None, b""

    def close(self) -> None:
        self.leave()
        self.listening.close()

    def _accept(self) -> None:
        try:
            client, (self.address, _) = self.listening.accept()
        except BlockingIOError:
            return
        self.leave()
        client.settimeout(0)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client = client
