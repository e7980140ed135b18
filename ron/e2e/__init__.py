"""End-to-end encryption: seal bytes to one or several public keys, open them with a private key.

In: keys, plaintext, and the `aad` both sides know. Out: an opaque envelope that any server may carry and none can
read. The format, its limits and what it does and does not protect are in docs/e2e.rst.

    from ron import e2e

    alice = e2e.KeyPair.generate()
    envelope = e2e.seal([alice.public], b"hello", aad=b"topic")
    assert e2e.open(alice, envelope, aad=b"topic") == b"hello"
"""

from ron.crypto.hpke import Suite
from ron.e2e.envelope import (
    MAX_AAD_BYTES,
    MAX_ENVELOPE_BYTES,
    MAX_PLAINTEXT_BYTES,
    MAX_RECIPIENTS,
    seal,
)
from ron.e2e.envelope import open_ as open
from ron.e2e.errors import (
    DecryptionFailed,
    E2EError,
    EnvelopeMalformed,
    KeyFileError,
    KeyInvalid,
    LimitExceeded,
    NotARecipient,
    RecipientsInvalid,
    UnsupportedSuite,
    UnsupportedVersion,
)
from ron.e2e.keys import DEFAULT_SUITE, KeyPair, PublicKey

__all__ = [
    "DEFAULT_SUITE",
    "MAX_AAD_BYTES",
    "MAX_ENVELOPE_BYTES",
    "MAX_PLAINTEXT_BYTES",
    "MAX_RECIPIENTS",
    "DecryptionFailed",
    "E2EError",
    "EnvelopeMalformed",
    "KeyFileError",
    "KeyInvalid",
    "KeyPair",
    "LimitExceeded",
    "NotARecipient",
    "PublicKey",
    "RecipientsInvalid",
    "Suite",
    "UnsupportedSuite",
    "UnsupportedVersion",
    "open",
    "seal",
]
