"""A PKCS#11 token that answers as it likes: what is fuzzed of the adapter in `ron.services.kms.backends.pkcs11`.

The token is honest as long as the input says nothing else. The input is a tape: each answer takes what is to be done to
it from there. In and out as in `fuzz.targets`.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Callable, Iterator
from typing import Any

import nacl.signing
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pkcs11 import Attribute, Mechanism, ObjectClass, SecretKey, exceptions
from pkcs11.attributes import AttributeMapper

from fuzz.finding import Finding
from ron.crypto import signing, wrapping
from ron.crypto.secrets import SecretBuffer
from ron.crypto.wrapping import Suite
from ron.proto.errors import RonError
from ron.proto.kms import Alg, parse_kid
from ron.services.kms.backends.pkcs11 import Pkcs11Backend
from ron.services.kms.backends.pkcs11_sessions import Seat, Sessions, TokenAddress
from ron.services.kms.ports import Held

Target = Callable[[bytes], None]
SIGNS = parse_kid("core/audit/hybrid/00000000-0000-4000-8000-000000000001#v1")
WRAPS = parse_kid("core/wrap/hybrid/00000000-0000-4000-8000-000000000002#v1")
NEW = parse_kid("core/audit/hybrid/00000000-0000-4000-8000-000000000003#v1")
MESSAGE, SECRET = bytes(range(32)), b"k" * 32
_ERRORS = sorted(
    (one for one in vars(exceptions).values() if isinstance(one, type) and issubclass(one, exceptions.PKCS11Error)),
    key=lambda one: one.__name__,
)
_MECHANISMS = (
    Mechanism.EDDSA,
    Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
    Mechanism.AES_GCM,
    Mechanism.AES_KEY_GEN,
    Mechanism.SHA256_HMAC,
    Mechanism.GENERIC_SECRET_KEY_GEN,
)
_MAPPER = AttributeMapper()
_TRUE, _FALSE = b"\1", b"\0"


class Tape:
    """What is done to answers. It ends, and from then on all is honest."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def byte(self) -> int:
        """The next one, 0 after the end."""
        self._at += 1
        return self._raw[self._at - 1] if self._at <= len(self._raw) else 0

    def some(self) -> bytes:
        """As many as the next byte says."""
        size = self.byte()
        self._at += size
        return self._raw[self._at - size : self._at]

    def judge(self) -> None:
        """Raises what the token fails with, if it is to."""
        if self.byte() == 1:
            raise _ERRORS[self.byte() % len(_ERRORS)]

    def twist(self, answer: bytes) -> bytes:
        """The answer, or what comes in its place."""
        kind = self.byte()
        if kind == 1:
            raise _ERRORS[self.byte() % len(_ERRORS)]
        if kind == 2:
            return self.some()
        if kind == 3:
            at = (self.byte() << 8 | self.byte()) % (len(answer) + 1)
            patch = self.some()
            return answer[:at] + patch + answer[at + len(patch) :]
        if kind == 4:
            return answer[: self.byte()]
        return answer


class Thing(SecretKey):
    """An object in the token, as bytes; a key also has `secret`, which nothing gives out."""

    def __init__(self, tape: Tape, attributes: dict[Attribute, bytes], secret: bytes = b"") -> None:
        self.tape = tape
        self.attributes = attributes
        self.secret = secret

    def __getitem__(self, attribute: Any) -> Any:
        known = self.attributes.get(attribute)
        if known is None:
            raise exceptions.AttributeTypeInvalid
        return _MAPPER.unpack_attributes(attribute, self.tape.twist(known))

    def __setitem__(self, attribute: Any, value: Any) -> None:
        raise exceptions.ActionProhibited

    def get_attributes(self, keys: Any) -> Any:
        """Not asked for."""
        raise exceptions.FunctionNotSupported

    def copy(self, attrs: Any) -> Any:
        """Not asked for."""
        raise exceptions.FunctionNotSupported

    def destroy(self) -> None:
        """It is gone, if the tape lets it."""
        self.tape.judge()
        self.attributes.clear()

    def sign(self, message: bytes, *, mechanism: Mechanism) -> bytes:
        """EdDSA or an HMAC."""
        if mechanism is Mechanism.EDDSA:
            return self.tape.twist(bytes(nacl.signing.SigningKey(self.secret).sign(message).signature))
        return self.tape.twist(hmac.digest(self.secret, message, hashlib.sha256))

    def encrypt(self, data: bytes, *, mechanism: Mechanism, mechanism_param: Any) -> bytes:
        """AES-GCM."""
        nonce, bound = _gcm(mechanism_param)
        return self.tape.twist(AESGCM(self.secret).encrypt(nonce, data, bound))

    def decrypt(self, data: bytes, *, mechanism: Mechanism, mechanism_param: Any) -> bytes:
        """AES-GCM, which says what SoftHSM says of a wrong tag."""
        nonce, bound = _gcm(mechanism_param)
        try:
            return self.tape.twist(AESGCM(self.secret).decrypt(nonce, data, bound))
        except (InvalidTag, ValueError):
            raise exceptions.GeneralError from None


