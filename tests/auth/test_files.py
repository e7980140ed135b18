"""The folder as a whole: what is done in one process holds in the others, and no order of events lets anybody in."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import AUDIENCE, AuthFiles, Authority, Caveat, Wanted, attenuate, inspect
from ron.auth.caveats import expiry
from ron.auth.rootkeys import GRACE_S, ROTATE_AFTER_S
from ron.kernel.health import HealthState
from ron.proto.errors import ErrorCode, RonError

NOW = 1_800_000_000.0
SEND = Wanted("mailbox:send", "POST", "/v1/send")
SCOPE = [Caveat("scope", "mailbox:send")]


class Folder(SynchronousTestCase):
    def setUp(self) -> None:
        self.now_s = NOW
        self.folder = Path(self.mktemp()).absolute() / "auth"
        self.health = HealthState()
        self.files, self.authority = self.process(self.health)

    def process(self, health: HealthState | None = None) -> tuple[AuthFiles, Authority]:
        """What another process of the node holds."""
        files = AuthFiles(self.folder, lambda: self.now_s, health=health)
        return files, files.authority(AUDIENCE)

    def refused(self, status: int, token: str, authority: Authority | None = None) -> str:
        error = self.assertRaises(RonError, (authority or self.authority).admit, token, SEND)
        self.assertEqual(error.status, status)
        return str(error.message)


class Processes(Folder):
    def test_a_revocation_elsewhere_holds_after_one_refresh(self) -> None:
        other, theirs = self.process()
        issued = self.files.issue(self.authority, SCOPE, label="phone")
        child = attenuate(issued.token, [Caveat("method", "POST")])
        theirs.admit(issued.token, SEND)
        theirs.admit(child, SEND)
        self.assertEqual(self.files.revoke(issued.entry.cap_id), (issued.entry.cap_id,))
        self.refused(401, issued.token)
        self.assertFalse(other.refresh())
        for token in (issued.token, child):
            self.assertIn("revoked", self.refused(401, token, theirs))

    def test_a_rotation_elsewhere_holds_after_one_refresh(self) -> None:
        other, theirs = self.process()
        before = self.files.issue(self.authority, SCOPE).token
        theirs.admit(before, SEND)
        self.files.rotate(grace_s=60)
        after = self.files.issue(self.authority, SCOPE).token
        self.assertIn("retired", self.refused(401, after, theirs))
        self.assertTrue(other.refresh())
        theirs.admit(after, SEND)
        theirs.admit(before, SEND)
        self.now_s += 60
        self.assertIn("retired", self.refused(401, before, theirs))

    def test_another_real_process(self) -> None:
        token = self.files.issue(self.authority, SCOPE).token
        work = (
            "import sys, time; from pathlib import Path; from ron.auth import AuthFiles, inspect\n"
            "AuthFiles(Path(sys.argv[1]), time.time).revoke(inspect(sys.argv[2]).cap_id)"
        )
        subprocess.run([sys.executable, "-c", work, self.folder, token], check=True, timeout=60)
        self.authority.admit(token, SEND)
        self.files.refresh()
        self.refused(401, token)

    def test_it_rotates_by_itself(self) -> None:
        token = self.files.issue(self.authority, SCOPE).token
        self.now_s = NOW + ROTATE_AFTER_S
        self.assertTrue(self.files.refresh())
        self.assertEqual(self.files.keys.current.kid, 2)
        self.authority.admit(token, SEND)
        self.now_s += GRACE_S
        self.refused(401, token)
        self.assertTrue(self.files.refresh())
        self.assertFalse(self.files.refresh())
        self.assertEqual([epoch.kid for epoch in self.files.keys.epochs], [2])

    def test_a_child_minted_while_its_parent_is_revoked_elsewhere(self) -> None:
        other, _ = self.process()
        parent = self.files.issue(self.authority, []).entry.cap_id
        other.revoke(parent)
        error = self.assertRaises(RonError, self.files.issue, self.authority, SCOPE, parent=parent)
        self.assertEqual(error.status, 401)

    def test_from_many_threads(self) -> None:
        """As the HTTP endpoints do it, while the reactor refreshes."""
        tokens: list[str] = []

        def work() -> None:
            for _ in range(5):
                issued = self.files.issue(self.authority, SCOPE)
                self.files.revoke(issued.entry.cap_id)
                tokens.append(issued.token)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self.files.refresh()
        self.files.refresh()
        self.assertEqual(len(tokens), 20)
        for token in tokens:
            self.refused(401, token)
            self.refused(401, token, self.process()[1])


class Revoking(Folder):
    def test_the_holder_cannot_shorten_its_own_revocation(self) -> None:
        """An `exp` in the token at hand may have been added by whoever holds it; the wider token lives longer."""
        wide = self.files.issue(self.authority, SCOPE).token
        stolen = attenuate(wide, [expiry(NOW, 10)])
        self.files.revoke(inspect(stolen).cap_id)
        self.now_s = NOW + 11
        self.files.revoke("f" * 32)
        self.refused(401, wide)

    def test_nobody_knows_when_an_unregistered_one_ends(self) -> None:
        token = self.authority.mint([*SCOPE, expiry(NOW, 10)])
        self.files.revoke(inspect(token).cap_id)
        self.assertIsNone(self.files.revocations.ids[inspect(token).cap_id].until)

    def test_what_was_minted_with_it_goes_too(self) -> None:
        mint = self.files.issue(self.authority, [])
        child = self.files.issue(self.authority, SCOPE, parent=mint.entry.cap_id)
        grandchild = self.files.issue(self.authority, SCOPE, parent=child.entry.cap_id)
        stranger = self.files.issue(self.authority, SCOPE)
        revoked = self.files.revoke(mint.entry.cap_id)
        self.assertEqual(revoked, tuple(issued.entry.cap_id for issued in (mint, child, grandchild)))
        self.refused(401, grandchild.token)
        self.authority.admit(stranger.token, SEND)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_nothing_revoked_comes_back(self, data: st.DataObject) -> None:
        """Whatever happens afterwards: time, rotations, refreshes, restarts, more revocations."""
        self.setUp()
        issued = [
            self.files.issue(self.authority, [*SCOPE, *([expiry(self.now_s, ttl_s)] if ttl_s else [])])
            for ttl_s in data.draw(st.lists(st.sampled_from([0, 100, 10**6]), min_size=1, max_size=4))
        ]
        void: list[str] = []
        for step in data.draw(
            st.lists(st.sampled_from(["revoke", "rotate", "later", "refresh", "restart"]), max_size=12)
        ):
            if step == "revoke":
                one = data.draw(st.sampled_from(issued))
                self.files.revoke(one.entry.cap_id)
                void.append(one.token)
            elif step == "rotate":
                self.files.rotate(grace_s=data.draw(st.sampled_from([0, 1000, GRACE_S])))
            elif step == "later":
                self.now_s += data.draw(st.sampled_from([1, 150, GRACE_S, ROTATE_AFTER_S]))
            elif step == "refresh":
                self.files.refresh()
            else:
                self.files, self.authority = self.process()
            for token in void:
                self.refused(401, token)


class Trouble(Folder):
    def test_a_damaged_list_refuses_everybody_until_it_is_mended(self) -> None:
        token = self.files.issue(self.authority, SCOPE).token
        self.files.revoke("a" * 32)
        path = self.folder / "revoked.json"
        good = path.read_bytes()
        self.authority.admit(token, SEND)
        self.assertTrue(self.health.snapshot().ready)
        path.write_bytes(good[:-3])
        self.files.refresh()
        self.assertIn("damaged", self.refused(503, token))
        self.assertEqual(self.health.snapshot().missing, ("auth.revocations",))
        self.assertEqual(self.authority.counts.refused["unreadable"], 1)
        for work in (lambda: self.files.issue(self.authority, SCOPE), lambda: self.files.revoke("b" * 32)):
            self.assertIs(self.assertRaises(RonError, work).code, ErrorCode.STORE_UNAVAILABLE)
        self.refused(503, token, self.process()[1])
        path.write_bytes(good)
        self.files.refresh()
        self.authority.admit(token, SEND)
        self.assertTrue(self.health.snapshot().ready)

    def test_damaged_keys_go_on_and_are_reported(self) -> None:
        token = self.files.issue(self.authority, SCOPE).token
        path = self.folder / "root.json"
        good = path.read_bytes()
        path.write_bytes(b"garbage")
        reports = []
        self.health.observe(reports.append)
        for _ in range(3):
            self.assertFalse(self.files.refresh())
        self.authority.admit(token, SEND)
        self.assertEqual([report.degraded for report in reports], [("auth.keys",)])
        path.write_bytes(good)
        self.files.refresh()
        self.assertEqual(self.health.snapshot().degraded, ())

    def test_labels(self) -> None:
        for label in ("x" * 65, "two\nlines", "\x1b[31m"):
            self.assertRaises(RonError, self.files.issue, self.authority, SCOPE, label=label)
        self.assertEqual(self.files.listed(), ())

    def test_amnesia_writes_nothing(self) -> None:
        files = AuthFiles(None, lambda: self.now_s)
        authority = files.authority(AUDIENCE)
        issued = files.issue(authority, SCOPE, label="x")
        authority.admit(issued.token, SEND)
        files.revoke(issued.entry.cap_id)
        self.refused(401, issued.token, authority)
        self.assertEqual(files.listed(), ((issued.entry, True),))
        files.rotate(grace_s=0)
        self.assertEqual(files.listed(), ())
        self.assertTrue(files.refresh())
        self.assertFalse(files.refresh())


class Showing(Folder):
    def test_the_list_never_holds_a_token(self) -> None:
        issued = self.files.issue(self.authority, [*SCOPE, expiry(NOW, 60)], label="phone")
        self.assertEqual(issued.entry.expires_at, NOW + 60)
        self.assertEqual(issued.entry.caveats, ("aud = ron-node", "scope = mailbox:send", "exp = 2027-01-15T08:01:00Z"))
        signature = issued.token[-40:]
        for file in self.folder.iterdir():
            self.assertNotIn(signature.encode(), file.read_bytes())
        self.files.revoke(issued.entry.cap_id)
        self.assertEqual(self.files.listed(), ((issued.entry, True),))
        self.now_s = NOW + 60
        self.assertEqual(self.files.listed(), ())

    def test_metrics(self) -> None:
        registry = CollectorRegistry()
        self.authority.counts.register(registry)
        token = self.files.issue(self.authority, SCOPE).token
        for _ in range(3):
            self.authority.admit(token, SEND)
        self.refused(401, "garbage")
        text = generate_latest(registry).decode()
        self.assertIn('auth_checks_total{result="hit"} 2.0', text)
        self.assertIn('auth_checks_total{result="miss"} 1.0', text)
        self.assertIn('auth_refused_total{reason="malformed"} 1.0', text)
        self.assertIn('auth_refused_total{reason="revoked"} 0.0', text)
