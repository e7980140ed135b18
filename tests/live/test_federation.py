"""Two onion runtimes on two private networks federate through client tors of each other's network. Needs tor."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from ron.crypto.schnorr import HolderKey
from ron.kernel.aio import within
from ron.proto.errors import ErrorCode, RonError
from ron.sdk import Api, onion_http
from ron.sdk.transport import connection_pool
from ron.services.oniond.audit import verify
from ron.services.oniond.federation.messages import HandshakeAnswer, ZkHandshake
from ron.services.oniond.federation.peers import OnionPeers
from ron.services.oniond.federation.protocol import Policy, Prover
from ron.services.oniond.federation.roster import Roster, RosterBook
from ron.tor.onionkeys import address_of, new_key
from tests.live.support import NO_TOR, Daemon, until

CONFIG = """
[admin]
bind = "127.0.0.1:0"
[[apps]]
name = "wiki"
expose = [{ local = "127.0.0.1:9", onion_port = 80 }]
[federation]
enabled = true
"""
_shared: list[Operator] = []


class Operator:
    """One operator: a daemon with a network of its own, and what they do at their terminal."""

    def __init__(self, region: str) -> None:
        self.region = region
        self.daemon = Daemon("ron-oniond", CONFIG, "onions.json")
        self.daemon.start(wait=False)

    def await_start(self) -> None:
        until(self.daemon._facts_or_dead, 150, f"{self.region} coming up")
        facts = self.daemon.facts()
        (self.onion,) = [o["onion"] for o in facts["onions"] if o["app"] == "federation"]
        self.socks_port: int = facts["socks_port"]

    def ronctl(self, *arguments: str, code: int = 0) -> Any:
        done = self.daemon.ronctl(*arguments)
        assert done.returncode == code, f"{arguments}: {done.returncode} {done.stdout} {done.stderr}"
        return json.loads(done.stdout) if "--json" in arguments else done

    def holder(self, name: str) -> tuple[str, Path]:
        """A new holder key: its public part, its file."""
        path = self.daemon.home / f"{name}.key"
        return self.ronctl("federation", "new-holder", "--out", str(path), "--json")["public"], path

    def grant(self, public: str) -> str:
        """The capability's id."""
        cap_id: str = self.ronctl("federation", "grant", public, "--label", "peer", "--json")["cap_id"]
        return cap_id

    def hold(self, issuer: Operator, path: Path) -> None:
        self.ronctl("federation", "hold", issuer.onion, str(path))

    def allow(self, peer: Operator, *, listed: bool = True) -> None:
        """Change the config file of the running daemon."""
        allow = json.dumps([peer.onion] if listed else [])
        way = f'[[federation.peer]]\nonion = "{peer.onion}"\nsocks = "127.0.0.1:{peer.socks_port}"\n'
        self.daemon.config.write_text(CONFIG + f'allow = {allow}\nregions = ["{self.region}"]\n{way}')

    def view(self) -> Any:
        """What `ronctl federation sessions --json` prints, without the half second that a process takes."""
        connection = http.client.HTTPConnection("oniond", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.daemon.home / "run" / "oniond.sock"))
        with contextlib.closing(connection):
            bearer = {"Authorization": f"Bearer {self.daemon.admin_cap()}"}
            connection.request("GET", "/v1/federation", headers=bearer)
            return json.loads(connection.getresponse().read())

    def peers(self) -> list[str]:
        return [session["peer"] for session in self.view()["sessions"]]

    def audit(self) -> Path:
        return self.daemon.home / "audit" / "oniond.jsonl"

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        lines = map(json.loads, self.audit().read_text().splitlines())
        return [(line["event"], line["fields"]) for line in lines if line["event"].startswith("federation_")]


def two_that_hold() -> tuple[Operator, Operator]:
    """Two operators on two networks; each allows the other, and holds a capability of the other's. Started once."""
    if not _shared:
        north, south = Operator("north"), Operator("south")
        for operator in (north, south):
            operator.await_start()
        for issuer, holder in ((north, south), (south, north)):
            public, path = holder.holder("first")
            issuer.grant(public)
            holder.hold(issuer, path)
            issuer.allow(holder)
        for one, other in ((north, south), (south, north)):
            until(lambda o=one: o.view()["list"]["holders"] == 1, 10, "the grant is on the list")
            until(lambda o=one, p=other: o.view()["allow"] == [p.onion], 10, "the file is read")
            until(lambda o=one, p=other: o.view()["issuers"] == [p.onion], 10, "the key is held")
        _shared.extend([north, south])
    north, south = _shared
    return north, south


