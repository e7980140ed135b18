"""Three real nodes: a full mesh from one seed, removal, rotation of the token, death and return."""

from __future__ import annotations

import shutil
import time

from twisted.internet import reactor
from twisted.internet.task import deferLater

from ron.proto.addresses import HostPort
from ron.proto.errors import ErrorCode
from ron.services.balance.mesh.files import NodeFiles, accept, invitation
from ron.services.balance.mesh.handshake import Refusal
from ron.services.balance.mesh.wire import Refused
from tests.services.balance.mesh.cluster import CA, ClusterTest, Note, Running, raises
from tests.services.balance.mesh.socks import SocksPort


class ThreeNodes(ClusterTest):
    """What the mesh promises to the other rooms."""

    async def ask(self, node: Running, to: str, text: str) -> Note:
        return await node.mesh.call(to, "ask", Note(text=text), Note, deadline_s=5.0)

    async def test_a_full_mesh_from_one_seed(self) -> None:
        a, b, c = await self.three()
        self.assertEqual({"a", "b", "c"}, set(b.mesh.members()))
        await self.until(lambda: all(n.mesh._node.peers.count() == (2, 2) for n in (a, b, c)), "each dials each")
        self.assertEqual("", b.why_not_ready())
        b.mesh.broadcast("note", Note(text="hello"))
        c.mesh.send("a", "note", Note(text="you"))
        await self.until(lambda: len(a.heard) == 2 and c.heard, "messages")
        self.assertEqual({("b", "hello"), ("c", "you")}, set(a.heard))
        self.assertEqual([("b", "hello")], c.heard)
        self.assertEqual(Note(text="why for b"), await self.ask(b, "a", "why"))
        await self.until(lambda: a.mesh.peers()["b"].drift_s is not None, "pings")
        self.assertLess(abs(a.mesh.peers()["b"].drift_s), 0.5)

    async def test_calls_that_fail(self) -> None:
        a = self.founder()
        b = self.join(a, "b")
        await self.until(lambda: self.meshed(a, b))
        for call, code in (
            (self.ask(a, "nobody", ""), ErrorCode.STORE_UNAVAILABLE),
            (a.mesh.call("b", "nothing", Note(), Note, deadline_s=5.0), ErrorCode.UNSUPPORTED),
            (a.mesh.call("b", "ask", Note(text="x" * 300_000), Note, deadline_s=5.0), ErrorCode.TOO_LARGE),
            (self.ask(a, "b", "x" * 261_100), ErrorCode.TOO_LARGE),
        ):
            self.assertEqual(code, (await raises(call)).code)
        b.mesh.serve("slow", Note, lambda sender, note: deferLater(reactor, 2.0, lambda: note))
        late = raises(a.mesh.call("b", "slow", Note(), Note, deadline_s=0.1))
        self.assertEqual(ErrorCode.TIMEOUT, (await late).code)
        cut = raises(a.mesh.call("b", "slow", Note(), Note, deadline_s=20.0))
        await deferLater(reactor, 0.1)
        await self.stop(b)
        self.assertEqual(ErrorCode.STORE_UNAVAILABLE, (await cut).code)
        self.assertEqual({}, a.mesh._node.calls._waiting)
        await deferLater(reactor, 2.1)

    async def test_kinds_of_the_mesh_itself_are_not_for_the_rooms(self) -> None:
        a = self.founder()
        for kind, code in (("mesh/ping", ErrorCode.BAD_REQUEST), ("note", ErrorCode.CONFLICT)):
            error = await raises(self.listen(a, kind))
            self.assertEqual(code, error.code)

    async def listen(self, node: Running, kind: str) -> None:
        node.mesh.listen(kind, Note, lambda sender, note: None)

    async def test_killed_and_back_with_its_book(self) -> None:
        a, b, c = await self.three()
        await self.stop(b)
        await self.until(lambda: a.connected() == {"c"} == c.connected() ^ {"a", "c"}, "missed")
        self.assertEqual("", a.why_not_ready())
        a.mesh.book.put("promote", Note(text="while you were out"))
        b = await self.again(b)
        self.assertEqual({"a", "b", "c"}, set(b.mesh.members()))
        await self.until(lambda: self.meshed(a, b, c), "back")
        await self.until(lambda: b.mesh.book.get("promote", Note) == Note(text="while you were out"), "the book")
        b.mesh.send("a", "note", Note(text="again"))
        await self.until(lambda: a.heard, "heard")

    async def test_all_killed_and_back_without_seeds(self) -> None:
        nodes = await self.three()
        nodes[1].mesh.book.put("promote", Note(text="kept"))
        await self.until(lambda: all(n.mesh.book.get("promote", Note) for n in nodes), "written")
        for node in nodes:
            await self.stop(node)
        nodes = tuple([await self.again(node) for node in nodes])
        await self.until(lambda: self.meshed(*nodes), "back")
        self.assertEqual(Note(text="kept"), nodes[2].mesh.book.get("promote", Note))

    async def test_another_address(self) -> None:
        a, b, c = await self.three()
        await self.stop(b)
        b = self.run_node(NodeFiles.open(b.files.directory))
        await self.until(lambda: a.mesh.members()["b"].addresses == (b.address,), "written")
        await self.until(lambda: all(n.mesh._node.peers.count() == (2, 2) for n in (a, b, c)), "dialled there")

    async def test_a_clock_ten_minutes_off(self) -> None:
        a = self.founder()
        files = self.invited(a, "b")
        b = self.run_node(files, now=lambda: time.time() + 600)
        c = self.join(a, "c")
        await self.until(lambda: self.meshed(a, b, c))
        await self.until(lambda: None not in (a.mesh.drift_s, b.mesh.drift_s, c.mesh.peers()["b"].drift_s), "pings")
        self.assertLess(abs(600 - c.mesh.peers()["b"].drift_s), 1)
        await self.until(lambda: b.mesh.drift_s < -599, "it is told")
        b.mesh.send("c", "note", Note(text="taken all the same"))
        await self.until(lambda: c.heard, "heard")

    async def test_a_clock_that_is_set_while_it_runs(self) -> None:
        """By more than a message may be old, either way: it hears the others again, and knows how far it is off."""
        a = self.founder()
        ahead_s = [0.0]
        b = self.run_node(self.invited(a, "b"), now=lambda: time.time() + ahead_s[0])
        await self.until(lambda: self.meshed(a, b))
        await self.until(lambda: None not in (a.mesh.drift_s, b.mesh.drift_s), "pings")
        for set_s in (700.0, 0.0):
            ahead_s[0] = set_s
            await self.until(lambda set_s=set_s: abs((b.mesh.drift_s or 0.0) + set_s) < 1, "it is told")
            a.mesh.send("b", "note", Note(text=f"{set_s}"))
            await self.until(lambda set_s=set_s: ("a", f"{set_s}") in b.heard, "heard")


