"""A descriptor from introduction points: three layers, two encryptions, two signatures (rend-spec-v3 §2.4–§2.5).

In: introduction points, a `Signer`, authorised clients. Out: the text for HSPOST. The signer is asked once a period,
for the certificate of a fresh descriptor-signing key; descriptors under it are then made without anybody. Blocks for
some milliseconds a descriptor.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from nacl.bindings import crypto_scalarmult, crypto_scalarmult_base
from nacl.signing import SigningKey
from nacl.utils import random as random_bytes
from stem.descriptor.certificate import SIG_PREFIX_HS_V3
from stem.descriptor.hidden_service import _encrypt_layer

from ron.tor.clientauth import ClientPublic
from ron.tor.descriptor.blinding import SIGNATURE_BYTES, BlindedKey, Signer, blind, verify
from ron.tor.descriptor.certs import HOUR_S, Certificate, Purpose, expiry_h
from ron.tor.descriptor.intropoints import (
    MAX_DESCRIPTOR_BYTES,
    MAX_INTRO_POINTS,
    MAX_REVISION,
    Extras,
    IntroPoint,
    certified,
)
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.descriptor.refused import Reason, Refused

LIFETIME_MIN = 180
"""How long directories keep a descriptor, as tor's own say."""
PADDED_TO = 10_000
CLIENTS_MULTIPLE = 16
"""Entries for clients are filled up with random ones: nobody can count clients, or tell whether there are any."""
_COOKIE_BYTES = _IV_BYTES = 16
_CLIENT_ID_BYTES = 8
_COOKIE_KEY_BYTES = 32
_SALT_AND_MAC_BYTES = 16 + 32
_LINE_CHARS = 64
_SUPERENCRYPTED = b"hsdir-superencrypted-data"
_ENCRYPTED = b"hsdir-encrypted-data"

Randomness = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class DescriptorKey:
    """A key that signs descriptors of one address in one period, certified by the address until `expires_s` (Unix)."""

    blinded: BlindedKey
    certificate: str
    expires_s: int
    signing: SigningKey = field(repr=False)


async def certify(
    signer: Signer, period: TimePeriod, now_s: float, *, randomness: Randomness = random_bytes
) -> DescriptorKey:
    """A fresh key for `period`. Raises what the signer raises, and `Refused` when its signature does not verify."""
    blinded = blind(signer.identity, period)
    signing = SigningKey(randomness(32))
    expires_h = expiry_h(now_s)
    certificate = Certificate(
        Purpose.SIGN_DESCRIPTOR, bytes(signing.verify_key), by=blinded.public, expires_h=expires_h
    )
    signature = await signer.sign(period, certificate.message)
    if not verify(blinded.public, certificate.message, signature):
        raise Refused(Reason.BAD_SIGNATURE, "the signer's signature does not verify under the blinded key")
    return DescriptorKey(blinded, certificate.pem(signature), expires_h * HOUR_S, signing)


def build(
    key: DescriptorKey,
    points: Sequence[IntroPoint],
    revision: int,
    *,
    clients: Sequence[ClientPublic] = (),
    extras: Extras = Extras(),  # noqa: B008 - frozen
    randomness: Randomness = random_bytes,
) -> str:
    """The descriptor with `points` and the counter `revision` (`next_revision`), readable by `clients` only if any.

    Raises `Refused` (TOO_LONG) for more than 20 points, or when it would have 50 000 bytes: see `room`.
    """
    if len(points) > MAX_INTRO_POINTS:
        raise Refused(Reason.TOO_LONG, f"a descriptor has at most {MAX_INTRO_POINTS} introduction points")
    blinded = key.blinded
    cookie = randomness(_COOKIE_BYTES) if clients else b""
    inner = _seal(blinded, revision, _ENCRYPTED, inner_layer(key, points, extras).encode(), cookie)
    middle = _middle(_client_entries(blinded, clients, cookie, randomness), inner)
    padded = middle.encode() + bytes(-len(middle) % PADDED_TO)
    unsigned = _outer(key, revision, _seal(blinded, revision, _SUPERENCRYPTED, padded))
    signature = key.signing.sign(SIG_PREFIX_HS_V3 + unsigned.encode()).signature
    text = _signed(unsigned, signature)
    if len(text) >= MAX_DESCRIPTOR_BYTES:
        raise Refused(Reason.TOO_LONG, f"{len(points)} introduction points and {len(clients)} clients are too many")
    return text


