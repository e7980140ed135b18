"""What tor really said becomes figures by app; what it never said harms nobody; no address and no stranger is shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics
from ron.services.oniond import telemetry as module
from ron.services.oniond.figures import OTHER, TOR, OnionEvent
from ron.services.oniond.telemetry import EVENTS, MAX_APPS, RING, Telemetry

# a visit to each of two onions, as it was recorded
RECORDED = Path(__file__).with_name("tor-0.4.9-events.txt")
WIKI = "lsgs66imhuwjjczshtegweso7gaiz3z3aed5dqukildhtgrhzkmbmpad"
CHAT = "544f5tolgtee2icazfkepqn7tmu7v42n54r2e75yzvzacuo6hvmt3xyd"
GONE = "# DEL_ONION"
NOW = 1_800_000_000.0
REND = f"PURPOSE=HS_SERVICE_REND HS_STATE=HSSR_CONNECTING REND_QUERY={WIKI}"
JOINED = f"PURPOSE=HS_SERVICE_REND HS_STATE=HSSR_JOINED REND_QUERY={WIKI}"


def recorded() -> list[tuple[float, str, str]]:
    """(second, event, text); the mark where the first onion was deleted has an empty event."""
    found = []
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        if line == GONE:
            found.append((33.0, "", ""))
        elif not line.startswith("#"):
            second, event, text = line.split(" ", 2)
            found.append((float(second), event, text))
    return found


class Listening(SynchronousTestCase):
    """Two apps on a tor called `onion`, whose clock we turn."""

    def setUp(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.clock, self.metrics = Clock(), Metrics()
        self.heard = Telemetry(self.metrics, self.clock, lambda: NOW + self.clock.seconds())
        self.heard.tor_up("onion")
        self.heard.watch(f"{WIKI}.onion", "wiki", began_s=0.0)
        self.heard.watch(CHAT, "chat", began_s=0.0)

    def say(self, event: str, *texts: str, tor: str = "onion") -> None:
        for text in texts:
            self.heard.heard(tor, event, text)

    def play(self, *, until_s: float = 1e9) -> None:
        """What was recorded; its clock began at 14.30."""
        for second, event, text in recorded():
            if second > until_s:
                return
            self.clock.rightNow = second - 14.30
            if event:
                self.say(event, text)

    def visitors(self, tor: str = "onion", *, of: str | None = None, **how: float) -> int:
        """How many are there; of one onion, or of all."""
        found = self.heard.visitors(tor, **how)
        return sum(found.values()) if of is None else found[f"{of}.onion"]

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def unread(self) -> float:
        return self.value("onion_events_unread_total")


class Nonsense(Listening):
    def test_lines_that_are_none(self) -> None:
        lines = ["", " ", "=", "$", '"', "1", "1 built", "1 BUILT\x00", f"{'9' * 17} BUILT", "é BUILT", "1 " + "B" * 99]
        self.say("CIRC", *lines)
        self.say("HS_DESC", "", "UPLOADED", "uploaded x y z")
        self.say("CIRC_BW", "", "ID=1", "ID=1 DELIVERED_READ=-1 DELIVERED_WRITTEN=1", "ID=1 DELIVERED_READ=1e3")
        self.say("CIRC_BW", f"ID=1 DELIVERED_READ={'9' * 5000} DELIVERED_WRITTEN=0", "DELIVERED_READ=١")
        self.say("STREAM", "1 NEW 0 x:1")
        self.assertEqual(self.unread(), len(lines) + 3 + 4 + 2 + 1)
        self.assertEqual(self.heard.recent(), [])

    @settings(max_examples=100)
    @given(
        st.sampled_from([*EVENTS, "BW"]), st.text(max_size=80) | st.from_regex(r"[0-9]{1,3} [A-Z_]{1,12}( \S+=\S*)*")
    )
    def test_any_text(self, event: str, text: str) -> None:
        self.say(event, text)
        self.metrics.render()

    def test_a_socks_user_cannot_write_keywords(self) -> None:
        """Whoever may use the SOCKS port chooses a user name; tor quotes it, and it ends up in CIRC events."""
        for name in (rf"x\" {JOINED} \"", f"x {JOINED}", rf"\\\" {JOINED} x=\""):
            self.say("CIRC", f'9 BUILT $AA~a PURPOSE=GENERAL SOCKS_USERNAME="{name}" SOCKS_PASSWORD="{JOINED}"')
            self.say("CIRC", f'9 BUILT $AA~a PURPOSE=GENERAL SOCKS_USERNAME="{name}')
        self.assertEqual(self.value("onion_rendezvous_total", app="wiki"), 0)
        self.assertEqual(self.value("onion_circuits_total", app=TOR, purpose="other", event="built"), 6)

    def test_words_nobody_knows_become_no_labels(self) -> None:
        for n, purpose in enumerate(("NEW_THING", "", "x" * 500, "HS_CLIENT_REND")):
            self.say("CIRC", f"{n} BUILT $AA~a PURPOSE={purpose} REND_QUERY={CHAT}")
            self.say("CIRC", f"{n} CLOSED $AA~a PURPOSE={purpose} REND_QUERY={CHAT} REASON={'r' * n}")
        self.assertEqual(self.value("onion_circuits_total", app="chat", purpose="other", event="built"), 4)
        self.assertTrue(all("reason" not in event.detail for event in self.heard.recent()))


class Recorded(Listening):
    """tor's own words."""

    def test_all_of_it_is_understood(self) -> None:
        self.play()
        self.assertEqual(self.unread(), 0)

    def test_the_figures(self) -> None:
        self.play()
        for app, visits, bytes_out in (("wiki", 2, 200749 * 2), ("chat", 1, 200749)):
            self.assertEqual(self.value("onion_intro_total", app=app), visits)
            self.assertEqual(self.value("onion_rendezvous_total", app=app), visits)
            self.assertEqual(self.value("onion_bytes_total", app=app, direction="out"), bytes_out)
            self.assertEqual(self.value("onion_descriptor_uploads_total", app=app, result="ok"), 2)
            self.assertEqual(self.value("onion_descriptor_uploads_total", app=app, result="failed"), 0)
            self.assertEqual(self.value("onion_circuits_total", app=app, purpose="rend", event="built"), visits)
        self.assertEqual(self.value("onion_bytes_total", app="wiki", direction="in"), 630 + 422 + 115 + 93)
        self.assertEqual(self.value("onion_circuits_total", app=TOR, purpose="hsdir", event="built"), 1)

    def test_set_up_is_timed_once_to_the_first_directory(self) -> None:
        self.play()
        self.assertEqual(self.value("onion_setup_seconds_count"), 2)
        self.assertAlmostEqual(self.value("onion_setup_seconds_sum"), (15.47 - 14.30) + (16.54 - 14.30))

    def test_how_long_visitors_waited(self) -> None:
        self.play()
        self.assertEqual(self.value("onion_rendezvous_seconds_count"), 3)
        self.assertAlmostEqual(self.value("onion_rendezvous_seconds_sum"), 0.04 + 0.06 + 0.08)

    def test_introduction_points(self) -> None:
        """A circuit that tor has too many of is nobody's any more; the others go with the onion."""
        self.play(until_s=14.45)
        self.assertEqual(self.value("onion_circuits_open", app="wiki", purpose="intro"), 1)
        self.assertEqual(self.value("onion_circuits_open", app=TOR, purpose="vanguards"), 1)
        self.assertEqual(self.value("onion_intro_points", app="wiki"), 0)
        self.play(until_s=14.50)
        self.assertEqual(self.value("onion_intro_points", app="wiki"), 1)
        self.begin()
        self.play()
        self.assertEqual(self.value("onion_intro_points", app="wiki"), 0)
        self.assertEqual(self.value("onion_circuits_total", app="wiki", purpose="intro", event="closed"), 1)

    def test_deleting_an_onion_leaves_its_visitors(self) -> None:
        self.play()
        self.assertEqual(self.visitors(of=WIKI), 2)
        self.assertEqual(self.visitors(), 3)

    def test_those_who_were_there_before_us_are_there_and_count_for_nothing_else(self) -> None:
        status = f"7 BUILT $AA~a {JOINED}\n8 EXTENDED $AA~a {REND}\n\nnonsense\n9 BUILT $AA~a PURPOSE=GENERAL"
        self.heard.tor_up("onion", status)
        self.assertEqual(self.visitors(of=WIKI), 1)
        self.assertEqual(self.value("onion_intro_total", app="wiki"), 0)
        self.assertEqual(self.value("onion_circuits_open", app="wiki", purpose="rend"), 1)
        self.say("CIRC", f"7 CLOSED $AA~a {JOINED} REASON=DESTROYED")
        self.assertEqual(self.visitors(), 0)
        self.assertEqual(self.value("onion_rendezvous_total", app="wiki"), 0)

    def test_a_visitor_who_is_quiet(self) -> None:
        self.play(until_s=23.36)
        self.clock.advance(10)
        self.assertEqual((self.visitors(), self.visitors(quiet_s=9.9)), (1, 0))
        self.say("CIRC_BW", "ID=43 DELIVERED_READ=0 DELIVERED_WRITTEN=0")
        self.assertEqual(self.visitors(quiet_s=9.9), 0)
        self.say("CIRC_BW", "ID=43 DELIVERED_READ=0 DELIVERED_WRITTEN=1")
        self.assertEqual(self.visitors(quiet_s=9.9), 1)

    def test_what_is_told(self) -> None:
        told: list[OnionEvent] = []
        self.heard.observe(told.append)
        self.play(until_s=24.0)
        wiki = [(event.kind, event.detail) for event in told if event.app == "wiki"]
        self.assertEqual(
            wiki,
            [
                ("circuit", {"purpose": "intro", "event": "built"}),
                ("circuit", {"purpose": "intro", "event": "built"}),
                ("descriptor", {"result": "ok"}),
                ("descriptor", {"result": "ok"}),
                ("introduction", {}),
                ("circuit", {"purpose": "rend", "event": "built"}),
                ("rendezvous", {"ms": "40"}),
            ],
        )
        self.assertEqual(told[-1].at, NOW + 22.57 - 14.30)

    def test_no_address_is_shown_anywhere(self) -> None:
        self.play()
        shown = self.metrics.render() + msgspec.json.encode(self.heard.recent())
        for secret in (WIKI, CHAT, ".onion"):
            self.assertNotIn(secret.encode(), shown)
        self.assertIsNone(re.search(rb"[0-9A-F]{40}", shown))


