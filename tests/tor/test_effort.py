"""What an onion asks of its visitors, read from a descriptor that a real tor made."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from ron.tor.control import connect_control
from ron.tor.effort import MAX_DESCRIPTOR_CHARS, read_effort, suggested_effort
from ron.tor.onionkeys import address_of, new_key
from tests.tor.fake_tor import FakeTor

RECORDED = Path(__file__).parents[1] / "vectors" / "onion-with-pow.txt"


def recorded() -> tuple[str, str]:
    """(address, descriptor)."""
    _comment, onion, text = RECORDED.read_text().split("\n", 2)
    return onion, text.rstrip("\n")


class Descriptors(SynchronousTestCase):
    def test_no_need_yet(self) -> None:
        onion, text = recorded()
        self.assertEqual(read_effort(text, onion), 0)

    def test_another_onions(self) -> None:
        _onion, text = recorded()
        self.assertIsNone(read_effort(text, address_of(new_key())))

    def test_what_is_none(self) -> None:
        onion, text = recorded()
        for bad in ("", "hs-descriptor 3", text[:5000], text + "x" * MAX_DESCRIPTOR_CHARS, "\0" * 100):
            self.assertIsNone(read_effort(bad, onion))

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 14_000), st.characters(codec="ascii"))
    def test_a_changed_one_never_raises(self, place: int, character: str) -> None:
        onion, text = recorded()
        self.assertIn(read_effort(text[:place] + character + text[place + 1 :], onion), (0, None))


class Asking(FakeTor):
    async def test_of_the_tor_that_hosts_it(self) -> None:
        onion, text = recorded()
        name = f"hs/service/desc/id/{onion.removesuffix('.onion')}"
        self.answers[f"GETINFO {name}"] = [f"250+{name}=", *text.splitlines(), ".", "250 OK"]
        control = await connect_control(reactor, self.listen())
        self.assertEqual(await suggested_effort(reactor, control, onion), 0)

    async def test_of_one_that_knows_no_such_onion(self) -> None:
        onion = address_of(new_key())
        name = f"hs/service/desc/id/{onion.removesuffix('.onion')}"
        self.answers[f"GETINFO {name}"] = ['552 Unrecognized key "hs"']
        control = await connect_control(reactor, self.listen())
        self.assertIsNone(await suggested_effort(reactor, control, onion))
