"""The private network's rules that need no network: its voting clock, what it forgets, what it tells."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.kernel import HealthState, Metrics
from ron.kernel.files import DirectoryLock
from ron.proto.errors import ErrorCode, RonError
from ron.tor.binary import TorBinary
from ron.tor.fleet import FACTS_FILE, NetworkFacts, _forget_state
from ron.tor.privnet import (
    AUTHORITIES,
    BOUNDARY_AHEAD_S,
    CLOCK_EVERY_S,
    FIRST_INTERVAL_S,
    INFRASTRUCTURE,
    PrivateNetwork,
    voting_offset_s,
)

VOTE_BEFORE_S = 4  # TestingV3AuthInitialVoteDelay + TestingV3AuthInitialDistDelay of the authority template


def boundaries_after(start_s: float, offset_s: int) -> list[float]:
    """The next vote boundaries of an authority: multiples of the interval, shifted by the offset."""
    first = math.ceil((start_s - offset_s) / FIRST_INTERVAL_S) * FIRST_INTERVAL_S + offset_s
    return [first + n * FIRST_INTERVAL_S for n in range(3)]


class VotingClock(SynchronousTestCase):
    @given(st.floats(1_500_000_000, 4_000_000_000))
    def test_the_boundary_ahead_is_too_close_to_vote_for_and_the_next_vote_falls_4_s_after_the_start(
        self, start_s: float
    ) -> None:
        offset_s = voting_offset_s(start_s)
        self.assertIn(offset_s, range(FIRST_INTERVAL_S))
        ahead, following, _ = boundaries_after(start_s, offset_s)
        self.assertLess(abs(ahead - start_s - BOUNDARY_AHEAD_S), 0.51)
        self.assertLess(ahead - VOTE_BEFORE_S, start_s)
        vote_at = following - VOTE_BEFORE_S
        self.assertTrue(3.4 <= vote_at - start_s <= 4.6, vote_at - start_s)

    def test_the_template_has_the_delays_this_is_reckoned_with(self) -> None:
        text = files("ron.tor").joinpath("templates/authority.torrc").read_text()
        given = dict(line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        self.assertEqual(int(given["TestingV3AuthInitialVotingInterval"]), FIRST_INTERVAL_S)
        delays = int(given["TestingV3AuthInitialVoteDelay"]) + int(given["TestingV3AuthInitialDistDelay"])
        self.assertEqual(delays, VOTE_BEFORE_S)


class Forgetting(SynchronousTestCase):
    """What tor remembered of the last run misleads it; its keys are its identity."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        (self.folder / "keys").mkdir(parents=True)
        (self.folder / "keys" / "secret_id_key").write_text("key")
        (self.folder / "diff-cache" / "deep").mkdir(parents=True)
        for name in (
            "fingerprint",
            "fingerprint-ed25519",
            "state",
            "cached-microdesc-consensus",
            "tor.pid",
            "keys.old",
        ):
            (self.folder / name).write_text(name)

    def left(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))

    def test_keys_and_fingerprints_stay(self) -> None:
        _forget_state(self.folder, keep_keys=True)
        self.assertEqual(self.left(), ["fingerprint", "fingerprint-ed25519", "keys", "keys/secret_id_key"])
        self.assertEqual((self.folder / "keys" / "secret_id_key").read_text(), "key")

    def test_a_client_has_nothing_to_keep(self) -> None:
        _forget_state(self.folder, keep_keys=False)
        self.assertEqual(self.left(), [])
        self.assertTrue(self.folder.is_dir())

    def test_a_folder_that_is_not_there(self) -> None:
        _forget_state(self.folder / "none", keep_keys=True)
        self.assertFalse((self.folder / "none").exists())

    def test_what_a_link_names_is_not_ours_to_remove(self) -> None:
        elsewhere = Path(self.mktemp()).absolute()
        elsewhere.mkdir()
        (elsewhere / "theirs").write_text("x")
        (self.folder / "link").symlink_to(elsewhere)
        _forget_state(self.folder, keep_keys=True)
        self.assertTrue((elsewhere / "theirs").exists())
        self.assertFalse((self.folder / "link").exists())


