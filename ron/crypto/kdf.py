"""Keys that grow from keys: HKDF-SHA256 (RFC 5869) with a label that nobody can leave out (ron-kms IDB §3.4, P-5).

In: a secret of at least 32 bytes, who it is for, what for, and in which context. Out: a subkey for that and nothing
else. A subkey may be the secret of a further branch. Labels are fixed text: no time, no counter, nothing random.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.utils import Buffer

from ron.proto.errors import bad_request

SECRET_BYTES = 32
MAX_SUBKEY_BYTES = 1024
MAX_PART = 512
_DOMAIN = "ron-kms"
_MARK = "::"


class Label(NamedTuple):
    """`ron-kms::<tenant>::<purpose>::<ctx>`. Two labels that differ in a part differ as a whole, see `info`."""

    tenant: str
    purpose: str
    ctx: str

    @property
    def info(self) -> bytes:
        """What HKDF is told. Raises `RonError` (BadRequest) for an empty or long part, or one with a colon."""
        for name, part in zip(self._fields, self, strict=True):
            # with a colon in a part, `a` and `b::c` would name the same key as `a::b` and `c`
            if not part or len(part) > MAX_PART or ":" in part or not part.isprintable():
                raise bad_request(
                    f"the {name} of a key's label is 1 to {MAX_PART} printable characters without a colon"
                )
        return _MARK.join((_DOMAIN, *self)).encode()


def subkey(secret: Buffer, label: Label, *, salt: bytes = b"", size: int = 32) -> bytearray:
    """`size` bytes (1 to 1024) for `label`: whoever asked overwrites them after use. salt: may be public.

    Raises `ValueError` for a secret under 32 bytes or a wrong size, `RonError` as `Label.info`.
    """
    if memoryview(secret).nbytes < SECRET_BYTES:
        raise ValueError(f"keys grow from {SECRET_BYTES} bytes or more")
    if not 1 <= size <= MAX_SUBKEY_BYTES:
        raise ValueError(f"a subkey has 1 to {MAX_SUBKEY_BYTES} bytes")
    grown = bytearray(size)
    HKDF(SHA256(), size, salt=salt or None, info=label.info).derive_into(secret, grown)
    return grown
