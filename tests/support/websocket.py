"""A WebSocket client of text messages (RFC 6455), enough for the DevTools of a Chromium here."""

import base64
import os
import socket
import struct
from urllib.parse import urlsplit

_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


class WebSocket:
    """A connection to a "ws://" address."""

    def __init__(self, address: str, timeout: float) -> None:
        parts = urlsplit(address)
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {parts.path} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self._stream = self._socket.makefile("rb")
        status = self._stream.readline()
        assert b" 101 " in status, status
        while self._stream.readline().strip():
            pass

    def send(self, text: str) -> None:
        self._send(_TEXT, text.encode())

    def receive(self) -> str:
        """The next message, whole."""
        parts = []
        while True:
            first, second = self._read(2)
            code, length = first & 15, second & 127
            if length > 125:
                kind, count = ("!H", 2) if length == 126 else ("!Q", 8)
                (length,) = struct.unpack(kind, self._read(count))
            content = self._read(length)
            if code == _PING:
                self._send(_PONG, content)
            elif code == _CLOSE:
                raise ConnectionError("the browser closed the connection")
            elif code != _PONG:
                parts.append(content)
                if first & 128:
                    return b"".join(parts).decode()

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def _send(self, code: int, content: bytes) -> None:
        length = len(content)
        if length < 126:
            size = bytes([128 | length])
        elif length < 65536:
            size = bytes([128 | 126]) + struct.pack("!H", length)
        else:
            size = bytes([128 | 127]) + struct.pack("!Q", length)
        # What a client sends is masked; a mask of zeros leaves it as it is.
        self._socket.sendall(bytes([128 | code]) + size + bytes(4) + content)

    def _read(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) < count:
            raise ConnectionError("the browser ended")
        return data