class Roster(ClusterTest):
    """Members that come and go."""

    async def test_removed(self) -> None:
        a, b, c = await self.three()
        old_token = a.files.token
        await a.mesh.remove("c")
        await self.until(lambda: c.ended, "it is told")
        self.assertIn("removed", c.why_not_ready())
        await self.until(lambda: self.meshed(a, b) and "c" not in b.mesh.members(), "cut everywhere")
        await self.until(lambda: b.files.token.version == 2, "a new token")
        self.assertEqual(b.files.token, a.files.token)
        c = await self.again(c)
        self.assertTrue(c.ended)
        # nor with its old book and the old token
        await self.stop(c)
        c.files.directory.joinpath("book.json").unlink()
        c = await self.again(c, seeds=(a.address, b.address))
        await self.until(lambda: "token" in c.why_not_ready(), "told")
        self.assertEqual((old_token, set()), (c.files.token, c.connected()))

    async def test_removed_while_it_was_away_and_back_with_a_new_key(self) -> None:
        a, b, c = await self.three()
        c.mesh.book.put("siege/c", Note(text="of old"))
        await self.until(lambda: b.mesh.book.get("siege/c", Note), "written")
        await self.stop(c)
        await a.mesh.remove("c")
        await self.until(lambda: b.files.token.version == 2, "a new token")
        shutil.rmtree(c.files.directory)
        c = self.join(b, "c")
        await self.until(lambda: self.meshed(a, b, c), "back")
        for node in (a, b, c):
            self.assertEqual(Note(text="of old"), node.mesh.book.get("siege/c", Note))
        c.mesh.book.put("siege/c", Note(text="new"))
        await self.until(lambda: a.mesh.book.get("siege/c", Note) == Note(text="new"), "its writings count")

    async def test_removed_while_it_was_away_it_says_so(self) -> None:
        """Its own book does not know; the others do, and the reason is theirs."""
        a, b, c = await self.three()
        await self.stop(c)
        await a.mesh.remove("c")
        await self.until(lambda: b.files.token.version == 2, "a new token")
        c = await self.again(c)
        await self.until(lambda: "removed" in c.why_not_ready(), "told")
        self.assertIn("balance.mesh", c.health.snapshot().missing)
        self.assertEqual(c.why_not_ready(), c.mesh.refused)
        self.assertIn("a new invitation", c.mesh.refused)
        self.assertEqual(("", ""), (a.mesh.refused, a.mesh.turned))

    async def test_one_that_turns_it_away_is_not_the_cluster(self) -> None:
        """Two do: they may be of another mind for a moment. It is ready, and says who."""
        a, b, c = await self.three()

        def refuse(name: str, _key: bytes, **_proved: bool) -> None:
            if name == "c":
                raise Refused("removed", name, fatal=True)

        b.mesh._roster.refuse = refuse  # type: ignore[method-assign]
        said = "b has turned this node away: removed"

        def turned_away() -> bool:
            # again each time: one that b had let in before may have come up only now
            for link in list(b.mesh._node.peers.state("c").links):
                link.close()
            return said in c.mesh.turned and c.connected() == {"a"}

        await self.until(turned_away, "said")
        self.assertEqual("", c.mesh.refused)
        self.assertNotIn("balance.mesh", c.health.snapshot().missing)
        del b.mesh._roster.refuse  # type: ignore[attr-defined]
        await self.until(lambda: self.meshed(a, b, c) and not c.mesh.turned, "of one mind again")

    async def test_leaving(self) -> None:
        a, b, c = await self.three()
        await c.mesh.remove("c")
        await self.until(lambda: c.ended, "it ends")
        await self.until(lambda: set(a.mesh.members()) == set(b.mesh.members()) == {"a", "b"}, "it is told")
        self.assertEqual(ErrorCode.NOT_FOUND, (await raises(a.mesh.remove("c"))).code)

    async def test_an_invitation_after_the_tokens_rotation(self) -> None:
        a = self.founder()
        b = self.join(a, "b")
        late, twice = self.invited(a, "c"), self.invited(a, "d")
        await self.until(lambda: self.meshed(a, b))
        self.assertEqual(2, await b.mesh.rotate_token())
        await self.until(lambda: a.files.token == b.files.token, "handed over")
        c = self.run_node(late)
        await self.until(lambda: "invitation" in c.why_not_ready(), "told what to do")
        self.assertEqual(({"a", "b"}, set()), (set(a.mesh.members()), c.connected()))
        self.assertIn("wrong_token", c.mesh.refused)
        await self.stop(c)
        shutil.rmtree(twice.directory)
        d = self.join(a, "d")
        await self.until(lambda: self.meshed(a, b, d), "a new invitation does")

    async def test_who_was_away_asks_for_the_token(self) -> None:
        a, b, c = await self.three()
        await self.stop(c)
        await a.mesh.rotate_token()
        await a.mesh.rotate_token()
        await self.until(lambda: b.files.token == a.files.token)
        await self.stop(a)
        c = await self.again(c)
        await self.until(lambda: c.files.token == b.files.token, "from b")
        self.assertEqual(3, NodeFiles.open(c.files.directory).token.version)

    async def test_two_with_one_name(self) -> None:
        a, b, _c = await self.three()
        second = self.run_node(self.invited(a, "b", folder="second"))
        await self.until(lambda: "name" in second.why_not_ready(), "told")
        self.assertEqual({"a", "c"}, b.connected())
        self.assertGreater(a.refused("name_taken"), 0)
        self.assertEqual((set(), []), (second.connected(), b.ended))


