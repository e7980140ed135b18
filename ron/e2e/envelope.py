"""Sealing bytes to several recipients, and opening them again: the rules of envelope version 1 (docs/e2e.rst).

In: public keys, a plaintext and the `aad` both sides know. Out: one deterministic-CBOR envelope.
A random content key (CEK) is wrapped to each recipient with HPKE; the payload is encrypted once, under a key derived
from the CEK, and authenticates the whole header. Pure: no reactor, clock or disk. Work grows with the number of
recipients (about 0.2 ms each), so a caller on the reactor hands large lists to a thread.
"""

from __future__ import annotations

import hmac
import itertools
import secrets
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import cbor2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ron.crypto import hpke
from ron.crypto.hpke import TAG_BYTES, Suite
from ron.e2e.errors import (
    DecryptionFailed,
    EnvelopeMalformed,
    LimitExceeded,
    NotARecipient,
    RecipientsInvalid,
    UnsupportedSuite,
    UnsupportedVersion,
)
from ron.e2e.keys import KID_BYTES, KeyPair, PublicKey

DOMAIN: Final = "ron-e2e/1"
VERSION: Final = 1

CEK_BYTES: Final = 32
PAYLOAD_KEY_BYTES: Final = 32
COMMITMENT_BYTES: Final = 32

MAX_RECIPIENTS: Final = 64
MAX_PLAINTEXT_BYTES: Final = 1024 * 1024
MAX_AAD_BYTES: Final = 64 * 1024


def _bstr_bytes(length: int) -> int:
    """Encoded length of a CBOR byte string: its head and its content (RFC 8949 §3)."""
    head = 1 if length < 24 else 2 if length < 2**8 else 3 if length < 2**16 else 5
    return head + length


_MAX_ENTRY_BYTES = 1 + _bstr_bytes(KID_BYTES) + _bstr_bytes(CEK_BYTES + max(suite.overhead_bytes for suite in Suite))
_FRAME_BYTES = 1 + 1 + 1 + 2  # array(5), version, suite, head of the recipients array
MAX_ENVELOPE_BYTES: Final = (
    _FRAME_BYTES
    + MAX_RECIPIENTS * _MAX_ENTRY_BYTES
    + _bstr_bytes(COMMITMENT_BYTES)
    + _bstr_bytes(MAX_PLAINTEXT_BYTES + TAG_BYTES)
)
# The envelope, its five fields, and per recipient an array of two.
_MAX_CBOR_ITEMS = 1 + 5 + 3 * MAX_RECIPIENTS

# RFC 8949 §3: the major types an envelope is made of, and how an argument's width is told.
_UNSIGNED, _BYTES, _ARRAY = 0, 2, 4
_ONE_BYTE_ARGUMENT, _EIGHT_BYTE_ARGUMENT = 24, 27

# A nonce must not repeat under one key. The payload key comes from a CEK that is drawn fresh for every message and
# encrypts exactly one payload, so each key sees one nonce, and it may as well be zero. A random nonce would add
# twelve bytes and no safety: it comes from the same source, and would repeat when the CEK did.
_NONCE: Final = bytes(12)


class _Entry(NamedTuple):
    """One recipient: whose key, and the CEK sealed to it."""

    kid: bytes
    wrapped: bytes


class _Header(NamedTuple):
    """Everything in the clear, in wire order after the version."""

    suite: Suite
    entries: tuple[_Entry, ...]
    commitment: bytes

    def fields(self) -> list[Any]:
        """As CBOR values. The same list goes on the wire and under the tag, so that the two cannot drift apart."""
        return [VERSION, int(self.suite), self.entries, self.commitment]

    def authenticated(self, aad: bytes) -> bytes:
        """What the payload's tag covers besides the payload: the domain, the whole header and the caller's `aad`."""
        return _cbor([DOMAIN, *self.fields(), aad])


