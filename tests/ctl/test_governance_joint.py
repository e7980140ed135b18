"""A joint key made and used with letters in a folder: the ceremony, the two rounds, whoever lies, `ronctl` itself."""

from __future__ import annotations

import json
import stat
import tempfile
import time
from pathlib import Path
from shutil import rmtree
from typing import Any

from click.testing import CliRunner
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import AUDIENCE, Authority, Caveat, RootKeys
from ron.crypto.frost.keys import KeyShare
from ron.crypto.frost.session import Signer
from ron.ctl.governance import governance as group
from ron.ctl.governance_ceremony import KeyCeremony, group_file, made, read_share, sealed_share
from ron.ctl.governance_joint import Call, Part, Quorum, Session, called, check_call
from ron.ctl.governance_post import SUFFIX
from ron.ctl.governance_together import Calls
from ron.kernel import Metrics
from ron.kernel.unixsock import UnixListener
from ron.proto.errors import RonError
from ron.proto.governance import Role
from ron.services.kms.governance.api import endpoints
from ron.services.kms.governance.book import Book
from ron.services.kms.governance.joint import opened
from ron.services.kms.governance.quorum import Governance
from ron.services.kms.governance.signers import key_id, signer_set
from ron.services.kms.governance.views import standing
from ron.web import Edge, make_site
from tests.ctl.with_node import RonctlCalls
from tests.services.kms.governance.people import AUDITOR, CUSTODIAN, OFFICER, OWNER, START, World, key_of, public_of
from tests.services.kms.governance.shares import JointKey, hexed
from tests.web.wire import until

ROLES: tuple[Role, ...] = (OWNER, OFFICER, CUSTODIAN)
KEYS = [key_of(role) for role in ROLES]
PUBLICS = [hexed(key) for key in KEYS]


