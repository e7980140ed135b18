"""How much one peer, and all of them together, may ask of a listener: rates, connections, streams, work in progress.

In: peers, counts and the time. Out: nothing when there is room, `Refused` when there is none. Pure but for the injected
clock; the same objects serve HTTP, OAP and whatever listens later.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable

from ron.kernel.limits_config import LimitsConfig
from ron.proto.errors import ErrorCode, RonError

# Peers without a connection whose buckets are not full again yet. Beyond it the oldest is forgiven.
REMEMBERED_PEERS = 65_536
# A rate's bucket holds this many seconds of it: a page and its tiles come in one burst.
BURST_S = 1.0
# RFC 4291 §2.5.4: whoever has one IPv6 address has 2^64 of them.
_IPV6_NETWORK_BITS = 64


class Refused(RonError):
    """A limit was reached. `reason`: the label whoever answers counts it under in `rejected_total`."""

    def __init__(
        self,
        reason: str,
        code: ErrorCode,
        message: str,
        *,
        hint: str | None = None,
        status: int | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(code, message, hint=hint, status=status, retry_after_s=retry_after_s)
        self.reason = reason


def too_many(reason: str, message: str, *, wait_s: float = 0.0) -> Refused:
    """429: this peer asks for too much. wait_s: how long it takes until there is room, when that is known."""
    # up to 5 s the edge's own random Retry-After is better: peers do not come back together
    retry_after_s = math.ceil(wait_s) if wait_s > 5.0 else None
    return Refused(reason, ErrorCode.BACKPRESSURE, message, hint="come back later", retry_after_s=retry_after_s)


def overloaded(reason: str, message: str) -> Refused:
    """503: everybody together asks for too much, or this kind of work is closed at present."""
    return Refused(reason, ErrorCode.STORE_UNAVAILABLE, message, hint="come back later")


class TokenBucket:
    """`rate` tokens a second, at most `burst` at a time; full at first. Times are seconds of one clock."""

    __slots__ = ("_at_s", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        if not (rate > 0 and burst > 0):
            raise ValueError("a bucket without rate or burst lets nothing through")
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at_s = now_s

    def take(self, tokens: float, now_s: float) -> float:
        """0.0 when `tokens` were there and are taken; else the seconds until they are, and nothing is taken."""
        wait_s = self.wait_s(tokens, now_s)
        if wait_s == 0.0:
            self._level -= tokens
        return wait_s

    def spend(self, tokens: float) -> None:
        """Take `tokens` that were used already, into debt if need be; `wait_s` then tells how long that lasts."""
        self._level -= tokens

    def wait_s(self, tokens: float, now_s: float) -> float:
        """Seconds until `tokens` are there, 0.0 when they are. More than the burst counts as the burst."""
        elapsed_s = now_s - self._at_s
        self._at_s = now_s
        if elapsed_s > 0:  # a clock that was set back gives nothing and takes nothing
            self._level = min(self._burst, self._level + elapsed_s * self._rate)
        missing = min(tokens, self._burst) - self._level
        return missing / self._rate if missing > 0 else 0.0

    def full(self, now_s: float) -> bool:
        """True when nothing is remembered against anybody."""
        return self.wait_s(self._burst, now_s) == 0.0


class Pace:
    """How long a transfer may take: `idle_s` without a byte, and after a grace of `idle_s` a least average rate.

    Twisted's own timeouts start anew with each byte, so that a byte now and then holds a connection for ever.
    """

    __slots__ = ("_began_s", "_bytes_per_s", "_idle_s", "_last_s", "_moved")

    def __init__(self, idle_s: float, bytes_per_s: float, now_s: float) -> None:
        self._idle_s = idle_s
        self._bytes_per_s = bytes_per_s
        self._began_s = self._last_s = now_s
        self._moved = 0

    def moved(self, count: int, now_s: float) -> None:
        """`count` bytes more have come or gone."""
        self._moved += count
        self._last_s = now_s

    def due_s(self) -> float:
        """When patience ends, in seconds of the clock."""
        return self._idle_s + min(self._last_s, self._began_s + self._moved / self._bytes_per_s)


class Peer:
    """What is known of one peer while it is connected, and until its buckets are full again."""

    __slots__ = ("_bytes", "_limits", "_requests", "connections", "streams")

    def __init__(self, limits: LimitsConfig, now_s: float) -> None:
        self.connections = 0
        self.streams = 0
        self.apply(limits, now_s)

    def apply(self, limits: LimitsConfig, now_s: float) -> None:
        """Go by `limits` from now on, with full buckets."""
        self._limits = limits
        requests, size = limits.requests_per_second_per_peer, limits.bytes_per_second_per_peer
        self._requests = TokenBucket(requests, requests * BURST_S, now_s)
        self._bytes = TokenBucket(size, size * BURST_S, now_s)

    def open_stream(self, now_s: float) -> None:
        """One request more is to be answered. Raises `Refused` (rate, bytes, streams), and then none is open."""
        if self.streams >= self._limits.streams_per_peer:
            raise too_many("streams", "too many requests of this peer are being answered")
        self.check_bytes(now_s)
        wait_s = self._requests.take(1.0, now_s)
        if wait_s:
            raise too_many("rate", "too many requests a second from this peer", wait_s=wait_s)
        self.streams += 1

    def close_stream(self) -> None:
        """It was answered."""
        self.streams -= 1

    def check_bytes(self, now_s: float) -> None:
        """Raise `Refused` (bytes) while this peer owes for what it sent and was sent."""
        wait_s = self._bytes.wait_s(1.0, now_s)
        if wait_s:
            raise too_many("bytes", "too many bytes a second to and from this peer", wait_s=wait_s)

    def owes(self, now_s: float) -> bool:
        """True while `check_bytes` would refuse."""
        return self._bytes.wait_s(1.0, now_s) > 0.0

    def charge_bytes(self, count: int) -> None:
        """`count` bytes came from it or went to it. Never refuses; the next request or body pays."""
        self._bytes.spend(count)

    def forgiven(self, now_s: float) -> bool:
        """True when forgetting it changes nothing."""
        return self._requests.full(now_s) and self._bytes.full(now_s)


class PeerTable:
    """Connections in all and by peer. A peer's buckets outlive its connections, so that hanging up wins it nothing."""

    def __init__(self, limits: LimitsConfig, now: Callable[[], float], *, remembered: int = REMEMBERED_PEERS) -> None:
        self.limits = limits
        self.connections = 0
        self._now = now
        self._remembered = remembered
        self._connected: dict[str, Peer] = {}
        self._gone: OrderedDict[str, Peer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._connected) + len(self._gone)

    def apply(self, limits: LimitsConfig) -> None:
        """Go by `limits` from now on. Connections over a lowered cap stay; no new one is taken before there is room."""
        self.limits = limits
        now_s = self._now()
        for peer in (*self._connected.values(), *self._gone.values()):
            peer.apply(limits, now_s)

    def connect(self, name: str) -> Peer:
        """One connection more from `name`. Raises `Refused` 503 (connections, connections_per_peer)."""
        if self.connections >= self.limits.connections:
            raise overloaded("connections", "too many connections are open")
        peer = self._connected.get(name)
        if peer is None:
            peer = self._gone.pop(name, None) or Peer(self.limits, self._now())
            self._connected[name] = peer
        elif peer.connections >= self.limits.connections_per_peer:
            raise overloaded("connections_per_peer", "too many connections from this peer are open")
        peer.connections += 1
        self.connections += 1
        return peer

    def disconnect(self, name: str) -> None:
        """One of `name`'s connections has ended."""
        peer = self._connected[name]
        self.connections -= 1
        peer.connections -= 1
        if not peer.connections:
            del self._connected[name]
            self._remember(name, peer)

    def _remember(self, name: str, peer: Peer) -> None:
        now_s = self._now()
        if not peer.forgiven(now_s):
            self._gone[name] = peer
        # the oldest are full again first; looking at two for each one that comes keeps the table from growing
        for _ in range(min(2, len(self._gone))):
            oldest = next(iter(self._gone))
            if len(self._gone) <= self._remembered and not self._gone[oldest].forgiven(now_s):
                break
            del self._gone[oldest]


class Concurrency:
    """How much is being worked on at a time; one more is turned away, nothing waits in line."""

    __slots__ = ("busy", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.busy = 0

    def enter(self) -> None:
        """Begin one. Raises `Refused` 503 (concurrency), and then none has begun."""
        if self.busy >= self.limit:
            raise overloaded("concurrency", "as much is being worked on as may be")
        self.busy += 1

    def leave(self) -> None:
        """One is done."""
        self.busy -= 1


def peer_name(host: str | None) -> str:
    """Who counts as one peer: an IPv4 address, a /64 of IPv6 addresses, `local` for a Unix socket."""
    if not host:
        return "local"
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), _IPV6_NETWORK_BITS), strict=False))
