"""A member's word for a removal, with a proof that it is a node of its own: its certificate, a signature by its key.

In: this node's files; what others say. Out: `Struck`; whether one is its author's. Any member can write any number of
made-up members into the book, with keys of its own; a certificate only the cluster's CA can make.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import msgspec
from cryptography import x509 as certificates
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from msgspec import Meta

from ron.crypto import x509
from ron.kernel.files import read_private
from ron.proto.addresses import IDENTITY_PREFIX
from ron.proto.balance import NodeName
from ron.proto.errors import conflict
from ron.services.balance.mesh.files import NodeFiles
from ron.services.balance.mesh.wire import Key

_PREFIX = b"ron-mesh/1 strike\0"


class Struck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Under `strike/…`: the author asks for the removal of `name` with this key. For good: it is not taken back.
    certificate: the author's, DER. proof: ECDSA over all of it, by the certificate's key."""

    name: NodeName
    key: Key
    certificate: Annotated[bytes, Meta(max_length=3072)]
    proof: Annotated[bytes, Meta(max_length=128)]


class Vouching:
    """Of one node. Raises `RonError` for a CA's certificate that cannot be read."""

    def __init__(self, files: NodeFiles) -> None:
        self._files = files
        self._ca = x509.load_certificate(read_private(files.ca))

    def vouch(self, name: NodeName, key: bytes) -> Struck:
        """This node's word. Blocks. Raises `RonError` when its certificate's key cannot be used."""
        files = self._files
        certificate = x509.load_certificate(files.certificate.read_bytes())
        signing = serialization.load_pem_private_key(read_private(files.key), None)
        if not isinstance(signing, EllipticCurvePrivateKey):
            raise conflict(f"{files.key} is no key of a node's certificate", hint="join anew")
        proof = signing.sign(_message(files.cluster, files.name, name, key), ECDSA(hashes.SHA256()))
        der = certificate.public_bytes(serialization.Encoding.DER)
        return Struck(name=name, key=key, certificate=der, proof=proof)

    def is_vouched(self, struck: Struck, author: NodeName) -> bool:
        """Whether the node called `author` said so. Its certificate may have ended since."""
        return _is_vouched(self._ca, self._files.cluster, struck, author)


@lru_cache(maxsize=256)
def _is_vouched(ca: certificates.Certificate, cluster: bytes, struck: Struck, author: NodeName) -> bool:
    try:
        certificate = certificates.load_der_x509_certificate(struck.certificate)
        public = certificate.public_key()
        if x509.node_identity(certificate) != IDENTITY_PREFIX + author or not x509.issued_by(ca, certificate):
            return False
        if not isinstance(public, EllipticCurvePublicKey):
            return False
        public.verify(struck.proof, _message(cluster, author, struck.name, struck.key), ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True


def _message(cluster: bytes, author: NodeName, name: NodeName, key: bytes) -> bytes:
    return _PREFIX + cluster + key + f"{name}/{author}".encode()