class Circuits(Listening):
    def test_one_that_is_taken_for_a_visitor(self) -> None:
        """tor takes a spare circuit when it has one; the visitor's wait begins there."""
        self.say("CIRC", "7 LAUNCHED PURPOSE=HS_VANGUARDS", "7 BUILT $AA~a PURPOSE=HS_VANGUARDS")
        self.clock.advance(50)
        self.say("CIRC_MINOR", f"7 PURPOSE_CHANGED $AA~a {REND} OLD_PURPOSE=HS_VANGUARDS")
        self.say("CIRC_MINOR", f"7 CANNIBALIZED $AA~a {REND} OLD_PURPOSE=HS_VANGUARDS")
        self.clock.advance(0.25)
        self.say("CIRC_MINOR", *[f"7 PURPOSE_CHANGED $AA~a {JOINED} OLD_PURPOSE=HS_SERVICE_REND"] * 2)
        self.assertEqual(self.value("onion_intro_total", app="wiki"), 1)
        self.assertEqual(self.value("onion_rendezvous_total", app="wiki"), 1)
        self.assertEqual(self.value("onion_rendezvous_seconds_sum"), 0.25)

    def test_a_visitor_nobody_reached(self) -> None:
        self.say(
            "CIRC", "7 LAUNCHED PURPOSE=HS_SERVICE_REND", f"7 EXTENDED $AA~a {REND}", f"7 FAILED {REND} REASON=TIMEOUT"
        )
        self.say("CIRC", "8 LAUNCHED PURPOSE=HS_SERVICE_REND", "8 FAILED PURPOSE=HS_SERVICE_REND REASON=TIMEOUT")
        self.assertEqual(self.value("onion_intro_total", app="wiki"), 1)
        self.assertEqual(self.value("onion_intro_total", app=OTHER), 1)
        self.assertEqual(self.value("onion_circuits_total", app="wiki", purpose="rend", event="failed"), 1)
        self.assertEqual(self.heard.recent(app="wiki")[-1].detail["reason"], "TIMEOUT")
        self.assertEqual(self.visitors(), 0)

    def test_the_end_of_one_from_before_our_time(self) -> None:
        self.say("CIRC", f"7 CLOSED $AA~a {JOINED} REASON=DESTROYED")
        self.say("CIRC_BW", "ID=7 DELIVERED_READ=5 DELIVERED_WRITTEN=5")
        self.assertEqual((self.unread(), self.heard.recent()), (0, []))

    def test_the_middle_of_one_is_no_measure(self) -> None:
        self.say("CIRC_MINOR", f"7 PURPOSE_CHANGED $AA~a {JOINED} OLD_PURPOSE=HS_SERVICE_REND")
        self.assertEqual(self.value("onion_rendezvous_total", app="wiki"), 1)
        self.assertEqual(self.value("onion_rendezvous_seconds_count"), 0)

    def test_a_tor_that_is_not_up_says_nothing(self) -> None:
        self.heard.tor_down("onion")
        self.say("CIRC", f"7 BUILT {JOINED}")
        self.assertEqual((self.unread(), self.visitors(), self.heard.recent()), (1, 0, []))

    def test_each_tor_counts_for_itself(self) -> None:
        self.heard.tor_up("onion.2")
        self.say("CIRC", f"7 BUILT {JOINED}", tor="onion")
        self.say("CIRC", f"7 CLOSED {JOINED}", tor="onion.2")
        self.assertEqual((self.visitors(), self.visitors("onion.2")), (1, 0))

    def test_a_tor_that_ends_takes_them_along(self) -> None:
        self.play()
        self.heard.tor_down("onion")
        self.assertEqual(self.value("onion_circuits_total", app="wiki", purpose="rend", event="lost"), 2)
        self.assertEqual(self.value("onion_circuits_open", app="wiki", purpose="rend"), 0)
        self.assertEqual([e.app for e in self.heard.recent() if e.kind == "tor_down"], ["chat", "wiki"])
        self.heard.tor_down("onion")
        self.assertEqual(self.value("onion_circuits_total", app="wiki", purpose="rend", event="lost"), 2)

    def test_there_is_an_end_to_them(self) -> None:
        self.patch(module, "MAX_CIRCUITS", 10)
        self.say("CIRC", *[f"{n} LAUNCHED PURPOSE=GENERAL" for n in range(15)])
        self.assertEqual(self.unread(), 5)
        self.say("CIRC", "3 CLOSED PURPOSE=GENERAL", "15 LAUNCHED PURPOSE=GENERAL")
        self.assertEqual(self.unread(), 5)


