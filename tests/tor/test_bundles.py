"""Networks over several hosts, without tor: what is a network, what is a bundle, how things stand. Bad input first."""

from __future__ import annotations

import io
import os
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.tor.hostnet import texts
from ron.tor.hostnet.bundles import (
    INDEX,
    MAX_BUNDLE_BYTES,
    SEAL,
    Bundle,
    Index,
    digest,
    digests,
    pack,
    read_bundle,
    unpack,
)
from ron.tor.hostnet.check import Consensus, Seen, judge, read_consensus
from ron.tor.hostnet.owned import owned_folder, write_owned
from ron.tor.hostnet.plan import (
    FORMAT,
    Manifest,
    Node,
    check_interval,
    check_nodes,
    grown,
    parse_node,
    read_manifest,
    timing,
)
from ron.tor.hostnet.probe import cut_off, fingerprints, unlisted
from ron.tor.hostnet.vault import check_passphrase, read_certificate

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def node(name: str, role: Any, host: int, **changes: Any) -> Node:
    made = parse_node(role, f"{name}=10.0.0.{host}")
    number = f"{host:02d}" if role == "authority" else f"{host + 50:02d}"
    given = {"fingerprint": number * 20, **changes}
    if role == "authority":
        given = {"v3ident": f"A{number}B" * 10, "certificate_expires": NOW + timedelta(days=300), **given}
    return msgspec.structs.replace(made, **given)


def network(**changes: Any) -> Manifest:
    nodes = [node(f"a{n}", "authority", n) for n in (1, 2, 3)] + [node(f"r{n}", "relay", n) for n in (4, 5)]
    given = {"format": FORMAT, "network_id": "ab" * 8, "generation": 1, "voting_interval_s": 300, **changes}
    return Manifest(nodes=tuple(given.pop("nodes", nodes)), **given)


def bundle(files: dict[str, bytes], **changes: Any) -> Bundle:
    given = {"format": FORMAT, "network_id": "n", "generation": 1, "name": "r1", "role": "relay", "whole": True}
    return Bundle(index=Index(**{**given, "members": (), "sha256": digests(files), **changes}), files=files)