class Facts(TestCase):
    """A network that has not been started."""

    def test_three_authorities_two_relays_and_everyone_else_a_client(self) -> None:
        self.assertEqual(
            [self.network.role(name) for name in (*INFRASTRUCTURE, "onion", "device-a", "auth4")],
            ["authority"] * 3 + ["relay"] * 2 + ["client"] * 3,
        )
        self.assertEqual(len(AUTHORITIES), 3)

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.health = HealthState()
        self.network = PrivateNetwork(
            reactor,
            directory=self.directory,
            tor=TorBinary("/no/such/tor", (0, 4, 8), "/no/such/tor-gencert"),
            clients=["onion"],
            health=self.health,
            metrics=Metrics(),
        )

    def test_down_and_empty(self) -> None:
        self.assertEqual((self.network.state, self.network.pids(), self.network.facts().tors), ("down", {}, ()))
        self.assertRaises(KeyError, self.network.socks_port, "onion")

    def test_nothing_is_written_before_it_has_a_folder(self) -> None:
        self.network.write_facts()
        self.assertFalse(self.directory.exists())

    def test_a_failure_is_left_for_whoever_waits(self) -> None:
        self.directory.mkdir()
        self.network.fail("no tor here")
        facts = msgspec.json.decode((self.directory / FACTS_FILE).read_bytes(), type=NetworkFacts)
        self.assertEqual((facts.state, facts.stage), ("failed", "no tor here"))

    async def test_taking_down_what_never_came_up(self) -> None:
        await self.network.take_down()
        self.assertEqual(self.network.state, "down")

    async def test_two_networks_do_not_share_a_folder(self) -> None:
        lock = DirectoryLock(self.directory)
        self.addCleanup(lock.release)
        with self.assertRaises(RonError) as caught:
            await self.network.bring_up()
        self.assertIs(caught.exception.code, ErrorCode.CONFLICT)

    async def test_a_tor_that_cannot_make_keys_fails_the_bring_up_and_frees_the_folder(self) -> None:
        with self.assertRaises(OSError):
            await Deferred.fromCoroutine(self.network.bring_up())
        self.assertFalse(self.health.is_ok("tor.net"))
        await self.network.take_down()
        DirectoryLock(self.directory).release()


class Remade(PrivateNetwork):
    """One of which we only hear how often it would be made anew. fails: so often first."""

    made = fails = 0

    async def _make_anew(self) -> None:
        self.made += 1
        if self.made <= self.fails:
            raise RonError(ErrorCode.TIMEOUT, "not up in time")


class SetBack(SynchronousTestCase):
    """The host's clock is set; looked at every few seconds."""

    def setUp(self) -> None:
        self.clock, self.wall_s = Clock(), 1_800_000_000.0
        self.network = Remade(
            self.clock,
            now=lambda: self.wall_s + self.clock.seconds(),
            directory=Path(self.mktemp()).absolute(),
            tor=TorBinary("/nowhere/tor", (0, 4, 9), "/nowhere/tor-gencert"),
            clients=("onion",),
            health=HealthState(),
            metrics=Metrics(),
        )
        self.network._clock.start(CLOCK_EVERY_S, now=False)
        self.addCleanup(self.network._clock.stop)

    def after(self, jump_s: float) -> int:
        """How often it was made anew so far."""
        self.wall_s += jump_s
        self.clock.advance(CLOCK_EVERY_S)
        return self.network.made

    def test_an_hour_back_once_each_time(self) -> None:
        self.assertEqual([self.after(by_s) for by_s in (0, -3600, 0, 0, -3600, 0)], [0, 1, 1, 1, 2, 2])

    def test_forward_it_goes_on(self) -> None:
        self.assertEqual([self.after(by_s) for by_s in (3600, 0, 59, -59, 1, -1)], [0] * 6)

    def test_forward_and_back_is_back(self) -> None:
        self.assertEqual([self.after(by_s) for by_s in (3600, -3600)], [0, 1])

    def test_what_fails_is_tried_again(self) -> None:
        self.network.fails = 2
        self.assertEqual([self.after(by_s) for by_s in (-3600, 0, 0, 0)], [1, 2, 3, 3])
        self.assertEqual(len(self.flushLoggedErrors(RonError)), 2)
