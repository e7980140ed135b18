"""Several backends behind one: all of them are read, one of them signs (I-20).

In: backends, the one that signs first. Out: a `Backend`. A copy of a key signs in the place of the first one's only
where that was allowed, the first is away, and the two are the same key: kid, attestation class and public halves.
What the first says it does not hold, nobody signs: it may have been destroyed there. Blocks; from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from twisted.logger import Logger

from ron.crypto import signing
from ron.proto.errors import ErrorCode, RonError, conflict, not_found, unavailable
from ron.proto.kms import Alg, Attestation, Kid
from ron.services.kms.backends import heads
from ron.services.kms.backends.errors import CustodyError
from ron.services.kms.backends.heads import Counting, Head
from ron.services.kms.ports import Backend, Held

T = TypeVar("T")
_log = Logger(namespace="ron.kms.multi")


class _Member:
    """A backend and what it was seen to hold. It is opened when it can be; until then it is away.

    last: where its store stands, as far as it was seen or the audit log said; None where nobody knows.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.opened = False
        self.known: dict[Kid, Held] | None = None
        self.last: Head | None = None
        self._unchecked = False
        self._opening = threading.Lock()

    @property
    def counts(self) -> bool:
        """Does its own store count its changes?"""
        return isinstance(self.backend, Counting)

    def head(self) -> Head | None:
        """Where it stands. One that is away stands where it was seen last."""
        if self.opened and not self._unchecked and isinstance(self.backend, Counting):
            try:
                self.last = Head(*self.backend.head())
            except RonError as error:
                if not _is_absence(error):
                    raise
        return self.last

    def expect(self, counter: int, digest: bytes) -> None:
        """What the audit log says of it, as `Counting.check_head`; one that is away is checked once it is there."""
        known = heads.own(self.backend.name, counter, digest)
        if known is None or not self.counts:
            return
        self.last, self._unchecked = heads.told(self.backend.name, *known), True
        if self.opened:
            self._check()

    def _check(self) -> None:
        if self._unchecked and self.last is not None and isinstance(self.backend, Counting):
            self.backend.check_head(*self.last)
            self._unchecked = False

    def away(self) -> RonError | None:
        """Why it cannot be opened for the moment, None when it is open. Raises what is more than an absence."""
        with self._opening:
            try:
                if not self.opened:
                    self.backend.open()
                    self.opened = True
                self._check()
            except RonError as error:
                if not _is_absence(error):
                    raise
                return error
        return None

    def ask(self, call: Callable[[Backend], T]) -> T:
        """Raises what `call` raises, and StoreUnavailable while it is not open: only `away` opens."""
        if not self.opened:
            raise unavailable(f"the backend {self.backend.name} is not open")
        return call(self.backend)

    def look(self) -> dict[Kid, Held]:
        """What it holds now. Raises what `ask` raises."""
        self.known = {held.kid: held for held in self.ask(lambda backend: backend.held())}
        return self.known

    def find(self, kid: Kid) -> Held | None:
        """What it holds under that kid, as far as anybody has seen. Raises `RonError` while nobody has."""
        known = self.known if self.known is not None else self.look()
        return known.get(kid) or self.look().get(kid)