def tar(*headers: tuple[tarfile.TarInfo, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as made:
        for header, content in headers:
            header.size = len(content)
            made.addfile(header, io.BytesIO(content))
    return sink.getvalue()


class Refused(SynchronousTestCase):
    def refused(self, code: ErrorCode, call: Any, *arguments: Any) -> str:
        error = self.assertRaises(RonError, call, *arguments)
        self.assertIs(error.code, code, error.message)
        return str(error.message)


class Plans(Refused):
    def test_places_that_are_none(self) -> None:
        for text in ("a", "a=", "=10.0.0.1", "a=host", "a=::1", "a=10.0.0.1:0", "a=10.0.0.1:65536", "a=10.0.0.1:1:2:3"):
            self.refused(ErrorCode.BAD_REQUEST, parse_node, "authority", text)
        for text in ("a=127.0.0.1", "a=0.0.0.0", "a=224.0.0.1", "a=255.255.255.255", "a=10.0.0.1:٣", "a=10.0.0.1:+1"):
            self.refused(ErrorCode.BAD_REQUEST, parse_node, "authority", text)
        self.refused(ErrorCode.BAD_REQUEST, parse_node, "relay", "r=10.0.0.1:1:2")

    def test_names_that_would_be_paths_or_no_nicknames(self) -> None:
        for name in ("../a", "a/b", ".", "a-b", "a b", "é", "x" * 20, "client", "Unnamed", "a\n"):
            self.refused(ErrorCode.BAD_REQUEST, parse_node, "relay", f"{name}=10.0.0.1")

    @given(st.text(max_size=40))
    def test_any_text_is_a_node_or_a_typed_refusal(self, text: str) -> None:
        try:
            made = parse_node("authority", text)
        except RonError as error:
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)
        else:
            self.assertTrue(1 <= made.or_port <= 65535)

    def test_too_few_too_alike(self) -> None:
        nodes = list(network().nodes)
        self.refused(ErrorCode.BAD_REQUEST, check_nodes, nodes[1:])
        self.refused(ErrorCode.BAD_REQUEST, check_nodes, nodes[:4])
        same_name = msgspec.structs.replace(nodes[4], name="R4")
        self.assertIn("name r4", self.refused(ErrorCode.CONFLICT, check_nodes, [*nodes[:4], same_name]))
        same_place = msgspec.structs.replace(nodes[4], address="10.0.0.1", or_port=9030)
        self.assertIn("10.0.0.1:9030", self.refused(ErrorCode.CONFLICT, check_nodes, [*nodes[:4], same_place]))

    def test_intervals_tor_would_refuse(self) -> None:
        for seconds in (0, 9, 11, 3601, 20.5, 7):
            self.refused(ErrorCode.BAD_REQUEST, check_interval, seconds)

    @given(st.sampled_from([n for n in range(10, 3601) if 86400 % n == 0]))
    def test_every_interval_we_take_has_a_rhythm_tor_takes(self, interval_s: int) -> None:
        """tor wants both delays together under half the interval, and the first one to divide half an hour."""
        self.assertEqual(check_interval(interval_s), interval_s)
        for whole, delay in ((timing(interval_s)[0:2]), (timing(interval_s)[2:4])):
            self.assertGreaterEqual(delay, 2)
            self.assertLess(2 * delay, whole / 2)
        self.assertEqual(1800 % timing(interval_s).first_interval_s, 0)

    def test_a_name_is_never_used_again(self) -> None:
        after = grown(network(), [node("a9", "authority", 9)], [network().node("a2")])
        self.assertEqual([n.name for n in after.authorities()], ["a1", "a3", "a9"])
        self.assertEqual((after.generation, after.retired[0].name), (2, "a2"))
        self.refused(ErrorCode.CONFLICT, grown, after, [node("a2", "authority", 8)])

    def test_a_manifest_that_was_tampered_with(self) -> None:
        good = msgspec.json.encode(network())
        self.assertEqual(read_manifest(good), network())
        for old, new in (
            (b'"format":1', b'"format":2'),
            (b"10.0.0.1", b"127.0.0.1"),
            (b'"a1"', b'"../a1"'),
            (b"300", b"7"),
        ):
            self.refused(ErrorCode.BAD_REQUEST, read_manifest, good.replace(old, new, 1))
        for damaged in (b"", b"\xff", good[:-2], good.replace(b'"format"', b'"extra":1,"format"')):
            self.refused(ErrorCode.BAD_REQUEST, read_manifest, damaged)

    def test_weak_passphrases(self) -> None:
        for passphrase in (b"", b"short", b"two\nlines of it", b"a nul \0 in the middle"):
            self.refused(ErrorCode.BAD_REQUEST, check_passphrase, passphrase)


FILES = {"torrc": b"ORPort 1\n", "keys/secret_id_key": b"key", "README": b"read"}


class Tars(Refused):
    def test_round_trip_and_the_same_bytes_every_time(self) -> None:
        packed = pack(bundle(FILES))
        self.assertEqual(packed, pack(bundle(dict(reversed(FILES.items())))))
        self.assertEqual(unpack(packed), bundle(FILES))
        with tarfile.open(fileobj=io.BytesIO(packed)) as made:
            for header in made:
                self.assertEqual((header.mode, header.mtime, header.uid, header.uname), (0o600, 0, 0, ""))

    def test_what_would_land_elsewhere(self) -> None:
        for name in ("../x", "/etc/x", "keys/../../x", "keys/a/b", "a/b", "./torrc", ".lock", "a\nb", "x" * 90):
            self.refused(ErrorCode.BAD_REQUEST, unpack, tar((tarfile.TarInfo(name), b"")))

    def test_what_is_no_file(self) -> None:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            header = tarfile.TarInfo("torrc")
            header.type, header.linkname = kind, "/etc/passwd"
            self.refused(ErrorCode.BAD_REQUEST, unpack, tar((header, b"")))

    def test_a_file_changed_added_left_out_or_twice(self) -> None:
        good = bundle(FILES)
        for files in ({**FILES, "torrc": b"ORPort 2\n"}, {**FILES, "more": b""}, {"torrc": b"ORPort 1\n"}):
            self.refused(ErrorCode.BAD_REQUEST, unpack, pack(Bundle(index=good.index, files=files)))
        index = msgspec.json.encode(bundle({"torrc": b"b"}).index)
        sealed = (SEAL, digest(index).encode()), (INDEX, index)
        twice = tar(*((tarfile.TarInfo(n), c) for n, c in (*sealed, ("torrc", b"a"), ("torrc", b"b"))))
        self.refused(ErrorCode.BAD_REQUEST, unpack, twice)

    def test_a_tar_of_somebody_elses(self) -> None:
        """The same content, but with times and modes: not what we make, so somebody had his hands on it."""
        index = msgspec.json.encode(bundle({}).index)
        for mtime in (0, 1):
            header = tarfile.TarInfo(INDEX)
            header.mtime, header.mode = mtime, 0o600
            seal = tarfile.TarInfo(SEAL)
            seal.mode = 0o600
            made = tar((seal, digest(index).encode()), (header, index))
            if mtime:
                self.refused(ErrorCode.BAD_REQUEST, unpack, made)
            else:
                self.assertEqual(unpack(made), bundle({}))

    def test_sizes(self) -> None:
        self.refused(ErrorCode.TOO_LARGE, unpack, b"\0" * (MAX_BUNDLE_BYTES + 1))
        self.refused(ErrorCode.BAD_REQUEST, unpack, tar(*((tarfile.TarInfo(f"f{n}"), b"") for n in range(40))))

    @settings(max_examples=100)
    @given(st.data())
    def test_any_damage_is_refused(self, data: st.DataObject) -> None:
        good = pack(bundle(FILES))
        at = data.draw(st.integers(0, len(good) - 1))
        with_one_bit = bytearray(good)
        with_one_bit[at] ^= 1 << data.draw(st.integers(0, 7))
        for damaged in (bytes(with_one_bit), good[:at]):
            self.assertRaises(RonError, unpack, damaged)

    @given(st.binary(max_size=2000))
    def test_any_bytes_are_refused(self, content: bytes) -> None:
        self.assertRaises(RonError, unpack, content)


class OnDisk(Refused):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.path = self.folder / "r1.tar"
        self.content = pack(bundle({"torrc": b""}))
        self.path.write_bytes(self.content)
        self.path.chmod(0o600)

    def test_others_may_not_read_it(self) -> None:
        for mode in (0o604, 0o640, 0o602):
            self.path.chmod(mode)
            self.assertIn("others", self.refused(ErrorCode.BAD_REQUEST, read_bundle, self.path))

    def test_a_link_a_folder_a_pipe_nothing(self) -> None:
        (self.folder / "link").symlink_to(self.path)
        os.mkfifo(self.folder / "pipe", 0o600)
        for name in ("link", "pipe", ".", "none"):
            self.refused(ErrorCode.BAD_REQUEST, read_bundle, self.folder / name)

    def test_the_digest_that_was_told(self) -> None:
        self.refused(ErrorCode.BAD_REQUEST, read_bundle, self.path, "00" * 32)
        self.assertEqual(read_bundle(self.path, digest(self.content).upper()).index.name, "r1")

    def test_a_link_that_another_user_put_is_not_followed(self) -> None:
        """What a compromised tor could do to a root that joins."""
        (self.folder / "theirs").write_text("precious")
        (self.folder / "data").symlink_to(self.folder)
        with self.assertRaises(OSError), owned_folder(self.folder / "data", os.getuid(), os.getgid()):
            pass
        (self.folder / "keys").mkdir()
        (self.folder / "keys" / "secret").symlink_to(self.folder / "theirs")
        with owned_folder(self.folder / "keys", os.getuid(), os.getgid()) as keys:
            write_owned(keys, "secret", b"key", os.getuid(), os.getgid())
        self.assertEqual((self.folder / "theirs").read_text(), "precious")
        self.assertEqual((self.folder / "keys" / "secret").read_bytes(), b"key")
        self.assertEqual((self.folder / "keys" / "secret").stat().st_mode & 0o777, 0o600)


class Texts(Refused):
    def test_nobody_but_the_hosts_of_the_manifest_may_be_a_relay(self) -> None:
        torrc = texts.node_torrc(network(), network().node("a1"))
        self.assertIn(
            "AuthDirReject accept 10.0.0.1:*,accept 10.0.0.2:*,accept 10.0.0.3:*,accept 10.0.0.4:*,"
            "accept 10.0.0.5:*,reject *:*\n",
            torrc,
        )

    def test_a_relay_is_no_authority_and_a_client_no_relay(self) -> None:
        self.assertNotIn("AuthoritativeDirectory", texts.node_torrc(network(), network().node("r4")))
        client = texts.client_torrc(network())
        self.assertIn("ClientOnly 1", client)
        self.assertIn("\nORPort 0\n", client)
        for torrc in (client, *(texts.node_torrc(network(), n) for n in network().nodes)):
            self.assertEqual(torrc.count("\nDirAuthority "), 3)
            self.assertIn("\nTestingTorNetwork 1\n", torrc)
            self.assertIn("\nExitPolicy reject *:*\n", torrc)

    def test_only_a_large_network_has_vanguards(self) -> None:
        large = network(nodes=[*network().nodes, *(node(f"r{n}", "relay", n) for n in range(6, 13))])
        self.assertIn("VanguardsLiteEnabled 0", texts.client_torrc(network()))
        self.assertIn("VanguardsLiteEnabled 1", texts.client_torrc(large))

    def test_a_folder_that_would_break_torrc_or_unit(self) -> None:
        unit = texts.unit("relay r1", (9101,))
        values = {"directory": "/x", "user": "u", "tor": "/bin/tor"}
        self.assertNotIn("${", texts.filled(unit, values))
        for bad in ("/a b", "/a\nUser=root", "/a%n", "/a$b", ""):
            self.refused(ErrorCode.BAD_REQUEST, texts.filled, unit, {**values, "directory": bad})
        self.refused(ErrorCode.BAD_REQUEST, texts.filled, unit, {"directory": "/x"})

    def test_a_low_port_needs_a_capability_and_nothing_else_does(self) -> None:
        self.assertIn("CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n", texts.unit("relay r1", (443,)))
        self.assertIn("CapabilityBoundingSet=\n", texts.unit("relay r1", (9101,)))


class Standing(Refused):
    TEXT = (
        "valid-after 2026-11-21 11:55:00\nfresh-until 2026-11-21 12:00:00\nvalid-until 2026-11-21 12:10:00\n"
        "r a1 AQEBAQEBAQEBAQEBAQEBAQEBAQE x 2026-11-21 11:50:00 10.0.0.1 9001 9030\n"
        f"directory-signature {'AB' * 20} {'CD' * 20}\ndirectory-signature sha256 {'EF' * 20} {'CD' * 20}\n"
    )

    def seen(self, **changes: Seen) -> dict[str, Seen]:
        manifest = network()
        consensus = Consensus(
            NOW - timedelta(minutes=5),
            NOW,
            NOW + timedelta(minutes=10),
            frozenset(n.fingerprint for n in manifest.nodes),
            frozenset(n.v3ident or "" for n in manifest.authorities()),
        )
        usual = {
            n.name: Seen(True, *([True, None, consensus] if n.role == "authority" else [])) for n in manifest.nodes
        }
        return {**usual, **changes}

    def problems(self, now: datetime = NOW, **changes: Seen) -> tuple[str, ...]:
        return judge(network(), self.seen(**changes), now, timedelta(days=30)).problems

    def test_reading_a_consensus(self) -> None:
        read = read_consensus(self.TEXT)
        self.assertEqual(read.relays, {"01" * 20})
        self.assertEqual(read.signers, {"AB" * 20, "EF" * 20})
        self.assertEqual(read.valid_after, NOW - timedelta(minutes=5))
        for text in ("", "valid-after 2026-11-21 11:55:00\n", "<html>"):
            self.refused(ErrorCode.BAD_REQUEST, read_consensus, text)

    def test_all_is_well(self) -> None:
        report = judge(network(), self.seen(), NOW, timedelta(days=30))
        self.assertEqual((report.whole, report.problems), (True, ()))
        self.assertEqual(report.nodes[0].certificate_days_left, 300)

    def test_nobody_answers(self) -> None:
        down = {n.name: Seen(False, False if n.role == "authority" else None) for n in network().nodes}
        report = judge(network(), down, NOW, timedelta(days=30))
        self.assertFalse(report.whole)
        self.assertIn("no authority has a consensus", report.problems[0])
        self.assertEqual(len(report.problems), 1 + 5 + 3)

    def test_a_consensus_that_is_over_or_late(self) -> None:
        self.assertIn("no authority has a consensus", self.problems(NOW + timedelta(minutes=11))[0])
        self.assertIn("nothing new", self.problems(NOW + timedelta(minutes=6))[0])
        self.assertEqual(self.problems(NOW + timedelta(minutes=4)), ())

    def test_certificates_that_end(self) -> None:
        for days, words in ((30, "ends in 30 days"), (-1, "has ended")):
            found = self.problems(a2=self.seen()["a2"]._replace(certificate_expires=NOW + timedelta(days=days)))
            self.assertEqual(len(found), 1)
            self.assertIn(words, found[0])
            self.assertIn("rotate-certs --authority a2", found[0])
        self.assertEqual(self.problems(a2=self.seen()["a2"]._replace(certificate_expires=NOW + timedelta(days=31))), ())

    def test_a_certificate_text(self) -> None:
        text = f"fingerprint {'AB' * 20}\ndir-key-expires 2027-01-02 03:04:05\n"
        self.assertEqual(read_certificate(text.encode()), ("AB" * 20, datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)))
        for damaged in (b"", b"\xff", text[:60].encode()):
            self.refused(ErrorCode.BAD_REQUEST, read_certificate, damaged)


class Probing(SynchronousTestCase):
    def test_who_has_lost_the_others_blames_nobody(self) -> None:
        for up, down, cut in ((5, 0, False), (4, 1, False), (3, 2, False), (2, 2, True), (2, 3, True), (0, 5, True)):
            self.assertIs(cut_off({f"{n}": n < up for n in range(up + down)}), cut, (up, down))
        self.assertFalse(cut_off({}))

    def test_the_file_tor_reads(self) -> None:
        content = unlisted(["AA" * 20], ["CC" * 20, "BB" * 20])
        self.assertEqual(
            content.decode().splitlines()[1:],
            [f"!invalid {'AA' * 20}", f"!reject {'BB' * 20}", f"!reject {'CC' * 20}"],
        )

    def test_fingerprints_in_descriptors(self) -> None:
        spaced = " ".join(["ABCD"] * 10)
        text = f"router r1 10.0.0.1 9001 0 0\nfingerprint {spaced}\nrouter r2\nopt fingerprint x\nfingerprint AB\n"
        self.assertEqual(fingerprints(text), {"ABCD" * 10})
