"""The cluster's master addresses, as its book has them, beside what this node's config says of them.

In: the book, the `[balance]` section. Out: records by name, and masters for the publisher. A name that only one of the
two knows is not this node's to publish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ron.proto.balance import MAX_SERVICES, ServiceName
from ron.services.balance.config import BalanceConfig
from ron.services.balance.ports import Book, ServiceRecord
from ron.services.balance.publishing.publisher import Master
from ron.tor.clientauth import parse_public

PREFIX = "service/"


class Records:
    """wishes: the config as it is now."""

    def __init__(self, book: Book, wishes: Callable[[], BalanceConfig]) -> None:
        self._book = book
        self._wishes = wishes

    def all(self) -> dict[ServiceName, ServiceRecord]:
        """Every address in the book."""
        found: dict[ServiceName, ServiceRecord] = {}
        for key in self._book.keys(PREFIX)[:MAX_SERVICES]:
            record = self._book.get(key, ServiceRecord)
            if record is not None:
                found[key.removeprefix(PREFIX)] = record
        return found

    def open(self) -> dict[ServiceName, ServiceRecord]:
        """Those of this node's config that anybody may visit, this node too."""
        named = {service.name for service in self._wishes().services if not service.clients}
        return {name: record for name, record in self.all().items() if name in named}

    def masters(self) -> Mapping[ServiceName, Master]:
        """What there is to publish, with the clients that are allowed now."""
        clients = {service.name: service.clients for service in self._wishes().services}
        return {
            name: Master(
                name=name,
                onion=record.onion,
                clients=tuple(parse_public(text) for text in clients.get(name, ())),
            )
            for name, record in self.all().items()
        }
