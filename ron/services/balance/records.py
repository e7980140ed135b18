"""The cluster's master addresses, as its book has them, beside what this node holds and what its config says of them.

In: the book, the onions of keys and shares here, the `[balance]` section. Out: records by name, masters for the
publisher. Any member writes the book: what it says against a key that this node holds is wrong, and is put right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

import msgspec

from ron.proto.balance import MAX_SERVICES, ServiceName
from ron.proto.errors import RonError
from ron.services.balance.config import BalanceConfig
from ron.services.balance.ports import Book, ServiceRecord, Vault
from ron.services.balance.publishing.publisher import Master
from ron.services.balance.sparing import Sparingly
from ron.tor.clientauth import ClientPublic, parse_public
from ron.tor.descriptor.blinding import identity_of
from ron.tor.onionkeys import onion_address

PREFIX = "service/"
# Of names that nobody knows so many are looked at: a member can write a book full of them.
_LOOKED_AT = 64
# A record that is wrong is put right so often in a row, and then once in so many seconds.
_PUT_RIGHT, _PUT_RIGHT_S = 4, 60.0
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


class Records:
    """wishes: the config as it is now. vault: it knows the onions of what it holds."""

    def __init__(self, book: Book, wishes: Callable[[], BalanceConfig], vault: Vault) -> None:
        self._book = book
        self._wishes = wishes
        self._vault = vault
        self._holds: frozenset[ServiceName] = frozenset()
        self._onions: dict[ServiceName, str] = {}
        self._found: dict[ServiceName, ServiceRecord] | None = None
        # of services held here: what the book said of them before it was spoilt
        self._good: dict[ServiceName, ServiceRecord] = {}
        self._spoilt: dict[ServiceName, ServiceRecord] = {}
        self._sparingly = Sparingly(_PUT_RIGHT, _PUT_RIGHT_S)
        book.on_change(self._changed)

    def all(self) -> Mapping[ServiceName, ServiceRecord]:
        """Every address there is, `MAX_SERVICES` at most: held ones first, then those of the config."""
        holds = self._vault.holds()
        if self._found is None or holds != self._holds:
            self._holds, self._onions = holds, self._held(holds)
            self._found = self._read()
        return self._found

    def served(self) -> dict[ServiceName, ServiceRecord]:
        """Those of this node's config: it knows their ports and clients, and no other is its to publish."""
        named = {service.name for service in self._wishes().services}
        return {name: record for name, record in self.all().items() if name in named}

    def open(self) -> dict[ServiceName, ServiceRecord]:
        """Those of them that anybody may visit, this node too."""
        named = {service.name for service in self._wishes().services if not service.clients}
        return {name: record for name, record in self.all().items() if name in named}

    def masters(self) -> Mapping[ServiceName, Master]:
        """What there is to publish, with the clients that are allowed now. One with a bad client key is left out: an
        address for some must not be published for all."""
        clients = {service.name: _clients(service.clients) for service in self._wishes().services}
        return {
            name: Master(name=name, onion=record.onion, clients=allowed)
            for name, record in self.served().items()
            if (allowed := clients[name]) is not None
        }

    def put_right(self, now_s: float) -> bool:
        """Write again what others have overwritten with what cannot be. False when something is left for later. Raises
        what `Book.put` does."""
        self.all()
        for name, record in list(self._spoilt.items()):
            if self._sparingly.may(name, now_s):
                self._book.put(PREFIX + name, record)
        self.all()
        return not self._spoilt

    # Parts of it

    def _changed(self, key: str) -> None:
        if key.startswith(PREFIX):
            self._found = None

    def _held(self, holds: frozenset[ServiceName]) -> dict[ServiceName, str]:
        found = {}
        for name in holds:
            try:
                found[name] = onion_address(self._vault.signer(name).identity)
            except RonError:  # a share of an epoch that nobody uses: nothing to go by
                continue
        return found

    def _read(self) -> dict[ServiceName, ServiceRecord]:
        self._good = {name: record for name, record in self._good.items() if name in self._onions}
        self._spoilt = {}
        written = [key.removeprefix(PREFIX) for key in self._book.keys(PREFIX)]
        named = {service.name for service in self._wishes().services}
        known = sorted({*self._good, *(name for name in written if name in self._onions)})
        ours = [name for name in written if name in named and name not in known]
        others = [name for name in written if name not in named and name not in known][:_LOOKED_AT]
        found: dict[ServiceName, ServiceRecord] = {}
        for name in (*known, *ours, *others):
            record = self._record(name)
            if record is not None and len(found) < MAX_SERVICES:
                found[name] = record
        return found

    def _record(self, name: ServiceName) -> ServiceRecord | None:
        record = self._book.get(PREFIX + name, ServiceRecord)
        onion = self._onions.get(name)
        if onion is None:
            return record if record is not None and _NAME.fullmatch(name) and _is_onion(record.onion) else None
        good = self._good.get(name)
        if record is not None and record.onion == onion and (good is None or good.mode == record.mode):
            self._good[name] = record
            return record
        if good is None:
            good = msgspec.structs.replace(record, onion=onion) if record is not None else None
        if good is not None:
            self._spoilt[name] = good
        return good


def _clients(keys: tuple[str, ...]) -> tuple[ClientPublic, ...] | None:
    """None when one of them is none."""
    try:
        return tuple(parse_public(text) for text in keys)
    except RonError:
        return None


@lru_cache(maxsize=256)
def _is_onion(onion: str) -> bool:
    try:
        return onion_address(identity_of(onion)) == onion
    except RonError:
        return False
