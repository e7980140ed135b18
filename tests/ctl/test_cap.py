"""`ronctl cap`: the token alone on the last line, offline where it says so, files or the node, and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from ron.auth import AUDIENCE, AuthFiles, Authority, Caveat, ReplayGuard, Wanted, inspect
from ron.ctl.cap import cap
from ron.kernel import Metrics
from ron.kernel.aio import within
from ron.kernel.files import write_private
from ron.proto.errors import ErrorCode, RonError
from ron.web import Edge, make_site
from ron.web.caps import OwnReplay, cap_endpoints
from tests.ctl.forkserver import RONCTL
from tests.ctl.with_home import WithHome
from tests.web.wire import until

READ = Wanted("onion:read", "GET", "/v1/onions", frozenset({"app", "tenant", "topic"}))


class Home(WithHome):
    """A node's home."""

    command = cap

    def setUp(self) -> None:
        super().setUp()
        self.authority: Authority = self.files.authority(AUDIENCE)

    def token(self, *arguments: str, stdin: str = "") -> str:
        return self.ran(*arguments, stdin=stdin).stdout.splitlines()[-1]

    def fails(self, code: ErrorCode, *arguments: str, stdin: str = "") -> RonError:
        error = self.refused(*arguments, stdin=stdin)
        self.assertIs(error.code, code)
        return error


class Minting(Home):
    def test_the_example_of_the_issue(self) -> None:
        result = self.ran("mint", "--scope", "onion:read", "--app", "other", "--ttl", "5m")
        self.assertEqual(len(result.stdout.splitlines()), 1)
        token = result.stdout.strip()
        capability = self.authority.admit(token, READ)
        capability.require("app", "other")
        self.assertIn(capability.cap_id, result.stderr)
        self.assertNotIn(token, result.stderr)
        left_s = (inspect(token).expires_at_s or 0) - time.time()
        self.assertTrue(290 < left_s <= 300, left_s)
        self.assertRaises(RonError, self.authority.admit, token, READ._replace(scope="onion:create"))

    def test_every_option(self) -> None:
        result = self.ran(
            *("mint", "--scope", "a:b,c:*", "--scope", "d:e", "--tenant", "t", "--topic", "x/y", "--method", "GET"),
            *("--path", "/v1", "--rps", "2.5", "--bytes-per-day", "10KB", "--ttl", "7d", "--label", "phone", "--json"),
        )
        shown = json.loads(result.stdout)
        self.assertEqual(
            shown["caveats"][1:-1],
            ["scope = a:b,c:*,d:e", "tenant = t", "topic = x/y", "method = GET", "path = /v1", "bytes_per_day = 10000"]
            + ["rps = 2.5"],
        )
        self.assertEqual(self.files.listed()[0][0].label, "phone")
        self.authority.recognise(shown["token"])

    def test_another_audience(self) -> None:
        token = self.token("mint", "--scope", "kms:sign", "--aud", "ron-kms")
        wanted = Wanted("kms:sign", "POST", "/")
        self.files.authority("ron-kms").admit(token, wanted)
        self.assertRaises(RonError, self.authority.admit, token, wanted)

    def test_bad_input(self) -> None:
        good = ("mint", "--scope", "a:b")
        for more in (
            ("--ttl", "5"),
            ("--ttl", "-5m"),
            ("--ttl", "0s"),
            ("--ttl", "33d"),
            ("--rps", "0"),
            ("--rps", "many"),
            ("--bytes-per-day", "0"),
            ("--bytes-per-day", "lots"),
            ("--topic", ""),
            ("--topic", " x"),
            ("--label", "two\nlines"),
        ):
            self.fails(ErrorCode.BAD_REQUEST, *good, *more)
        self.fails(ErrorCode.BAD_REQUEST, "mint", "--scope", "")
        self.assertEqual(CliRunner().invoke(cap, ["mint"]).exit_code, 2)
        self.assertEqual(self.files.listed(), ())