class Folder(SynchronousTestCase):
    """An empty folder for letters."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ron-letters-"))
        self.addCleanup(rmtree, self.folder, True)

    def letters(self) -> list[Path]:
        """All that lie there."""
        return sorted(self.folder.glob(f"*{SUFFIX}"))


class Ceremonies(Folder):
    """Keys that are born in a folder."""

    def begin(self, threshold: int = 2) -> list[KeyCeremony]:
        """All three."""
        return [KeyCeremony(self.folder, key, PUBLICS, threshold) for key in KEYS]

    def run_all(self, ceremonies: list[KeyCeremony], rounds: int = 12) -> list[KeyShare]:
        """Each in turn, until all have their shares."""
        shares: dict[int, KeyShare] = {}
        for _ in range(rounds):
            for number, one in enumerate(ceremonies):
                share = one.step()
                if share is not None:
                    shares[number] = share
        return [shares[number] for number in sorted(shares)]

    def test_who_may_not_begin(self) -> None:
        """A stranger, somebody twice, a threshold that is none, a folder with an attempt in it."""
        self.assertRaises(RonError, KeyCeremony, self.folder, key_of("nobody"), PUBLICS, 2)
        self.assertRaises(RonError, KeyCeremony, self.folder, KEYS[0], [*PUBLICS, PUBLICS[0]], 2)
        self.assertRaises(RonError, self.run_all, self.begin(4))
        self.begin(2)
        self.assertRaises(RonError, self.begin, 2)

    def test_a_key_is_born(self) -> None:
        """All have the same group, each a share of its own; any two of them sign, and one does not."""
        shares = self.run_all(self.begin())
        self.assertEqual(len({share.group for share in shares}), 1)
        self.assertEqual(sorted(share.identifier for share in shares), [1, 2, 3])
        found = group_file(shares[0], PUBLICS)
        self.assertEqual(found.members, tuple(sorted(PUBLICS)))
        self.assertEqual(bytes.fromhex(found.public), shares[0].group.public)

    def test_no_secret_lies_in_the_folder(self) -> None:
        """Neither a share nor what it was made of."""
        shares = self.run_all(self.begin())
        content = b"".join(path.read_bytes() for path in self.letters())
        for share in shares:
            self.assertNotIn(share.secret.hex().encode(), content)

    def test_who_is_silent_is_named(self) -> None:
        """At the deadline."""
        one, _other = (KeyCeremony(self.folder, key, PUBLICS, 2) for key in KEYS[:2])
        clock = [0.0]

        def sleep(seconds: float) -> None:
            clock[0] += seconds

        error = self.assertRaises(RonError, made, one, 5.0, now=lambda: clock[0], sleep=sleep)
        self.assertIn(key_id(PUBLICS[2]), error.message)
        self.assertNotIn(key_id(PUBLICS[1]), error.message)

    def test_who_cheats_is_named(self) -> None:
        """A dealing that is another's: the third one's, under its own name."""
        ceremonies = self.begin()
        cheat = ceremonies[2]
        put = cheat._box.put

        def lies(body: bytes, *, to: str = "") -> None:
            # a bit of the first commitment's proof
            put(body[:-1] + bytes((body[-1] ^ 1,)) if not to else body, to=to)

        cheat._box.put = lies  # type: ignore[method-assign]
        error = self.assertRaises(RonError, self.run_all, ceremonies)
        self.assertIn(key_id(PUBLICS[2]), error.message)
        self.assertNotIn(key_id(PUBLICS[0]), error.message)

    def test_a_share_at_rest(self) -> None:
        """Opens with the key of its owner, and with nothing else; a file that others may read is refused."""
        share = self.run_all(self.begin())[0]
        path = self.folder / "share"
        path.write_bytes(sealed_share(share, KEYS[0]))
        path.chmod(0o600)
        self.assertEqual(read_share(path, KEYS[0]).encode(), share.encode())
        self.assertNotIn(share.secret, path.read_bytes())
        self.assertRaises(RonError, read_share, path, KEYS[1])
        path.write_bytes(b"rubbish")
        self.assertRaises(RonError, read_share, path, KEYS[0])
        path.chmod(0o644)
        self.assertRaises(RonError, read_share, path, KEYS[0])
        self.assertRaises(RonError, read_share, self.folder / "none", KEYS[0])


class SignersCase(Folder):
    """Three signers with a joint key, and a proposal."""

    def setUp(self) -> None:
        super().setUp()
        self.joint = JointKey(KEYS)
        members: list[tuple[Role, str]] = [(role, public_of(role)) for role in (*ROLES, AUDITOR)]
        self.world = World(signers=signer_set(members, 2, START, group=self.joint.text))
        self.addCleanup(self.world.governance.stop)
        self.case = self.world.propose("pq_mode", {"pq_mode": "and"})
        self.quorum = Quorum(standing(self.world.governance))

    def call(self, *by: Role) -> Call:
        """The owner asks these for their signatures."""
        names = [self.quorum.found(one) for one in by]
        return called(self.quorum, self.case.proposal.id, self.case.text.encode(), names, "", self.world.now())

    def part(self, call: Call, role: Role, began: Role = OWNER) -> Part:
        """One signer's."""
        number = self.quorum.numbers[public_of(began)]
        session = Session(self.folder, self.quorum, call, number, key_of(role))
        return Part(session, self.joint.shares[public_of(role)], self.quorum.numbers[public_of(role)])


