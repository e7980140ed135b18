"""The mesh's TLS: both ends show a certificate of the cluster's CA. Which node it is, the hello checks.

In: a node's files. Out: the listener's and the dialler's contexts, ALPN `ron-mesh/1`.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography import x509

from ron.crypto.x509 import node_identity
from ron.kernel.tls import ClientTls, ServerTls
from ron.proto.addresses import IDENTITY_PREFIX
from ron.services.balance.mesh.files import NodeFiles

ALPN = (b"ron-mesh/1",)


class AnyNodeTls(ClientTls):
    """The dialler's side: the listener is any node of our CA, for of a seed only the address is known."""

    def _is_expected(self, shown: x509.Certificate) -> bool:
        return node_identity(shown) is not None


def listener_tls(files: NodeFiles, now: Callable[[], float]) -> ServerTls:
    """Raises `TlsError` when the files cannot be used."""
    return ServerTls(files.certificate, files.key, files.ca, ALPN, now=now)


def dialler_tls(files: NodeFiles, now: Callable[[], float]) -> AnyNodeTls:
    """Raises `TlsError` when the files cannot be used."""
    return AnyNodeTls(files.ca, files.certificate, files.key, IDENTITY_PREFIX + files.name, ALPN, now=now)
