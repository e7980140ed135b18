"""TLS 1.3 for every listener and every call out: certificates that can be swapped, peers that are known.

In: PEM files, as `ronctl ca` writes them or any CA's. Out: connection creators for Twisted, and the identity
(`ron://node/<name>`) of the peer. `tls_listen` opens ports with them, `tls_watch` follows their files.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from ron.kernel.files import read_private
from ron.proto.addresses import IDENTITY_PREFIX, is_ip_address
from ron.proto.errors import ErrorCode, RonError

MAX_PEM_BYTES = 1024 * 1024
_MUTUAL = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
_log = Logger(namespace="ron.tls")


class TlsError(RonError):
    """Certificate files that cannot be used, with the file's name and the fix."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(ErrorCode.BAD_REQUEST, message, hint=hint)


class _Files(NamedTuple):
    certificate: Path | None
    key: Path | None
    ca: Path | None


class ReloadableTls:
    """A TLS context that follows its files: `reload` swaps it whole, or leaves the one in use.

    Connections already open keep the context they began with. `not_after`: when our own certificate expires, UTC; None
    without one.
    """

    not_after: datetime | None = None

    def __init__(self, files: _Files, now: Callable[[], float]) -> None:
        self._files = files
        self._now = now
        self._seen: object = None
        self.reload()

    def changed(self) -> bool:
        """True when a file is another one, or has other contents, than at the last `reload`, whether that worked or
        not."""
        return self._fingerprint() != self._seen

    def reload(self) -> None:
        """Load, check, swap. Raises `TlsError` and changes nothing when the files do not stand up."""
        # before reading: a file replaced while we read is a change again
        self._seen = self._fingerprint()
        context, not_after = self._load()
        self._context, self.not_after = context, not_after

    def _fingerprint(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._files if path is not None]

    def _load(self) -> tuple[SSL.Context, datetime | None]:
        context, not_after = _bare_context(), None
        certificate, key, ca = self._files
        try:
            if certificate is not None and key is not None:
                not_after = self._use_own(context, certificate, key)
            self._configure(context, _certificates(ca) if ca is not None else [])
        except (SSL.Error, crypto.Error, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise TlsError(f"OpenSSL does not take {certificate or ca}: {error}", hint="issue a new one") from None
        return context, not_after

    def _use_own(self, context: SSL.Context, certificate: Path, key: Path) -> datetime:
        own, *chain = _certificates(certificate)
        private = _private_key(key)
        now = datetime.fromtimestamp(self._now(), UTC)
        if private.public_key() != own.public_key():
            raise TlsError(f"{key} is not the key of {certificate}", hint="put the two that belong together")
        if not own.not_valid_before_utc <= now < own.not_valid_after_utc:
            raise TlsError(
                f"{certificate} is valid from {own.not_valid_before_utc} to {own.not_valid_after_utc}, not now",
                hint="renew it (ronctl ca renew), or set this machine's clock",
            )
        context.use_certificate(own)
        for link in chain:
            context.add_extra_chain_cert(link)
        context.use_privatekey(private)
        return own.not_valid_after_utc

    def _configure(self, context: SSL.Context, trusted: list[x509.Certificate]) -> None:
        raise NotImplementedError


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls(ReloadableTls):
    """The server's side. With `client_ca` every client must show a certificate that one of its CAs signed (mTLS).

    alpn: protocols in our order of preference. A client that offers others only is refused (RFC 7301 §3.2); one that
    offers none is not. Raises `TlsError` when the files cannot be used.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None = None,
        alpn: tuple[bytes, ...] = (b"http/1.1",),
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._alpn = alpn
        super().__init__(_Files(certificate, key, client_ca), now)

    def _configure(self, context: SSL.Context, trusted: list[x509.Certificate]) -> None:
        if self._alpn:
            context.set_alpn_select_callback(self._choose)
        if trusted:
            _trust(context, trusted)
            for authority in trusted:
                context.add_client_ca(authority)
            context.set_verify(_MUTUAL)

    def _choose(self, _connection: SSL.Connection, offered: list[bytes]) -> bytes:
        for protocol in self._alpn:
            if protocol in offered:
                return protocol
        # what pyOpenSSL raises from here comes out of do_handshake, where Twisted expects its own kind of error
        raise SSL.Error([("SSL routines", "", "no application protocol")])

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection with the context in use now (Twisted calls this)."""
        return SSL.Connection(self._context, None)


@implementer(IOpenSSLClientConnectionCreator, IPolicyForHTTPS)
class ClientTls(ReloadableTls):
    """The client's side: the server's chain must end in `ca`, and its certificate must name `expected_identity`: a
    node (`ron://node/<name>`), a DNS name or an IP address. Until both hold nothing is sent, not even our certificate.

    certificate and key: ours, both or neither. It is also a policy for `twisted.web.client.Agent` and treq; there it
    speaks for one server whatever the URL says. Raises `TlsError` when the files cannot be used.
    """

    def __init__(
        self,
        ca: Path,
        certificate: Path | None,
        key: Path | None,
        expected_identity: str,
        alpn: tuple[bytes, ...] = (b"http/1.1",),
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        if (certificate is None) != (key is None):
            raise TlsError("a client certificate and its key go together", hint="name both, or neither")
        if not expected_identity or not expected_identity.isascii():
            raise TlsError("no identity to expect of the server", hint="ron://node/<name>, a DNS name or an IP address")
        self.expected_identity = expected_identity
        self._alpn = alpn
        self._is_name = not expected_identity.startswith(IDENTITY_PREFIX) and not is_ip_address(expected_identity)
        super().__init__(_Files(certificate, key, ca), now)

    def _configure(self, context: SSL.Context, trusted: list[x509.Certificate]) -> None:
        if self._alpn:
            context.set_alpn_protos(list(self._alpn))
        _trust(context, trusted)
        context.set_verify(_MUTUAL, self._verify)

    def _verify(self, _connection: SSL.Connection, shown: Any, _error: int, depth: int, ok: int) -> bool:
        """OpenSSL asks for each certificate of the chain, the server's last. What we return replaces its own `ok`."""
        if not ok or depth > 0:
            return bool(ok)
        try:
            return self._is_expected(shown.to_cryptography())
        except Exception:  # noqa: BLE001 - an exception in OpenSSL's callback would be lost; hostile certificates end here
            _log.failure("cannot read the server's certificate", event="tls_bad_certificate")
            return False

    def _is_expected(self, shown: x509.Certificate) -> bool:
        if self.expected_identity.startswith(IDENTITY_PREFIX):
            expected = _identity(shown) == self.expected_identity
        else:
            check = verify_certificate_hostname if self._is_name else verify_certificate_ip_address
            try:
                check(shown, self.expected_identity)
                expected = True
            except (VerificationError, CertificateError):
                expected = False
        if not expected:
            _log.warn(
                "the server is {shown}, not {expected}: refused",
                event="tls_wrong_identity",
                shown=_identity(shown) or shown.subject.rfc4514_string(),
                expected=self.expected_identity,
            )
        return expected

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection with the context in use now (Twisted calls this)."""
        connection = SSL.Connection(self._context, None)
        if self._is_name:
            connection.set_tlsext_host_name(self.expected_identity.encode("ascii"))
        return connection

    def creatorForNetloc(self, hostname: bytes, port: int) -> ClientTls:
        """Itself: whom to expect is settled (an Agent calls this)."""
        return self


def peer_identity(transport: object) -> str | None:
    """The `ron://node/<name>` the peer proved by its certificate; None without TLS, without a certificate of a CA we
    trust, or when the certificate names no node or more than one."""
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    if not isinstance(handle, SSL.Connection) or not handle.get_verify_mode() & SSL.VERIFY_PEER:
        return None
    certificate = handle.get_peer_certificate(as_cryptography=True)
    return _identity(certificate) if certificate is not None else None


def _bare_context() -> SSL.Context:
    """TLS 1.3 and nothing older. No resumption: each connection shows its certificate to the CAs trusted now."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # an idle connection gives its 16 KiB read buffer back
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    return context


def _trust(context: SSL.Context, authorities: list[x509.Certificate]) -> None:
    store = context.get_cert_store()
    if store is None:
        raise TlsError("OpenSSL has no store for CAs")
    for authority in authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _certificates(path: Path) -> list[x509.Certificate]:
    """All certificates of a PEM file, at least one."""
    try:
        return x509.load_pem_x509_certificates(_read(path, Path.read_bytes))
    except (ValueError, UnsupportedAlgorithm):
        raise TlsError(f"there is no PEM certificate in {path}", hint="restore it, or issue a new one") from None


def _private_key(path: Path) -> Any:
    pem = _read(path, read_private)
    try:
        return load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise TlsError(f"{path} holds no PEM private key without a passphrase", hint="restore or issue it") from None


def _read(path: Path, read: Callable[[Path], bytes]) -> bytes:
    """The bytes of a file of sensible size; a directory, a FIFO or a disk image is refused before it is opened."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_PEM_BYTES:
            raise TlsError(f"{path} is not a file of at most {MAX_PEM_BYTES} bytes", hint="is this the right path?")
        return read(path)
    except OSError as error:
        raise TlsError(f"cannot read {path}: {error.strerror}", hint="name a readable file") from None


def _identity(certificate: x509.Certificate) -> str | None:
    """The only `ron://node/…` in `certificate`, or None."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    ours = [u for u in names.get_values_for_type(x509.UniformResourceIdentifier) if u.startswith(IDENTITY_PREFIX)]
    return ours[0] if len(ours) == 1 else None