class Offline(Home):
    def setUp(self) -> None:
        super().setUp()
        self.good = self.authority.mint([Caveat("scope", "onion:*")])
        # nothing of a node is at hand
        os.environ["RON_HOME"] = str(self.home / "elsewhere")

    def test_attenuate(self) -> None:
        for arguments, stdin in (((self.good,), ""), (("-",), self.good + "\n")):
            token = self.token(
                "attenuate", *arguments, "--scope", "onion:read", "--app", "x", "--ttl", "5m", stdin=stdin
            )
            self.authority.admit(token, READ).require("app", "x")
            self.assertRaises(RonError, self.authority.admit, token, READ._replace(scope="onion:create"))
            self.assertEqual(inspect(token).cap_id, inspect(self.good).cap_id)

    def test_attenuate_bad_input(self) -> None:
        self.fails(ErrorCode.BAD_REQUEST, "attenuate", self.good)
        self.fails(ErrorCode.BAD_REQUEST, "attenuate", self.good, "--rps", "-1")
        self.fails(ErrorCode.BAD_REQUEST, "attenuate", self.good, "--topic", "")
        self.fails(ErrorCode.BAD_REQUEST, "attenuate", "-", "--ttl", "5m")
        self.fails(ErrorCode.NO_CAPABILITY, "attenuate", "garbage", "--ttl", "5m")

    def test_inspect(self) -> None:
        shown = json.loads(self.ran("inspect", "-", "--json", stdin=self.good).stdout)
        self.assertEqual(shown["caveats"], ["aud = ron-node", "scope = onion:*"])
        self.assertEqual((shown["verified"], shown["kid"], shown["expires_at"]), (False, 1, None))
        result = self.ran("inspect", self.good)
        self.assertIn("only    scope = onion:*", result.stdout)
        self.assertIn("not verified", result.stderr)
        self.fails(ErrorCode.NO_CAPABILITY, "inspect", "garbage")

    def test_inspect_an_expired_one(self) -> None:
        token = self.authority.mint([Caveat("exp", "2020-01-01T00:00:00Z")])
        self.assertIn("2020-01-01T00:00:00Z (it is over)", self.ran("inspect", token).stdout)
        self.assertTrue(json.loads(self.ran("inspect", token, "--json").stdout)["expired"])

    def test_the_rest_says_what_is_missing(self) -> None:
        """In a process of its own: looking for the node starts a reactor."""
        for arguments in (["mint", "--scope", "a:b"], ["revoke", self.good], ["rotate"], ["list"]):
            done = subprocess.run([RONCTL, "cap", *arguments], capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual((done.returncode, done.stdout), (4, ""), done.stderr)
            self.assertIn("root.json", done.stderr)
            self.assertIn("RON_HOME", done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1)


class Taking(Home):
    def test_revoke_by_token_and_by_id(self) -> None:
        for by in ("token", "cap_id", "stdin"):
            token = self.token("mint", "--scope", "onion:read")
            child = self.token("attenuate", token, "--method", "GET")
            self.authority.admit(child, READ)
            given = {"token": token, "cap_id": inspect(token).cap_id, "stdin": "-"}[by]
            result = self.ran("revoke", given, stdin=child)
            self.assertEqual(result.stdout, f"revoked {inspect(token).cap_id}\n")
            self.files.refresh()
            for void in (token, child):
                self.assertRaises(RonError, self.authority.admit, void, READ)

    def test_an_altered_token_is_not_said_to_be_revoked(self) -> None:
        token = self.token("mint", "--scope", "onion:read")
        elsewhere = AuthFiles(None, time.time)
        for bad in (token[:-3], elsewhere.authority(AUDIENCE).mint([]), "garbage"):
            self.fails(ErrorCode.BAD_REQUEST, "revoke", bad)
        self.files.refresh()
        self.authority.admit(token, READ)

    def test_rotate(self) -> None:
        before = self.token("mint", "--scope", "onion:read")
        self.assertIn("epoch 2: made", self.ran("rotate", "--grace", "1h").stdout)
        self.files.refresh()
        self.authority.admit(before, READ)
        self.ran("rotate", "--grace", "0s")
        self.files.refresh()
        self.assertRaises(RonError, self.authority.admit, before, READ)
        self.fails(ErrorCode.BAD_REQUEST, "rotate", "--grace", "49h")
        self.fails(ErrorCode.BAD_REQUEST, "rotate", "--grace", "soon")

    def test_list(self) -> None:
        token = self.token("mint", "--scope", "onion:read", "--label", "phone")
        self.ran("mint", "--scope", "a:b", "--label", "laptop")
        self.ran("revoke", token)
        shown = json.loads(self.ran("list", "--json").stdout)
        self.assertEqual(
            [(c["label"], c["revoked"]) for c in shown["capabilities"]], [("phone", True), ("laptop", False)]
        )
        text = self.ran("list").stdout
        self.assertIn("REVOKED  phone", text)
        self.assertIn("epoch 1: made", text)
        self.assertNotIn(token, text)

    def test_damage_is_said(self) -> None:
        self.ran("revoke", "a" * 32)
        (self.home / "auth" / "revoked.json").write_text("garbage")
        self.assertIn("restore", str(self.fails(ErrorCode.STORE_UNAVAILABLE, "revoke", "b" * 32).hint))
        (self.home / "auth" / "root.json").write_text("garbage")
        self.fails(ErrorCode.STORE_UNAVAILABLE, "list")

    def test_help_has_examples(self) -> None:
        for command in ("mint", "attenuate", "inspect", "revoke", "rotate", "list"):
            self.assertIn(f"ronctl cap {command}", CliRunner().invoke(cap, [command, "--help"]).output)


class OverHttp(TestCase):
    """Through a real listener, as with an amnesia node: `ronctl` in a process of its own."""

    timeout = 120

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()
        self.files = AuthFiles(None, time.time)
        self.authority = self.files.authority(AUDIENCE)
        edge = Edge(authority=self.authority, metrics=Metrics(), reactor=reactor)
        endpoints = cap_endpoints(self.authority, self.files, OwnReplay(ReplayGuard(60, 100, time.time)))
        site = make_site(edge, endpoints)
        listening = reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{listening.getHost().port}"
        self.addCleanup(until, lambda: not site.channels)
        self.addCleanup(listening.stopListening)
        self.admin = self.authority.mint([Caveat("scope", "*")])

    async def ronctl(self, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
        from twisted.internet.threads import deferToThread

        env = {**os.environ, "RON_HOME": str(self.home), "RON_CAP": self.admin, **environment}

        def work() -> subprocess.CompletedProcess[str]:
            command = [RONCTL, "cap", *arguments]
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

        async def done() -> subprocess.CompletedProcess[str]:
            return await deferToThread(work)

        finished = await within(reactor, 90, done())
        self.assertEqual(finished.returncode, code, finished.stderr)
        return finished.stdout, finished.stderr

    async def test_a_life(self) -> None:
        out, err = await self.ronctl("mint", "--node", self.url, "--scope", "onion:read", "--label", "phone")
        token = out.splitlines()[-1]
        self.authority.admit(token, READ)
        self.assertIn(inspect(token).cap_id, err)
        out, _ = await self.ronctl("revoke", token, "--node", self.url)
        self.assertEqual(out, f"revoked {inspect(token).cap_id}\n")
        self.assertRaises(RonError, self.authority.admit, token, READ)
        out, _ = await self.ronctl("list", "--node", self.url, "--json")
        self.assertEqual([c["label"] for c in json.loads(out)["capabilities"]], ["phone"])
        out, _ = await self.ronctl("rotate", "--node", self.url, "--grace", "1m", "--json")
        self.assertEqual([epoch["kid"] for epoch in json.loads(out)["epochs"]], [1, 2])
        self.assertFalse((self.home / "auth").exists())

    async def test_refusals_have_their_exit_codes(self) -> None:
        weak = self.authority.mint([Caveat("scope", "onion:read")])
        _, err = await self.ronctl("mint", "--node", self.url, "--scope", "a:b", code=5, RON_CAP=weak)
        self.assertIn("lacks scope cap:mint", err)
        await self.ronctl("mint", "--node", self.url, "--scope", "a:b", "--aud", "ron-kms", code=3)
        await self.ronctl("list", "--node", "http://127.0.0.1:9", code=4)

    async def test_stale_files_beside_an_amnesia_node(self) -> None:
        """What an earlier run left in auth/ is not what the node goes by now: a revocation there would be a lie."""
        AuthFiles(self.home / "auth", time.time)
        write_private(self.home / "admin.cap", self.admin.encode())
        facts: dict[str, Any] = {
            "gateway_url": self.url,
            "mailbox_url": self.url,
            "onion": None,
            "socks_port": 1,
            "pids": {},
        }
        write_private(self.home / "node.json", json.dumps(facts).encode())
        out, err = await self.ronctl("mint", "--scope", "onion:read", RON_CAP="")
        self.assertIn("asking the node", err)
        self.authority.admit(out.splitlines()[-1], READ)