def inner_layer(key: DescriptorKey, points: Sequence[IntroPoint], extras: Extras) -> str:
    """The plaintext that clients get, with every point certified by `key`."""
    lines = ["create2-formats 2", *extras.lines(), *(certified(point, key.signing) for point in points)]
    return "\n".join(lines) + "\n"


def room(key: DescriptorKey, points: Sequence[IntroPoint], clients: int, extras: Extras) -> int:
    """How many of `points`, whichever they are, one descriptor takes beside entries for `clients`: 0 to 20."""
    head = len(inner_layer(key, (), extras))
    longest = max((len(certified(point, key.signing)) + 1 for point in points), default=0)
    counts = range(MAX_INTRO_POINTS, 0, -1)
    return next((n for n in counts if _length(key, head + n * longest, clients) < MAX_DESCRIPTOR_BYTES), 0)


def _length(key: DescriptorKey, inner_chars: int, clients: int) -> int:
    """Of a descriptor with an inner layer of so many characters, and the longest of revision counters."""
    entry = _entry(bytes(_CLIENT_ID_BYTES), bytes(_IV_BYTES), bytes(_COOKIE_BYTES))
    lines = [entry] * (max(1, -(-clients // CLIENTS_MULTIPLE)) * CLIENTS_MULTIPLE)
    middle = len(_middle(_entries_text(bytes(32), lines), "x" * _sealed_length(inner_chars)))
    sealed = "x" * _sealed_length(middle + -middle % PADDED_TO)
    return len(_signed(_outer(key, MAX_REVISION, sealed), bytes(SIGNATURE_BYTES)))


def _middle(entries: str, inner: str) -> str:
    return f"{entries}encrypted\n{inner}"


def _outer(key: DescriptorKey, revision: int, middle: str) -> str:
    return (
        f"hs-descriptor 3\ndescriptor-lifetime {LIFETIME_MIN}\ndescriptor-signing-key-cert\n{key.certificate}\n"
        f"revision-counter {revision}\nsuperencrypted\n{middle}\n"
    )


def _signed(unsigned: str, signature: bytes) -> str:
    return f"{unsigned}signature {_unpadded(signature)}\n"


def _sealed_length(plain: int) -> int:
    encoded = -(-(plain + _SALT_AND_MAC_BYTES) // 3) * 4
    return len("-----BEGIN MESSAGE-----\n\n-----END MESSAGE-----") + encoded + (encoded - 1) // _LINE_CHARS


def _seal(blinded: BlindedKey, revision: int, label: bytes, plaintext: bytes, cookie: bytes = b"") -> str:
    # stem's own encoder calls this with the blinded key; a restricted service's secret has the cookie after it
    sealed = _encrypt_layer(plaintext, label, revision, blinded.subcredential, blinded.public + cookie)
    return bytes(sealed).decode()


def _client_entries(blinded: BlindedKey, clients: Sequence[ClientPublic], cookie: bytes, randomness: Randomness) -> str:
    ephemeral = randomness(32)
    entries = [_client_entry(blinded, client, ephemeral, cookie, randomness(_IV_BYTES)) for client in clients]
    while not entries or len(entries) % CLIENTS_MULTIPLE:
        entries.append(_entry(*map(randomness, (_CLIENT_ID_BYTES, _IV_BYTES, _COOKIE_BYTES))))
    # by their pseudorandom ids: the order tells nothing of who came first, or which are real
    return _entries_text(crypto_scalarmult_base(ephemeral), sorted(entries))


def _entries_text(ephemeral: bytes, entries: Sequence[str]) -> str:
    key = base64.b64encode(ephemeral).decode()
    return f"desc-auth-type x25519\ndesc-auth-ephemeral-key {key}\n{''.join(entries)}"


def _client_entry(blinded: BlindedKey, client: ClientPublic, ephemeral: bytes, cookie: bytes, iv: bytes) -> str:
    """rend-spec-v3 §2.5.1.2: what lets the holder of one x25519 key find the cookie."""
    shared = crypto_scalarmult(ephemeral, client.raw)
    keys = hashlib.shake_256(blinded.subcredential + shared).digest(_CLIENT_ID_BYTES + _COOKIE_KEY_BYTES)
    encryptor = Cipher(algorithms.AES(keys[_CLIENT_ID_BYTES:]), modes.CTR(iv)).encryptor()
    return _entry(keys[:_CLIENT_ID_BYTES], iv, encryptor.update(cookie) + encryptor.finalize())


def _entry(*parts: bytes) -> str:
    return f"auth-client {' '.join(map(_unpadded, parts))}\n"


def _unpadded(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")