def seal(recipients: Sequence[PublicKey], plaintext: bytes, aad: bytes = b"") -> bytes:
    """An envelope that each of `recipients` can open with the same `aad`, and nobody else at all.

    1 to 64 recipients of one suite, `plaintext` ≤ 1 MiB, `aad` ≤ 64 KiB (authenticated, not stored). Raises
    `LimitExceeded` or `RecipientsInvalid` before any work. It does not say who sealed: see docs/e2e.rst.
    """
    _check_size("plaintext", plaintext, MAX_PLAINTEXT_BYTES)
    _check_size("aad", aad, MAX_AAD_BYTES)
    suite = _check_recipients(recipients)
    cek = secrets.token_bytes(CEK_BYTES)
    payload_key, commitment = _derive(suite, cek)
    entries = tuple(_Entry(key.kid, key.seal(cek, info=_info(key))) for key in _by_kid(recipients))
    header = _Header(suite, entries, commitment)
    payload = ChaCha20Poly1305(payload_key).encrypt(_NONCE, plaintext, header.authenticated(aad))
    return _cbor([*header.fields(), payload])


def open_(keypair: KeyPair, ciphertext: bytes, aad: bytes = b"") -> bytes:
    """The plaintext of an envelope sealed to `keypair` with this `aad`. Exported as `ron.e2e.open`.

    `ciphertext` may be anything a stranger sent: every refusal is an `E2EError`, and nothing is allocated or computed
    beyond `MAX_ENVELOPE_BYTES`. Raises `LimitExceeded`, `EnvelopeMalformed`, `UnsupportedVersion`,
    `UnsupportedSuite`, `NotARecipient` or `DecryptionFailed`.
    """
    _check_size("envelope", ciphertext, MAX_ENVELOPE_BYTES)
    _check_size("aad", aad, MAX_AAD_BYTES)
    header, payload = _decode(ciphertext)
    wrapped = _entry_for(keypair.public, header)
    try:
        return _decrypt(keypair, wrapped, header, payload, aad)
    except (hpke.OpenError, InvalidTag):
        raise DecryptionFailed(
            "the envelope does not open",
            hint="it was altered on the way, or sealed with another aad",
        ) from None


def _decrypt(keypair: KeyPair, wrapped: bytes, header: _Header, payload: bytes, aad: bytes) -> bytes:
    """Unwrap, compare the commitment, decrypt. A wrong commitment is reported like a wrong tag."""
    cek = keypair.open(wrapped, info=_info(keypair.public))
    payload_key, commitment = _derive(header.suite, cek)
    if not hmac.compare_digest(commitment, header.commitment):
        raise InvalidTag
    return ChaCha20Poly1305(payload_key).decrypt(_NONCE, payload, header.authenticated(aad))


def _check_size(what: str, octets: bytes, limit_bytes: int) -> None:
    if len(octets) > limit_bytes:
        raise LimitExceeded(f"{what} is {len(octets)} bytes, the limit is {limit_bytes}")


def _check_recipients(recipients: Sequence[PublicKey]) -> Suite:
    """The one suite of all recipients."""
    if len(recipients) > MAX_RECIPIENTS:
        raise LimitExceeded(f"{len(recipients)} recipients, the limit is {MAX_RECIPIENTS}")
    if not recipients:
        raise RecipientsInvalid("no recipient", hint="name at least one public key")
    if len({key.suite for key in recipients}) > 1:
        raise RecipientsInvalid(
            "recipients of different suites: a message is only as strong as its weakest key",
            hint="send one message per suite, or ask the classical recipient for a pq key",
        )
    if len({key.kid for key in recipients}) < len(recipients):
        raise RecipientsInvalid("the same recipient twice", hint="name each public key once")
    return recipients[0].suite


def _by_kid(recipients: Sequence[PublicKey]) -> list[PublicKey]:
    """Sorted, so that one set of recipients has one form and the caller's order (sender first?) tells nothing."""
    return sorted(recipients, key=lambda key: key.kid)


def _info(key: PublicKey) -> bytes:
    """HPKE `info`: a CEK wrapped for one suite and key is of no use in the place of another."""
    return _cbor([DOMAIN, "wrap", int(key.suite), key.kid])


def _derive(suite: Suite, cek: bytes) -> tuple[bytes, bytes]:
    """The payload key and the key commitment of `cek` (HKDF-SHA256).

    ChaCha20-Poly1305 does not commit to its key: a sender who gives two recipients two CEKs can build one payload
    that opens to different texts. The commitment is collision-resistant in the CEK, so all who open an envelope
    hold the same CEK and read the same text.
    """
    payload_key = _hkdf(cek, _cbor([DOMAIN, "payload key", int(suite)]), PAYLOAD_KEY_BYTES)
    return payload_key, _hkdf(cek, _cbor([DOMAIN, "commitment", int(suite)]), COMMITMENT_BYTES)