class Uploads(Listening):
    def failed(self, app: str) -> float:
        return self.value("onion_descriptor_uploads_total", app=app, result="failed")

    def test_failed(self) -> None:
        directory = "$05CFF5C389D92422E9B7A5AA9492B57C5F3C45FF~relay2"
        self.say("HS_DESC", f"FAILED {WIKI} UNKNOWN {directory} REASON=UPLOAD_REJECTED")
        self.say("HS_DESC", f"FAILED {WIKI} UNKNOWN {directory} REASON=UNEXPECTED")
        self.assertEqual((self.failed("wiki"), self.failed("chat"), self.unread()), (2, 0, 0))
        self.assertEqual(self.heard.recent()[0].detail, {"result": "failed", "reason": "UPLOAD_REJECTED"})

    def test_a_fetch_that_failed_is_no_upload(self) -> None:
        self.say(
            "HS_DESC",
            f"FAILED {WIKI} NO_AUTH $AA~a REASON=NOT_FOUND",
            f"FAILED {'a' * 56} UNKNOWN $A REASON=UNEXPECTED",
        )
        self.say("HS_DESC", f"REQUESTED {WIKI} NO_AUTH $AA~a x", f"RECEIVED {WIKI} NO_AUTH $AA~a x")
        self.assertEqual((self.failed("wiki"), self.failed(OTHER), self.unread()), (0, 0, 0))

    def test_an_onion_from_before_is_not_timed(self) -> None:
        self.heard.watch(WIKI, "wiki")
        self.say("HS_DESC", f"UPLOADED {WIKI} UNKNOWN $AA~a")
        self.assertEqual(self.value("onion_setup_seconds_count"), 0)


