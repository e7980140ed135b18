"""`ronctl onion` as an operator calls it, against the real onion runtime on its socket."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as some
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.main import ronctl
from ron.ctl.onion_reach import MIN_PREFIX, pick, place
from ron.ctl.onion_text import details, parse_clients, parse_ports, table
from ron.proto.errors import ErrorCode, RonError
from ron.proto.exitcodes import Unreachable
from ron.proto.onions import OnionView, Port, Previous
from ron.tor.clientauth import generate, parse_auth_private, parse_secret
from ron.tor.onionkeys import address_of, new_key
from tests.ctl.with_node import RonctlCalls
from tests.sdk.with_oniond import WEB, WithOniond

IDS = [f"{digit * 4}aaaa-0000-4000-8000-00000000000{digit}" for digit in "0123"]


def view(onion_id: str, app: str = "wiki", **other: Any) -> OnionView:
    known = {"state": "active", "ready": True, "ports": (WEB,), "persistence": "durable", "isolation": "shared"}
    known |= {"clients": (), "created_at": "2026-11-21T08:27:27Z", "onion": address_of(new_key()), **other}
    return OnionView(id=onion_id, app=app, **known)  # type: ignore[arg-type]


class Meaning(SynchronousTestCase):
    """Which onion an ID is."""

    def refuses(self, code: ErrorCode, onions: Sequence[OnionView], text: str) -> RonError:
        error = self.assertRaises(RonError, pick, onions, text)
        self.assertIs(error.code, code)
        return error

    def test_none(self) -> None:
        for text in ("", ".onion", "nonsense", "00", IDS[1], "\x1b[2J" * 100):
            self.assertLess(len(str(self.refuses(ErrorCode.NOT_FOUND, [view(IDS[0])], text))), 500)

    def test_several(self) -> None:
        onions = [view(one) for one in IDS]
        hint = self.refuses(ErrorCode.CONFLICT, onions, "wiki").hint
        self.assertIn(IDS[3], hint or "")
        twins = [view("abcd0000-1"), view("abcd0000-2")]
        self.refuses(ErrorCode.CONFLICT, twins, "abcd")

    def test_one(self) -> None:
        old = Previous(onion=address_of(new_key()), until="", ready=True)
        wiki, chat = view(IDS[0]), view(IDS[1], "chat", previous=old)
        for text in (IDS[1], IDS[1].upper(), "1111", "chat", chat.onion, chat.onion.removesuffix(".onion"), old.onion):
            self.assertIs(pick([wiki, chat], text), chat, text)

    def test_a_whole_name_goes_before_a_beginning(self) -> None:
        """An app may be called as an id begins."""
        named, other = view(IDS[0], "1111"), view(IDS[1], "chat")
        self.assertIs(pick([named, other], "1111"), named)

    @given(some.lists(some.uuids(), min_size=1, max_size=20, unique=True), some.data())
    def test_a_beginning_is_enough_while_it_is_one_onions(self, ids: list[Any], draw: Any) -> None:
        onions = [view(str(one), onion="x") for one in ids]
        text = draw.draw(some.sampled_from(onions)).id[: draw.draw(some.integers(MIN_PREFIX, 36))]
        those = [one for one in onions if one.id.startswith(text)]
        if len(those) == 1:
            self.assertIs(pick(onions, text), those[0])
        else:
            self.refuses(ErrorCode.CONFLICT, onions, text)


class Words(SynchronousTestCase):
    """What is typed, and what is shown."""

    def test_ports(self) -> None:
        for text in ("80", "80:", ":80", "x:80", "0:80", "65536:80", "80:0.0.0.0:80", "80:localhost:80", "80:unix:x"):
            self.assertRaises(click.BadParameter, parse_ports, ["80:8080", text])
        self.assertEqual(
            parse_ports(["80:8080", "81:127.0.0.1:1", "82:unix:/run/a.sock"]),
            (
                WEB,
                Port(onion_port=81, local="127.0.0.1:1"),
                Port(onion_port=82, local="unix:/run/a.sock"),
            ),
        )

    def test_clients(self) -> None:
        key = generate().public
        for text in ("bob", "=", f"={key.base32}", "bob=", "bob=short", f"bob={'A' * 52}"):
            self.assertRaises(RonError, parse_clients, [text])
        for text in (f"bob={key.base32}", f"bob={key.base32.lower()}", f"bob={key.to_line()}"):
            (one,) = parse_clients([text])
            self.assertEqual((one.name, one.public_key), ("bob", key.base32))

    def test_a_table_with_ids_as_short_as_they_may_be(self) -> None:
        ids = ["abcdabcd-1000-4000-8000-000000000000", "abcdabcd-2000-4000-8000-000000000000"]
        lines = table([view(ids[0], "wiki", state="drained"), view(ids[1], "chat", ready=False)]).splitlines()
        self.assertEqual(
            [line.split()[:3] for line in lines[1:]], [["abcdabcd-2", "chat", "not"], ["abcdabcd-1", "wiki", "drained"]]
        )

    def test_what_tor_said_cannot_move_the_cursor(self) -> None:
        shown = details(view(IDS[0], ready=False, reason="\x1b[2J\n"))
        self.assertNotIn("\x1b", shown)

    def test_where_the_runtime_may_be(self) -> None:
        for text in ("", "unix:relative", "run/oniond.sock", "ftp://x"):
            self.assertIs(self.assertRaises(RonError, place, text).code, ErrorCode.BAD_REQUEST)
        self.assertRaises(Unreachable, place, "unix:/nonexistent.sock")
        self.assertEqual(place("https://alpha.internal:9443"), "https://alpha.internal:9443")


class Keys(SynchronousTestCase):
    """Visitors' keys, offline."""

    def run_it(self, *arguments: str) -> Any:
        done = CliRunner().invoke(ronctl, ["onion", "client", *arguments, "--json"])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        self.assertEqual(done.exit_code, 0, done.output)
        return json.loads(done.output)

    def test_a_key_and_its_line(self) -> None:
        address = address_of(new_key())
        path, line = Path(self.mktemp()), Path(self.mktemp())
        made = self.run_it("new-key", "--out", str(path))
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertEqual(made["public_line"], f"descriptor:x25519:{made['public_key']}")
        secret = path.read_text().strip().rpartition(":")[2]
        self.assertEqual(parse_secret(secret).public.base32, made["public_key"])
        told = self.run_it("line", address, "--key", str(path), "--out", str(line))
        self.assertEqual((told["public_key"], told["private_file"]), (made["public_key"], str(line)))
        credential = parse_auth_private(line.read_text())
        self.assertEqual((credential.onion, credential.key.public.base32), (address, made["public_key"]))
        again = self.run_it("line", address_of(new_key()), "--key", str(line))
        self.assertNotEqual(again["private_line"], line.read_text().strip(), "a line makes the next one")

    def test_with_an_address_at_once(self) -> None:
        address = address_of(new_key())
        made = self.run_it("new-key", address)
        self.assertEqual(parse_auth_private(made["private_line"]).onion, address)

    def test_nothing_is_overwritten_or_taken_for_a_key(self) -> None:
        path = Path(self.mktemp())
        path.write_text("mine")
        path.chmod(0o600)
        self.assertRaises(RonError, self.run_it, "new-key", "--out", str(path))
        self.assertEqual(path.read_text(), "mine")
        self.assertRaises(RonError, self.run_it, "new-key", "nonsense.onion")
        self.assertRaises(RonError, self.run_it, "line", address_of(new_key()), "--key", str(path))
        self.assertRaises(RonError, self.run_it, "line", address_of(new_key()), "--key", "/nonexistent")

    def test_backends_are_told_truthfully(self) -> None:
        done = CliRunner().invoke(ronctl, ["onion", "backends", "--tor", "/nonexistent", "--arti", "no-arti", "--json"])
        reports = json.loads(done.output)["backends"]
        self.assertEqual(
            [(r["name"], r["available"], r["capabilities"]) for r in reports],
            [("binary-tor", False, []), ("arti", False, [])],
        )
        self.assertTrue(all(gap["why"] for report in reports for gap in report["gaps"]))
        self.assertIn(
            "not installed", CliRunner().invoke(ronctl, ["onion", "backends", "--tor", "/nonexistent"]).output
        )

    def test_an_arti_that_is_there_cannot_be_used_all_the_same(self) -> None:
        arti = Path(self.mktemp()).absolute()
        arti.write_text("#!/bin/sh\ncase $1 in --version) echo Arti 1.4.2;; help) echo hss;; esac\n")
        arti.chmod(0o755)
        words = ["onion", "backends", "--tor", "/nonexistent", "--arti", str(arti)]
        (_tor, report) = json.loads(CliRunner().invoke(ronctl, [*words, "--json"]).output)["backends"]
        self.assertEqual((report["available"], report["version"], report["capabilities"]), (True, "1.4.2", []))
        shown = CliRunner().invoke(ronctl, words).output
        self.assertIn(f"arti  1.4.2  {arti}  cannot be used", shown)
        self.assertNotIn("can be used", shown)
        self.assertNotIn("  yes  ", shown)
        self.assertIn("arti has since 1.4.3", shown)


