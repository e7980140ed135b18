"""What federation keeps on disk, in one private folder: our list, what was seen of others', the keys we hold.

In: `$RON_HOME/federation`. Out: values, read strictly and written whole. `list.json` and `pins.json` are the daemon's;
`holdings/<issuer>.key` are put there by `ronctl federation hold`. Blocks: call it in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from ron.crypto.schnorr import HolderKey, InvalidKeysError
from ron.kernel.files import private_dir, read_private, write_private
from ron.proto.errors import RonError, bad_request, unavailable
from ron.services.oniond.federation.grants import Listed
from ron.services.oniond.federation.messages import PROTOCOL, Onion, check_onion
from ron.services.oniond.federation.roster import Pin

MAX_HOLDINGS = 1024
_LIST, _PINS, _HOLDINGS, _SUFFIX = "list.json", "pins.json", "holdings", ".key"
T = TypeVar("T")
_Signature = tuple[int, int, int]


class HolderFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A holder key as a file (0600). public, secret: hex."""

    protocol: Literal["ron-federation/1"]
    public: str
    secret: str

    def __repr__(self) -> str:
        """Without the secret."""
        return f"<HolderFile {self.public}>"


def write_holder(path: Path, key: HolderKey) -> None:
    """Put `key` at `path`."""
    kept = HolderFile(protocol=PROTOCOL, public=key.public.hex(), secret=key.secret.hex())
    write_private(path, msgspec.json.encode(kept) + b"\n")


def read_holder(path: Path) -> HolderKey:
    """The key at `path`. Raises `RonError`: BadRequest for what is none, StoreUnavailable when others may read it."""
    try:
        kept = msgspec.json.decode(read_private(path), type=HolderFile)
        key = HolderKey(bytes.fromhex(kept.secret))
    except OSError as error:
        raise bad_request(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, ValueError, InvalidKeysError):
        raise bad_request(f"{path} holds no holder key", "make one: ronctl federation new-holder") from None
    if key.public.hex() != kept.public:
        raise bad_request(f"{path}: its two halves do not belong together", "restore it from a backup")
    return key


class Shelf:
    """The folder. `directory` is made when something is put there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, tuple[_Signature, HolderKey]] = {}

    def listed(self) -> Listed | None:
        """Our list, None when there has been none. Raises `RonError` StoreUnavailable when it cannot be read."""
        return self._read(_LIST, Listed)

    def keep_list(self, listed: Listed) -> None:
        """On disk when this returns."""
        self._write(_LIST, listed)

    def pins(self) -> dict[str, Pin]:
        """What was seen of peers' lists. Raises as `listed` does."""
        return self._read(_PINS, dict[Onion, Pin]) or {}

    def keep_pins(self, pins: Mapping[str, Pin]) -> None:
        """On disk when this returns."""
        self._write(_PINS, pins)

    def hold(self, issuer: str, key: HolderKey) -> Path:
        """Have `key` for what `issuer` gave us. Raises `RonError` BadRequest for what is no onion."""
        path = private_dir(self._directory / _HOLDINGS) / f"{check_onion(issuer)}{_SUFFIX}"
        write_holder(path, key)
        return path

    def holdings(self) -> tuple[dict[str, HolderKey], list[str]]:
        """Our keys by issuer, and what is wrong with files that hold none."""
        found: dict[str, tuple[_Signature, HolderKey]] = {}
        wrong = []
        paths = sorted((self._directory / _HOLDINGS).glob(f"*.onion{_SUFFIX}"))
        for path in paths[:MAX_HOLDINGS]:
            try:
                issuer = check_onion(path.name.removesuffix(_SUFFIX))
                found[issuer] = self._key(issuer, path)
            except RonError as error:
                wrong.append(f"{path.name}: {error.message}")
            except OSError as error:
                wrong.append(f"{path.name}: {error.strerror}")
        self._known = found
        return {issuer: key for issuer, (_signature, key) in found.items()}, wrong

    def _key(self, issuer: str, path: Path) -> tuple[_Signature, HolderKey]:
        stat = path.stat()
        signature = (stat.st_ino, stat.st_mtime_ns, stat.st_mode)
        known = self._known.get(issuer)
        return known if known is not None and known[0] == signature else (signature, read_holder(path))

    def _read(self, name: str, kind: type[T]) -> T | None:
        path = self._directory / name
        try:
            return msgspec.json.decode(read_private(path), type=kind)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unavailable(f"{path} cannot be read: {error.strerror}") from None
        except (msgspec.MsgspecError, ValueError):
            raise unavailable(f"{path} is damaged", hint="restore it from a backup, or move it away") from None

    def _write(self, name: str, value: object) -> None:
        try:
            private_dir(self._directory)
            write_private(self._directory / name, msgspec.json.encode(value))
        except OSError as error:
            raise unavailable(f"{self._directory / name} cannot be written: {error.strerror}") from None
