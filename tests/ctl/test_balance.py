"""`ronctl balance` as an operator calls it, against the real API on its socket."""

from __future__ import annotations

import base64
import io
import stat
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as some
from msgspec.structs import replace
from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.balance import balance as group
from ron.ctl.balance_keys import parse_shares, read_key
from ron.ctl.balance_reach import NODE, seconds
from ron.ctl.balance_text import drawn, ghosts_text, member_line, service_line, span, text
from ron.proto.balanceviews import BalanceView, FailingView, GhostView, LeaderView, MemberView, PublicationView
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.proto.exitcodes import Unreachable
from ron.tor.onionkeys import new_key
from tests.ctl.with_node import RonctlCalls
from tests.sdk.with_balance import WithBalance
from tests.services.balance.desk import KEY_ONION, NODES, ONION, MemoryDesk, head, member, service

EVIL = "\x1b[2J\n[bold]x[/bold]\u202e"


def view(**more: Any) -> BalanceView:
    known = {"node": "alpha", "cluster": "ab" * 16, "time": "2026-11-21T08:27:27Z"}
    known |= {"leader": LeaderView(name="alpha", why="longest uptime", lease_left_s=12.0, claims=("alpha",))}
    known |= {"members": tuple(map(member, range(3))), "services": (service(),)}
    return BalanceView(**{**known, **more})


def out_of_it(number: int, **more: Any) -> MemberView:
    return member(number, in_descriptor=False, published_in=(), planned_in=(), **more)


def row(shown: str, start: str) -> str:
    """The first line that begins so."""
    return next(line for line in shown.splitlines() if line.lstrip("* ").startswith(start))


