"""Peers that lie, flood, do not read, or are none: refused, named, counted, and nobody else notices."""

from __future__ import annotations

import time

from nacl.signing import SigningKey
from twisted.internet import reactor
from twisted.internet.task import deferLater

from ron.crypto import x509
from ron.kernel.files import write_private
from ron.services.balance.mesh import link
from ron.services.balance.mesh.codec import encode
from ron.services.balance.mesh.entries import write
from ron.services.balance.mesh.files import NodeFiles, keyed_pems
from ron.services.balance.mesh.keepalive import Pong
from ron.services.balance.mesh.sync import WRITTEN, Written
from ron.services.balance.mesh.tokens import Token, new_token
from ron.services.balance.mesh.wire import MAX_FRAME_BYTES, Envelope, seal
from tests.services.balance.mesh.cluster import OTHER_CA, ClusterTest, Note, Running
from tests.services.balance.mesh.hostile import Hostile, connect

HELLO = encode(Note(text="hello"))


class Strangers(ClusterTest):
    """At the door."""

    async def turned_away(self, a: Running, files: NodeFiles, reason: str) -> None:
        before = a.refused(reason)
        hostile = await connect(Hostile(files), a.mesh.port)
        said = await hostile.stands
        self.assertEqual(reason, said.refusal.reason)
        await hostile.gone
        self.assertEqual(before + 1, a.refused(reason))
        self.assertEqual({"a"}, set(a.mesh.members()))

    async def test_a_wrong_token(self) -> None:
        a = self.founder()
        files = self.invited(a, "x")
        files.token = new_token()
        await self.turned_away(a, files, "wrong_token")
        files.token = Token(version=a.files.token.version, secret=bytes(32))
        await self.turned_away(a, files, "wrong_token")

    async def test_another_cluster(self) -> None:
        a = self.founder()
        files = self.invited(a, "x")
        files.cluster = b"?" * 16
        await self.turned_away(a, files, "other_cluster")

    async def test_a_taken_name_with_another_key(self) -> None:
        a = self.founder()
        await self.turned_away(a, self.invited(a, "a", folder="second"), "name_taken")

    async def test_a_claim_with_anothers_certificate(self) -> None:
        a = self.founder()
        files, other = self.invited(a, "x"), self.invited(a, "y")
        files.name = "y"
        files.signing = other.signing
        await self.turned_away(a, files, "stranger")

    async def test_another_ca(self) -> None:
        a = self.founder()
        files = self.invited(a, "x")
        certificate, key, _ca = keyed_pems(x509.issue(OTHER_CA, "x"), OTHER_CA)
        write_private(files.certificate, certificate.encode())
        write_private(files.key, key.encode())
        hostile = await connect(Hostile(files), a.mesh.port)
        hostile.stands.addErrback(lambda failure: None)
        await hostile.gone
        self.assertEqual(1, a.metrics.registry.get_sample_value("rejected_total", {"reason": "tls"}))
        node = self.run_node(files)
        await deferLater(reactor, 0.5)
        self.assertEqual(set(), node.connected())
        self.assertIn("not joined", node.why_not_ready())

    async def test_a_frame_too_long_before_it_is_known(self) -> None:
        a = self.founder()
        hostile = Hostile(self.invited(a, "x"))
        hostile.handshakeCompleted = lambda: hostile.transport.write(b"\xff\xff\xff\xff" + bytes(100))
        await connect(hostile, a.mesh.port)
        hostile.stands.addErrback(lambda failure: None)
        await hostile.gone
        self.assertEqual(1, a.refused("too_long"))

    async def test_many_links_of_one_name(self) -> None:
        a = self.founder()
        files = self.invited(a, "x")
        silent = []
        for _ in range(6):
            hostile = Hostile(files)
            hostile.handshakeCompleted = lambda: None
            hostile.stands.addErrback(lambda failure: None)
            silent.append(await connect(hostile, a.mesh.port))
        await self.until(lambda: a.refused("full") == 2, "two too many")
        for hostile in silent:
            if not hostile.gone.called:
                hostile.transport.abortConnection()
            await hostile.gone


