"""A token behind PKCS#11: a hardware module, or SoftHSM.

In: calls of `Backend`. Out: signatures that the token made, where it can (Ed25519); all else lives as a seed sealed by
a key of the token, and its attestation class says so. Everything is in the token: the host may be thrown away. What the
token answers is judged: a signature that does not verify, or a seed of another key, never leaves here. Blocks; from any
thread. One of these for a module and process.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
from pkcs11 import Mechanism, ObjectClass, Token
from pkcs11.exceptions import KeyHandleInvalid, NoSuchKey, ObjectHandleInvalid, PKCS11Error

from ron.crypto import signing
from ron.crypto.secrets import SecretBuffer
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict, not_found, unavailable
from ron.proto.kms import Alg, Attestation, Kid
from ron.services.kms.backends import heads, pkcs11_head, seeds
from ron.services.kms.backends import pkcs11_objects as objects
from ron.services.kms.backends.pkcs11_head import TokenHead
from ron.services.kms.backends.pkcs11_records import (
    MARKER,
    DamagedRecordError,
    HalfRecord,
    KeyRecord,
    bound_to,
    decode,
    encode,
    kid_hash,
    object_id,
    slug,
)
from ron.services.kms.backends.pkcs11_sealing import SEALERS, NotOpenedError, sealer_of
from ron.services.kms.backends.pkcs11_sessions import Seat, Sessions, TokenAddress
from ron.services.kms.ports import Held

MAX_FOUND = 10_000
"""Handles that one session remembers."""


class Pkcs11Backend:
    """`Backend` on one token. pin: see `pin_from_env`; it is the caller's, and stays open as long as this does."""

    name = "pkcs11"
    quick = False

    def __init__(
        self,
        address: TokenAddress,
        pin: SecretBuffer,
        *,
        sessions: Sessions | None = None,
        on_reconnect: Callable[[], None] = lambda: None,
    ) -> None:
        self._sessions = sessions or Sessions(address, pin, on_reconnect=on_reconnect)
        self._known: dict[Kid, KeyRecord] = {}
        self._making = threading.Lock()
        self._class = ""
        self._destroyed = 0
        self._heads: list[TokenHead] | None = None
        self._connection = 0
        self._mechanisms: set[Mechanism] = set()

    def open(self) -> None:
        """Connect, log in, and put our mark into an empty token. Raises `RonError` (StoreUnavailable, Unsupported)."""
        self._sessions.open()
        try:
            with self._sessions.seat() as seat:
                token = self._token()
                self._class = f"pkcs11-{slug(token.model)}"
                self._mechanisms = objects.understood(lambda: set(token.slot.get_mechanisms()))
                if objects.data(seat.session, MARKER) is None:
                    objects.put(seat.session, MARKER, b"\x01")
                self._heads, self._connection = pkcs11_head.read(seat.session), self._sessions.connections
            self.held()
        except RonError:
            self.close()
            raise

    def close(self) -> None:
        """Log out."""
        self._sessions.close()
        self._known.clear()
        self._heads = None

    def probe(self) -> None:
        """Raises `RonError` (StoreUnavailable) unless the token is there with our mark; reconnects when it is time.

        `RolledBackError` where an older copy of it came back.
        """
        with self._sessions.seat() as seat:
            objects.check_present(seat.session)
            if self._connection != self._sessions.connections:
                self._look_again(seat)

    def head(self) -> tuple[int, bytes]:
        """How many changes the token has seen of ours, for the audit log: as it was when it was looked at last."""
        newest = pkcs11_head.newest(self._seen_heads())
        return heads.told(self.name, newest.counter, newest.digest)

    def check_head(self, counter: int, digest: bytes) -> None:
        """Raises `RolledBackError` unless this is the token whose `head` was (counter, digest), then or later."""
        seen = self._seen_heads()
        known = heads.own(self.name, counter, digest)
        if known is not None and not pkcs11_head.knows(seen, *known):
            raise heads.older(self.name, pkcs11_head.newest(seen).counter, known.counter)

    def held(self) -> Sequence[Held]:
        """Read anew from the token: another host may share it. Raises `DamagedRecordError`."""
        with self._sessions.seat() as seat:
            objects.check_present(seat.session)
            found = [(objects.label_of(one), objects.value_of(one)) for one in objects.all_data(seat.session)]
        records = [decode(value, label) for label, value in found if label not in (MARKER, pkcs11_head.LABEL)]
        known = {record.held("").kid: record for record in records}
        self._known = known
        return [record.held(self._class) for record in known.values()]

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """The record goes in last: what a crash leaves half done is not there, and is cleared at the next try."""
        if not kid.version or len(set(algs)) != len(algs):
            raise bad_request("a key version has a number, and one half of each algorithm")
        with self._making, self._sessions.seat() as seat:
            objects.check_present(seat.session)
            if objects.data(seat.session, str(kid)) is not None:
                raise conflict(f"the key {kid_hash(str(kid))} exists already in the token")
            objects.clear(seat.session, kid)
            try:
                record = KeyRecord(kid=str(kid), halves=tuple(self._make(seat, kid, alg) for alg in algs))
                self._count(seat, b"+" + str(kid).encode())
                objects.put(seat.session, str(kid), encode(record))
            except (RonError, PKCS11Error):
                # nobody may come back for this kid
                with suppress(PKCS11Error):
                    objects.clear(seat.session, kid)
                raise
        self._known[kid] = record
        return record.held(self._class)

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """By the token, or here with a seed that the token unsealed for this call."""
        signing.check_signs(alg)
        with self._sessions.seat() as seat:
            half = self._record(seat, kid).half(alg)
            if half.where == "token":
                made = self._with_key(seat, kid, ObjectClass.PRIVATE_KEY, lambda key: objects.eddsa(key, message))
                return _checked(kid, half, message, made)
            seed = self._unseal(seat, kid, half)
        with seeds.wiped(seed), _of_this_key(kid):
            return seeds.sign(alg, seed, message, half.public)

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        """Here, with seeds that the token unsealed for this call. Raises BadRequest for a changed envelope."""
        wanted = seeds.suite_of(suite)
        seeds.check_envelope(kid, envelope)
        with self._sessions.seat() as seat:
            record = self._record(seat, kid)
            opened = {alg: self._unseal(seat, kid, record.half(alg)) for alg in wanted.algs}
        publics = {alg: record.half(alg).public for alg in opened}
        with seeds.wiped(*opened.values()), _of_this_key(kid):
            return seeds.unwrap(wanted, opened, publics, envelope, info)

    def destroy(self, kid: Kid) -> None:
        """The keys go first: with the sealing key every copy of what it sealed is lost too. The record goes last."""
        with self._making, self._sessions.seat() as seat:
            objects.check_present(seat.session)
            self._count(seat, b"-" + str(kid).encode())
            objects.clear(seat.session, kid)
            record = objects.data(seat.session, str(kid))
            if record is not None:
                record.destroy()
            self._destroyed += 1
        self._known.pop(kid, None)

    def attest(self, kid: Kid | None) -> Attestation | None:
        """What the token says of itself and of the key, as JSON in base64. PKCS#11 has no signed statement to give."""
        with self._sessions.seat() as seat:
            objects.check_present(seat.session)
            told: dict[str, object] = {"token": objects.describe_token(self._token())}
            held_class = self._class
            if kid is not None:
                record = self._record(seat, kid)
                held_class = record.held(self._class).attestation_class
                told["kid"] = str(kid)
                try:
                    told["halves"] = [objects.describe_half(seat.session, kid, half) for half in record.halves]
                except NoSuchKey:
                    objects.check_present(seat.session)
                    raise _gone(kid) from None
        evidence = base64.b64encode(msgspec.json.encode(told, order="deterministic")).decode()
        return Attestation(class_=held_class, evidence=evidence)

    def _token(self) -> Token:
        if self._sessions.token is None:
            raise unavailable("the token was not opened")
        return self._sessions.token

    def _seen_heads(self) -> list[TokenHead]:
        if self._heads is None:
            raise unavailable("the token was not opened")
        return self._heads

    def _look_again(self, seat: Seat) -> None:
        """It was away in between. Raises `RolledBackError` each time, until what we knew is there again."""
        found = pkcs11_head.read(seat.session)
        before = pkcs11_head.newest(self._seen_heads())
        if not pkcs11_head.knows(found, before.counter, before.digest):
            raise heads.older(self.name, pkcs11_head.newest(found).counter, before.counter)
        self._heads, self._connection = found, self._sessions.connections

    def _count(self, seat: Seat, change: bytes) -> None:
        self._heads = [pkcs11_head.count(seat.session, change)]

    def _make(self, seat: Seat, kid: Kid, alg: Alg) -> HalfRecord:
        if alg is Alg.ED25519 and {Mechanism.EDDSA, Mechanism.EC_EDWARDS_KEY_PAIR_GEN} <= self._mechanisms:
            return HalfRecord(alg=alg, public=objects.make_ed25519(seat.session, kid), where="token")
        sealer = sealer_of(self._mechanisms)
        if sealer is None:
            raise RonError(
                ErrorCode.UNSUPPORTED,
                f"the token can neither hold a {alg} key nor seal one",
                hint="it needs CKM_AES_GCM or CKM_SHA256_HMAC; or take this algorithm out of service.allowed_algs",
            )
        key = objects.sealing_key(seat.session, kid) or sealer.make_key(seat.session, str(kid), object_id(kid))
        seed, public = seeds.fresh(alg)
        with seeds.wiped(seed):
            sealed = sealer.seal(key, alg, bytes(seed), bound_to(kid, alg, public))
        return HalfRecord(alg=alg, public=public, where=sealer.name, sealed=sealed)

    def _record(self, seat: Seat, kid: Kid) -> KeyRecord:
        record = self._known.get(kid)
        if record is None:
            found = objects.data(seat.session, str(kid))
            if found is None:
                objects.check_present(seat.session)
                raise not_found(f"the token has no key {kid_hash(str(kid))}")
            record = self._known[kid] = decode(objects.value_of(found, str(kid)), str(kid))
        return record

    def _unseal(self, seat: Seat, kid: Kid, half: HalfRecord) -> bytearray:
        """The caller wipes it. Raises `DamagedRecordError`."""
        if half.where == "token":
            raise RonError(ErrorCode.UNSUPPORTED, f"the {half.alg} half works in the token only")
        sealer, bound = SEALERS[half.where], bound_to(kid, half.alg, half.public)
        try:
            return bytearray(
                self._with_key(
                    seat, kid, ObjectClass.SECRET_KEY, lambda key: sealer.unseal(key, half.alg, half.sealed, bound)
                )
            )
        except NotOpenedError:
            # a module may call its own trouble by the same name as a wrong tag
            objects.check_present(seat.session)
            raise DamagedRecordError(str(kid)) from None

    def _with_key(self, seat: Seat, kid: Kid, kind: ObjectClass, use: Callable[[Any], bytes]) -> bytes:
        """`use` with the key as this session knows it; where it is known no more, it is looked for once."""
        if seat.age != self._destroyed or len(seat.found) > MAX_FOUND:
            seat.found.clear()
            seat.age = self._destroyed
        at = (str(kid), kind)
        if at in seat.found:
            try:
                return use(seat.found[at])
            except (KeyHandleInvalid, ObjectHandleInvalid):
                del seat.found[at]
        try:
            seat.found[at] = objects.find(seat.session, kid, kind)
        except NoSuchKey:
            objects.check_present(seat.session)
            self._known.pop(kid, None)
            raise _gone(kid) from None
        return use(seat.found[at])


def _checked(kid: Kid, half: HalfRecord, message: bytes, signature: bytes) -> bytes:
    """The token's signature, when it is one of this key: a module that errs, or keys that were exchanged in the token,
    would otherwise speak in its name. 50 µs beside the token's own time."""
    if not signing.verify(half.alg, half.public, message, signature):
        raise RonError(
            ErrorCode.INTERNAL,
            f"the token signed otherwise than with the key {kid_hash(str(kid))}",
            hint="stop using the token, and look at it; see docs/kms/backends.rst",
        )
    return signature


@contextmanager
def _of_this_key(kid: Kid) -> Iterator[None]:
    try:
        yield
    except seeds.ForeignSeedError:
        raise DamagedRecordError(str(kid)) from None


def _gone(kid: Kid) -> RonError:
    return not_found(f"the token has no key {kid_hash(str(kid))} any more")
