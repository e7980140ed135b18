"""The cluster's token: whoever knows it may join. It is proved, never sent to who has not proved who it is.

In: a token, what both ends of a link have said so far. Out: proofs (HMAC-SHA256). Pure.
The book has only the digest of the present one, by which a node sees that its own is old.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Annotated, Literal

import msgspec
from blake3 import blake3
from msgspec import Meta

from ron.services.balance.mesh.wire import Key

TOKEN_BYTES = 32
PROOF_BYTES = 32
_PREFIX = b"ron-mesh/1 token\0"

Role = Literal["dialler", "listener"]


class Token(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """version: counts rotations. Whoever has the secret may join."""

    version: Annotated[int, Meta(ge=1, le=2**53)]
    secret: Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]

    def __repr__(self) -> str:
        return f"<Token {self.version}>"


class TokenNotice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """In the book under `token`: which token is the present one."""

    version: Annotated[int, Meta(ge=1, le=2**53)]
    digest: Key


def new_token(version: int = 1) -> Token:
    """From the system's randomness."""
    return Token(version=version, secret=secrets.token_bytes(TOKEN_BYTES))


def notice_of(token: Token) -> TokenNotice:
    """What may be known of it. The secret has 256 random bits: nobody finds it by its digest."""
    return TokenNotice(version=token.version, digest=blake3(_PREFIX + b"digest\0" + token.secret).digest())


def prove(token: Token, role: Role, transcript: bytes) -> bytes:
    """That whoever plays `role` in the talk of `transcript` knows the token. The other's proof is another one."""
    return hmac.digest(token.secret, _PREFIX + role.encode() + b"\0" + transcript, "sha256")


def is_proved(token: Token, role: Role, transcript: bytes, proof: bytes) -> bool:
    """Whether `proof` is what `prove` would say."""
    return hmac.compare_digest(prove(token, role, transcript), proof)