def _hkdf(secret: bytes, label: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=label).derive(secret)


def _cbor(value: Any) -> bytes:
    """Deterministic CBOR (RFC 8949 §4.2): one value, one encoding."""
    return cbor2.dumps(value, canonical=True)


def _entry_for(key: PublicKey, header: _Header) -> bytes:
    """The wrapped CEK meant for `key`."""
    if key.suite is header.suite:
        for entry in header.entries:
            if entry.kid == key.kid:
                return entry.wrapped
    raise NotARecipient(
        f"not sealed to key {key.kid.hex()}",
        hint="open it with the key whose public half the sender used",
    )


def _decode(ciphertext: bytes) -> tuple[_Header, bytes]:
    """The envelope's fields, all of the right type and length, from its one canonical encoding."""
    _screen(ciphertext)
    try:
        decoded = cbor2.loads(ciphertext)
    except cbor2.CBORDecodeError:
        raise _malformed("cut short") from None
    if _cbor(decoded) != ciphertext:
        raise _malformed("not in canonical form, or something follows it")
    match decoded:
        case [int(version), *_] if version != VERSION:
            raise UnsupportedVersion(f"envelope version {version}", hint="upgrade to read it")
        case [int(), int(suite), *_] if suite not in set(Suite):
            raise UnsupportedSuite(f"cipher suite {suite}", hint="upgrade to read it")
        case [int(), int(suite), [*entries], bytes(commitment), bytes(payload)]:
            return _check_fields(Suite(suite), entries, commitment, payload)
    raise _malformed("wrong fields")


def _check_fields(suite: Suite, entries: list[Any], commitment: bytes, payload: bytes) -> tuple[_Header, bytes]:
    """Every length that can be checked, before any cryptography."""
    if not 1 <= len(entries) <= MAX_RECIPIENTS:
        raise _malformed("wrong number of recipients")
    checked = tuple(_check_entry(suite, entry) for entry in entries)
    kids = [entry.kid for entry in checked]
    if any(kid >= following for kid, following in itertools.pairwise(kids)):
        raise _malformed("recipients out of order or named twice")
    if len(commitment) != COMMITMENT_BYTES:
        raise _malformed("wrong commitment length")
    if not TAG_BYTES <= len(payload) <= MAX_PLAINTEXT_BYTES + TAG_BYTES:
        raise _malformed("wrong payload length")
    return _Header(suite, checked, commitment), payload


def _check_entry(suite: Suite, entry: Any) -> _Entry:
    match entry:
        case [bytes(kid), bytes(wrapped)] if len(kid) == KID_BYTES and len(wrapped) == CEK_BYTES + suite.overhead_bytes:
            return _Entry(kid, wrapped)
    raise _malformed("wrong recipient entry")


def _screen(ciphertext: bytes) -> None:
    """Refuse what an envelope never contains before a general decoder builds it.

    A CBOR decoder turns tags into regular expressions, e-mail messages, dates and fractions, and map keys into hash
    collisions; a megabyte of those costs seconds. So only unsigned integers, byte strings and short arrays get
    through, at most `_MAX_CBOR_ITEMS` of them, which also bounds the nesting. Cut-short input, long forms and
    trailing bytes are left to the decoder and the canonical comparison.
    """
    position, announced, pending = 0, 1, 1
    while pending and position < len(ciphertext):
        kind, extra = divmod(ciphertext[position], 32)
        if kind not in (_UNSIGNED, _BYTES, _ARRAY) or extra > _EIGHT_BYTE_ARGUMENT:
            raise _malformed("a CBOR type it may not contain")
        width = 1 << (extra - _ONE_BYTE_ARGUMENT) if extra >= _ONE_BYTE_ARGUMENT else 0
        position += 1 + width
        argument = int.from_bytes(ciphertext[position - width : position]) if width else extra
        pending -= 1
        if kind == _BYTES:
            position += argument
        elif kind == _ARRAY:
            announced += argument
            pending += argument
            if announced > _MAX_CBOR_ITEMS:
                raise LimitExceeded(f"envelope with more parts than {MAX_RECIPIENTS} recipients need")


def _malformed(why: str) -> EnvelopeMalformed:
    return EnvelopeMalformed(f"not a sealed envelope: {why}")