class Signing(SignersCase):
    """Two rounds, step by step."""

    def test_two_sign(self) -> None:
        """Any order of steps; whoever began has the whole, and so has anybody who only reads."""
        call = self.call(OWNER, CUSTODIAN)
        first, second = self.part(call, OWNER), self.part(call, CUSTODIAN)
        self.assertEqual((second.step(), first.session.signed()), (False, None))
        self.assertEqual((first.step(), second.step(), second.step()), (True, True, True))
        first.step()
        signed = first.session.signed()
        assert signed is not None
        statement = opened(signed, self.world.governance.ledger.deciders())
        self.assertEqual(statement.by, tuple(sorted(key_id(public_of(role)) for role in (OWNER, CUSTODIAN))))
        reader = Session(self.folder, self.quorum, call, self.quorum.numbers[public_of(OWNER)])
        reader.look()
        self.assertEqual(reader.signed(), signed)

    def test_a_liar_is_named(self) -> None:
        """A share that does not fit: no signature, and whose it was; the honest one is not."""
        call = self.call(OWNER, CUSTODIAN)
        first, liar = self.part(call, OWNER), self.part(call, CUSTODIAN)
        put = liar.session.box.put
        # some other scalar: its lowest byte is the first of the last 32
        liar.session.box.put = lambda body, **to: put(body[:-32] + bytes((body[-32] ^ 1,)) + body[-31:], **to)  # type: ignore[method-assign]
        first.step()
        liar.step()
        liar.step()
        error = self.assertRaises(RonError, lambda: (first.step(), first.session.signed()))
        self.assertIn(f"bad_share by {CUSTODIAN}", error.message)
        self.assertNotIn(OWNER, error.message)

    def test_others_than_the_named_ones(self) -> None:
        """Whoever began has the officer sign in the custodian's place: the officer does not."""
        named, other = self.call(OWNER, OFFICER), self.call(OWNER, OFFICER)
        officer = self.part(named, OFFICER)
        session = officer.session
        cheat = Session(self.folder, self.quorum, other, session.began)
        cheat.name = session.name
        cheat._coordinator._session = session.name
        cheat._coordinator._signers = frozenset(self.quorum.numbers[public_of(role)] for role in ROLES)
        for role in (OWNER, CUSTODIAN):
            share = self.joint.shares[public_of(role)]
            cheat.take(share.identifier, b"\1" + Signer(share, session.request, session.began).commitment())
        cheat.take(self.quorum.numbers[public_of(OFFICER)], b"\1" + officer._signer.commitment())
        package = cheat.packed()
        assert package is not None
        session.package = package
        error = self.assertRaises(RonError, officer.step)
        self.assertIn("others are to sign", error.message)
        officer.drop()

    def test_what_is_not_signed(self) -> None:
        """Another proposal, another book, no quorum, not us, the future, a share of another key."""
        good = self.call(OWNER, CUSTODIAN)
        proposal, content, own = self.case.proposal.id, self.case.text.encode(), key_id(public_of(CUSTODIAN))
        now = self.world.now()
        check_call(good, self.quorum, proposal, content, own, now)
        for old, new in (
            ('"by":["', '"by":["' + "0" * 32 + '","'),
            (f'"book":"{self.quorum.book}', '"book":"' + "0" * 32),
            (f'"digest":"{self.case.digest}', '"digest":"' + "0" * 64),
            ('"at":1', '"at":9'),
        ):
            self.assertIn(old, good.statement)
            bad = Call(statement=good.statement.replace(old, new), nonce=good.nonce)
            self.assertRaises(RonError, check_call, bad, self.quorum, proposal, content, own, now)
        self.assertRaises(RonError, check_call, good, self.quorum, proposal, content + b" ", own, now)
        self.assertRaises(RonError, check_call, good, self.quorum, proposal, content, key_id(public_of(OFFICER)), now)
        self.assertRaises(RonError, self.call, OWNER)
        self.assertRaises(RonError, self.call, OWNER, "nobody")
        other = JointKey(KEYS)
        session = Session(self.folder, self.quorum, good, self.quorum.numbers[public_of(OWNER)], key_of(CUSTODIAN))
        share = other.shares[public_of(CUSTODIAN)]
        self.assertRaises(RonError, Part, session, share, self.quorum.numbers[public_of(CUSTODIAN)])

    def test_signers_without_a_joint_key(self) -> None:
        """Are told how to get one."""
        world = World()
        self.addCleanup(world.governance.stop)
        error = self.assertRaises(RonError, Quorum, standing(world.governance))
        self.assertIn("keygen --threshold", error.hint or "")

    def test_calls_that_are_none(self) -> None:
        """Rubbish from one of the three is passed over."""
        calls = Calls(self.folder, self.quorum, self.case.proposal.id, KEYS[0])
        calls._box.put(b"rubbish")
        calls._box.put(b'{"statement":"{}","nonce":"' + b"0" * 64 + b'"}')
        good = self.call(OWNER, CUSTODIAN)
        calls.put(good)
        self.assertEqual(calls.found(), [(self.quorum.numbers[public_of(OWNER)], good)])