def _gcm(param: Any) -> tuple[bytes, bytes]:
    return bytes(param.nonce), bytes(param.aad)


class Room:
    """The token's objects: all that a session asks of it."""

    def __init__(self, tape: Tape, things: list[Thing] | None = None) -> None:
        self.tape = tape
        self.things = things or []

    def get_objects(self, template: dict[Attribute, Any]) -> Iterator[Thing]:
        """Those that fit, as far as the tape lets it."""
        wanted = {attribute: _MAPPER.pack_attribute(attribute, value) for attribute, value in template.items()}
        self.tape.judge()
        found = [one for one in self.things if one.attributes and wanted.items() <= one.attributes.items()]
        kind = self.tape.byte()
        if kind == 1:
            return iter([])
        if kind == 2:
            return iter(one for one in self.things if one.attributes)
        return iter(found * 2 if kind == 3 else found)

    def get_key(self, *, object_class: ObjectClass, id: bytes) -> Thing:
        """One, or an error."""
        found = list(self.get_objects({Attribute.CLASS: object_class, Attribute.ID: id}))
        if not found:
            raise exceptions.NoSuchKey
        if len(found) > 1:
            raise exceptions.MultipleObjectsReturned
        return found[0]

    def create_object(self, attributes: dict[Attribute, Any]) -> Thing:
        """As it is told."""
        self.tape.judge()
        packed = {attribute: _MAPPER.pack_attribute(attribute, value) for attribute, value in attributes.items()}
        return self._kept(packed)

    def generate_key(self, _kind: Any, bits: int, *, id: bytes, label: str, **_more: Any) -> Thing:
        """A secret one."""
        self.tape.judge()
        return self._kept(
            _attributes(ObjectClass.SECRET_KEY, id, label), bytes(hashlib.sha256(id).digest()[: bits // 8])
        )

    def create_domain_parameters(self, *_curve: Any, **_more: Any) -> Room:
        """The curve is itself."""
        self.tape.judge()
        return self

    def generate_keypair(self, *, id: bytes, label: str, **_more: Any) -> tuple[Thing, Thing]:
        """Ed25519."""
        self.tape.judge()
        seed = hashlib.sha256(b"ed25519" + id).digest()
        point = b"\4\x20" + bytes(nacl.signing.SigningKey(seed).verify_key)
        public = {**_attributes(ObjectClass.PUBLIC_KEY, id, label), Attribute.EC_POINT: point}
        return self._kept(public), self._kept(_attributes(ObjectClass.PRIVATE_KEY, id, label), seed)

    def close(self) -> None:
        """Nothing is left open."""

    def _kept(self, attributes: dict[Attribute, bytes], secret: bytes = b"") -> Thing:
        self.things.append(Thing(self.tape, attributes, secret))
        return self.things[-1]


def _attributes(kind: ObjectClass, key_id: bytes, label: str) -> dict[Attribute, bytes]:
    flags = {
        Attribute.SENSITIVE: _TRUE,
        Attribute.EXTRACTABLE: _FALSE,
        Attribute.ALWAYS_SENSITIVE: _TRUE,
        Attribute.NEVER_EXTRACTABLE: _TRUE,
        Attribute.LOCAL: _TRUE,
    }
    packed = _MAPPER.pack_attribute(Attribute.CLASS, kind)
    return {Attribute.CLASS: packed, Attribute.ID: key_id, Attribute.LABEL: label.encode(), **flags}


class Described:
    """What the token says of itself; text is decoded as python-pkcs11 does it."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self.label = tape.twist(b"RON-KMS").decode()
        self.model = tape.twist(b"SoftHSM v2").decode()
        self.manufacturer_id = tape.twist(b"nobody").decode()
        self.serial = tape.twist(b"0123456789abcdef").rstrip()
        self.hardware_version = self.firmware_version = (tape.byte(), tape.byte())
        self.slot = self

    def get_mechanisms(self) -> set[Any]:
        """All that we know, or numbers from the tape."""
        if self._tape.byte() != 1:
            return set(_MECHANISMS)
        named = self._tape.some()
        return {_MECHANISMS[one % len(_MECHANISMS)] if one < 128 else (one << 24) for one in named}


class Pool(Sessions):
    """The real pool, over a token of ours."""

    def __init__(self, tape: Tape, room: Room) -> None:
        address = TokenAddress("fuzz", "RON-KMS")
        pin = SecretBuffer.taking(bytearray(b"0"), allow_unlocked=True)
        super().__init__(address, pin, checkout_s=0.01, now=lambda: 0.0)
        self._tape, self._room = tape, room

    def _sit_down(self) -> list[Seat]:
        self._tape.judge()
        self.token = Described(self._tape)  # type: ignore[assignment]
        return [Seat(self._room)]  # type: ignore[arg-type]

    def _leave(self) -> None:
        self._all, self._idle = [], []

    @property
    def whole(self) -> bool:
        """Is nothing left of a call that is over?"""
        return not (self._out or self._connecting)


def pkcs11_adapter() -> Target:
    """First byte: which call; the rest: the tape. Nothing but `RonError` may come out of it; no signature that does not
    verify, no other plaintext, no session that is not given back."""
    things, signs, wraps = _made()
    envelope = wrapping.wrap(WRAPS, Suite.HYBRID, {half.alg: half.public for half in wraps.halves}, SECRET)
    info = wrapping.info_of(WRAPS, Suite.HYBRID)

    def signed(backend: Pkcs11Backend, alg: Alg) -> None:
        public = next(half.public for half in signs.halves if half.alg is alg)
        if not signing.verify(alg, public, MESSAGE, backend.sign(SIGNS, alg, MESSAGE)):
            raise Finding("a signature that does not verify")

    def opened(backend: Pkcs11Backend) -> None:
        if backend.unwrap(WRAPS, Suite.HYBRID.value, envelope, info) != SECRET:
            raise Finding("an envelope opens to something else")

    def made(backend: Pkcs11Backend) -> None:
        held = backend.generate(NEW, (Alg.ED25519, Alg.ML_DSA))
        if [half.alg for half in held.halves] != [Alg.ED25519, Alg.ML_DSA] or held.kid != NEW:
            raise Finding("another key than was asked for")

    calls: list[Callable[[Pkcs11Backend], Any]] = [
        lambda backend: backend.held(),
        lambda backend: signed(backend, Alg.ED25519),
        lambda backend: signed(backend, Alg.ML_DSA),
        opened,
        made,
        lambda backend: backend.destroy(SIGNS),
        lambda backend: backend.attest(SIGNS),
        lambda backend: (backend.probe(), backend.check_head(*backend.head())),
    ]

    def one(raw: bytes) -> None:
        tape = Tape(raw[1:])
        pool = Pool(tape, Room(tape, [Thing(tape, dict(thing.attributes), thing.secret) for thing in things]))
        backend = Pkcs11Backend(TokenAddress("fuzz", "RON-KMS"), pool._pin, sessions=pool)
        with contextlib.suppress(RonError):
            backend.open()
            calls[(raw[0] if raw else 0) % len(calls)](backend)
        if not pool.whole:
            raise Finding("a session was not given back")
        backend.close()

    return one


def _made() -> tuple[list[Thing], Held, Held]:
    """An honest token with two keys in it."""
    tape = Tape(b"")
    room = Room(tape)
    pool = Pool(tape, room)
    backend = Pkcs11Backend(TokenAddress("fuzz", "RON-KMS"), pool._pin, sessions=pool)
    backend.open()
    signs = backend.generate(SIGNS, (Alg.ED25519, Alg.ML_DSA))
    wraps = backend.generate(WRAPS, (Alg.X25519, Alg.ML_KEM))
    return [thing for thing in room.things if thing.attributes], signs, wraps
