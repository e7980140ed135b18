"""The node CA: what it signs is accepted by an independent verifier, what it must not sign is refused."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import x509 as ca_room
from ron.crypto.x509 import Keyed, describe, init_ca, issue, issued_by, node_identity, renew
from ron.proto.errors import ErrorCode, RonError

CA = init_ca("test CA")
OTHER_CA = init_ca("test CA")  # the same name, another key
DAY = timedelta(days=1)


def verify_server(ca: Keyed, certificate: x509.Certificate, name: x509.GeneralName) -> None:
    """Raises `VerificationError`, as a client that knows nothing of us would."""
    builder = PolicyBuilder().store(Store([ca.certificate]))
    builder.build_server_verifier(name).verify(certificate, [])


def signed_by_hand(ca: Keyed, *names: x509.GeneralName) -> x509.Certificate:
    """What a thief of the CA's key would make: a certificate for any names."""
    key = generate_private_key(SECP256R1())
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(ca.certificate.subject)
        .subject_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.certificate.public_key()),
            critical=False,
        )
        .sign(ca.key, hashes.SHA256())
    )


class Refusals(SynchronousTestCase):
    """Bad input, first."""

    def refused(self, code: ErrorCode, call: object, *arguments: object, **options: object) -> RonError:
        error = self.assertRaises(RonError, call, *arguments, **options)
        self.assertEqual(error.code, code)
        return error

    def test_names_of_nodes(self) -> None:
        for name in ("", "A", "a.b", "-a", "a-", "a/b", "a b", "a\n", "ä", "a" * 64, "..", "a\0"):
            self.refused(ErrorCode.BAD_REQUEST, issue, CA, name)

    def test_dns_names_and_addresses(self) -> None:
        for name in ("", "a b.internal", "bücher.internal", "*", "a.*.internal", "127.0.0.1", "x\n.internal", "." * 3):
            self.refused(ErrorCode.BAD_REQUEST, issue, CA, "n", dns=[name])
        for address in ("", "localhost", "127.0.0.1/8", "127.1", "::g"):
            self.refused(ErrorCode.BAD_REQUEST, issue, CA, "n", addresses=[address])

    def test_names_the_ca_may_not_sign_for(self) -> None:
        for name in ("example.org", "notinternal", "localhost.example.org", "*.org"):
            error = self.refused(ErrorCode.BAD_REQUEST, issue, CA, "n", dns=[name])
            self.assertIn(name, error.message)
        for address in ("8.8.8.8", "2001:db8::1", "172.32.0.1"):
            self.refused(ErrorCode.BAD_REQUEST, issue, CA, "n", addresses=[address])

    def test_days_out_of_range(self) -> None:
        for days in (0, -1, 825, 10**9):
            self.refused(ErrorCode.BAD_REQUEST, issue, CA, "n", valid_days=days)
        for days in (0, 7301):
            self.refused(ErrorCode.BAD_REQUEST, init_ca, "x", days)

    def test_a_ca_without_a_name_or_with_nothing_to_sign_for(self) -> None:
        for name in ("", "x" * 65, "a\nb"):
            self.refused(ErrorCode.BAD_REQUEST, init_ca, name)
        self.refused(ErrorCode.BAD_REQUEST, init_ca, "x", permitted_dns=[])
        self.refused(ErrorCode.BAD_REQUEST, init_ca, "x", permitted_dns=["*.org"])
        self.refused(ErrorCode.BAD_REQUEST, init_ca, "x", permitted_networks=["10.0.0.1/8"])

    def test_an_expired_ca_signs_nothing(self) -> None:
        old = init_ca("old", 1, now=datetime.now(UTC) - 2 * DAY)
        self.refused(ErrorCode.CONFLICT, issue, old, "n")

    def test_renewing_what_another_ca_signed_or_what_is_no_node(self) -> None:
        self.refused(ErrorCode.BAD_REQUEST, renew, OTHER_CA, issue(CA, "n").certificate)
        self.refused(ErrorCode.BAD_REQUEST, renew, CA, CA.certificate)
        self.refused(ErrorCode.BAD_REQUEST, renew, CA, signed_by_hand(CA, x509.DNSName("localhost")))

    def test_files_that_do_not_belong_together(self) -> None:
        certificate, key = ca_room.certificate_pem(CA.certificate), ca_room.key_pem(CA.key)
        self.refused(ErrorCode.BAD_REQUEST, ca_room.load_ca, certificate, ca_room.key_pem(OTHER_CA.key))
        self.refused(ErrorCode.BAD_REQUEST, ca_room.load_ca, b"", key)
        self.refused(ErrorCode.BAD_REQUEST, ca_room.load_ca, certificate, b"garbage")
        self.refused(ErrorCode.BAD_REQUEST, ca_room.load_ca, certificate, key, b"a passphrase too many")
        node = issue(CA, "n")
        error = self.refused(
            ErrorCode.BAD_REQUEST, ca_room.load_ca, ca_room.certificate_pem(node.certificate), ca_room.key_pem(node.key)
        )
        self.assertIn("not a certificate of a node CA", error.message)

    def test_an_encrypted_key_needs_its_passphrase(self) -> None:
        certificate, key = ca_room.certificate_pem(CA.certificate), ca_room.key_pem(CA.key, b"open sesame")
        self.assertIn(b"ENCRYPTED", key)
        self.refused(ErrorCode.BAD_REQUEST, ca_room.load_ca, certificate, key)
        self.refused(ErrorCode.BAD_REQUEST, ca_room.load_ca, certificate, key, b"open sesam")
        self.assertEqual(ca_room.load_ca(certificate, key, b"open sesame").certificate, CA.certificate)

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=300))
    @example(ca_room.certificate_pem(CA.certificate)[:-40])
    def test_garbage_is_no_certificate(self, pem: bytes) -> None:
        self.refused(ErrorCode.BAD_REQUEST, ca_room.load_certificate, pem)