class Drawing(SynchronousTestCase):
    """What `status` shows."""

    def test_who_leads_and_how_long(self) -> None:
        shown = text(view())
        self.assertIn("alpha: longest uptime, lease 12 s", shown)
        self.assertTrue(row(shown, "alpha").startswith("*"))
        self.assertFalse(row(shown, "beta").startswith("*"))

    def test_nobody_leads(self) -> None:
        shown = text(view(leader=LeaderView(name=None, why="no node holds a key")))
        self.assertIn("NOBODY: no node holds a key", shown)
        self.assertFalse([line for line in shown.splitlines() if line.startswith("*")])

    def test_a_split_is_seen(self) -> None:
        shown = text(view(leader=LeaderView(name="alpha", why="x", claims=("alpha", "beta"))))
        self.assertIn("SPLIT    alpha, beta all say they lead", shown)

    def test_who_is_out_and_why(self) -> None:
        sieged = out_of_it(1, out="under siege", head=head(1, mode="ghost", under_siege=True))
        dead = out_of_it(2, state="dead", why="not heard for 9 s", head=None, unfit="no key")
        shown = text(view(members=(member(0), sieged, dead)))
        self.assertIn(" yes ", row(shown, "alpha"))
        self.assertIn(" no ", row(shown, "beta"))
        self.assertIn("ghost under siege", row(shown, "beta"))
        for line in ("beta is out of the descriptor: under siege", "gamma is dead: not heard for 9 s"):
            self.assertIn(f"{line}\n", shown)
        self.assertIn("gamma cannot lead: no key\n", shown)

    def test_what_is_published_and_what_is_planned(self) -> None:
        """Visitors go by what is published: a head that is to leave is still visited."""
        shop = service("shop")
        heads = (
            member(0, published_in=("main", "shop"), planned_in=("main",), out=""),
            member(1, published_in=("main",), planned_in=("main", "shop")),
            member(2, published_in=(), planned_in=(), in_descriptor=False, out="under siege"),
        )
        shown = text(view(members=heads, services=(service(), shop)))
        self.assertIn(" yes, leaves ", row(shown, "alpha"))
        self.assertIn(" 1 of 2, joins ", row(shown, "beta"))
        self.assertIn(" no ", row(shown, "gamma"))
        going = text(view(members=(member(0, out="under siege", planned_in=()),)))
        self.assertIn("alpha leaves the descriptor: under siege\n", going)

    def test_a_node_that_was_refused_says_so_first(self) -> None:
        shown = text(view(refused="the cluster does not take this node: removed (beta)")).splitlines()
        self.assertIn("REFUSED  the cluster does not take this node: removed (beta)", shown[:3])
        self.assertIn("alone", "".join(shown[:3]))

    def test_targets_that_do_not_answer(self) -> None:
        dead = (FailingView(node="alpha", why="port 80: 127.0.0.1:8080 does not answer"),)
        shown = text(view(services=(service(failing=dead, answering=2),)))
        self.assertIn("alpha does not answer: port 80: 127.0.0.1:8080 does not answer\n", shown)
        self.assertNotIn("REFUSED", shown)
        self.assertIn("VISITORS ARE REFUSED", text(view(services=(service(failing=dead, refusing=True),))))

    def test_who_waits_for_approval(self) -> None:
        shown = text(view(members=(member(0), member(1, holds=(), approved=False, waiting=True), member(2, holds=()))))
        self.assertIn("waits for approval", row(shown, "beta"))
        self.assertIn("nothing", row(shown, "gamma"))

    def test_who_hears_whom(self) -> None:
        deaf = member(1, hears=("alpha",))
        shown = text(view(members=(member(0), deaf, member(2, state="dead")))).split("who hears whom")[1]
        marks = [line.split() for line in shown.splitlines()[2:5]]
        self.assertEqual(marks[0], ["1", "alpha", ".", "+", "+"])
        self.assertEqual(marks[1], ["2", "beta", "+", ".", "-"])
        self.assertEqual(marks[2], ["3", "gamma", "?", "?", "."])

    def test_one_that_was_removed_is_not_asked(self) -> None:
        shown = text(view(members=(member(0), member(1, state="removed")))).split("who hears whom")[1]
        self.assertNotIn("beta", shown.split("service")[0])

    def test_more_nodes_than_a_screen_has_room_for(self) -> None:
        names = [f"node-{number}" for number in range(64)]
        many = tuple(member(0, name=name, hears=tuple(other for other in names if other != name)) for name in names)
        self.assertIn("everybody hears everybody", text(view(members=many)))
        deaf = (*many[:63], replace(many[63], hears=tuple(names[2:])))
        self.assertIn("node-63 does not hear node-0, node-1\n", text(view(members=deaf)))

    def test_on_a_narrow_terminal_no_reason_is_cut(self) -> None:
        stream = io.StringIO()
        long = "not heard since it was restarted with a clock that is ten minutes off"
        out = out_of_it(1, out=long)
        Console(file=stream, width=80).print(drawn(view(members=(member(0), out))))
        for word in long.split():
            self.assertIn(word, stream.getvalue())

    def test_directories(self) -> None:
        known = {"revision": 7, "by": "alpha", "age_s": 42.0, "heads": NODES, "taken": 5, "directories": 6}
        publications = (
            PublicationView(period=1, **known),
            PublicationView(period=2, checked_s=3.0, **known),
            PublicationView(period=3, checked_s=3.0, missing=("ABCDEF0123456789",), **known),
        )
        shown = text(view(services=(service(publications=publications),)))
        self.assertTrue(row(shown, "1       ").endswith("5 of 6 took it"))
        self.assertIn("all hold it (3.0 s ago)", row(shown, "2       "))
        self.assertIn("not held by ABCDEF01", row(shown, "3       "))

    def test_a_service_in_trouble(self) -> None:
        shown = text(view(services=(service(publications=(), suspects=("beta",), reachable=False),)))
        for words in ("NOT PUBLISHED", "SUSPECT, signed wrongly: beta", "A VISIT DID NOT COME THROUGH", ONION):
            self.assertIn(words, shown)
        self.assertIn("a visit came through", text(view(services=(service(reachable=True),))))

    def test_before_there_is_anything(self) -> None:
        shown = text(view(members=(), services=(), leader=LeaderView(name=None, why="starting")))
        self.assertIn("starting", shown)

    def test_what_other_nodes_say_is_no_markup_and_moves_no_cursor(self) -> None:
        odd = member(0, why=EVIL, out=EVIL, in_descriptor=False, holds=(EVIL,), hears=(EVIL,))
        shown = text(
            view(
                members=(odd,),
                warnings=(EVIL,),
                leader=LeaderView(name=EVIL, why=EVIL, claims=(EVIL, EVIL)),
                services=(service(suspects=(EVIL,), heads=(EVIL,)),),
            )
        )
        shown += member_line(odd) + service_line(service(holders=(EVIL,)))
        ghost = GhostView(node=EVIL, since_s=1.0, why=EVIL, sessions=1, attacks=1, introductions_per_s=1.0)
        shown += ghosts_text([ghost])
        for char in ("\x1b", "\u202e"):
            self.assertNotIn(char, shown)
        self.assertIn("[bold]x[/bold]", shown)

    @given(some.floats(min_value=-1e9, max_value=1e9))
    def test_durations_are_short(self, seconds: float) -> None:
        self.assertLess(len(span(seconds)), 12)

    def test_durations(self) -> None:
        told = [span(value) for value in (0.42, 9.94, 42, 119, 120, 7199, 7200, 200_000)]
        self.assertEqual(told, ["0.4 s", "9.9 s", "42 s", "119 s", "2 min", "120 min", "2 h", "2 d"])


