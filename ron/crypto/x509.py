"""The node CA: one ECDSA P-256 root that signs nodes' TLS certificates, through `cryptography`. No files, no sockets.

In: names, addresses, days. Out: keys and certificates, and their PEM. A node *is* the URI `ron://node/<name>` in its
certificate; DNS names and IP addresses are there for clients that know nothing of nodes (browsers, curl).

P-256 and not Ed25519: browsers refuse Ed25519 certificates, and OpenSSL, pyOpenSSL and HSMs all know P-256.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ron.proto.addresses import IDENTITY_PREFIX, is_ip_address
from ron.proto.errors import bad_request, conflict

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

CA_DAYS, NODE_DAYS = 3650, 90
MAX_CA_DAYS = 7300
# Apple's clients take at most 825 days from a private root, counted from not_before; longer ones would fail there only
MAX_NODE_DAYS = 824
# machines' clocks differ a little; a certificate is wanted the moment it is issued
CLOCK_SKEW = timedelta(minutes=5)
# A leaked CA key, or a CA imported into a browser, must not be able to speak for the public Internet (RFC 5280
# §4.2.1.10). Private names and networks by default; an operator may name others when the CA is made.
PRIVATE_DNS = ("localhost", "internal", "local", "home.arpa", "onion")
PRIVATE_NETWORKS = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")

_NODE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


class Keyed(NamedTuple):
    """A certificate and its private key."""

    key: EllipticCurvePrivateKey
    certificate: x509.Certificate


class CertificateFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a certificate says, for people. Times are UTC; `sha256` is the DER's fingerprint in hexadecimal."""

    subject: str
    identity: str | None
    dns: tuple[str, ...]
    addresses: tuple[str, ...]
    serial: str
    not_before: datetime
    not_after: datetime
    sha256: str