class Twins(ClusterTest):
    """A machine that was cloned."""

    def clone(self, node: Running) -> NodeFiles:
        copy = self.directory / "clone"
        shutil.copytree(node.files.directory, copy, ignore=shutil.ignore_patterns(".*"))
        return NodeFiles.open(copy)

    async def test_the_younger_ends_itself(self) -> None:
        a, b, c = await self.three()
        twin = self.run_node(self.clone(b))
        await self.until(lambda: twin.ended, "it ends")
        self.assertIn("began before it", twin.why_not_ready())
        self.assertGreater(a.refused("twin") + c.refused("twin"), 0)
        self.assertEqual(({"a", "c"}, []), (b.connected(), b.ended))
        self.assertEqual({"b", "c"}, a.connected())
        b.mesh.send("a", "note", Note(text="still me"))
        await self.until(lambda: a.heard, "the elder goes on")

    async def test_they_meet_each_other_alone(self) -> None:
        a = self.founder()
        b = self.join(a, "b")
        await self.until(lambda: self.meshed(a, b))
        await self.stop(a)
        twin = self.run_node(self.clone(b), seeds=(b.address,))
        await self.until(lambda: twin.ended, "it ends")
        self.assertEqual([], b.ended)

    async def test_a_liar_ends_nobody(self) -> None:
        """A proof is of use once: what a node signed for one is nothing to another."""
        a = self.founder()
        b = self.join(a, "b")
        await self.until(lambda: self.meshed(a, b))
        proof = b.mesh._node.voice.prove_run(b"n" * 32)
        door = b.mesh._node._door
        self.assertIsNone(door.turned(Refusal("twin", "", proof), b"n" * 32))
        older = type(proof)(proof.run - 1, proof.boot, proof.signature)
        self.assertIsNone(door.turned(Refusal("twin", "", older), b"n" * 32))
        self.assertIsNone(door.turned(Refusal("twin", ""), b"n" * 32))
        self.assertEqual([], b.ended)


