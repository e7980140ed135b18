"""Load on a Unix socket that speaks HTTP: so many connections, each sends its next request when it has its answer.

In: requests as bytes. Out: when each was sent and answered, and its body if wanted. One thread that does hardly
anything, so that what is measured is the server; wrk knows no Unix sockets.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench import harness

TIMEOUT_S = 30.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_STATUS = re.compile(rb"HTTP/1\.1 200 ")


class Answer(NamedTuple):
    """Monotonic seconds; the body is empty unless asked for."""

    sent_s: float
    answered_s: float
    body: bytes


@dataclass(slots=True)
class _Client:
    link: socket.socket
    sent_s: float = 0.0
    heard: bytes = b""


def request(method: str, path: str, cap: str, body: Any = None) -> bytes:
    """One on a connection that stays."""
    raw = json.dumps(body).encode() if body is not None else b""
    kind = "Content-Type: application/json\r\n" if body is not None else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: oniond\r\nAuthorization: Bearer {cap}\r\n{kind}"
    return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


def closed_loop(path: Path, requests: Iterable[bytes], *, clients: int = 1, keep: bool = False) -> list[Answer]:
    """Every answer, in the order they came. keep: with bodies. Raises RuntimeError on any that is no 200."""
    waiting = iter(requests)
    answers: list[Answer] = []
    with selectors.DefaultSelector() as ready:
        for _ in range(clients):
            link = socket.socket(socket.AF_UNIX)
            link.connect(str(path))
            client = _Client(link)
            if _send(client, waiting):
                ready.register(link, selectors.EVENT_READ, client)
            else:
                link.close()
        while ready.get_map():
            there = ready.select(TIMEOUT_S)
            if not there:
                raise RuntimeError(f"{path} does not answer")
            for key, _events in there:
                body = _hear(key.data)
                if body is None:
                    continue
                answers.append(Answer(key.data.sent_s, time.monotonic(), body if keep else b""))
                if not _send(key.data, waiting):
                    ready.unregister(key.fileobj)
                    key.data.link.close()
    return answers


def figures(answers: list[Answer]) -> dict[str, float]:
    """Latencies in ms, and answers a second."""
    took_s = max(one.answered_s for one in answers) - min(one.sent_s for one in answers)
    spread = harness.spread([(one.answered_s - one.sent_s) * 1000 for one in answers], 2)
    return {**spread, "per_s": round(len(answers) / took_s, 1)}


def _send(client: _Client, waiting: Iterator[bytes]) -> bool:
    asked = next(waiting, None)
    if asked is None:
        return False
    client.heard = b""
    client.sent_s = time.monotonic()
    client.link.sendall(asked)
    return True


def _hear(client: _Client) -> bytes | None:
    """The body, once it is whole."""
    piece = client.link.recv(1 << 18)
    client.heard += piece
    head, end, body = client.heard.partition(b"\r\n\r\n")
    length = _LENGTH.search(head + b"\r\n") if end else None
    if not piece or (end and (length is None or not _STATUS.match(head))):
        raise RuntimeError(f"no 200: {client.heard[:2000]!r}")
    return body if length is not None and len(body) >= int(length[1]) else None