class Commands(RonctlCalls, WithOniond):
    """Against the runtime."""

    group = "onion"
    timeout = 120

    async def setUp(self) -> None:
        await super().setUp()
        cap = self.home / "admin.cap"
        cap.write_text(self.capability())
        cap.chmod(0o600)

    async def test_wrong_words(self) -> None:
        await self.refused(2, "create", "--app", "wiki")
        await self.refused(2, "create", "--app", "wiki", "--port", "80")
        await self.refused(2, "create", "--app", "wiki", "--port", "80:1", "--pow-rate", "5")
        await self.refused(3, "create", "--app", "Wiki", "--port", "80:1")
        self.assertIn("no onion", await self.refused(7, "status", "wiki"))
        gone = str(self.home / "gone")
        self.assertIn("--control unix:/path", await self.refused(4, "list", RON_HOME=gone))
        self.assertIn("admin.cap", await self.refused(5, "list", "--control", f"unix:{self.socket}", RON_HOME=gone))
        self.assertEqual(await self.onions().list(), ())

    async def test_a_socket_that_nobody_answers_on(self) -> None:
        dead = self.home / "dead.sock"
        listening = reactor.listenUNIX(str(dead), self.site)
        inode = self.home / "kept.sock"
        os.link(dead, inode)
        await listening.stopListening()
        self.assertIn("nobody answers", await self.refused(4, "list", "--control", f"unix:{inode}"))

    async def test_create_prints_the_address_and_nothing_else(self) -> None:
        made = await self.done("create", "--app", "wiki", "--port", "80:8080")
        self.assertEqual(made.code, 0, made.err)
        (one,) = await self.onions().list()
        self.assertEqual((made.out.decode(), one.ports, one.ready), (f"{one.onion}\n", (WEB,), True))
        self.assertIn(b"100 %", made.err)
        self.assertIn(one.id.encode(), made.err)

    async def test_every_option_of_create(self) -> None:
        key = generate().public.base32
        words = ["--ephemeral", "--isolation", "process", "--client", f"bob={key}", "--region", "eu", "--region", "us"]
        words += [
            "--max-streams",
            "7",
            "--pow",
            "--pow-rate",
            "3000",
            "--op-id",
            IDS[0],
            "--port",
            "80:8080",
            "--port",
            "81:unix:/run/a",
        ]
        made = await self.said("create", "--app", "wiki", *words)
        self.assertEqual(made["ports"][1], {"onion_port": 81, "local": "unix:/run/a"})
        self.assertEqual((made["persistence"], made["isolation"]), ("ephemeral", "process"))
        self.assertEqual(made["clients"], [{"name": "bob", "public_key": key}])
        self.assertEqual((made["pow"]["queue_rate"], made["pow"]["queue_burst"]), (3000, 3000))
        self.assertEqual((made["hints"]["regions"], made["limits"]["streams"]), (["eu", "us"], 7))
        again = await self.said("create", "--app", "wiki", *words)
        self.assertEqual(again["id"], made["id"], "one op_id, one onion")

    async def test_not_ready_in_time(self) -> None:
        self.directories = False
        late = await self.done("create", "--app", "wiki", "--port", "80:8080", "--wait", "1")
        (one,) = await self.onions().list()
        self.assertEqual((late.code, late.out.decode()), (6, f"{one.onion}\n"))
        self.assertIn(f"ronctl onion status {one.id}".encode(), late.err)
        self.assertEqual((await self.done("create", "--app", "b", "--port", "80:1", "--wait", "0")).code, 0)

    async def test_the_life_of_an_onion(self) -> None:
        await self.done("create", "--app", "chat", "--port", "80:8080")
        made = await self.said("create", "--app", "wiki", "--port", "80:8080")
        listed = await self.said("list", "--app", "wiki")
        self.assertEqual([one["id"] for one in listed["onions"]], [made["id"]])
        shown = (await self.done("status", made["onion"])).out.decode()
        self.assertIn("80 → 127.0.0.1:8080", shown)
        rotated = await self.done("rotate", "wiki", "--grace", "1h")
        now = await self.said("status", made["id"][:8])
        self.assertEqual(rotated.out.decode(), f"{now['onion']}\n")
        self.assertIn(f"{made['onion']} is served until {now['previous']['until']}".encode(), rotated.err)
        self.assertEqual((await self.said("bind", "wiki", "--port", "81:9"))["ports"][0]["onion_port"], 81)
        self.assertEqual((await self.done("drain", "wiki", "--deadline", "0s")).lines, [f"{made['id']}: drained"])
        self.assertEqual((await self.said("delete", "wiki")), {"id": made["id"], "deleted": True})
        await self.refused(7, "status", "wiki")
        self.assertEqual([one.app for one in await self.onions().list()], ["chat"])

    async def test_clients(self) -> None:
        bob, eve = generate().public.base32, generate().public.base32
        made = await self.onions().create("wiki", [WEB])
        self.assertIn(b"everybody", (await self.done("client", "list", "wiki")).err)
        await self.said("client", "add", "wiki", "bob", bob)
        added = await self.done("client", "add", "wiki", "eve", f"descriptor:x25519:{eve}")
        self.assertEqual(added.lines, [f"bob  {bob}", f"eve  {eve}"])
        self.assertEqual((await self.said("client", "remove", made.id, "bob"))["clients"][0]["name"], "eve")
        self.assertIn("last client", await self.refused(3, "client", "remove", "wiki", "eve"))

    async def test_export_needs_its_scope_and_a_new_file(self) -> None:
        made = await self.onions().create("wiki", [WEB])
        await self.refused(5, "export", made.id, RON_CAP=self.capability(("scope", "onion:read")))
        out = self.home / "wiki.key"
        self.assertEqual((await self.said("export", "wiki", "--out", str(out)))["file"], str(out))
        self.assertTrue(out.read_text().startswith("ED25519-V3:"))
        self.assertEqual(stat.S_IMODE(out.stat().st_mode), 0o600)
        await self.refused(3, "export", "wiki", "--out", str(out))
        self.assertEqual(len(self.audit.kept.recent()), 1, "what could not be written was not asked for")

    async def test_a_whole_id_needs_no_right_to_look(self) -> None:
        made = await self.onions().create("wiki", [WEB])
        cap = self.capability(("scope", "onion:delete"))
        await self.refused(5, "delete", "wiki", RON_CAP=cap)
        self.assertEqual((await self.done("delete", made.id, RON_CAP=cap)).code, 0)

    async def test_on_a_terminal_it_asks(self) -> None:
        made = await self.onions().create("wiki", [WEB])
        asked = self.start("delete", "wiki", tty=True)
        await asked.shows(lambda: b"[y/N]" in asked.out)
        self.assertIn(made.onion.encode(), asked.out)
        asked.transport.write(b"n\n")  # type: ignore[union-attr]
        self.assertEqual(await asked.end(), 1)
        self.assertEqual(len(await self.onions().list()), 1)
        sure = self.start("delete", "wiki", "--yes", tty=True)
        self.assertEqual(await sure.end(), 0)
        self.assertEqual(await self.onions().list(), ())