class Seeds(ClusterTest):
    """The way in."""

    async def test_a_joiner_waits_for_its_seed(self) -> None:
        a = self.founder()
        files = self.invited(a, "b")
        await self.stop(a)
        b = self.run_node(files)
        await deferLater(reactor, 0.3)
        self.assertIn("not joined", b.why_not_ready())
        a = await self.again(a)
        await self.until(lambda: self.meshed(a, b), "joined")
        self.assertEqual("", b.why_not_ready())

    async def test_itself_as_a_seed(self) -> None:
        a = self.founder()
        a = await self.again(a, seeds=(a.address,))
        await deferLater(reactor, 0.5)
        self.assertEqual(0, a.refused("stranger"))
        self.assertEqual("", a.why_not_ready())

    async def test_one_that_cannot_be_dialled(self) -> None:
        """It dials, and that is enough for both directions."""
        a = self.founder()
        b = self.run_node(self.invited(a, "b"), advertise=("127.0.0.1:1",))
        await self.until(lambda: self.meshed(a, b))
        a.mesh.broadcast("note", Note(text="down"))
        answer = await a.mesh.call("b", "ask", Note(text="up"), Note, deadline_s=5.0)
        self.assertEqual((Note(text="up for a"), [("a", "down")]), (answer, b.heard))
        self.assertEqual((0, 1), a.mesh._node.peers.count())

    async def test_over_onions(self) -> None:
        tor, onions = SocksPort(), {name: f"{name * 56}.onion" for name in "ab"}
        port = reactor.listenTCP(0, tor, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        socks = HostPort("127.0.0.1", port.getHost().port)
        a = self.founder(advertise=(f"{onions['a']}:9470",), socks=socks)
        text = invitation(a.files, "b", CA, a.mesh.me.addresses)
        tor.onions[onions["a"]] = lambda: a.mesh.port
        b = self.run_node(accept(self.directory / "b", text), advertise=(f"{onions['b']}:9471",), socks=socks)
        tor.onions[onions["b"]] = lambda: b.mesh.port
        await self.until(lambda: a.mesh._node.peers.count() == b.mesh._node.peers.count() == (1, 1), "each dials each")
        self.assertEqual({(onions["a"], 9470), (onions["b"], 9471)}, set(tor.asked))
        a.mesh.send("b", "note", Note(text="through tor"))
        await self.until(lambda: b.heard, "heard")
        await self.stop(a)
        await self.stop(b)

    async def test_an_onion_without_a_tor(self) -> None:
        a = self.founder()
        b = self.run_node(accept(self.directory / "b", self.text(a, f"{'a' * 56}.onion:9470")))
        await deferLater(reactor, 0.3)
        self.assertIn("not joined", b.why_not_ready())

    def text(self, a: Running, seed: str) -> str:
        return invitation(a.files, "b", CA, (seed,))
