"""What the bodies may hold and how long they may be; what an issuer may do with its list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.schnorr import HolderKey
from ron.proto.errors import ErrorCode, RonError
from ron.services.oniond.federation.messages import (
    MAX_BODY_BYTES,
    PROTOCOL,
    SEALED_BYTES,
    InitiatorProof,
    RosterListing,
    TransportFacts,
    ZkHandshake,
    check_onion,
)
from ron.services.oniond.federation.roster import Pin, Roster, RosterBook
from ron.tor.onionkeys import address_of, new_key

ANNA, BERT = (address_of(new_key()) for _ in range(2))
OTHERS = [HolderKey.generate().public for _ in range(2)]
THIRD = HolderKey.generate().public
PROOF = InitiatorProof(
    nonce=bytes(32),
    own_nonce=bytes(32),
    time=1_800_000_000,
    roster=Roster(1, OTHERS).ref,
    own_roster=Roster(1, OTHERS).ref,
    sealed=bytes(SEALED_BYTES),
    zk=bytes(128),
)


class Lists(SynchronousTestCase):
    """An issuer cannot quietly give a holder another list."""

    def conflicts(self, call: Callable[..., Any], *args: Any) -> None:
        self.assertEqual(self.assertRaises(RonError, call, *args).code, ErrorCode.CONFLICT)

    def test_going_back_and_changing_under_a_version(self) -> None:
        book, keys = RosterBook(), [*OTHERS, THIRD]
        book.admit(BERT, Roster(3, keys))
        book.admit(BERT, Roster(3, keys))
        self.conflicts(book.admit, BERT, Roster(2, keys))
        self.conflicts(book.admit, BERT, Roster(3, keys[::-1]))
        self.conflicts(RosterBook(pins=book.pins()).admit, BERT, Roster(2, keys))
        self.assertEqual(book.pins(), {BERT: Pin(3, Roster(3, keys).ref.digest)})
        book.admit(BERT, Roster(4, OTHERS))
        book.admit(ANNA, Roster(1, OTHERS))

    def test_too_few_to_hide_among(self) -> None:
        book = RosterBook(min_size=3)
        self.conflicts(book.admit, BERT, Roster(1, OTHERS))
        self.assertIsNone(book.newest(BERT))

    def test_listings(self) -> None:
        listing = Roster(7, OTHERS).listing(BERT)
        self.assertEqual(Roster.read(listing, BERT).ref, Roster(7, OTHERS).ref)
        self.conflicts(Roster.read, listing, ANNA)
        for keys in ((OTHERS[0], OTHERS[0]), (bytes(32),)):
            broken = RosterListing(protocol=PROTOCOL, onion=BERT, version=1, keys=keys)
            self.assertEqual(self.assertRaises(RonError, Roster.read, broken, BERT).code, ErrorCode.BAD_REQUEST)


class Bodies(SynchronousTestCase):
    """Shapes and bounds of the JSON bodies."""

    def test_bodies_survive_the_wire_and_the_longest_fits(self) -> None:
        message = ZkHandshake(peer_onion=ANNA, proof=PROOF)
        self.assertEqual(msgspec.json.decode(msgspec.json.encode(message), type=ZkHandshake), message)
        longest = msgspec.structs.replace(PROOF, zk=bytes(64 * 1024))
        body = msgspec.json.encode(msgspec.structs.replace(message, proof=longest))
        self.assertLess(len(body), MAX_BODY_BYTES)
        msgspec.json.decode(body, type=ZkHandshake)

    def test_strict(self) -> None:
        plain = msgspec.to_builtins(ZkHandshake(peer_onion=ANNA, proof=PROOF))
        bad: list[dict[str, Any]] = [
            {**plain, "app": "x"},
            {**plain, "peer_onion": "example.com"},
            {**plain, "peer_onion": plain["peer_onion"].upper()},
            {**plain, "proof": {**plain["proof"], "role": "observer"}},
            {**plain, "proof": {**plain["proof"], "zk": ""}},
            {**plain, "proof": {**plain["proof"], "time": 1.5}},
            {**plain, "proof": {**plain["proof"], "nonce": "AAAA"}},
        ]
        longer = msgspec.to_builtins(bytes(64 * 1024 + 1))
        bad.append({**plain, "proof": {**plain["proof"], "zk": longer}})
        for body in bad:
            self.assertRaises(msgspec.ValidationError, msgspec.json.decode, msgspec.json.encode(body), type=ZkHandshake)

    def test_facts_have_no_room_for_content(self) -> None:
        fine = {"onion": ANNA, "protocols": ["oap/1"], "regions": ["eu-west"], "load": "low"}
        msgspec.convert(fine, TransportFacts)
        self.assertEqual(set(TransportFacts.__struct_fields__), set(fine))
        for extra in ({"apps": ["notes"]}, {"load": "42"}, {"regions": ["hello world"]}, {"regions": ["r"] * 17}):
            self.assertRaises(msgspec.ValidationError, msgspec.convert, {**fine, **extra}, TransportFacts)

    def test_addresses_have_one_spelling(self) -> None:
        self.assertEqual(check_onion(ANNA), ANNA)
        for bad in (ANNA.upper(), ANNA[:-6], "x" + ANNA, ANNA + ".", "", ".onion"):
            self.assertRaises(RonError, check_onion, bad)