class Members(ClusterTest):
    """A member that turned."""

    async def member(self, a: Running, name: str = "x", **options: object) -> Hostile:
        hostile = await connect(Hostile(self.invited(a, name), **options), a.mesh.port)
        said = await hostile.stands
        self.assertIsNone(said.refusal)
        return hostile

    async def cut(self, a: Running, hostile: Hostile, reason: str) -> None:
        await hostile.gone
        self.assertEqual((1, []), (a.refused(reason), a.heard))

    async def test_what_ends_the_link(self) -> None:
        a = self.founder()
        good = ("a", "note", 0, HELLO)

        def envelope(hostile: Hostile, **changes: object) -> bytes:
            voice = hostile.voice
            fields = {"cluster": voice.cluster, "sender": "x", "to": "a", "run": voice.run, "boot": voice.boot}
            fields |= {"seq": 99, "sent_ms": 1, "kind": "note", "corr": 0, "body": HELLO}
            return seal(Envelope(**{**fields, **changes}), voice.signing)

        for reason, payload in (
            ("malformed", lambda hostile: b"?" * 100),
            ("malformed", lambda hostile: hostile.voice.seal(*good)[:-1]),
            ("bad_signature", lambda hostile: bytes(64) + hostile.voice.seal(*good)[64:]),
            ("stranger", lambda hostile: envelope(hostile, sender="a")),
            ("stranger", lambda hostile: envelope(hostile, to="b")),
            ("other_cluster", lambda hostile: envelope(hostile, cluster=b"?" * 16)),
            ("replayed", lambda hostile: envelope(hostile, run=hostile.voice.run - 1)),
            ("replayed", lambda hostile: envelope(hostile, boot=b"????????")),
        ):
            hostile = await connect(Hostile(self.files_of_x(a)), a.mesh.port)
            await hostile.stands
            before = a.refused(reason)
            hostile.say(payload(hostile))
            await hostile.gone
            self.assertEqual((before + 1, []), (a.refused(reason), a.heard), reason)
        hostile = await connect(Hostile(self.files_of_x(a)), a.mesh.port)
        await hostile.stands
        hostile.transport.write((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        await self.cut(a, hostile, "too_long")

    def files_of_x(self, a: Running) -> NodeFiles:
        directory = self.directory / "x"
        return NodeFiles.open(directory) if directory.exists() else self.invited(a, "x")

    async def test_what_is_dropped(self) -> None:
        a = self.founder()
        hostile = await self.member(a)
        recorded = hostile.voice.seal("a", "note", 0, HELLO)
        hostile.say(recorded)
        hostile.say(recorded)
        await self.until(lambda: a.refused("replayed") == 1, "a replay")
        hostile.tell("a", "note", b"?")
        hostile.tell("a", "nobody-hears-this", HELLO)
        await self.until(lambda: a.refused("malformed") == 2, "malformed bodies")
        hostile.tell("a", "mesh/answer", b"?", corr=7)
        hostile.tell("a", "mesh/pong", encode(Pong(1, 1, 1, bytes(32))))
        hostile.tell("a", "note", HELLO)
        await self.until(lambda: len(a.heard) == 2, "still heard")
        self.assertEqual([("x", "hello")] * 2, a.heard)
        hostile.transport.abortConnection()
        await hostile.gone

    async def test_an_old_run(self) -> None:
        a = self.founder()
        files = self.invited(a, "x")
        hostile = await connect(Hostile(files, run=2000), a.mesh.port)
        await hostile.stands
        hostile.transport.abortConnection()
        await hostile.gone
        await self.until(lambda: not a.connected(), "gone")
        older = await connect(Hostile(files, run=1999), a.mesh.port)
        self.assertEqual("replayed", (await older.stands).refusal.reason)
        await older.gone

    async def test_a_forged_book_entry(self) -> None:
        a = self.founder()
        hostile = await self.member(a)
        digest = a.mesh.book.digest()
        forged = write("promote", HELLO, 50, "a", SigningKey.generate(), a.files.cluster)
        hostile.tell("a", WRITTEN, encode(Written((forged,))))
        await self.until(lambda: a.refused("bad_signature") == 1, "refused")
        too_far = write("promote", HELLO, 2**53 - 1, "x", hostile.voice.signing, a.files.cluster)
        hostile.tell("a", WRITTEN, encode(Written((too_far,))))
        await self.until(lambda: a.refused("stale") == 1, "refused")
        self.assertEqual((digest, {"x"}), (a.mesh.book.digest(), a.connected()))
        hostile.transport.abortConnection()
        await hostile.gone

    async def test_a_flood_is_read_slowly_and_hurts_nobody_else(self) -> None:
        self.patch(link, "MESSAGES_BURST", 200.0)
        self.patch(link, "MESSAGES_PER_S", 50.0)
        a = self.founder()
        b = self.join(a, "b")
        hostile = await self.member(a)
        await self.until(lambda: "b" in a.connected(), "b")
        for _ in range(1000):
            hostile.tell("a", "nobody-hears-this", b"")
        await self.until(lambda: a.refused("flood") > 0, "slowed down")
        b.mesh.send("a", "note", Note(text="still here"))
        await self.until(lambda: a.heard, "b is heard")
        self.assertIn("b", a.connected())
        hostile.transport.abortConnection()
        await hostile.gone

    async def test_one_that_never_reads(self) -> None:
        a = self.founder()
        self.patch(link, "UNREAD_S", 0.5)
        hostile = await self.member(a, reads=False)
        big = Note(text="x" * 200_000)
        began = time.monotonic()
        while a.refused("unread") == 0 and time.monotonic() - began < 20:
            a.mesh.broadcast("note", big)
            # busy enough to be no silent peer
            hostile.tell("a", "nobody-hears-this", b"")
            await deferLater(reactor, 0.02)
        self.assertEqual(1, a.refused("unread"))
        dropped = a.metrics.registry.get_sample_value("balance_mesh_dropped_total", {"peer": "x"})
        self.assertGreater(dropped, 0)
        hostile.transport.resumeProducing()
        await hostile.gone

    async def test_one_that_falls_silent(self) -> None:
        a = self.founder()
        hostile = await self.member(a)
        await self.cut(a, hostile, "silent")

    async def test_a_run_that_hangs_gives_way_to_the_next(self) -> None:
        a = self.founder()
        first = await self.member(a)
        second = await connect(Hostile(NodeFiles.open(first.files.directory)), a.mesh.port)
        self.assertIsNone((await second.stands).refusal)
        await first.gone
        second.tell("a", "note", HELLO)
        await self.until(lambda: a.heard, "the new one is heard")
        self.assertEqual(0, a.refused("twin"))
        second.transport.abortConnection()
        await second.gone
