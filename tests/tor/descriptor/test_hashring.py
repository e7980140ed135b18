"""The ring of directories: tor's own figures, its own uploads, and what a damaged consensus is worth."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.tor.descriptor.blinding import blind, identity_of
from ron.tor.descriptor.hashring import HsDir, Ring, node_index, read_ring, read_time, service_index
from ron.tor.descriptor.periods import NetworkTime, TimePeriod
from ron.tor.descriptor.refused import Refused
from ron.tor.onionkeys import address_of
from tests.tor.descriptor.samples import VECTORS, key_of

HOUR_S = 3600
NETWORK: dict[str, Any] = json.loads((VECTORS / "descriptor" / "network.json").read_text())
CONSENSUS, MICRODESCRIPTORS = NETWORK["consensus"], NETWORK["microdescriptors"]
PERIOD = TimePeriod(number=42, length_min=1440, start_s=0)
SRV, SRV_BEFORE = (base64.b64encode(bytes([value]) * 32).decode() for value in (5, 4))
IDENTITY = identity_of(address_of(key_of("identity")))


def many(count: int) -> Ring:
    directories = tuple(
        HsDir(
            fingerprint=hashlib.sha256(bytes([0, number])).hexdigest()[:40].upper(),
            identity=hashlib.sha256(bytes([number])).digest(),
        )
        for number in range(count)
    )
    time = NetworkTime(valid_after_s=500_000 * HOUR_S, interval_s=HOUR_S, testing=False)
    return Ring(time=time, directories=directories)


class Places(SynchronousTestCase):
    def test_tors_figures(self) -> None:
        """Of its test_hs_indexes."""
        self.assertEqual(
            service_index(b"\x42" * 32, 1, PERIOD).hex(),
            "37e5cbbd56a22823714f18f1623ece5983a0d64c78495a8cfab854245e5f9a8a",
        )
        self.assertEqual(
            node_index(b"\x42" * 32, b"\x43" * 32, PERIOD).hex(),
            "db475361014a09965e7e5e4d4a25b8f8d4b8f16cb1d8a7e95eed50249cc1a2d5",
        )

    def test_tors_uploads(self) -> None:
        """Two services of a real tor told, with each upload, where on the ring it went."""
        ring = read_ring(CONSENSUS, MICRODESCRIPTORS, testing=True)
        for onion in NETWORK["backends"]:
            tors = {(name, index) for service, name, index in NETWORK["uploads"] if service == onion}
            ours = {
                (node.fingerprint, node_index(node.identity, due.srv, due.period).hex().upper())
                for due in ring.time.due()
                for node in ring.to_store(blind(identity_of(onion), due.period), due)
            }
            self.assertEqual(ours, tors)


class Choice(SynchronousTestCase):
    @settings(max_examples=30)
    @given(st.integers(0, 60), st.integers(1, 4), st.integers(1, 6))
    def test_as_many_as_there_are_up_to_the_spread(self, count: int, replicas: int, spread: int) -> None:
        ring = msgspec.structs.replace(many(count), replicas=replicas, spread_store=spread)
        for due in ring.time.due():
            chosen = ring.to_store(blind(IDENTITY, due.period), due)
            self.assertEqual(len({node.fingerprint for node in chosen}), len(chosen))
            self.assertEqual(len(chosen), min(count, replicas * spread))

    @settings(max_examples=50, deadline=None)
    @given(st.binary(min_size=32, max_size=32), st.integers(1, 60))
    def test_clients_look_where_services_store(self, public: bytes, count: int) -> None:
        """Never anywhere else, also where the replicas overlap; from the first directory of the first replica on."""
        ring = many(count)
        key = dataclasses.replace(blind(IDENTITY, ring.time.period), public=public)
        stored, fetched = ring.to_store(key, ring.time.asked_for()), ring.to_fetch(key)
        self.assertLessEqual(set(fetched), set(stored))
        self.assertEqual(fetched[:3], stored[:3])
        self.assertEqual(len(fetched), min(count, 6))

    def test_each_replica_from_its_first_three(self) -> None:
        ring = many(60)
        # a place on the ring where the replicas do not overlap
        key = dataclasses.replace(blind(IDENTITY, ring.time.period), public=bytes([7]) * 32)
        stored = ring.to_store(key, ring.time.asked_for())
        self.assertEqual(ring.to_fetch(key), stored[:3] + stored[4:7])

    def test_another_period_is_elsewhere(self) -> None:
        ring = many(60)
        older, newer = (set(ring.to_store(blind(IDENTITY, due.period), due)) for due in ring.time.due())
        self.assertNotEqual(older, newer)

    def test_a_directory_listed_twice_counts_once(self) -> None:
        ring = many(3)
        twice = msgspec.structs.replace(ring, directories=ring.directories * 2)
        due = ring.time.due()[0]
        key = blind(IDENTITY, due.period)
        self.assertEqual(twice.to_store(key, due), ring.to_store(key, due))


class Reading(SynchronousTestCase):
    def test_a_real_one(self) -> None:
        ring = read_ring(CONSENSUS, MICRODESCRIPTORS, testing=True)
        self.assertEqual(len(ring.directories), 5)
        self.assertEqual((ring.replicas, ring.spread_store, ring.spread_fetch), (2, 4, 3))
        self.assertEqual((ring.time.interval_s, ring.time.period_length_min), (20, 8))
        self.assertEqual(read_time(CONSENSUS, testing=True), ring.time)
        self.assertEqual(ring.relays, {node.fingerprint: node.identity for node in ring.directories})
        self.assertEqual(ring.incomplete, 0)
        self.assertEqual(read_time(CONSENSUS, testing=False).period_length_min, 1440)

    def test_directories_that_tor_leaves_out_too(self) -> None:
        first = CONSENSUS.index(" HSDir ", CONSENSUS.index("\ns "))
        without_flag = CONSENSUS[:first] + CONSENSUS[first + len(" HSDir") :]
        self.assertEqual(self.directories(without_flag), 4)
        self.assertEqual(self.directories(re.sub(r"(\npr .*?)HSDir=2", r"\1HSDir=1", CONSENSUS, count=1)), 4)
        self.assertEqual(self.directories(CONSENSUS, MICRODESCRIPTORS.replace("id ed25519 ", "id ed25519 x", 1)), 4)
        self.assertEqual(self.directories(CONSENSUS, ""), 0)
        nothing_known = read_ring(CONSENSUS, "", testing=True)
        self.assertEqual((nothing_known.incomplete, set(nothing_known.relays.values())), (5, {b""}))
        self.assertEqual(read_ring(without_flag, MICRODESCRIPTORS, testing=True).incomplete, 0)
        self.assertEqual(len(read_ring(without_flag, MICRODESCRIPTORS, testing=True).relays), 5)

    def directories(self, consensus: str, microdescriptors: str = MICRODESCRIPTORS) -> int:
        return len(read_ring(consensus, microdescriptors, testing=True).directories)

    def test_values_and_parameters(self) -> None:
        said = f"shared-rand-previous-value 3 {SRV_BEFORE}\nshared-rand-current-value 9 {SRV}\n"
        params = "params hsdir_interval=60 hsdir_n_replicas=99 hsdir_spread_fetch=2 hsdir_spread_store=0\n"
        at = CONSENSUS.index("known-flags")
        ring = read_ring(CONSENSUS[:at] + params + said + CONSENSUS[at:], "", testing=False)
        self.assertEqual((ring.replicas, ring.spread_store, ring.spread_fetch), (16, 1, 2))
        self.assertEqual(ring.time.period_length_min, 60)
        self.assertEqual((ring.time.srv_previous, ring.time.srv_current), (b"\x04" * 32, b"\x05" * 32))

    def test_what_is_none(self) -> None:
        start = CONSENSUS.index("valid-after")
        for bad in (
            "",
            "network-status-version 3 microdesc",
            CONSENSUS[:100],
            CONSENSUS.replace("version 3 microdesc", "version 3", 1),
            CONSENSUS.replace("vote-status consensus", "vote-status vote", 1),
            CONSENSUS[:start] + "valid-after 1969-01-01 00:00:00\n" + CONSENSUS[start:].partition("\n")[2],
            CONSENSUS[:start] + "valid-after yesterday\n" + CONSENSUS[start:].partition("\n")[2],
            CONSENSUS[:start] + "shared-rand-current-value 3 AAAA\n" + CONSENSUS[start:],
            CONSENSUS.replace("consensus-method", "cons\u00e9nsus-method"),
        ):
            self.assertRaises(Refused, read_ring, bad, MICRODESCRIPTORS, testing=True)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, len(CONSENSUS) - 1), st.characters(codec="ascii"), st.integers(0, len(MICRODESCRIPTORS)))
    def test_damaged_ones_never_raise_anything_else(self, place: int, character: str, length: int) -> None:
        changed = CONSENSUS[:place] + character + CONSENSUS[place + 1 :]
        try:
            ring = read_ring(changed, MICRODESCRIPTORS[:length], testing=True)
        except Refused:
            return
        self.assertLessEqual(len(ring.directories), 5)
