"""A DNS server that answers as a cluster's does for headless Services: with all addresses of pods that are ready."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Mapping, Sequence

_HEADER = struct.Struct("!HHHHHH")
_QUESTION = struct.Struct("!HH")
_RECORD = struct.Struct("!HHHIH4s")
_A, _IN = 1, 1
_ANSWER, _NO_SUCH_NAME = 0x8580, 0x8583  # authoritative answers
# A record's name is that of the question, which begins right after the header.
_SAME_NAME = 0xC000 | _HEADER.size
_SECONDS_TO_LIVE = 1


class Names:
    """Serves from construction to `close`. Whatever is below a name's first label is the cluster's own domain."""

    def __init__(self, host: str, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, port))
        self.address: tuple[str, int] = self._socket.getsockname()
        self._known: Mapping[str, Sequence[str]] = {}
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def tell(self, known: Mapping[str, Sequence[str]]) -> None:
        """From now on these are the addresses of these names."""
        self._known = known

    def addresses(self, name: str) -> Sequence[str]:
        return self._known.get(name, ())

    def target(self, name: str, port: int) -> str:
        """A gRPC target that asks this server."""
        host, own_port = self.address
        return f"dns://{host}:{own_port}/{name}:{port}"

    def close(self) -> None:
        # An empty message, from ourselves, ends it.
        self._socket.sendto(b"", self.address)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            message, asker = self._socket.recvfrom(4096)
            if not message:
                return
            self._socket.sendto(self._answer(message), asker)

    def _answer(self, message: bytes) -> bytes:
        number = _HEADER.unpack_from(message)[0]
        end = message.index(b"\0", _HEADER.size) + 1
        kind, _ = _QUESTION.unpack_from(message, end)
        question = message[_HEADER.size : end + _QUESTION.size]
        # Labels come with their lengths.
        found = self._known.get(question[1 : 1 + question[0]].decode())
        if not found:
            return _HEADER.pack(number, _NO_SUCH_NAME, 1, 0, 0, 0) + question
        # Of other kinds, such as addresses of IPv6, there is none. The order is another one each time.
        shown = random.sample(found, len(found)) if kind == _A else []
        records = (
            _RECORD.pack(_SAME_NAME, _A, _IN, _SECONDS_TO_LIVE, 4, socket.inet_aton(address)) for address in shown
        )
        return _HEADER.pack(number, _ANSWER, 1, len(shown), 0, 0) + question + b"".join(records)