class Federating(TestCase):
    """From two operators' terminals to sessions and back."""

    skip = NO_TOR
    timeout = 240

    def setUp(self) -> None:
        self.pool = connection_pool(reactor)
        self.addCleanup(self.pool.closeCachedConnections)
        # not in a thread: with the thread that started them, the daemons would end
        self.north, self.south = two_that_hold()

    async def thread(self, work: Any, *arguments: Any) -> Any:
        return await deferToThread(work, *arguments)

    async def until(self, condition: Any, timeout_s: float, what: str) -> None:
        await deferToThread(until, condition, timeout_s, what)

    async def federated(self) -> None:
        """A session is there."""
        if not await self.thread(self.north.peers):
            await self.thread(self.north.ronctl, "federation", "connect", self.south.onion)
        await self.until(lambda: self.south.peers(), 10, "the other end's session")

    async def test_1_two_networks_federate_and_tell_each_other_transport_facts(self) -> None:
        north, south = self.north, self.south
        session = await self.thread(north.ronctl, "federation", "connect", south.onion, "--json")
        self.assertEqual((session["peer"], session["role"]), (south.onion, "initiator"))
        told = await self.thread(north.ronctl, "federation", "sessions")
        self.assertIn(f"session  {south.onion}  initiator", told.stdout)
        self.assertEqual((session["facts"]["onion"], session["facts"]["regions"]), (south.onion, ["south"]))
        await self.until(lambda: south.view()["sessions"][0]["facts"] is not None, 10, "the facts arriving")
        (theirs,) = (await self.thread(south.view))["sessions"]
        self.assertEqual((theirs["id"], theirs["peer"], theirs["role"]), (session["id"], north.onion, "responder"))
        self.assertEqual(theirs["facts"]["regions"], ["north"])
        self.assertEqual([e for e, _ in north.events()], ["federation_asked", "federation_opened"])
        self.assertEqual([e for e, _ in south.events()], ["federation_proved", "federation_opened", "federation_facts"])
        for operator in (north, south):
            verdict = verify(operator.audit())
            self.assertIsNone(verdict.broken)
            self.assertGreaterEqual(verdict.records, 2)

    async def test_2_keys_and_lists_are_the_operators_alone(self) -> None:
        await self.federated()
        folder = self.north.daemon.home / "federation"
        await self.until((folder / "pins.json").exists, 5, "the peer's list being remembered")
        self.assertEqual(stat.S_IMODE(folder.stat().st_mode), 0o700)
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.assertEqual({p.name for p in files}, {"list.json", "pins.json", f"{self.south.onion}.key"})
        self.assertEqual({stat.S_IMODE(path.stat().st_mode) for path in files}, {0o600})
        secret = json.loads((folder / "holdings" / f"{self.south.onion}.key").read_text())["secret"]
        for path in self.north.daemon.home.rglob("*.jsonl*"):
            self.assertNotIn(secret, path.read_text(errors="replace"), path)

    async def post(self, target: Operator, body: Any) -> RonError:
        """A stranger's handshake at `target`, which must refuse it, through a tor of its network."""
        through = onion_http(reactor, target.socks_port, self.pool)
        api = Api(reactor, through, f"http://{target.onion}", tries=1, deadline_s=30)
        call = Deferred.fromCoroutine(api.call("POST", "/federate/zk_handshake", HandshakeAnswer, body))
        refusal: RonError = await self.assertFailure(call, RonError)
        return refusal

    async def proof(self, target: Operator, claimed: str, holder: HolderKey) -> ZkHandshake:
        """What a holder of `target`'s capability would send who claims to be `claimed`."""
        peers = OnionPeers(reactor, lambda _onion: _port(target.socks_port))
        book = RosterBook()
        book.admit(target.onion, Roster.read(await peers.roster(target.onion), target.onion))
        listed = book.newest(target.onion)
        assert listed is not None
        own = Roster(1, [HolderKey.generate().public])
        policy = Policy(onion=claimed, allow=frozenset({target.onion}), roster=own, holdings={target.onion: holder})
        attempt = Prover(book).begin(policy, target.onion, await peers.challenge(target.onion), reactor.seconds())
        return attempt.prove(time.time())

    async def test_3_strangers_replays_and_relays_are_refused_alike(self) -> None:
        north, south = self.north, self.south
        public, path = await self.thread(south.holder, "mallory")
        cap_id = await self.thread(north.grant, public)
        await self.until(lambda: north.view()["list"]["holders"] == 2, 10, "the second grant")
        mallory = HolderKey(bytes.fromhex(json.loads(path.read_text())["secret"]))
        before = len(await self.thread(north.peers))
        good = await self.proof(north, south.onion, mallory)
        peers = OnionPeers(reactor, lambda _onion: _port(north.socks_port))
        # a real holder who claims an allowed onion gets so far, and no session: that onion knows nothing of it
        self.assertEqual((await peers.handshake(north.onion, good)).state, "pending")
        await self.until(lambda: "federation_failed" in [e for e, _ in north.events()], 40, "the call back failing")
        stranger = await self.proof(north, address_of(new_key()), mallory)
        other = await self.proof(north, south.onion, mallory)
        forged = bytes([other.proof.zk[0] ^ 1]) + other.proof.zk[1:]
        broken = msgspec.structs.replace(other, proof=msgspec.structs.replace(other.proof, zk=forged))
        refusals = [await self.post(north, body) for body in (good, stranger, broken)]
        said = {(error.status, error.code, error.message, error.hint) for error in refusals}
        self.assertEqual(said, {(403, ErrorCode.NO_CAPABILITY, refusals[0].message, refusals[0].hint)})
        reasons = [fields["reason"] for event, fields in north.events() if event == "federation_refused"]
        self.assertEqual(reasons[-3:], ["nonce", "not_allowed", "proof"])
        self.assertEqual(len(await self.thread(north.peers)), before)
        await self.thread(north.ronctl, "cap", "revoke", cap_id)
        await self.until(lambda: north.view()["list"]["holders"] == 1, 5, "the list without Mallory")

    async def test_4_a_revoked_capability_ends_the_session_within_5_s(self) -> None:
        north, south = self.north, self.south
        await self.federated()
        (capability,) = [
            line
            for line in (await self.thread(north.ronctl, "cap", "list", "--json"))["capabilities"]
            if line["label"] == "peer" and not line["revoked"]
        ]
        await self.thread(north.ronctl, "cap", "revoke", capability["cap_id"])
        await self.until(lambda: not north.peers(), 5, "the session ending")
        self.assertEqual(north.events()[-1][1]["reason"], "roster")
        done = await self.thread(lambda: south.daemon.ronctl("federation", "connect", north.onion))
        self.assertIn("our holder key is not on the peer's list", done.stderr)
        public, path = await self.thread(south.holder, "second")
        await self.thread(north.grant, public)
        await self.thread(south.hold, north, path)
        await self.until(lambda: north.view()["list"]["holders"] == 1, 10, "the new grant")
        await self.until(
            lambda: south.daemon.ronctl("federation", "connect", north.onion).returncode == 0, 20, "federating anew"
        )

    async def test_5_who_is_taken_off_the_allow_list_is_out_at_once(self) -> None:
        north, south = self.north, self.south
        await self.federated()
        north.allow(south, listed=False)
        await self.until(lambda: not north.peers(), 5, "the session ending")
        self.assertEqual(north.events()[-1][1]["reason"], "not_allowed")
        done = await self.thread(lambda: south.daemon.ronctl("federation", "connect", north.onion))
        self.assertEqual((done.returncode, "the peer refused" in done.stderr), (3, True), done.stderr)
        north.allow(south)
        await self.until(lambda: north.view()["allow"] == [south.onion], 5, "the file being read")
        await within(reactor, 60, self.federated())

    async def test_6_nothing_else_lives_at_the_onion(self) -> None:
        through = onion_http(reactor, self.north.socks_port, self.pool)
        for path in ("/readyz", "/metrics", "/v1/onions", "/v1/federation", "/"):
            api = Api(reactor, through, f"http://{self.north.onion}", self.north.daemon.admin_cap(), tries=1)
            error = await self.assertFailure(Deferred.fromCoroutine(api.fetch("GET", path)), RonError)
            self.assertEqual(error.status, 404, path)


async def _port(port: int) -> int:
    return port