class Words(SynchronousTestCase):
    """What is typed."""

    def test_shares(self) -> None:
        for wrong in ("", "3", "2-of-", "1-of-3", "4-of-3", "2-of-17", "2of3", "2-of-3 ", "-2-of-3"):
            self.assertRaises(click.BadParameter, parse_shares, wrong)
        self.assertRaises(click.UsageError, parse_shares, None, ("alpha",))
        self.assertRaises(click.UsageError, parse_shares, "2-of-3", ("alpha", "alpha", "beta"))
        self.assertEqual(parse_shares(None), ("shared", None, None))
        self.assertEqual(parse_shares("2-of-3", NODES), ("threshold", 2, 3))

    def test_times(self) -> None:
        self.assertIsNone(seconds(None))
        self.assertEqual(seconds("30m"), 1800)
        self.assertRaises(RonError, seconds, "soon")

    def test_where_the_node_may_be(self) -> None:
        for wrong in ("", "unix:relative", "run/balance.sock", "ftp://x"):
            self.assertIs(self.assertRaises(RonError, NODE.place, wrong).code, ErrorCode.BAD_REQUEST)
        self.assertIn("ron-balance", self.assertRaises(Unreachable, NODE.place, "unix:/nonexistent.sock").hint or "")
        self.assertEqual(NODE.place("https://alpha.internal:9443"), "https://alpha.internal:9443")

    def test_every_command_has_help_with_an_example(self) -> None:
        commands = {(name,): command for name, command in group.commands.items()}
        for name, command in list(commands.items()):
            if isinstance(command, click.Group):
                commands |= {(*name, below): inner for below, inner in command.commands.items()}
        self.assertGreater(len(commands), 14)
        for name, command in commands.items():
            shown = CliRunner().invoke(command, ["--help"]).output
            self.assertIn(f"ronctl balance {' '.join(name)}", shown, name)
            if not isinstance(command, click.Group):
                self.assertIn("--json", shown, name)


class KeyFiles(SynchronousTestCase):
    """Keys come from files that nobody else may read."""

    def file(self, content: bytes, mode: int = 0o600) -> Path:
        path = Path(self.mktemp())
        path.write_bytes(content)
        path.chmod(mode)
        return path

    def test_what_is_no_key(self) -> None:
        raw = base64.b64decode(new_key().blob.partition(":")[2])
        header = b"== ed25519v1-secret: type0 ==\x00\x00\x00"
        unclamped = bytes(64)
        for content in (b"", b"x" * 96, header, header + raw[:-1], header + raw + b"\x00", header + unclamped, raw):
            error = self.assertRaises(RonError, read_key, self.file(content))
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)
        self.assertRaises(RonError, read_key, Path("/nonexistent"))

    def test_one_that_others_may_read_is_refused(self) -> None:
        error = self.assertRaises(RonError, read_key, self.file(new_key().blob.encode(), 0o644))
        self.assertIn("chmod 600", error.hint or "")

    def test_both_forms(self) -> None:
        blob = new_key().blob
        raw = base64.b64decode(blob.partition(":")[2])
        self.assertEqual(read_key(self.file(f"{blob}\n".encode())), raw)
        self.assertEqual(read_key(self.file(b"== ed25519v1-secret: type0 ==\x00\x00\x00" + raw)), raw)


