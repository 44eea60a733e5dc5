"""A server that fails as servers do, and can be healed: real sockets on a port of this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

ANSWERS = {"broken": (500, "internal"), "full": (507, "full"), "expired": (401, "unauthorized")}
FAULTS = ("absent", "refusing", "hanging", "slow", "cut", *ANSWERS)
SLOW_BYTES = 1000  # a second, in each direction


class FaultyServer:
    """Stands in front of a server, which it hides until it is healed.

    Parameters
    ----------
    fault : str or None
        What is wrong with it:

        - 'absent': not even a connection is answered, as when the machine is gone;
        - 'refusing': nobody listens on the port;
        - 'hanging': takes connections and never answers;
        - 'broken', 'full', 'expired': answers 500, 507 or 401;
        - 'slow': passes 1 kB a second to and from `upstream`;
        - 'cut': passes requests on, but cuts each answer in its middle;
        - None: passes everything on.
    upstream : int
        The port of the server behind it; 0 where there is none.

    Attributes
    ----------
    url : str
    connections : int
        How many were taken so far.
    """

    def __init__(self, fault: str | None, upstream: int = 0) -> None:
        assert fault is None or fault in FAULTS
        self.connections = 0
        self._fault = fault
        self._upstream = upstream
        self._held: list[socket.socket] = []
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        if fault == "absent":  # with its queue full the kernel drops what comes
            self._socket.listen(0)
            self._fill_queue()
        elif fault != "refusing":
            self._listen()

    def heal(self) -> None:
        """From now on pass everything on to the server behind; connections so far are cut."""
        listened = self._fault not in ("absent", "refusing")
        self._fault = None
        self._let_go()
        if not listened:
            self._listen()

    def close(self) -> None:
        """Stop; the port is free again."""
        with contextlib.suppress(OSError):  # wakes the thread that waits in `accept`
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ inside

    def _fill_queue(self) -> None:
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self.address)
            self._held.append(filler)

    def _let_go(self) -> None:
        held, self._held = self._held, []
        for one in held:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _listen(self) -> None:
        self._socket.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._held.append(client)
            if self._fault != "hanging":
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):  # either side may go at any time
            if self._fault in ANSWERS:
                _answer(client, *ANSWERS[self._fault])
                return
            server = socket.create_connection(("127.0.0.1", self._upstream))
            self._held.append(server)
            forth = threading.Thread(target=self._pass_on, args=(client, server), daemon=True)
            forth.start()
            self._pass_on(server, client)
            forth.join()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        answers = source.getpeername()[1] == self._upstream
        with contextlib.suppress(OSError):
            while data := source.recv(SLOW_BYTES // 10 if self._fault == "slow" else 1 << 16):
                if self._fault == "slow":
                    time.sleep(len(data) / SLOW_BYTES)
                if self._fault == "cut" and answers:
                    target.sendall(data[: len(data) // 2])
                    break
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _answer(client: socket.socket, status: int, code: str) -> None:
    """Read requests and answer each with this error."""
    body = b'{"error": {"code": "%s", "message": "on purpose"}}' % code.encode()
    head = f"HTTP/1.1 {status} Faulty\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nTachograph-Protocol: 1\r\n\r\n"
    stream = client.makefile("rb")
    while line := stream.readline():
        method, length = line.split()[0], 0
        while (header := stream.readline().strip().lower()) != b"":
            if header.startswith(b"content-length:"):
                length = int(header.partition(b":")[2])
        while length:
            length -= len(stream.read(min(length, 1 << 16)) or b"x" * length)
        client.sendall(head.encode() + (b"" if method == b"HEAD" else body))