class Certificates(SynchronousTestCase):
    """What comes out."""

    def test_the_ca_signs_nodes_and_no_other_ca(self) -> None:
        extensions = CA.certificate.extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints)
        self.assertEqual((basic.critical, basic.value.ca, basic.value.path_length), (True, True, 0))
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        self.assertEqual((usage.key_cert_sign, usage.digital_signature), (True, False))
        self.assertTrue(extensions.get_extension_for_class(x509.NameConstraints).critical)

    def test_an_independent_verifier_takes_a_node_under_each_of_its_names(self) -> None:
        node = issue(CA, "alpha", dns=["alpha.internal", "LOCALHOST"], addresses=["127.0.0.1", "fd00::1"])
        verify_server(CA, node.certificate, x509.DNSName("alpha.internal"))
        verify_server(CA, node.certificate, x509.DNSName("localhost"))
        verify_server(CA, node.certificate, x509.IPAddress(ipaddress.ip_address("fd00::1")))
        client = PolicyBuilder().store(Store([CA.certificate])).build_client_verifier().verify(node.certificate, [])
        self.assertIn(x509.UniformResourceIdentifier("ron://node/alpha"), client.subjects or [])

    def test_it_refuses_another_name_another_ca_and_another_time(self) -> None:
        localhost = x509.DNSName("localhost")
        node = issue(CA, "alpha", dns=["localhost"]).certificate
        with self.assertRaises(VerificationError):
            verify_server(CA, node, x509.DNSName("other.internal"))
        with self.assertRaises(VerificationError):
            verify_server(OTHER_CA, node, localhost)
        expired = issue(CA, "alpha", dns=["localhost"], valid_days=1, now=datetime.now(UTC) - 2 * DAY).certificate
        with self.assertRaises(VerificationError):
            verify_server(CA, expired, localhost)

    def test_a_thief_of_the_key_cannot_speak_for_the_public_internet(self) -> None:
        localhost, public = x509.DNSName("localhost"), x509.DNSName("www.example.org")
        verify_server(CA, signed_by_hand(CA, localhost), localhost)
        with self.assertRaises(VerificationError):
            verify_server(CA, signed_by_hand(CA, localhost, public), public)
        address = x509.IPAddress(ipaddress.ip_address("8.8.8.8"))
        with self.assertRaises(VerificationError):
            verify_server(CA, signed_by_hand(CA, address), address)

    def test_an_operator_may_permit_other_names(self) -> None:
        ca = init_ca("public", permitted_dns=["example.org"], permitted_networks=["203.0.113.0/24"])
        node = issue(ca, "a", dns=["a.example.org"], addresses=["203.0.113.7"])
        verify_server(ca, node.certificate, x509.DNSName("a.example.org"))
        self.assertRaises(RonError, issue, ca, "a", dns=["localhost"])

    def test_serials_are_random_and_the_time_starts_a_little_earlier(self) -> None:
        now = datetime(2030, 1, 1, tzinfo=UTC)
        ca = init_ca("later", now=now)
        nodes = [issue(ca, "n", now=now).certificate for _ in range(5)]
        self.assertEqual(len({node.serial_number for node in nodes}), 5)
        self.assertTrue(all(node.serial_number.bit_length() > 64 for node in nodes))
        self.assertEqual(nodes[0].not_valid_before_utc, now - timedelta(minutes=5))
        self.assertEqual(nodes[0].not_valid_after_utc, now + 90 * DAY)

    def test_a_node_never_outlives_its_ca(self) -> None:
        ca = init_ca("short", 10)
        self.assertEqual(issue(ca, "n").certificate.not_valid_after_utc, ca.certificate.not_valid_after_utc)

    def test_facts_for_people(self) -> None:
        node = issue(CA, "alpha", dns=["localhost", "localhost"], addresses=["::1"]).certificate
        facts = describe(node)
        self.assertEqual((facts.identity, facts.subject), ("ron://node/alpha", "CN=alpha"))
        self.assertEqual((facts.dns, facts.addresses), (("localhost",), ("::1",)))
        self.assertEqual(len(facts.sha256), 64)
        self.assertIsNone(describe(CA.certificate).identity)

    def test_two_identities_are_none(self) -> None:
        uris = [x509.UniformResourceIdentifier(f"ron://node/{name}") for name in ("a", "b")]
        self.assertEqual(node_identity(signed_by_hand(CA, uris[0])), "ron://node/a")
        self.assertIsNone(node_identity(signed_by_hand(CA, *uris)))
        self.assertIsNone(node_identity(signed_by_hand(CA, x509.UniformResourceIdentifier("ron://node/A b"))))
        self.assertIsNone(node_identity(signed_by_hand(CA, x509.UniformResourceIdentifier("http://node/a"))))

    @settings(max_examples=30, deadline=None)
    @given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True))
    def test_any_good_name_is_its_identity(self, name: str) -> None:
        self.assertEqual(node_identity(issue(CA, name).certificate), f"ron://node/{name}")


