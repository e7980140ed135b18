"""The owner's service as its workers' custodian: which keys they are lent, and the last word on each use of one.

In: `KmsService`, the backend that lends. Out: `crew.Custodian`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from ron.proto.errors import RonError, unavailable
from ron.proto.kms import Kid
from ron.services.kms.backends.sealedkeys import SealedKey
from ron.services.kms.index import KeyIndex
from ron.services.kms.recorder import Log
from ron.services.kms.service import KmsService


@runtime_checkable
class Lender(Protocol):
    """A backend whose keys can be lent, sealed, with the master key that opens them."""

    def lend(self) -> AbstractContextManager[memoryview]:
        """The master key. Raises StoreUnavailable while the backend is not open."""

    def sealed(self, kid: Kid) -> SealedKey:
        """A key version at rest. Raises `RonError` (NotFound, StoreUnavailable)."""


class OwnersCustody:
    """See `crew.Custodian`."""

    def __init__(self, desk: KmsService, lender: Lender) -> None:
        self._desk = desk
        self._lender = lender

    @property
    def index(self) -> KeyIndex:
        """Every key."""
        return self._desk.room.index

    @property
    def log(self) -> Log:
        """Where records go."""
        log = self._desk.room.recorder.log
        if log is None:
            raise unavailable("the audit log is not open yet")
        return log

    def sealed(self, kid: Kid) -> SealedKey | None:
        """None also while the backend is away: a worker that knows of the key verifies with it."""
        try:
            return self._lender.sealed(kid)
        except RonError:
            return None

    def admit(self, kid: Kid) -> None:
        """As `operations` asks before a use, in the same order."""
        room = self._desk.room
        room.check_frozen(kid.tenant)
        room.guard.check_writes()
        room.index.signing(kid)
        self._desk.rates.check(kid.tenant, room.reactor.seconds())

    def stand(self) -> Mapping[str, str | int | bool]:
        """As of now, and not as of when the worker was told last."""
        return self._desk.room.recorder.stand()
