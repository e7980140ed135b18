"""Against Onionbalance (v3): what it reads of ours, what we read of its own, and where both would store it.

Two real tors are the backends, recorded on a private network. Needs the package `onionbalance` (extra `test`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

from onionbalance.hs_v3 import hashring, onionbalance, tor_ed25519
from onionbalance.hs_v3.consensus import Consensus
from onionbalance.hs_v3.descriptor import OBDescriptor, ReceivedDescriptor
from onionbalance.hs_v3.tor_node import Node
from stem.descriptor import hidden_service
from stem.descriptor.hidden_service import IntroductionPointV3
from stem.descriptor.microdescriptor import Microdescriptor
from stem.descriptor.networkstatus import NetworkStatusDocumentV3
from twisted.trial.unittest import SynchronousTestCase

from ron.tor.descriptor.blinding import KeySigner, blind
from ron.tor.descriptor.build import build, certify
from ron.tor.descriptor.hashring import read_ring
from ron.tor.descriptor.intropoints import Backend, IntroPoint, read_backend
from ron.tor.onionkeys import address_of, new_key, public_key
from tests.tor.descriptor.samples import VECTORS, finish

NETWORK: dict[str, Any] = json.loads((VECTORS / "descriptor" / "network.json").read_text())
RING = read_ring(NETWORK["consensus"], NETWORK["microdescriptors"], testing=True)
DUE = RING.time.due()
NOW_S = float(NETWORK["now_s"])
HOUR_S = 3600


def network_of(size: int, valid_after_s: int) -> tuple[str, list[str]]:
    """A consensus of the public network's rhythm with so many directories, and their microdescriptors."""
    head, _, _ = NETWORK["consensus"].partition("\nr ")
    srv = [base64.b64encode(bytes([value]) * 32).decode() for value in (1, 2)]
    values = f"shared-rand-previous-value 9 {srv[0]}\nshared-rand-current-value 9 {srv[1]}\nknown-flags"
    head = head.replace("known-flags", values, 1)
    for keyword, hours in (("valid-after", 0), ("fresh-until", 1), ("valid-until", 3)):
        moment = datetime.fromtimestamp(valid_after_s + hours * HOUR_S, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
        head = re.sub(f"^{keyword} .*$", f"{keyword} {moment}", head, flags=re.M)
    microdescriptors = [
        f"onion-key\nntor-onion-key {'A' * 43}\nid ed25519 {unpadded(hashlib.sha256(bytes([number])).digest())}\n"
        for number in range(size)
    ]
    routers = [
        f"r n{number} {unpadded(hashlib.sha256(bytes([1, number])).digest()[:20])} 2026-01-01 00:00:00 10.0.0.1 1 0\n"
        f"m {unpadded(hashlib.sha256(microdescriptor.encode()).digest())}\n"
        "s Fast HSDir Running Valid\nv Tor 0.4.9.11\npr HSDir=2 Link=1-5\nw Bandwidth=1\n"
        for number, microdescriptor in enumerate(microdescriptors)
    ]
    return head + "\n" + "".join(routers) + "directory-footer\n", microdescriptors


def unpadded(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


class WithOnionbalance(SynchronousTestCase):
    """Its one global object, filled in as its own start would."""

    def consensus(self, text: str, *, testing: bool) -> Consensus:
        logging.getLogger("onionbalance").setLevel(logging.CRITICAL + 1)
        self.patch(Consensus, "is_live", lambda _self: True)
        made = Consensus(do_refresh_consensus=False)
        made.consensus = NetworkStatusDocumentV3(text.encode())
        onionbalance.my_onionbalance.is_testnet = testing
        onionbalance.my_onionbalance.consensus = made
        return made


class Descriptors(WithOnionbalance):
    def setUp(self) -> None:
        self.theirs = self.consensus(NETWORK["consensus"], testing=True)
        self.key = new_key()
        self.backends: list[Backend] = [
            read_backend(text, onion, [due.period for due in DUE], NOW_S) for onion, text in NETWORK["backends"].items()
        ]
        self.points = [point for backend in self.backends for point in backend.points]

    def test_it_reads_ours(self) -> None:
        """Its parser finds every point, with the keys that it finds in the backends' own descriptors."""
        signed = finish(certify(KeySigner(self.key), DUE[0].period, NOW_S))
        ours = ReceivedDescriptor(build(signed, self.points, 7), address_of(self.key))
        received = self.received()
        # it shuffles them
        self.assertEqual(sorted(map(seen, ours.get_intro_points())), sorted(map(seen, received)))
        self.assertEqual(ours.get_blinded_key(), signed.blinded.public)

    def test_the_same_descriptor_as_its_own(self) -> None:
        """Same key, period, backends: the same blinded key and points, under our strict reading of both."""
        for due in DUE:
            theirs = self.their_descriptor(due.period.number)
            signed = finish(certify(KeySigner(self.key), due.period, NOW_S))
            ours = build(signed, self.points, 7)
            self.assertEqual(theirs.get_blinded_key(), signed.blinded.public)
            read = [
                read_backend(text, address_of(self.key), [due.period], NOW_S) for text in (str(theirs.v3_desc), ours)
            ]
            self.assertEqual(by_key(read[0]), by_key(read[1]))
            self.assertEqual(read[0].period, read[1].period)

    def received(self) -> list[IntroductionPointV3]:
        both = [ReceivedDescriptor(text, onion) for onion, text in NETWORK["backends"].items()]
        return [point for descriptor in both for point in descriptor.get_intro_points()]

    def their_descriptor(self, period_number: int) -> OBDescriptor:
        # its counter runs over every second since the shared random value: these are of long ago
        self.patch(OBDescriptor, "_get_revision_counter", lambda *_arguments: 7)
        # as its service does, before it makes the first
        self.patch(hidden_service, "_blinded_sign", tor_ed25519._blinded_sign_with_tor_key)
        secret = tor_ed25519.TorEd25519PrivateKey(base64.b64decode(self.key.blob.partition(":")[2]))
        parameter = self.theirs.get_blinding_param(public_key(self.key), period_number)
        return OBDescriptor(address_of(self.key), secret, parameter, self.received(), True)


class Rings(WithOnionbalance):
    def test_the_same_directories(self) -> None:
        """Hour after hour through three days, both descriptors, a key each."""
        compared = 0
        for hour in range(480_000, 480_072, 3):
            compared += sum(self.compared(hour * HOUR_S, older=older) for older in (True, False))
        self.assertGreater(compared, 30)

    def compared(self, valid_after_s: int, *, older: bool) -> bool:
        """False where it has no answer: of a replica that goes over the end of its list it leaves directories out."""
        text, microdescriptors = network_of(40, valid_after_s)
        theirs = self.consensus(text, testing=False)
        by_digest = {made.digest(): made for made in (Microdescriptor(each.encode()) for each in microdescriptors)}
        routers = theirs.consensus.routers.values()
        theirs.nodes = [Node(by_digest[router.microdescriptor_digest], router) for router in routers]
        ring = read_ring(text, "".join(microdescriptors), testing=False)
        self.assertEqual(len(ring.directories), 40)
        due = ring.time.due()[0 if older else 1]
        self.assertEqual(hashring.get_srv_and_time_period(older), (due.srv, due.period.number))
        key = blind(public_key(new_key()), due.period)
        ours = [node.fingerprint for node in ring.to_store(key, due)]
        try:
            self.assertEqual(hashring.get_responsible_hsdirs(key.public, older), ours)
        except hashring.EmptyHashRing:
            return False
        return True


def seen(point: IntroductionPointV3) -> tuple[Any, ...]:
    """What a client needs of it, without whose signature it bears."""
    certificates = (point.auth_key_cert, point.enc_key_cert)
    return (
        [link.pack() for link in point.link_specifiers],
        point.onion_key_raw.rstrip("="),
        point.enc_key_raw.rstrip("="),
        [(made.type_int, made.key_type, made.key, made.expiration) for made in certificates],
    )


def by_key(backend: Backend) -> list[IntroPoint]:
    return sorted(backend.points, key=lambda point: point.auth_key)
