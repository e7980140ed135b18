"""What the book says of addresses, beside keys that are here and a config: who is believed."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import MAX_SERVICES
from ron.proto.errors import RonError, unavailable
from ron.services.balance.config import BalanceConfig, BalancedService
from ron.services.balance.ports import ServiceRecord
from ron.services.balance.records import Records
from ron.services.balance.words import Nothing
from ron.tor.clientauth import generate
from ron.tor.descriptor.blinding import KeySigner
from ron.tor.onionkeys import address_of, new_key
from tests.services.balance.hub import Hub

KEY, OTHER = new_key(), new_key()
RECORD = ServiceRecord(onion=address_of(KEY), mode="shared", made_ms=1)
CLIENT = generate().public.base32


class Holding:
    """`Vault`, of which only this is asked. keys: by service; None: a share of nothing that is in use."""

    def __init__(self) -> None:
        self.keys: dict[str, KeySigner | None] = {}

    def holds(self) -> frozenset[str]:
        return frozenset(self.keys)

    def signer(self, service: str) -> KeySigner:
        signer = self.keys[service]
        if signer is None:
            raise unavailable("a test")
        return signer


def named(*names: str, clients: tuple[str, ...] = ()) -> tuple[BalancedService, ...]:
    return tuple(BalancedService(name=name, ports=("80:127.0.0.1:8080",), clients=clients) for name in names)


class Book(SynchronousTestCase):
    def setUp(self) -> None:
        self.book = Hub(Clock()).node("a").book
        self.vault = Holding()
        self.config = BalanceConfig(services=named("main"))
        self.records = Records(self.book, lambda: self.config, self.vault)

    def put(self, name: str, record: msgspec.Struct | None) -> None:
        self.book.put(f"service/{name}", record)

    def test_nothing(self) -> None:
        self.assertEqual((self.records.all(), self.records.masters()), ({}, {}))

    def test_what_is_no_address_is_none(self) -> None:
        for onion in ("", "x", "a" * 56 + ".onion", RECORD.onion.upper(), RECORD.onion + "\n", RECORD.onion[:-6]):
            self.put("main", msgspec.structs.replace(RECORD, onion=onion))
            self.assertEqual(self.records.all(), {}, onion)
        for name in ("main/x", "ma.in", "1main", "m" * 33):
            self.put(name, RECORD)
            self.assertEqual(self.records.all(), {}, name)
        self.put("main", Nothing())
        self.assertEqual(self.records.all(), {})

    def test_a_name_that_only_one_of_the_two_knows_is_not_published(self) -> None:
        self.put("shop", RECORD)
        self.config = BalanceConfig(services=named("main", "club"))
        self.assertEqual((set(self.records.all()), self.records.served(), self.records.masters()), ({"shop"}, {}, {}))

    def test_clients(self) -> None:
        """An address for some is never published for all, whatever is wrong."""
        self.put("main", RECORD)
        self.config = BalanceConfig(services=named("main", clients=(CLIENT,)))
        self.assertEqual([key.base32 for key in self.records.masters()["main"].clients], [CLIENT])
        self.assertEqual((set(self.records.served()), self.records.open()), ({"main"}, {}))
        self.config = BalanceConfig(services=named("main", clients=(CLIENT, "A" * 52)))
        self.assertEqual(self.records.masters(), {})
        self.config = BalanceConfig(services=())
        self.assertEqual(self.records.masters(), {})

    def test_the_key_that_is_here_is_right(self) -> None:
        self.put("main", RECORD)
        self.vault.keys["main"] = KeySigner(KEY)
        self.assertEqual(self.records.all(), {"main": RECORD})
        spoilt = (None, Nothing(), msgspec.structs.replace(RECORD, onion=address_of(OTHER)))
        for record in (*spoilt, msgspec.structs.replace(RECORD, mode="threshold", threshold=3)):
            self.put("main", record)
            self.assertEqual(self.records.all(), {"main": RECORD}, record)

    def test_what_was_wrong_from_the_beginning(self) -> None:
        self.put("main", msgspec.structs.replace(RECORD, onion="x"))
        self.vault.keys["main"] = KeySigner(KEY)
        self.assertEqual(self.records.all()["main"].onion, address_of(KEY))

    def test_a_new_epoch_is_not_wrong(self) -> None:
        self.put("main", RECORD)
        self.vault.keys["main"] = KeySigner(KEY)
        self.records.all()
        newer = msgspec.structs.replace(RECORD, epoch=2, group=b"x")
        self.put("main", newer)
        self.assertEqual(self.records.all(), {"main": newer})
        self.records.put_right(0.0)
        self.assertEqual(self.book.get("service/main", ServiceRecord), newer)

    def test_put_right_a_few_times(self) -> None:
        self.put("main", RECORD)
        self.vault.keys["main"] = KeySigner(KEY)
        self.records.all()
        times = 0
        for second in range(60):
            self.put("main", None)
            self.records.put_right(float(second))
            times += self.book.get("service/main", ServiceRecord) == RECORD
        self.assertEqual(times, 4)
        self.records.put_right(200.0)
        self.assertEqual(self.book.get("service/main", ServiceRecord), RECORD)

    def test_a_key_that_was_forgotten_is_no_more_a_reason(self) -> None:
        self.put("main", RECORD)
        self.vault.keys["main"] = KeySigner(KEY)
        self.records.all()
        self.vault.keys.clear()
        self.put("main", None)
        self.assertEqual(self.records.all(), {})
        self.records.put_right(0.0)
        self.assertEqual(self.book.keys("service/"), ())

    def test_a_share_that_is_not_in_use_says_nothing(self) -> None:
        self.vault.keys["main"] = None
        self.assertEqual(self.records.all(), {})
        self.put("main", RECORD)
        self.assertEqual(self.records.all(), {"main": RECORD})

    def test_ours_are_among_the_most_there_can_be(self) -> None:
        self.vault.keys["zoo"] = KeySigner(KEY)
        self.put("zoo", RECORD)
        self.put("main", RECORD)
        for number in range(300):
            onion = "x" if number % 2 else RECORD.onion
            self.put(f"a{number}", msgspec.structs.replace(RECORD, onion=onion))
        found = self.records.all()
        self.assertEqual(len(found), MAX_SERVICES)
        self.assertLessEqual({"zoo", "main"}, set(found))

    def test_read_once_until_something_changes(self) -> None:
        self.put("main", RECORD)
        self.assertIs(self.records.all(), self.records.all())
        before = self.records.all()
        self.book.put("promote", None)
        self.assertIs(self.records.all(), before)
        self.vault.keys["main"] = KeySigner(KEY)
        self.assertIsNot(self.records.all(), before)

    @given(
        st.text("abcdefghijklmnopqrstuvwxyz0123456789./-", max_size=40),
        st.builds(
            ServiceRecord,
            onion=st.text(max_size=70) | st.just(RECORD.onion),
            mode=st.sampled_from(["shared", "threshold"]),
            threshold=st.integers(-(2**63), 2**63 - 1),
            group=st.binary(max_size=100),
            epoch=st.integers(-(2**63), 2**63 - 1),
        ),
        st.booleans(),
    )
    def test_whatever_a_member_writes(self, name: str, record: ServiceRecord, held: bool) -> None:
        """Records are of addresses only, and what is held is what it was."""
        self.setUp()
        self.put("main", RECORD)
        if held:
            self.vault.keys["main"] = KeySigner(KEY)
        self.records.all()
        try:
            self.put(name, record)
            self.put("main", record)
        except RonError:
            return
        for found in self.records.all().values():
            self.assertEqual(len(found.onion), 62)
        self.records.masters()
        if held:
            self.assertEqual(self.records.all()["main"].onion, RECORD.onion)
