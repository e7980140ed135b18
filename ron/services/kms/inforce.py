"""May the config change like this? What was last in force is remembered; less than that takes a quorum (K-G4, K-G7).

In: the config, what the store remembers, who decides. Out: trouble for `Guard`, which stops everything that signs and
names the proposal to make; a record in the audit log for each change. Verifying goes on.

Where nobody was ever named who decides, the config's owner does, and that is on record as well. Once there was a
quorum, taking it out of the config is itself such a change, and none that anybody can allow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec
from twisted.logger import Logger

from ron.proto.errors import RonError
from ron.services.kms.config import KmsConfig
from ron.services.kms.model import Caller
from ron.services.kms.readiness import Guard, Key
from ron.services.kms.room import Room

GLOBAL = "global"
_RANK = {"or": 0, "and": 1, "pq_only": 2}
_MODES = ("or", "and", "pq_only")
_KEY: Key = "config_loaded"
_log = Logger(namespace="ron.kms")


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What of the config is in force. backend: where keys are made, each with its place. governed: a quorum decides."""

    backend: str
    attest_require: str
    verify_mode: str
    min_verify_mode: str
    produce_hybrid: bool
    rollout_percent: int
    governed: bool


class Need(NamedTuple):
    """A decision that a change of the config takes. change: of the proposal; empty for what nobody can allow."""

    key: str
    action: str
    change: Mapping[str, str]

    def told(self) -> str:
        """For an operator: the key, and what to do."""
        if not self.change:
            return f"{self.key} was taken out: put it back"
        change = " ".join(f"--change '{name}={value}'" for name, value in self.change.items())
        return f"{self.key} takes a quorum: ronctl governance propose --action {self.action} --scope {GLOBAL} {change}"


@runtime_checkable
class Deciding(Protocol):
    """A quorum whose permissions can be looked for."""

    def permission(self, action: str, scope: str, change: Mapping[str, str]) -> str | None:
        """An executed proposal for exactly this, which may still be used."""


def policy_of(config: KmsConfig) -> Policy:
    """What `config` asks for."""
    pq = config.pq
    return Policy(
        backend=",".join(f"{name}:{_place(config, name)}" for name in config.order),
        attest_require=config.security.attest_require,
        verify_mode=pq.verify_mode,
        min_verify_mode=pq.min_verify_mode,
        produce_hybrid=pq.produce_hybrid,
        rollout_percent=pq.rollout_percent,
        governed=bool(config.governance.signers),
    )


def needs(before: Policy, after: Policy, decided: str | None) -> list[Need]:
    """What has to be decided before `after` may follow `before`. decided: the verify mode a quorum gave everybody; a
    config that asks for at least that much needs nothing more. Pure."""
    found: list[Need] = []
    if not before.governed:
        return found
    if not after.governed:
        found.append(Need("governance.signers", "", {}))
    if after.backend != before.backend:
        found.append(Need("service.backend", "backend_change", {"backend": after.backend}))
    if after.attest_require != before.attest_require and "required" in {after.attest_require, before.attest_require}:
        change = {"attest_require": after.attest_require}
        found.append(Need("security.attest_require", "attest_require", change))
    if after.verify_mode == "pq_only" != before.verify_mode and decided != "pq_only":
        found.append(Need("pq.verify_mode", "pq_mode", {"pq_mode": "pq_only"}))
    found += [
        Need(key, "hybrid_off" if mode == "or" else "rollback", {"pq_mode": mode})
        for key, mode in _weaker(before, after)
        if decided is None or _RANK[decided] > _RANK[mode]
    ]
    return found


def _weaker(before: Policy, after: Policy) -> list[tuple[str, str]]:
    """Keys by which the config asks for less, and the mode that it comes to."""
    found: list[tuple[str, str]] = []
    if _RANK[after.verify_mode] < _RANK[before.verify_mode]:
        found.append(("pq.verify_mode", after.verify_mode))
    if _RANK[after.min_verify_mode] < _RANK[before.min_verify_mode]:
        found.append(("pq.min_verify_mode", after.min_verify_mode))
    if before.produce_hybrid and not after.produce_hybrid:
        found.append(("pq.produce_hybrid", "or"))
    if after.rollout_percent < before.rollout_percent:
        # who falls out of the rollout is a phase behind
        found.append(("pq.rollout_percent", _MODES[max(0, _RANK[after.verify_mode] - 1)]))
    return found


class InForce:
    """Of one service. `begin` once the store is there; `look` whenever the config may have changed."""

    def __init__(self, room: Room, guard: Guard, wishes: Callable[[], KmsConfig]) -> None:
        self._room = room
        self._guard = guard
        self._wishes = wishes
        self._known: Policy | None = None
        # allowed, and not yet on record
        self._next: Policy | None = None

    async def begin(self) -> None:
        """Read what was in force last. Raises `RonError`."""
        raw = await self._room.store.in_force()
        if raw is not None:
            self._known = msgspec.json.decode(raw, type=Policy)

    def look(self) -> None:
        """Judge the config as it is now: what it may not ask for stops everything that signs, at once."""
        after = policy_of(self._wishes())
        if self._next == after:
            return
        self._next = None
        if after == self._known:
            self._well()
            return
        wanted = self._missing(after)
        if wanted:
            self._guard.trouble(_KEY, "; ".join(need.told() for need in wanted))
            return
        self._next = after
        self._well()

    async def settle(self) -> None:
        """What was found allowed goes on record, first in the log. Raises `RonError`; then it is tried again."""
        self.look()
        after = self._next
        if after is None:
            return
        room, before = self._room, self._known
        if before is not None:
            entry = room.recorder.entry("policy", Caller(), None)
            await room.recorder.record(msgspec.structs.replace(entry, extra={**entry.extra, **_shown(after)}))
            _log.info("another policy is in force", event="kms_policy_changed", **_shown(after))
        room.recorder.mark = await room.store.put_in_force(msgspec.json.encode(after))
        self._known, self._next = after, None

    def _well(self) -> None:
        if self._guard.why_not(_KEY):
            self._guard.ok(_KEY)

    def _missing(self, after: Policy) -> list[Need]:
        """What nobody has decided; when that is nothing, the permissions are used up."""
        if self._known is None:
            return []
        quorum = self._room.quorum
        # of no tenant: what holds for everybody
        wanted = needs(self._known, after, quorum.pq_mode(""))
        usable: list[tuple[Need, str]] = []
        missing: list[Need] = []
        for need in wanted:
            found = None
            if need.change and "pq_mode" not in need.change and isinstance(quorum, Deciding):
                found = quorum.permission(need.action, GLOBAL, need.change)
            if found is None:
                missing.append(need)
            else:
                usable.append((need, found))
        if not missing:
            try:
                for need, proposal in usable:
                    quorum.require(need.action, GLOBAL, need.change, proposal)
            except RonError:
                return [need for need, _proposal in usable]
        return missing


def _shown(policy: Policy) -> dict[str, str | int | bool]:
    return {name: getattr(policy, name) for name in policy.__struct_fields__}


def _place(config: KmsConfig, name: str) -> str:
    """Where that backend keeps what it keeps."""
    backends = config.backends
    if name == "pkcs11":
        return f"{backends.pkcs11.module_path}#{backends.pkcs11.slot_label}"
    if name == "file":
        return backends.file.dir
    if name == "tpm":
        return f"{backends.tpm.tcti}#{backends.tpm.dir}"
    return f"{backends.cloud.key_id}#{backends.cloud.dir}" if name == "cloud" else ""
