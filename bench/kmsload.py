"""Load for the key service: all it takes (wrk), or so many requests a second whatever becomes of them (our own loop).

In: requests. Out: answers a second, and times from when a request was due: one that had to wait for a connection has
waited (no coordinated omission). One thread that turns and turns on its own core, for Linux sleeps a millisecond at
least.
"""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, NamedTuple

from bench import harness
from bench.harness import CLIENT_CPU

# What is still on its way at the end has so long.
PATIENCE_S = 10.0
OK, GAVE_UP = 200, 0
_PIECE = 1 << 18
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_LUA = """
local asked, at = {}, 0
init = function(_arguments)
  for line in io.lines("BODIES") do asked[#asked + 1] = wrk.format("POST", nil, wrk.headers, line) end
end
request = function()
  at = at % #asked + 1
  return asked[at]
end
done = function(summary, latency, requests)
  io.write(string.format("RPS %.1f P50 %.3f P95 %.3f P99 %.3f ERR %d\\n", summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout))
end
"""


def saturate(
    url: str, bodies: Sequence[str], headers: Mapping[str, str], *, seconds: int, connections: int
) -> dict[str, float]:
    """As many POSTs of `bodies` in turn as go through. Raises RuntimeError on any answer that is no 2xx."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as lines, tempfile.NamedTemporaryFile("w") as script:
        lines.write("\n".join(bodies) + "\n")
        lines.flush()
        script.write(_LUA.replace("BODIES", lines.name))
        script.flush()
        named = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
        load = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script.name, *named, url]
        text = subprocess.run(["taskset", "-c", CLIENT_CPU, *load], capture_output=True, text=True, check=True).stdout
    found = re.search(r"RPS ([\d.]+) P50 ([\d.]+) P95 ([\d.]+) P99 ([\d.]+) ERR (\d+)", text)
    if found is None or int(found[5]):
        raise RuntimeError(f"wrk against {url}: {text}")
    names = ("per_s", "p50_ms", "p95_ms", "p99_ms")
    return {name: float(value) for name, value in zip(names, found.groups(), strict=False)}


def request(path: str, headers: Mapping[str, str], body: Any = None) -> bytes:
    """A POST on a connection that stays. body: a struct's dict, or JSON text."""
    raw = (body if isinstance(body, str) else json.dumps(body)).encode() if body is not None else b""
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: kms\r\n{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


class Answer(NamedTuple):
    """Seconds of `time.perf_counter`. status: `GAVE_UP` for one that was not waited for."""

    due_s: float
    answered_s: float
    status: int

    @property
    def took_ms(self) -> float:
        """From when it should have been asked."""
        return (self.answered_s - self.due_s) * 1000


@dataclass
class Stream:
    """requests, in turn, `per_s` of them a second, evenly, on at most so many connections. begin_s, end_s: from when
    and until when, of the run's. patience_s: what waited so long for a connection is not asked any more."""

    requests: Sequence[bytes]
    per_s: float
    connections: int = 64
    begin_s: float = 0.0
    end_s: float = float("inf")
    patience_s: float = float("inf")
    answers: list[Answer] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Link:
    link: socket.socket
    stream: _Running
    due_s: float = 0.0
    heard: bytes = b""


class _Running:
    """A stream under way."""

    def __init__(self, stream: Stream, port: int, began_s: float, end_s: float) -> None:
        self.stream = stream
        self.next_s = began_s + stream.begin_s
        self.end_s = min(end_s, began_s + stream.end_s)
        self.step_s = 1 / stream.per_s
        self.asked: Iterator[bytes] = cycle(stream.requests)
        self.waiting: deque[float] = deque()
        self.idle = [_Link(_connected(port), self) for _ in range(stream.connections)]
        self.links = list(self.idle)

    def send_due(self, now_s: float) -> None:
        while self.next_s <= now_s and self.next_s < self.end_s:
            self.waiting.append(self.next_s)
            self.next_s += self.step_s
        patience_s = self.stream.patience_s
        while self.waiting and self.waiting[0] < now_s - patience_s:
            due_s = self.waiting.popleft()
            self.stream.answers.append(Answer(due_s, due_s, GAVE_UP))
        while self.waiting and self.idle:
            link = self.idle.pop()
            link.due_s = self.waiting.popleft()
            link.link.sendall(next(self.asked))

    def hear(self, link: _Link) -> None:
        piece = link.link.recv(_PIECE)
        link.heard += piece
        head, end, body = link.heard.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n") if end else None
        if not piece or (end and length is None):
            raise RuntimeError(f"the service hung up: {link.heard[:500]!r}")
        if length is None or len(body) < int(length[1]):
            return
        self.stream.answers.append(Answer(link.due_s, time.perf_counter(), int(head[9:12])))
        link.heard = b""
        self.idle.append(link)

    @property
    def busy(self) -> bool:
        return self.next_s < self.end_s or bool(self.waiting) or len(self.idle) < len(self.links)

    def close(self) -> None:
        """What never came is counted, too."""
        on_their_way = [link.due_s for link in self.links if link not in self.idle]
        self.stream.answers += [Answer(due_s, due_s, GAVE_UP) for due_s in (*on_their_way, *self.waiting)]
        for link in self.links:
            link.link.close()


def steady(port: int, streams: Sequence[Stream], seconds: float) -> float:
    """Run `streams` beside each other; their answers are in them. Returns when it began."""
    began_s = time.perf_counter() + 0.05
    running = [_Running(stream, port, began_s, began_s + seconds) for stream in streams]
    by_number = {link.link.fileno(): link for one in running for link in one.links}
    with select.epoll() as poll:
        for number in by_number:
            poll.register(number, select.EPOLLIN)
        while any(one.busy for one in running):
            now_s = time.perf_counter()
            if now_s > began_s + seconds + PATIENCE_S:
                break
            for one in running:
                one.send_due(now_s)
            for number, _events in poll.poll(0):
                link = by_number[number]
                link.stream.hear(link)
    for one in running:
        one.close()
    return began_s


def figures(answers: Sequence[Answer], per_s: float) -> dict[str, float]:
    """Of those that were answered with 200: latencies in ms; what was asked for, and what became of the others."""
    good = [one.took_ms for one in answers if one.status == OK]
    percents = (
        {f"p{percent}_ms": round(harness.percentile(good, percent), 3) for percent in (50, 95, 99)} if good else {}
    )
    shed = sum(1 for one in answers if one.status in {429, 503})
    gave_up = sum(1 for one in answers if one.status == GAVE_UP)
    failed = len(answers) - len(good) - shed - gave_up
    counts = {"shed": shed, "gave_up": gave_up, "failed": failed}
    return {"asked_per_s": round(per_s, 1), "n": len(answers), **percents, **counts}


def _connected(port: int) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", port), timeout=30)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link