class MultiBackend:
    """`Backend` over `backends`, at least one, in the order of `service.multi_backends`.

    head, check_head: of all that count their changes, as `heads.joined`; it has none where none of them does.
    """

    head: Callable[[], tuple[int, bytes]]
    check_head: Callable[[int, bytes], None]

    def __init__(self, backends: Sequence[Backend], *, allow_sign_fallback: bool = False) -> None:
        self._members = [_Member(backend) for backend in backends]
        self._first, *self._others = self._members
        self._fallback = allow_sign_fallback
        self._open = False
        # who has none may not seem to: the service would believe that it had been checked
        if any(member.counts for member in self._members):
            self.head, self.check_head = self._head, self._check_head
        self.name = self._first.backend.name
        self.quick = all(member.backend.quick for member in (self._members if allow_sign_fallback else [self._first]))

    def open(self) -> None:
        """The first has to; others may be away for now. Raises the first one's `RonError`, any `CustodyError`."""
        try:
            away = [member.away() for member in self._members]
            if away[0] is not None:
                raise away[0]
        except RonError:
            self.close()
            raise
        self._open = True

    def close(self) -> None:
        """All of them."""
        self._open = False
        for member in self._members:
            member.opened = False
            member.backend.close()

    def probe(self) -> None:
        """The first has to be able to sign; of the others, those that were away are tried again."""
        if self._open:
            for member in self._members:
                member.away()
        self._first.ask(lambda backend: backend.probe())

    def away(self) -> tuple[str, ...]:
        """The names of those that are not open."""
        return tuple(member.backend.name for member in self._members if not member.opened)

    def held(self) -> Sequence[Held]:
        """Of all that can be reached, the first one's word counting where two hold a kid. Raises when none can."""
        found: dict[Kid, Held] = {}
        failed: list[RonError] = []
        for member in self._members:
            try:
                found = {**member.look(), **found}
            except RonError as error:
                if not _is_absence(error):
                    raise
                failed.append(error)
        if len(failed) == len(self._members):
            raise failed[0]
        return list(found.values())

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """By the first. Conflict for a kid that any of them is known to hold."""
        if any(kid in (member.known or {}) for member in self._others):
            raise conflict("another backend holds a key of that name")
        held = self._first.ask(lambda backend: backend.generate(kid, algs))
        self._first.known = {**(self._first.known or {}), kid: held}
        return held

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """By the first; see the module for who else. Unsupported for a key that only another one holds."""
        try:
            return self._first.ask(lambda backend: backend.sign(kid, alg, message))
        except RonError as error:
            if _is_absence(error) and self._fallback:
                return self._sign_elsewhere(kid, alg, message, error)
            if error.code is ErrorCode.NOT_FOUND:
                self._explain(kid)
            raise

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        """By the first in order that holds the key: an envelope opens under one key only, whoever has it.

        Raises StoreUnavailable while one that comes earlier, and may hold it, is away.
        """
        for member in self._members:
            try:
                return member.ask(lambda backend: backend.unwrap(kid, suite, envelope, info))
            except RonError as error:
                unheld = member.known is not None and kid not in member.known
                if error.code is not ErrorCode.NOT_FOUND and not (_is_absence(error) and unheld):
                    raise
        raise not_found("no backend holds such a key version")

    def destroy(self, kid: Kid) -> None:
        """In all of them. Raises StoreUnavailable when one could not be asked; the same call finishes it later."""
        failed: list[RonError] = []
        missing: list[RonError] = []
        for member in self._members:
            try:
                member.ask(lambda backend: backend.destroy(kid))
            except RonError as error:
                (missing if error.code is ErrorCode.NOT_FOUND else failed).append(error)
            else:
                if member.known is not None:
                    member.known = {other: held for other, held in member.known.items() if other != kid}
        if failed:
            raise failed[0]
        if len(missing) == len(self._members):
            raise missing[0]

    def attest(self, kid: Kid | None) -> Attestation | None:
        """Of the first that holds it; of the one that signs, for no kid. StoreUnavailable as `unwrap`."""
        if kid is None:
            return self._first.ask(lambda backend: backend.attest(None))
        for member in self._members:
            # asked first: one that gives no evidence may say None for a kid that it does not hold
            if member.find(kid) is not None:
                return member.ask(lambda backend: backend.attest(kid))
        raise not_found("no backend holds such a key version")

    def _head(self) -> tuple[int, bytes]:
        return heads.joined(head for member in self._members if (head := member.head()) is not None)

    def _check_head(self, counter: int, digest: bytes) -> None:
        for member in self._members:
            member.expect(counter, digest)

    def _sign_elsewhere(self, kid: Kid, alg: Alg, message: bytes, why: RonError) -> bytes:
        """Raises `why` where nobody provably holds the first one's own key."""
        ours = (self._first.known or {}).get(kid)
        public = next((half.public for half in ours.halves if half.alg == alg), None) if ours is not None else None
        if ours is None or public is None:
            raise why
        for member in self._others:
            try:
                if member.find(kid) != ours:
                    continue
                signature = member.ask(lambda backend: backend.sign(kid, alg, message))
            except RonError:
                continue
            # the proof of identity is not what a backend says of itself
            if signing.verify(alg, public, message, signature):
                _log.warn("signed by {name}", event="kms_sign_fallback", backend=member.backend.name)
                return signature
        raise why

    def _explain(self, kid: Kid) -> None:
        if any(kid in (member.known or {}) for member in self._others):
            raise RonError(
                ErrorCode.UNSUPPORTED,
                "the backend that signs does not hold this key; another one does, to verify only",
                hint="rotate the key, or put its backend first in service.multi_backends",
            )


def _is_absence(error: RonError) -> bool:
    # a store that was damaged, locked or rolled back is there; it is another thing than a token that was pulled out
    return error.code is ErrorCode.STORE_UNAVAILABLE and not isinstance(error, CustodyError)
