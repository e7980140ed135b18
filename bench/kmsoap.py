"""Load for the key service over OAP/1: many requests under way on each connection, frames written by hand.

In: a call, a capability, a payload. Out: answers a second and the times they took. A client of ours would take as much
of a core as the service does, and it is the service that is measured.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from dataclasses import dataclass, field

from bench import harness
from ron.oap.frames import FIXED_BYTES, Flags, Frame, encode
from ron.oap.hello import CONTROL
from ron.proto.kmscalls import OAP_PROTOCOL

_WHOLE = Flags.REQ | Flags.START | Flags.END
_NUMBER = struct.Struct("<Q")
_NUMBER_AT = 4 + FIXED_BYTES - _NUMBER.size
_LENGTH = struct.Struct("<I")
_CODE = struct.Struct("<H")
_CODE_AT = 7
_PIECE = 1 << 18
# What a connection had before its first request.
_FIRST = 2


@dataclass(slots=True, eq=False)
class _Link:
    link: socket.socket
    next: int = _FIRST
    heard: bytes = b""
    asked_s: dict[int, float] = field(default_factory=dict)


def saturate(
    port: int, code: int, cap: bytes, payload: bytes, *, seconds: float, connections: int, at_a_time: int
) -> dict[str, float]:
    """As many requests as go through, `at_a_time` of them under way on each connection. Raises RuntimeError on any
    answer that is no success."""
    frame = encode(Frame(flags=_WHOLE, code=code, app_proto_id=OAP_PROTOCOL, corr_id=0, cap=cap, payload=payload))
    before, after = frame[:_NUMBER_AT], frame[_NUMBER_AT + _NUMBER.size :]
    links = [_Link(_greeted(port)) for _ in range(connections)]
    times: list[float] = []
    end_s = time.perf_counter() + seconds
    with select.epoll() as poll:
        by_number = {one.link.fileno(): one for one in links}
        for number, one in by_number.items():
            poll.register(number, select.EPOLLIN)
            _ask(one, before, after, at_a_time)
        while (now_s := time.perf_counter()) < end_s:
            for number, _events in poll.poll(0.1):
                one = by_number[number]
                answered = _hear(one, times)
                _ask(one, before, after, answered)
    for one in links:
        one.link.close()
    took_s = now_s - end_s + seconds
    figures = {f"p{percent}_ms": round(harness.percentile(times, percent) * 1000, 3) for percent in (50, 95, 99)}
    return {"per_s": round(len(times) / took_s, 1), **figures}


def _greeted(port: int) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", port), timeout=30)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.sendall(encode(Frame(flags=_WHOLE, app_proto_id=CONTROL, corr_id=1)))
    heard = b""
    while not (size := _frame_bytes(heard, 0)) or len(heard) < size:
        heard += link.recv(_PIECE)
    return link


def _ask(one: _Link, before: bytes, after: bytes, count: int) -> None:
    if not count:
        return
    now_s = time.perf_counter()
    numbers = range(one.next, one.next + count)
    one.next += count
    one.asked_s.update(dict.fromkeys(numbers, now_s))
    one.link.sendall(b"".join([before + _NUMBER.pack(number) + after for number in numbers]))


def _hear(one: _Link, times: list[float]) -> int:
    heard = one.heard + one.link.recv(_PIECE)
    now_s, at, answered = time.perf_counter(), 0, 0
    while (size := _frame_bytes(heard, at)) and len(heard) - at >= size:
        (code,) = _CODE.unpack_from(heard, at + _CODE_AT)
        if code not in {0, 200}:
            raise RuntimeError(f"answered with {code}: {heard[at : at + 500]!r}")
        times.append(now_s - one.asked_s.pop(_NUMBER.unpack_from(heard, at + _NUMBER_AT)[0]))
        at += size
        answered += 1
    if not heard:
        raise RuntimeError("the service hung up")
    one.heard = heard[at:]
    return answered


def _frame_bytes(heard: bytes, at: int) -> int:
    """Of the frame that begins there; 0 while even its length is not whole."""
    return _LENGTH.size + int(_LENGTH.unpack_from(heard, at)[0]) if len(heard) - at >= _LENGTH.size else 0