class Commands(RonctlCalls, WithBalance):
    """Against the API."""

    group = "balance"
    timeout = 120

    def setUp(self) -> None:
        super().setUp()
        cap = self.home / "admin.cap"
        cap.write_text(self.capability())
        cap.chmod(0o600)

    async def test_wrong_words(self) -> None:
        await self.refused(2, "promote")
        await self.refused(2, "promote", "beta", "--end")
        await self.refused(2, "siege", "beta", "maybe")
        await self.refused(2, "service", "add", "shop", "--threshold", "9-of-3")
        await self.refused(3, "promote", "UPPER")
        await self.refused(3, "roulette", "on", "--for", "8d")
        await self.refused(3, "reshare", "main")
        await self.refused(7, "promote", "delta")
        self.assertEqual(self.desk.calls, [("promote", "delta", None)])

    async def test_nobody_there_and_nobody_allowed(self) -> None:
        gone = str(self.home / "gone")
        self.assertIn("--control unix:/path", await self.refused(4, "status", RON_HOME=gone))
        self.assertIn("admin.cap", await self.refused(5, "status", "--control", f"unix:{self.socket}", RON_HOME=gone))
        reader = self.capability(("scope", "balance:read"))
        await self.refused(5, "refresh", "main", RON_CAP=reader)
        self.desk.refusal = unavailable("2 of 3 are needed, 1 is there")
        self.assertIn("2 of 3 are needed", await self.refused(8, "publish"))

    async def test_status(self) -> None:
        shown = (await self.done("status")).out.decode()
        for words in ("leader   alpha: longest uptime", "warning  beta has an old version", ONION, "2 of 3, epoch 1"):
            self.assertIn(words, shown)
        self.assertEqual((await self.said("status"))["leader"]["name"], "alpha")

    async def test_watching(self) -> None:
        process = self.start("status", "--watch", "--every", "0.1", "--json")
        await process.shows(lambda: len(process.lines) >= 2)
        self.desk.leader = replace(self.desk.leader, name="beta")
        await process.shows(lambda: '"name":"beta","why"' in process.lines[-1])
        process.signal("INT")
        self.assertNotEqual(await process.end(), 0)

    async def test_watching_on_a_terminal(self) -> None:
        process = self.start("status", "--watch", "--every", "0.1", tty=True, TERM="xterm")
        await process.shows(lambda: b"longest uptime" in process.out)
        self.assertIn(b"\x1b[?1049h", process.out, "on a screen of its own, so that it stays in place")
        process.signal("INT")
        await process.end()
        self.assertIn(b"\x1b[?1049l", process.out, "and the old one comes back")

    async def test_steering(self) -> None:
        self.assertEqual((await self.done("promote", "beta", "--for", "2h")).lines, ["leader: beta (promoted)"])
        await self.said("promote", "--end")
        shown = await self.done("siege", "beta", "on", "--for", "30m")
        self.assertEqual(shown.lines, ["beta: alive, ghost, out of the descriptor: under siege, approved"])
        self.assertEqual([one["node"] for one in (await self.said("ghosts"))["ghosts"]], ["beta"])
        self.assertIn(b"under siege", (await self.done("ghosts")).out)
        await self.done("siege", "beta", "off")
        self.assertIn(b"no ghosts", (await self.done("ghosts")).err)
        self.assertEqual((await self.done("publish")).lines, ["alpha publishes main"])
        self.assertEqual((await self.said("publish", "main"))["services"], ["main"])
        self.assertEqual(
            self.desk.calls,
            [
                ("promote", "beta", 7200),
                ("promote", None, None),
                ("siege", "beta", True, 1800),
                ("siege", "beta", False, None),
                ("publish", None),
                ("publish", "main"),
            ],
        )

    async def test_the_roulette_warns_before_it_asks(self) -> None:
        process = self.start("roulette", "on", tty=True)
        await process.shows(lambda: b"[y/N]" in process.out)
        self.assertIn(b"warning:", process.out)
        process.transport.write(b"n\n")  # type: ignore[union-attr]
        self.assertEqual(await process.end(), 1)
        self.assertEqual(self.desk.calls, [])
        on = await self.done("roulette", "on", "--yes")
        self.assertIn(b"warning:", on.err)
        self.assertTrue(on.lines[0].startswith("roulette: on until 20"))
        self.assertEqual((await self.said("roulette", "off"))["until"], None)

    async def test_members(self) -> None:
        self.desk.members["gamma"] = replace(self.desk.members["gamma"], approved=False, waiting=True)
        self.assertIn("approved", (await self.done("approve", "gamma")).lines[0])
        self.desk.remove_by = 2
        shown = await self.done("remove", "gamma", "--yes")
        self.assertIn("NOT removed yet: alpha of the 2 nodes", shown.out.decode())
        self.desk.remove_by = 1
        removed = {"name": "gamma", "removed": True, "asked_by": ["alpha"], "needed": 1}
        self.assertEqual(await self.said("remove", "gamma"), removed)
        await self.refused(7, "remove", "gamma")
        self.assertEqual((await self.done("token", "rotate")).lines, ["version 2, with beta, gamma"])
        self.assertEqual(await self.said("leave"), {"node": "alpha", "left": True})

    async def test_leaving_says_what_is_lost(self) -> None:
        for name in ("beta", "gamma"):
            self.desk.members[name] = replace(self.desk.members[name], holds=())
        process = self.start("leave", tty=True)
        await process.shows(lambda: b"[y/N]" in process.out)
        self.assertIn(b"no other node holds main: lost for good!", process.out)
        process.transport.write(b"n\n")  # type: ignore[union-attr]
        await process.end()
        self.assertEqual(self.desk.calls, [])

    async def test_a_bundle_goes_to_a_private_new_file_or_to_stdout(self) -> None:
        out = self.home / "delta.bundle"
        done = await self.done("invite", "delta", "--address", "10.7.0.4:9470", "--out", str(out))
        self.assertEqual((done.code, stat.S_IMODE(out.stat().st_mode)), (0, 0o600), done.err)
        self.assertIn("bundle of delta", out.read_text())
        self.assertNotIn(b"bundle of", done.out + done.err)
        self.assertIn("exists", await self.refused(3, "invite", "delta", "--out", str(out)))
        self.assertEqual(self.desk.calls, [("invite", "delta", ("10.7.0.4:9470",))])
        self.assertEqual((await self.done("invite", "delta")).lines, ["bundle of delta, number 2"])

    async def test_services(self) -> None:
        made = await self.done("service", "add", "club", "--threshold", "2-of-3")
        self.assertEqual(made.lines, [ONION])
        self.assertIn(b"club: 2 of 3, epoch 1", made.err)
        key = self.home / "shop.key"
        key.write_text(new_key().blob)
        key.chmod(0o600)
        taken = await self.said("service", "import", "shop", "--key", str(key))
        self.assertEqual((taken["onion"], taken["mode"]), (KEY_ONION, "shared"))
        self.assertEqual(self.desk.calls[-1][-1], base64.b64decode(key.read_text().partition(":")[2]))
        await self.refused(3, "service", "import", "shop", "--key", str(self.home / "admin.cap"))
        await self.refused(3, "service", "add", "main")
        self.assertEqual((await self.said("refresh", "main"))["epoch"], 2)
        await self.done("reshare", "main", "--threshold", "3", "--add", "beta", "--remove", "gamma")
        self.assertEqual(self.desk.calls[-1], ("reshare", "main", 3, ("beta",), ("gamma",)))

    async def test_an_op_id_is_one_act(self) -> None:
        one = "00000000-0000-4000-8000-000000000001"
        first = await self.said("token", "rotate", "--op-id", one)
        self.assertEqual(await self.said("token", "rotate", "--op-id", one), first)
        self.assertIsInstance(self.desk, MemoryDesk)
        self.assertEqual(self.desk.token, 2)
