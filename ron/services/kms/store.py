"""What the service must remember of its keys: names, versions, public halves, and what was done under which op_id.

In: records. Out: the same at the next start; durable when the Deferred fires. Every change counts up and goes into a
running digest, whose latest the audit log holds: an older copy of this file is found out at the start (I-6).
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from blake3 import blake3
from twisted.internet.defer import Deferred

from ron.proto.errors import conflict, unavailable
from ron.proto.kms import Alg, Kid, parse_kid
from ron.services.kms.once import KEPT_S
from ron.services.kms.ports import Half
from ron.store import BatchReport, GroupCommit, schema_of

DATABASE = "kms.sqlite3"
# Heads that are kept to compare with what the audit log saw last.
HEADS_KEPT = 4096
PROBE_BYTES = 1024
State = Literal["pending", "live", "destroying", "destroyed"]


class Mark(NamedTuple):
    """Where the store stands: so many changes, and the digest of them all."""

    counter: int
    head: bytes


NOTHING = Mark(0, bytes(32))


class KeyRecord(NamedTuple):
    """A key. key: its name without a version. hints: what its maker said of it."""

    key: str
    hints: dict[str, Any]
    created_s: float


class VersionRecord(NamedTuple):
    """A version of a key. halves: none while it is pending."""

    kid: Kid
    state: State
    halves: tuple[Half, ...]
    attestation: str
    created_s: float


class Act(NamedTuple):
    """What `tenant` has asked for under an op_id. digest: of what was asked. answer: JSON, None until it is done."""

    tenant: str
    op_id: str
    digest: bytes
    kid: str
    answer: bytes | None
    at_s: float


class Begun(NamedTuple):
    """mark: after it was written; None where `act` was known already, which is then what is known of it."""

    mark: Mark | None
    act: Act | None


class Remembered(NamedTuple):
    """All of it."""

    keys: tuple[KeyRecord, ...]
    versions: tuple[VersionRecord, ...]
    mark: Mark


class KmsStore:
    """The tables. Use from the reactor thread; `start` first, once. path: None keeps everything in memory."""

    def __init__(
        self, path: Path | None, *, reactor: Any, observe: Callable[[BatchReport], None] = lambda _report: None
    ) -> None:
        schema = schema_of("ron.services.kms")
        self._engine = GroupCommit(path, schema, reactor=reactor, name="kms", observe=observe)

    def start(self) -> Deferred[None]:
        """Open it. Fails with `RonError` (StoreUnavailable) when that cannot be."""
        return self._engine.start()

    def stop(self) -> Deferred[None]:
        """Finish what is queued, and close."""
        return self._engine.stop()

    def load(self) -> Deferred[Remembered]:
        """Everything. Fails with `RonError` on a row that is none of ours: better no service than a key forgotten."""
        return self._engine.submit(_load)

    def begin(self, key: KeyRecord, kid: Kid, act: Act | None) -> Deferred[Begun]:
        """`kid` is about to be made. Nothing is written where `act` is known.

        Fails with Conflict where that version is there, or was meant to be.
        """
        return self._engine.submit(partial(_begin, key, kid, act))

    def finish(self, version: VersionRecord, act: Act | None) -> Deferred[Mark]:
        """It is made, or on its way to its end, or at it, as `version` says; `act` has its answer."""
        return self._engine.submit(partial(_finish, [version], act))

    def change(self, versions: Sequence[VersionRecord], act: Act | None) -> Deferred[Mark]:
        """The same for several, in one step."""
        return self._engine.submit(partial(_finish, list(versions), act))

    def settle(self, version: VersionRecord, answer: bytes) -> Deferred[Mark]:
        """It was made before a crash; `answer` is for whoever asked for it and asks again."""
        return self._engine.submit(partial(_settle, version, answer))

    def abandon(self, kid: Kid, act: Act | None) -> Deferred[Mark]:
        """It could not be made: it never was meant to be, and its op_id (any, without `act`) may be used again."""
        return self._engine.submit(partial(_abandon, kid, act))

    def unmake(self, version: VersionRecord, act: Act | None) -> Deferred[Mark]:
        """As `abandon`, of one that the backend had made: its number is used up, for no backend makes one twice."""
        return self._engine.submit(partial(_unmake, version, act))

    def known(self, tenant: str, op_id: str) -> Deferred[Act | None]:
        """What was done under this op_id."""
        return self._engine.submit(partial(_known, tenant, op_id))

    def head_at(self, counter: int) -> Deferred[bytes | None]:
        """The digest after so many changes; None for one that is not kept any more, or has not been."""
        return self._engine.submit(partial(_head_at, counter))

    def in_force(self) -> Deferred[bytes | None]:
        """The policy that was kept last."""
        return self._engine.submit(_in_force)

    def put_in_force(self, policy: bytes) -> Deferred[Mark]:
        """Keep it in the place of the one before."""
        return self._engine.submit(partial(_put_in_force, policy))

    def forget_acts(self, before_s: float) -> Deferred[None]:
        """A repetition of what was done earlier is taken for new from now on."""
        return self._engine.submit(partial(_forget_acts, before_s))

    def probe(self) -> Deferred[None]:
        """Fails with `RonError` when nothing can be written at present."""
        return self._engine.submit(_probe)


def _load(connection: sqlite3.Connection) -> Remembered:
    try:
        keys = [
            KeyRecord(key, msgspec.json.decode(hints, type=dict[str, Any]), created_s)
            for key, hints, created_s in connection.execute("SELECT key, hints, created_s FROM key ORDER BY created_s")
        ]
        rows = connection.execute("SELECT key, n, state, halves, attestation, created_s FROM version ORDER BY key, n")
        versions = [_version(*row) for row in rows]
    except (ValueError, msgspec.MsgspecError):
        raise unavailable(
            "a key in the store is damaged", hint=f"restore {DATABASE} from a backup; nothing was overwritten"
        ) from None
    return Remembered(tuple(keys), tuple(versions), _mark(connection))


def _version(key: str, n: int, state: State, halves: bytes, attestation: str, created_s: float) -> VersionRecord:
    found = msgspec.json.decode(halves, type=list[tuple[Alg, bytes]])
    return VersionRecord(parse_kid(key).at(n), state, tuple(Half(*half) for half in found), attestation, created_s)


def _begin(key: KeyRecord, kid: Kid, act: Act | None, connection: sqlite3.Connection) -> Begun:
    known = _known(act.tenant, act.op_id, connection) if act is not None else None
    if known is not None and act is not None and known.answer is not None and act.at_s - known.at_s > KEPT_S:
        # as if it had never been: `once.judge` has let this one pass, and nobody has swept since the start
        connection.execute("DELETE FROM act WHERE tenant = ? AND op_id = ?", (act.tenant, act.op_id))
        known = None
    if known is not None:
        return Begun(None, known)
    newest = connection.execute("SELECT max(n) FROM version WHERE key = ?", (kid.key,)).fetchone()[0] or 0
    if kid.version != newest + 1:
        raise conflict("another version was made meanwhile", "ask again, with the same op_id")
    hints = msgspec.json.encode(key.hints, order="deterministic")
    connection.execute(
        "INSERT OR IGNORE INTO key (key, hints, created_s) VALUES (?, ?, ?)", (key.key, hints, key.created_s)
    )
    row = (kid.key, kid.version, "pending", b"[]", "", key.created_s)
    connection.execute("INSERT INTO version VALUES (?, ?, ?, ?, ?, ?)", row)
    if act is not None:
        connection.execute("INSERT INTO act VALUES (?, ?, ?, ?, ?, ?)", act)
    return Begun(_count_up(connection, "begin", str(kid)), None)


def _finish(versions: list[VersionRecord], act: Act | None, connection: sqlite3.Connection) -> Mark:
    said = []
    for one in versions:
        halves = msgspec.json.encode(one.halves)
        row = (one.state, halves, one.attestation, one.kid.key, one.kid.version)
        done = connection.execute(
            "UPDATE version SET state = ?, halves = ?, attestation = ? WHERE key = ? AND n = ?", row
        )
        if done.rowcount != 1:
            raise unavailable("a key is not in the store any more", hint="restart the service; it looks for it")
        said += [str(one.kid), one.state, blake3(halves).hexdigest()]
    if act is not None:
        connection.execute("INSERT OR REPLACE INTO act VALUES (?, ?, ?, ?, ?, ?)", act)
    return _count_up(connection, "finish", *said)


def _settle(version: VersionRecord, answer: bytes, connection: sqlite3.Connection) -> Mark:
    connection.execute("UPDATE act SET answer = ? WHERE kid = ? AND answer IS NULL", (answer, str(version.kid)))
    return _finish([version], None, connection)


def _abandon(kid: Kid, act: Act | None, connection: sqlite3.Connection) -> Mark:
    row = (kid.key, kid.version)
    connection.execute("DELETE FROM version WHERE key = ? AND n = ? AND state = 'pending'", row)
    connection.execute("DELETE FROM key WHERE key = ? AND key NOT IN (SELECT key FROM version)", (kid.key,))
    _forget_act(kid, act, connection)
    return _count_up(connection, "abandon", str(kid))


def _unmake(version: VersionRecord, act: Act | None, connection: sqlite3.Connection) -> Mark:
    _forget_act(version.kid, act, connection)
    return _finish([version], None, connection)


def _forget_act(kid: Kid, act: Act | None, connection: sqlite3.Connection) -> None:
    if act is not None:
        connection.execute("DELETE FROM act WHERE tenant = ? AND op_id = ?", (act.tenant, act.op_id))
    else:
        connection.execute("DELETE FROM act WHERE kid = ? AND answer IS NULL", (str(kid),))


def _known(tenant: str, op_id: str, connection: sqlite3.Connection) -> Act | None:
    found = connection.execute("SELECT * FROM act WHERE tenant = ? AND op_id = ?", (tenant, op_id)).fetchone()
    return Act(*found) if found is not None else None


def _mark(connection: sqlite3.Connection) -> Mark:
    found = connection.execute("SELECT counter, head FROM change ORDER BY counter DESC LIMIT 1").fetchone()
    return Mark(*found) if found is not None else NOTHING


def _count_up(connection: sqlite3.Connection, *said: str) -> Mark:
    """One change more: its number, and the digest of all so far."""
    counter, head = _mark(connection)
    made = Mark(counter + 1, blake3(head + msgspec.json.encode(said)).digest())
    connection.execute("INSERT INTO change VALUES (?, ?)", made)
    connection.execute("DELETE FROM change WHERE counter <= ?", (made.counter - HEADS_KEPT,))
    return made


def _head_at(counter: int, connection: sqlite3.Connection) -> bytes | None:
    found = connection.execute("SELECT head FROM change WHERE counter = ?", (counter,)).fetchone()
    return found[0] if found is not None else None


def _in_force(connection: sqlite3.Connection) -> bytes | None:
    found = connection.execute("SELECT policy FROM in_force").fetchone()
    return found[0] if found is not None else None


def _put_in_force(policy: bytes, connection: sqlite3.Connection) -> Mark:
    connection.execute("INSERT OR REPLACE INTO in_force VALUES (1, ?)", (policy,))
    return _count_up(connection, "in_force", blake3(policy).hexdigest())


def _forget_acts(before_s: float, connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM act WHERE at_s < ? AND answer IS NOT NULL", (before_s,))


def _probe(connection: sqlite3.Connection) -> None:
    # no tenant is called so; a value that the disk has already would not be written
    row = ("", "", secrets.token_bytes(PROBE_BYTES), "", b"", 0.0)
    connection.execute("INSERT OR REPLACE INTO act VALUES (?, ?, ?, ?, ?, ?)", row)
    connection.execute("DELETE FROM act WHERE tenant = ''")