def init_ca(
    common_name: str,
    valid_days: int = CA_DAYS,
    *,
    permitted_dns: Sequence[str] = PRIVATE_DNS,
    permitted_networks: Sequence[str] = PRIVATE_NETWORKS,
    now: datetime | None = None,
) -> Keyed:
    """A new CA: self-signed, path length 0 (it signs nodes, never another CA), held to the permitted names.

    URIs are not constrained: a verifier that does not process such constraints has to refuse the chain (RFC 5280
    §4.2.1.10), and peers compare the whole identity anyway. Raises `RonError` BadRequest for a bad name, network or
    number of days.
    """
    start = (now or datetime.now(UTC)) - CLOCK_SKEW
    if not 0 < len(common_name) <= 64 or not common_name.isprintable():
        raise bad_request(f"{common_name!r} is no name for a CA", hint="1 to 64 printable characters")
    days = _days(valid_days, MAX_CA_DAYS)
    constraints = _constraints(permitted_dns, permitted_networks)
    key = generate_private_key(SECP256R1())
    name = _name(common_name)
    builder = (
        _builder(name, name, key.public_key(), start, start + days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(constraints, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Keyed(key, builder.sign(key, hashes.SHA256()))


def issue(
    ca: Keyed,
    node_name: str,
    *,
    dns: Sequence[str] = (),
    addresses: Sequence[str] = (),
    valid_days: int = NODE_DAYS,
    now: datetime | None = None,
) -> Keyed:
    """A new key and its certificate for the node `node_name`, good as a server and as a client.

    It never outlives the CA. Raises `RonError`: BadRequest for a bad name or one the CA may not sign, Conflict when
    the CA itself has expired.
    """
    names = [
        *(x509.DNSName(name) for name in dict.fromkeys(map(_dns_name, dns))),
        *(x509.IPAddress(address) for address in dict.fromkeys(map(_address, addresses))),
    ]
    key = generate_private_key(SECP256R1())
    return Keyed(key, _sign(ca, node_name, names, key.public_key(), valid_days, now))


def renew(
    ca: Keyed,
    old: x509.Certificate,
    *,
    new_key: bool = False,
    valid_days: int = NODE_DAYS,
    now: datetime | None = None,
) -> tuple[EllipticCurvePrivateKey | None, x509.Certificate]:
    """`old` again with the same names, a new serial and new dates: for the same key (key None), or for a new one.

    Raises `RonError` BadRequest when `old` is no node's certificate or another CA signed it.
    """
    identity = node_identity(old)
    public = old.public_key()
    if identity is None or not isinstance(public, EllipticCurvePublicKey) or not issued_by(ca.certificate, old):
        raise bad_request("this is not a node's certificate of this CA", hint="issue a new one: ronctl ca issue")
    names = [name for name in _alternative_names(old) if not isinstance(name, x509.UniformResourceIdentifier)]
    key = generate_private_key(SECP256R1()) if new_key else None
    wanted = key.public_key() if key is not None else public
    return key, _sign(ca, identity.removeprefix(IDENTITY_PREFIX), names, wanted, valid_days, now)


def check_node_name(name: str) -> str:
    """`name`, when a node can be called so: one DNS label in lower case. Raises `RonError` BadRequest."""
    if not _NODE_NAME.fullmatch(name):
        raise bad_request(
            f"{name!r} is no name for a node", hint="1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends"
        )
    return name


def node_identity(certificate: x509.Certificate) -> str | None:
    """The `ron://node/<name>` in `certificate`; None when there is none, or more than one to choose from."""
    uris = [name.value for name in _alternative_names(certificate) if isinstance(name, x509.UniformResourceIdentifier)]
    ours = [uri for uri in uris if uri.startswith(IDENTITY_PREFIX)]
    if len(ours) != 1 or not _NODE_NAME.fullmatch(ours[0].removeprefix(IDENTITY_PREFIX)):
        return None
    return ours[0]


def issued_by(ca: x509.Certificate, certificate: x509.Certificate) -> bool:
    """True when `ca` signed `certificate`."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def describe(certificate: x509.Certificate) -> CertificateFacts:
    """What stands in `certificate`."""
    names = _alternative_names(certificate)
    return CertificateFacts(
        subject=certificate.subject.rfc4514_string(),
        identity=node_identity(certificate),
        dns=tuple(name.value for name in names if isinstance(name, x509.DNSName)),
        addresses=tuple(str(name.value) for name in names if isinstance(name, x509.IPAddress)),
        serial=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """`certificate` as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """`key` as PKCS #8 PEM, encrypted when there is a passphrase."""
    protection: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


def load_certificate(pem: bytes) -> x509.Certificate:
    """The one certificate in `pem`. Raises `RonError` BadRequest."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise bad_request("no PEM certificate in it", hint="restore the file, or issue a new certificate") from None


def load_ca(certificate: bytes, key: bytes, passphrase: bytes | None = None) -> Keyed:
    """The CA from its two PEMs. Raises `RonError` BadRequest for garbage, a missing or wrong passphrase, or a key of
    another certificate."""
    found = load_certificate(certificate)
    try:
        private = load_pem_private_key(key, passphrase)
    except TypeError:
        wanted = "the CA's key is encrypted" if passphrase is None else "the CA's key is not encrypted"
        hint = "name the file with its passphrase" if passphrase is None else "leave the passphrase out"
        raise bad_request(wanted, hint=hint) from None
    except ValueError:
        raise bad_request(
            "the CA's key cannot be read: a wrong passphrase, or not a PEM key", hint="check it, or restore a backup"
        ) from None
    if not isinstance(private, EllipticCurvePrivateKey) or private.public_key() != found.public_key():
        raise bad_request("the CA's key does not belong to its certificate", hint="restore both from one backup")
    extensions = {type(extension.value) for extension in found.extensions}
    if not extensions >= {x509.BasicConstraints, x509.NameConstraints, x509.SubjectKeyIdentifier}:
        raise bad_request("this is not a certificate of a node CA", hint="make one: ronctl ca init")
    return Keyed(private, found)


def _sign(
    ca: Keyed,
    node_name: str,
    names: Sequence[x509.GeneralName],
    public: EllipticCurvePublicKey,
    valid_days: int,
    now: datetime | None,
) -> x509.Certificate:
    """The node's certificate (RFC 5280 end-entity profile)."""
    moment = now or datetime.now(UTC)
    identity = x509.UniformResourceIdentifier(IDENTITY_PREFIX + check_node_name(node_name))
    _refuse_unpermitted(ca.certificate, names)
    end = min(moment + _days(valid_days, MAX_NODE_DAYS), ca.certificate.not_valid_after_utc)
    if end <= moment:
        raise conflict("the CA has expired", hint="make a new one in another directory: ronctl ca init --dir DIR")
    issuer_id = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(_name(node_name), ca.certificate.subject, public, moment - CLOCK_SKEW, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([identity, *names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
    )
    return builder.sign(ca.key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, public: EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public,
        serial_number=x509.random_serial_number(),
        not_valid_before=start,
        not_valid_after=end,
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _constraints(dns: Sequence[str], networks: Sequence[str]) -> x509.NameConstraints:
    if not dns or not networks:
        raise bad_request("a CA needs at least one DNS name and one network it may sign for")
    domains = [x509.DNSName(_dns_name(name, wildcard=False)) for name in dns]
    return x509.NameConstraints([*domains, *(x509.IPAddress(_network(text)) for text in networks)], None)


def _refuse_unpermitted(ca: x509.Certificate, names: Sequence[x509.GeneralName]) -> None:
    """Say it now, with the way out: a peer would only say that verification failed."""
    permitted = ca.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
    domains = [tree.value for tree in permitted if isinstance(tree, x509.DNSName)]
    networks = [tree.value for tree in permitted if isinstance(tree, x509.IPAddress)]
    for name in names:
        if isinstance(name, x509.DNSName):
            inside = any(name.value.removeprefix("*.") == d or name.value.endswith(f".{d}") for d in domains)
        else:
            inside = any(isinstance(net, IpNetwork) and name.value in net for net in networks)
        if not inside:
            raise bad_request(
                f"this CA may not sign for {name.value}",
                hint="a CA's names are set once: ronctl ca init --dir DIR with --permit-dns or --permit-net",
            )


def _alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (x509.ExtensionNotFound, ValueError):
        return []


def _dns_name(text: str, *, wildcard: bool = True) -> str:
    name = text.lower().rstrip(".")
    if len(name) > 253 or not _DNS_NAME.fullmatch(name) or ("*" in name and not wildcard) or is_ip_address(name):
        raise bad_request(f"{text!r} is no DNS name", hint="letters, digits and -, for others the punycode form xn--…")
    return name


def _address(text: str) -> IpAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise bad_request(f"{text!r} is no IP address", hint="like 127.0.0.1 or fd00::1") from None


def _network(text: str) -> IpNetwork:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise bad_request(f"{text!r} is no network", hint="like 10.0.0.0/8 or fd00::/8") from None


def _days(days: int, most: int) -> timedelta:
    if not 1 <= days <= most:
        raise bad_request(f"{days} days is out of range", hint=f"1 to {most}")
    return timedelta(days=days)