class Commands(RonctlCalls):
    """`ronctl governance` as three people call it, each in a process."""

    group = "governance"
    timeout = 180

    async def setUp(self) -> None:  # type: ignore[override]
        self.home = Path(tempfile.mkdtemp(prefix="ron-"))
        self.addCleanup(rmtree, self.home, True)
        self.folder = self.home / "letters"
        self.folder.mkdir()
        for role in (*ROLES, AUDITOR):
            CliRunner().invoke(group, ["keygen", "--role", role, "--out", self.path(f"{role}.key")])

    def path(self, name: str) -> str:
        """In the home."""
        return str(self.home / name)

    async def serve(self) -> None:
        """The governance of a service whose signers have the joint key."""
        found = json.loads((self.home / "signers.json").read_text())
        members = [(one["role"], one["public"]) for one in found["members"]]
        authority = Authority(RootKeys.generate(), audience=AUDIENCE, now=time.time)
        self.governance = Governance(reactor, time.time, Book(self.home / "book"), _nobody)
        self.governance.load(signer_set(members, 2, int(time.time()), group=found["group"]))
        await self.governance.settle()
        self.addCleanup(self.governance.stop)
        site = make_site(Edge(authority=authority, metrics=Metrics(), reactor=reactor), endpoints(self.governance))
        listener = UnixListener(reactor, self.home / "run" / "kms.sock", site, backlog=16)
        listener.listen()
        self.addCleanup(until, lambda: not site.channels)
        self.addCleanup(listener.stop)
        cap = self.home / "admin.cap"
        cap.write_text(authority.mint([Caveat("scope", "*")]))
        cap.chmod(0o600)

    async def make_joint_key(self) -> None:
        """All three at the same time."""
        words = ["keygen", "--threshold", "2", "--folder", str(self.folder), "--wait", "60s"]
        members = [word for role in ROLES for word in ("--member", self.path(f"{role}.key.pub"))]
        running = [
            self.start(*words, *members, "--key", self.path(f"{role}.key"), "--out", self.path(f"{role}.share"))
            for role in ROLES
        ]
        for one in running:
            self.assertEqual(await one.end(), 0, one.err)

    def sign(self, proposal: str, role: Role, *more: str) -> Any:
        """One of them approves together with others."""
        return self.start(
            *("approve", proposal, "--folder", str(self.folder), "--share", self.path(f"{role}.share")),
            *("--key", self.path(f"{role}.key"), "--wait", "60s", *more),
        )

    async def test_from_the_key_to_the_decision(self) -> None:
        await self.make_joint_key()
        share = self.home / f"{OWNER}.share"
        self.assertEqual(stat.S_IMODE(share.stat().st_mode), 0o600)
        found = json.loads((self.home / f"{OWNER}.share.pub").read_text())
        publics = [self.path(f"{role}.key.pub") for role in (*ROLES, AUDITOR)]
        done = await self.done("signers", *publics, "--group", f"{share}.pub", "--out", self.path("signers.json"))
        self.assertEqual(done.code, 0, done.err)
        await self.refused(3, "signers", *publics[:2], "--group", f"{share}.pub")
        shown = await self.done("signers", *publics, "--group", f"{share}.pub")
        self.assertIn(f"--change group={found['group']}".encode(), shown.out)
        await self.serve()
        words = ["--scope", "tenant:ACME", "--change", "pq_mode=and", "--rationale", "cutover"]
        proposal = (await self.done("propose", *words, "--key", self.path(f"{OWNER}.key"))).lines[0]
        first = self.sign(proposal, OWNER, "--with", CUSTODIAN, "--reason", "tested")
        second = self.sign(proposal, CUSTODIAN)
        self.assertEqual((await first.end(), await second.end()), (0, 0), (first.err, second.err))
        case = self.governance.ledger.case(proposal)
        self.assertEqual((case.state, case.approvals, len(case.votes)), ("approved", 2, 1))
        told = (await self.done("show", proposal)).out.decode()
        self.assertIn(f"approve  joint {found['key_id']} of ", told)
        self.assertIn(": tested", told)
        self.assertIn(found["public"], (await self.done("list", "--signers")).out.decode())
        # the same again, put together by somebody without any key
        records = len(self.governance.book)
        done = await self.done("aggregate", proposal, "--folder", str(self.folder))
        self.assertEqual((done.code, len(self.governance.book)), (0, records), done.err)
        other = (await self.done("propose", *words, "--key", self.path(f"{OWNER}.key"))).lines[0]
        await self.refused(7, "aggregate", other, "--folder", str(self.folder))

    async def test_wrong_words(self) -> None:
        """Before anything is written."""
        await self.refused(2, "keygen", "--out", self.path("x"))
        await self.refused(2, "keygen", "--threshold", "2", "--out", self.path("x"))
        await self.refused(2, "keygen", "--threshold", "1", "--out", self.path("x"))
        members = ["--member", self.path(f"{OWNER}.key.pub"), "--member", self.path(f"{OFFICER}.key.pub")]
        words = [
            "keygen",
            "--threshold",
            "2",
            *members,
            "--folder",
            str(self.folder),
            "--key",
            self.path(f"{OWNER}.key"),
        ]
        await self.refused(3, *words, "--out", self.path(f"{OWNER}.key"))
        error = await self.refused(3, *words, "--out", self.path("x"), "--wait", "1s")
        self.assertIn("nothing came from", error)
        await self.refused(2, "approve", "0" * 36, "--folder", str(self.folder), "--key", self.path(f"{OWNER}.key"))


async def _nobody(_entry: object) -> None:
    """An audit log that takes everything."""
