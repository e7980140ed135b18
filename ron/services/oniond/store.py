"""What the onion runtime remembers: every onion, what was done to it by whose op_id, what tors were seen to publish.

In: documents of `model.Onion`. Out: the same at the next start; durable when the Deferred fires. SQLite with group
commit (`ron.store`), in a 0600 file, or in memory only.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred

from ron.kernel.files import read_private
from ron.proto.errors import unavailable
from ron.services.oniond.model import Onion
from ron.store import BatchReport, GroupCommit, schema_of
from ron.tor.onionkeys import OnionKey, parse_key

DATABASE = "oniond.sqlite3"
# As much as an onion's document, so that there is room for one when there is room for this.
PROBE_BYTES = 4096


class Act(NamedTuple):
    """Something that was done for `app` under its `op_id`. digest: of what was asked. onion: whose id it was about."""

    app: str
    op_id: str
    digest: bytes
    onion: str
    at_s: float


class Remembered(NamedTuple):
    """All of it, as it was found. applied: (tor, address) → digest."""

    onions: tuple[Onion, ...]
    acts: tuple[Act, ...]
    applied: dict[tuple[str, str], str]


class OnionStore:
    """The tables of the runtime. Use from the reactor thread; `start` first, once.

    observe: told of each batch.
    """

    def __init__(
        self, path: Path | None, *, reactor: Any, observe: Callable[[BatchReport], None] = lambda report: None
    ) -> None:
        schema = schema_of("ron.services.oniond")
        self._engine = GroupCommit(path, schema, reactor=reactor, name="oniond", observe=observe)

    def start(self) -> Deferred[None]:
        """Open it. Fails with `RonError` (StoreUnavailable) when that cannot be."""
        return self._engine.start()

    def stop(self) -> Deferred[None]:
        """Finish what is queued, and close."""
        return self._engine.stop()

    def load(self) -> Deferred[Remembered]:
        """Everything. Fails with `RonError` on a document that is none: better no service than a lost key."""
        return self._engine.submit(_load)

    def put(self, onion: Onion, act: Act | None) -> Deferred[None]:
        """Keep `onion` as it is now, and that it came of `act`."""
        return self._engine.submit(partial(_put, onion, act))

    def delete(self, onion: Onion, act: Act | None) -> Deferred[None]:
        """Forget `onion`, key and all; its bytes are overwritten."""
        return self._engine.submit(partial(_delete, onion.id, act))

    def applied(self, tor: str, address: str, digest: str | None) -> Deferred[None]:
        """`tor` publishes `address` as `digest` says; None: not any more, or not known."""
        return self._engine.submit(partial(_applied, tor, address, digest))

    def probe(self) -> Deferred[None]:
        """Fails with `RonError` when nothing can be written at present."""
        return self._engine.submit(_probe)

    def forget_acts(self, acts: Iterable[Act]) -> Deferred[None]:
        """A repetition of these is taken for new from now on."""
        return self._engine.submit(partial(_forget_acts, [(act.app, act.op_id) for act in acts]))


def legacy_key(directory: Path, app: str) -> OnionKey | None:
    """The key an earlier version kept in `<directory>/<app>.key`. Raises `RonError` on a damaged or exposed one."""
    path = directory / f"{app}.key"
    return parse_key(read_private(path).decode("ascii", "replace").strip()) if path.exists() else None


def _load(connection: sqlite3.Connection) -> Remembered:
    onions = [_decode(raw) for (raw,) in connection.execute("SELECT doc FROM onion ORDER BY id")]
    acts = [Act(*row) for row in connection.execute("SELECT app, op_id, digest, onion, at_s FROM act ORDER BY at_s")]
    applied = connection.execute("SELECT tor, address, digest FROM applied")
    return Remembered(tuple(onions), tuple(acts), {(tor, address): digest for tor, address, digest in applied})


def _decode(raw: bytes) -> Onion:
    try:
        onion = msgspec.json.decode(raw, type=Onion)
        parse_key(onion.key)
    except (msgspec.MsgspecError, ValueError):
        raise unavailable(
            "an onion in the store is damaged", hint=f"restore {DATABASE} from a backup; nothing was overwritten"
        ) from None
    return onion


def _put(onion: Onion, act: Act | None, connection: sqlite3.Connection) -> None:
    doc = msgspec.json.encode(onion)
    connection.execute(
        "INSERT INTO onion (id, app, doc) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc",
        (onion.id, onion.app, doc),
    )
    _note(act, connection)


def _delete(onion_id: str, act: Act | None, connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE onion SET doc = zeroblob(length(doc)) WHERE id = ?", (onion_id,))
    connection.execute("DELETE FROM onion WHERE id = ?", (onion_id,))
    _note(act, connection)


def _note(act: Act | None, connection: sqlite3.Connection) -> None:
    if act is not None:
        connection.execute("INSERT OR REPLACE INTO act (app, op_id, digest, onion, at_s) VALUES (?, ?, ?, ?, ?)", act)


def _applied(tor: str, address: str, digest: str | None, connection: sqlite3.Connection) -> None:
    if digest is None:
        connection.execute("DELETE FROM applied WHERE tor = ? AND address = ?", (tor, address))
    else:
        row = (tor, address, digest)
        connection.execute("INSERT OR REPLACE INTO applied (tor, address, digest) VALUES (?, ?, ?)", row)


def _probe(connection: sqlite3.Connection) -> None:
    # no tor and no onion is called so; a value that the disk has already would not be written
    _applied("", "", secrets.token_hex(PROBE_BYTES), connection)
    _applied("", "", None, connection)


def _forget_acts(keys: list[tuple[str, str]], connection: sqlite3.Connection) -> None:
    connection.executemany("DELETE FROM act WHERE app = ? AND op_id = ?", keys)
