"""An op_id is one act, however often it is asked for: the answer that got lost on its way is given again.

In: who asks, under which op_id, what for, and the act. Out: its outcome.
In memory and for minutes only, where the onion runtime keeps a day of acts on disk. There an act makes an onion whose
key is on disk too, and repeated after a crash it would make another. Here outcomes may be secrets that must be on no
disk (bundles), and none of the acts needs more: an address that exists is refused by its name, whoever asks, and new
shares, a new token or another bundle of one name are no harm twice.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import msgspec
from blake3 import blake3
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel.clock import Clock
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict
from ron.proto.ids import is_uuid

KEPT_S = 600.0
MOST = 256
T = TypeVar("T")
_log = Logger(namespace="ron.balance")


class _Act:
    """what: a digest, for the request may hold a key. at_s: when it was done, None while it is under way."""

    def __init__(self, what: bytes) -> None:
        self.what = what
        self.at_s: float | None = None
        self.outcome: Any = None
        self.waiting: list[Deferred[Any]] = []


class Once:
    """Up to `MOST` acts, each remembered for `KEPT_S` seconds after it was done. One that failed is forgotten."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._acts: OrderedDict[tuple[str, str], _Act] = OrderedDict()

    async def do(self, caller: str, kind: str, body: Any, act: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `act` returns, or returned. body: has an `op_id`. A caller that is cancelled leaves the act running.

        Raises `RonError`: BadRequest for an op_id that is none, Conflict for one of another act, Backpressure when too
        many are remembered; and what `act` raises.
        """
        if not is_uuid(body.op_id):
            raise bad_request(
                "op_id is no UUID", hint="make one for each act (uuidgen), and repeat it when you try again"
            )
        key, what = (caller, body.op_id.lower()), _digest(kind, body)
        self._forget()
        known = self._acts.get(key)
        if known is not None and known.what != what:
            raise conflict("this op_id was used for another act", "a new act needs a new op_id")
        if known is not None and known.at_s is not None:
            return cast(T, known.outcome)
        waiter: Deferred[T] = Deferred()
        if known is not None:
            known.waiting.append(waiter)
        else:
            self._make_room()
            known = self._acts[key] = _Act(what)
            # before it begins: it may end at once
            known.waiting.append(waiter)
            self._begin(key, known, kind, act)
        return await waiter

    def _begin(self, key: tuple[str, str], known: _Act, kind: str, act: Callable[[], Coroutine[Any, Any, T]]) -> None:
        def ended(outcome: T | Failure) -> None:
            if isinstance(outcome, Failure):
                del self._acts[key]
            else:
                known.at_s, known.outcome = self._clock.seconds(), outcome
            heard = [waiter for waiter in known.waiting if not waiter.called]
            known.waiting.clear()
            for waiter in heard:
                waiter.callback(outcome)
            if isinstance(outcome, Failure) and not heard:
                _log.failure("{kind} failed, and its caller had gone", outcome, event="balance_act_failed", kind=kind)

        Deferred.fromCoroutine(act()).addBoth(ended)

    def _make_room(self) -> None:
        if len(self._acts) >= MOST:
            done = [act.at_s for act in self._acts.values() if act.at_s is not None]
            wait_s = min(done, default=self._clock.seconds()) + KEPT_S - self._clock.seconds()
            raise RonError(
                ErrorCode.BACKPRESSURE, "too many acts are remembered", retry_after_s=max(1, math.ceil(wait_s))
            )

    def _forget(self) -> None:
        too_old_s = self._clock.seconds() - KEPT_S
        for key in [key for key, act in self._acts.items() if act.at_s is not None and act.at_s <= too_old_s]:
            del self._acts[key]


def _digest(kind: str, body: Any) -> bytes:
    fields = msgspec.to_builtins(body)
    del fields["op_id"]
    return blake3(msgspec.json.encode([kind, fields], order="deterministic")).digest()