class Apps(Listening):
    def test_onions_that_nobody_told_us_of(self) -> None:
        for n in range(100):
            self.say("HS_DESC", f"UPLOADED {n:056d} UNKNOWN $AA~a")
        self.assertEqual(self.value("onion_descriptor_uploads_total", app=OTHER, result="ok"), 100)
        self.assertEqual(self.labels(), {"wiki", "chat", OTHER})

    def test_too_many_apps_are_counted_together(self) -> None:
        for n in range(2 * MAX_APPS):
            self.heard.watch(f"{n:056d}", f"app-{n}")
            self.say("HS_DESC", f"UPLOADED {n:056d} UNKNOWN $AA~a")
        self.assertEqual(len(self.labels()), MAX_APPS + 1)
        self.assertEqual(self.value("onion_descriptor_uploads_total", app=OTHER, result="ok"), MAX_APPS + 2)

    def test_a_forgotten_app_is_in_no_metric(self) -> None:
        self.play()
        self.heard.forget(f"{WIKI}.onion")
        self.heard.forget("unknown")
        self.assertEqual(self.labels(), {"chat", OTHER})
        self.assertIsNone(self.heard.figures("wiki"))
        # what is left of it counts for nobody
        self.say("CIRC", f"43 CLOSED {JOINED} REASON=FINISHED")
        self.assertNotIn(b"wiki", self.metrics.render())

    def test_the_old_and_the_new_onion_of_an_app(self) -> None:
        self.heard.watch("n" * 56, "wiki", began_s=0.0)
        self.say("HS_DESC", f"UPLOADED {WIKI} UNKNOWN $AA~a", f"UPLOADED {'n' * 56} UNKNOWN $AA~a")
        self.heard.forget(WIKI)
        figures = self.heard.figures("wiki")
        assert figures is not None
        self.assertEqual(figures.uploads_ok, 2)

    def test_an_app_sees_only_its_own(self) -> None:
        self.play()
        self.heard.tor_down("onion")
        for app in ("wiki", "chat"):
            mine = self.heard.recent(app=app)
            self.assertTrue(mine)
            self.assertEqual({event.app for event in mine}, {app})
        self.assertEqual(self.heard.recent(app="stranger"), [])

    def labels(self) -> set[str]:
        return set(re.findall(r'onion_descriptor_uploads_total\{app="([^"]+)"', self.metrics.render().decode()))


