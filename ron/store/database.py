"""A SQLite database of ours: opened private, locked, checked and up to its schema; its troubles in words for people.

In: a path (or none, for memory) and schema scripts. Out: a `sqlite3.Connection`, or `RonError(StoreUnavailable)`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from twisted.logger import Logger

from ron.kernel.files import private_dir, sync_dir
from ron.proto.errors import RonError, unavailable

# How long opening waits for another process to let go of the file.
LOCK_WAIT_S = 0.5
# Pages in the write-ahead log before they are moved to the database: 16 MiB, a pause of some 20 ms each.
CHECKPOINT_PAGES = 4096
WAL_LIMIT_BYTES = 64 * 1024 * 1024
CACHE_KIB = 4 * 1024
CACHED_STATEMENTS = 256

# Primary result codes that speak of the disk or the file and not of our SQL (sqlite.org/rescode.html).
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_STORAGE = _DAMAGED | {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
}
_log = Logger(namespace="ron.store")


def schema_of(package: str) -> list[str]:
    """The scripts in `package`'s folder `schema`, in the order of their names (`0001-first.sql`, `0002-…`)."""
    folder = resources.files(package) / "schema"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(folder / name).read_text(encoding="utf-8") for name in names]


def open_database(path: Path | None, schema: Sequence[str]) -> sqlite3.Connection:
    """The database at `path` (None: in memory), locked, checked, brought up to `schema`, in autocommit mode.

    Raises `RonError(StoreUnavailable)` with a hint when another process has it, it is damaged, or it is newer than we.
    """
    try:
        if path is not None:
            _make_private(path)
        connection = sqlite3.connect(
            path if path is not None else ":memory:",
            timeout=LOCK_WAIT_S,
            isolation_level=None,
            cached_statements=CACHED_STATEMENTS,
        )
        try:
            _configure(connection, durable=path is not None)
            _check(connection, path)
            _upgrade(connection, schema, path)
        except BaseException:
            connection.close()
            raise
        return connection
    except (sqlite3.Error, OSError) as error:
        raise as_ron_error(error, path) from error


def _make_private(path: Path) -> None:
    private_dir(path.parent)
    if path.exists():
        path.chmod(0o600)
        return
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    sync_dir(path.parent)


def _configure(connection: sqlite3.Connection, *, durable: bool) -> None:
    # The lock is taken with the first read and held until the process ends, however it ends; and as nobody else may
    # read, SQLite keeps the index of its log in our memory instead of a shared file.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    if durable:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise unavailable("the store's file system cannot hold a write-ahead log", hint="use a local file system")
        connection.execute("PRAGMA synchronous = FULL")
    else:
        connection.execute("PRAGMA journal_mode = MEMORY")
    for setting in (
        f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
        f"journal_size_limit = {WAL_LIMIT_BYTES}",
        f"cache_size = -{CACHE_KIB}",
        "temp_store = MEMORY",
        "foreign_keys = ON",
        "trusted_schema = OFF",
        "secure_delete = FAST",
    ):
        connection.execute(f"PRAGMA {setting}")


def _check(connection: sqlite3.Connection, path: Path | None) -> None:
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("COMMIT")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _damaged(path)


def _upgrade(connection: sqlite3.Connection, schema: Sequence[str], path: Path | None) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(schema):
        raise unavailable(
            f"{_name(path)} was written by a newer version (schema {version}, this one knows {len(schema)})",
            hint="run the newer version, or restore the backup made before the upgrade",
        )
    for number, script in enumerate(schema[version:], start=version + 1):
        try:
            connection.executescript(f"BEGIN;\n{script}\n;PRAGMA user_version = {number};\nCOMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def close_database(connection: sqlite3.Connection, *, durable: bool) -> None:
    """Put the log into the database and let go of the file. Never raises `sqlite3.Error`."""
    try:
        if durable:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error:
        # nothing is lost: the log still holds it and is replayed at the next start
        _log.failure("last checkpoint", event="store_checkpoint_failed")
    finally:
        connection.close()


def is_storage(error: sqlite3.Error) -> bool:
    """True when `error` speaks of the disk or the file and not of our SQL."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _STORAGE


def as_ron_error(error: Exception, path: Path | None) -> RonError:
    """What the store says of `error`, to operators and callers alike: the file's name, never its folder."""
    if isinstance(error, RonError):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _DAMAGED:
        return _damaged(path)
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return unavailable(
            f"{_name(path)} is in use by another process", hint="stop the other process that has it open"
        )
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
        return unavailable(f"{_name(path)}: no room on the disk", hint="make room; the store goes on by itself")
    what = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return unavailable(f"{_name(path)} cannot be read or written ({what})", hint="look after the disk and its rights")


def _damaged(path: Path | None) -> RonError:
    return unavailable(f"{_name(path)} is damaged", hint="stop, keep the file for repair, restore from a backup")


def _name(path: Path | None) -> str:
    return path.name if path is not None else "the store in memory"
