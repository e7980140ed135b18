"""Every onion there is, as it stands: changed one act at a time, each durable before it counts, each done once.

In: an act (who asks, under which op_id, what for) and the rule that says what becomes of the onion. Out: the onion as
it is then; a repeated op_id gets what the first one got. What asks too much is refused before anything is written.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from twisted.internet.defer import DeferredLock

from ron.proto.errors import RonError, bad_request, conflict, not_found
from ron.proto.ids import is_uuid
from ron.services.oniond.model import Onion
from ron.services.oniond.store import Act, OnionStore

ACTS_KEPT_S = 24 * 3600.0
ACTS_PER_APP = 1024


class Asked(msgspec.Struct, frozen=True):
    """An act as it is asked for. what: its kind and everything it says, for comparing with a repetition."""

    app: str
    op_id: str
    what: bytes


def asked(app: str, kind: str, onion_id: str, body: Any) -> Asked:
    """`body` (a request with an `op_id`) as an act of `kind` on `onion_id`; how long its caller is ready to wait is no
    part of it. Raises BadRequest for an op_id that is none."""
    if not is_uuid(body.op_id):
        raise bad_request("op_id is no UUID", hint="make one for each act (uuidgen), and repeat it when you try again")
    fields = msgspec.to_builtins(body)
    for name in ("op_id", "wait_s"):
        fields.pop(name, None)
    return Asked(app, body.op_id, msgspec.json.encode([kind, onion_id, fields], order="deterministic"))


class Registry:
    """The onions, by id. `load` first. changed: told of each that is new, gone, or otherwise than before."""

    def __init__(
        self,
        store: OnionStore,
        *,
        now: Callable[[], float],
        max_onions: int,
        max_per_app: int,
        changed: Callable[[Onion], None] = lambda onion: None,
    ) -> None:
        self.max_onions = max_onions
        self.max_per_app = max_per_app
        self._store = store
        self._now = now
        self._changed = changed
        self._onions: dict[str, Onion] = {}
        self._acts: dict[tuple[str, str], Act] = {}
        self._acts_of: dict[str, deque[Act]] = defaultdict(deque)
        self._lock = DeferredLock()

    async def load(self) -> dict[tuple[str, str], str]:
        """Read what is kept; what tors were last seen to publish. Raises `RonError` when it cannot be read."""
        remembered = await self._store.load()
        self._onions = {onion.id: onion for onion in remembered.onions}
        for act in remembered.acts:
            self._remember(act)
        return remembered.applied

    def __iter__(self) -> Iterator[Onion]:
        return iter(self._onions.values())

    def __len__(self) -> int:
        return len(self._onions)

    def get(self, onion_id: str) -> Onion | None:
        """The onion `onion_id`."""
        return self._onions.get(onion_id)

    async def create(self, act: Asked | None, make: Callable[[], Onion]) -> tuple[Onion, bool]:
        """A new onion (True), or the one that this act has made before (False).

        Raises `RonError`: Conflict for an op_id of another act and when there are too many onions, NotFound when the
        one that it made has been deleted since.
        """
        async with self._locked():
            known = self._known(act)
            if known is not None:
                return self._still(known), False
            onion = make()
            self._admit(onion)
            noted = self._noted(act, onion.id)
            if onion.persistence == "durable":
                await self._store.put(onion, noted)
            self._onions[onion.id] = onion
            self._remember(noted)
            self._changed(onion)
            return onion, True

    async def change(self, onion_id: str, act: Asked | None, rule: Callable[[Onion], Onion]) -> Onion:
        """`onion_id` as `rule` makes it; a repeated act changes nothing. Raises as `create` does, and as the rule."""
        async with self._locked():
            known = self._known(act)
            if known is not None:
                return self._still(known)
            before = self._onions.get(onion_id)
            if before is None:
                raise unknown(onion_id)
            after = rule(before)
            noted = self._noted(act, onion_id)
            if after.persistence == "durable" and (after != before or noted is not None):
                await self._store.put(after, noted)
            self._onions[onion_id] = after
            self._remember(noted)
            self._changed(after)
            return after

    def has_acted(self, onion_id: str, op_id: str, may: str | None) -> bool:
        """Is `onion_id` no more, and was something done to it under this op_id: its end? may: by this app."""
        if may is None:
            acted = any(act.op_id == op_id and act.onion == onion_id for act in self._acts.values())
        else:
            # as many steps for an onion of somebody else's as for none: the time tells no app what there is
            act = self._acts.get((may, op_id))
            acted = act is not None and act.onion == onion_id
        return acted and onion_id not in self._onions

    async def delete(self, onion_id: str, act: Asked) -> Onion:
        """Forget it. Raises `RonError`: NotFound, Conflict for an op_id of another act."""
        async with self._locked():
            self._known(act)
            onion = self._onions.get(onion_id)
            if onion is None:
                raise unknown(onion_id)
            noted = self._noted(act, onion_id)
            if onion.persistence == "durable":
                await self._store.delete(onion, noted)
            del self._onions[onion_id]
            self._remember(noted)
            self._changed(onion)
            return onion

    async def forget_old_acts(self) -> None:
        """To be called now and then."""
        ends_s = self._now() - ACTS_KEPT_S
        old = [act for act in self._acts.values() if act.at_s < ends_s]
        await self._forget(old + self._surplus())

    # Inside

    def _locked(self) -> Any:
        return _Locked(self._lock)

    def _known(self, act: Asked | None) -> Act | None:
        known = self._acts.get((act.app, act.op_id)) if act is not None else None
        if known is not None and act is not None and known.digest != _digest(act):
            raise conflict("op_id stands for another act already", hint="make a new op_id for every new act")
        return known

    def _still(self, act: Act) -> Onion:
        onion = self._onions.get(act.onion)
        if onion is None:
            raise unknown(act.onion)
        return onion

    def _admit(self, onion: Onion) -> None:
        if onion.origin == "config":
            return
        if sum(other.app == onion.app and other.origin == "api" for other in self) >= self.max_per_app:
            raise conflict(f"the app has {self.max_per_app} onions, the most it may", hint="delete one it has")
        if sum(other.origin == "api" for other in self) >= self.max_onions:
            raise conflict("there are as many onions as there may be", hint="the operator's limit is onion.max_onions")

    def _noted(self, act: Asked | None, onion_id: str) -> Act | None:
        return Act(act.app, act.op_id, _digest(act), onion_id, self._now()) if act is not None else None

    def _remember(self, act: Act | None) -> None:
        if act is not None:
            self._acts[act.app, act.op_id] = act
            self._acts_of[act.app].append(act)

    def _surplus(self) -> list[Act]:
        return [act for acts in self._acts_of.values() for act in list(acts)[: max(0, len(acts) - ACTS_PER_APP)]]

    async def _forget(self, acts: list[Act]) -> None:
        if not acts:
            return
        await self._store.forget_acts(acts)
        gone = {(act.app, act.op_id) for act in acts}
        for key in gone:
            self._acts.pop(key, None)
        for app in {app for app, _op_id in gone}:
            kept = deque(act for act in self._acts_of[app] if (act.app, act.op_id) not in gone)
            if kept:
                self._acts_of[app] = kept
            else:
                del self._acts_of[app]


def unknown(onion_id: str) -> RonError:
    """The same for one that is not there and for one that is somebody else's."""
    return not_found(f"there is no onion {onion_id[:64]}")


class _Locked:
    def __init__(self, lock: DeferredLock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(self, *_error: object) -> None:
        self._lock.release()


def _digest(act: Asked) -> bytes:
    return hashlib.sha256(act.what).digest()