class Ring(Listening):
    def test_the_oldest_go(self) -> None:
        for _ in range(RING + 10):
            self.say("HS_DESC", f"UPLOADED {WIKI} UNKNOWN $AA~a")
        kept = self.heard.recent()
        self.assertEqual((len(kept), kept[0].seq, kept[-1].seq), (RING, 11, RING + 10))
        self.assertEqual([e.seq for e in self.heard.recent(after=RING + 8)], [RING + 9, RING + 10])

    def test_who_does_not_listen_any_more_hears_nothing(self) -> None:
        told: list[Any] = []
        undo = self.heard.observe(told.append)
        undo()
        self.play()
        self.assertEqual(told, [])


class Load(Listening):
    def visit(self, number: int, *, joined: bool, tor: str = "onion") -> None:
        self.say("CIRC", f"{number} LAUNCHED PURPOSE=HS_SERVICE_REND", f"{number} BUILT {REND}", tor=tor)
        if joined:
            self.clock.advance(0.1)
            self.say("CIRC_MINOR", f"{number} PURPOSE_CHANGED {JOINED}", tor=tor)

    def test_nothing_going_on(self) -> None:
        self.assertEqual(self.heard.load(["onion"]).figures, (0, 0, 0))

    def test_a_tor_that_is_not_there(self) -> None:
        self.assertEqual(self.heard.load([]).figures, (None, None, None))
        self.assertEqual(self.heard.load(["onion", "onion.2"]).figures, (None, None, None))
        self.heard.tor_down("onion")
        self.assertEqual(self.heard.load(["onion"]).figures, (None, None, None))

    def test_the_busiest(self) -> None:
        self.heard.tor_up("onion.2")
        for number in range(4):
            self.visit(number, joined=number < 3)
        self.visit(1, joined=True, tor="onion.2")
        load = self.heard.load(["onion", "onion.2"])
        self.assertEqual((load.circuits_p95, load.queue_depth, load.at_s), (4, 1, self.clock.seconds()))
        self.assertAlmostEqual(load.connect_ms_p95 or 0, 100)

    def test_what_is_long_ago_says_nothing(self) -> None:
        self.visit(1, joined=True)
        self.clock.advance(61)
        self.assertEqual(self.heard.load(["onion"]).figures, (1, 0, 0))