class Renewal(SynchronousTestCase):
    """The same node, later."""

    def setUp(self) -> None:
        self.old = issue(CA, "alpha", dns=["localhost"], addresses=["127.0.0.1"], valid_days=1)

    def test_it_keeps_the_names_and_the_key(self) -> None:
        key, certificate = renew(CA, self.old.certificate)
        old, new = describe(self.old.certificate), describe(certificate)
        self.assertIsNone(key)
        self.assertEqual((new.identity, new.dns, new.addresses), (old.identity, old.dns, old.addresses))
        self.assertNotEqual(new.serial, old.serial)
        self.assertGreater(new.not_after, old.not_after + 80 * DAY)
        self.assertEqual(certificate.public_key(), self.old.certificate.public_key())
        self.assertTrue(issued_by(CA.certificate, certificate))

    def test_or_makes_a_new_key(self) -> None:
        key, certificate = renew(CA, self.old.certificate, new_key=True)
        assert key is not None
        self.assertEqual(key.public_key(), certificate.public_key())
        self.assertNotEqual(certificate.public_key(), self.old.certificate.public_key())

    def test_an_expired_certificate_can_be_renewed(self) -> None:
        expired = issue(CA, "alpha", valid_days=1, now=datetime.now(UTC) - 5 * DAY).certificate
        _key, certificate = renew(CA, expired)
        self.assertGreater(certificate.not_valid_after_utc, datetime.now(UTC))

    def test_the_common_name_is_the_nodes(self) -> None:
        names = self.old.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        self.assertEqual([name.value for name in names], ["alpha"])
