"""A token that is not what it was, or not what it says: put back from an older copy, hanging, lying. Needs SoftHSM."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from pkcs11 import Attribute, ObjectClass
from pkcs11.attributes import AttributeMapper
from pkcs11.exceptions import TokenNotPresent
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import wrapping
from ron.crypto.wrapping import Suite
from ron.proto.errors import ErrorCode
from ron.proto.kms import Alg
from ron.services.kms.backends import heads, pkcs11_head
from ron.services.kms.backends import pkcs11_objects as objects
from ron.services.kms.backends.errors import RolledBackError
from ron.services.kms.backends.pkcs11_records import DamagedRecordError, object_id
from ron.services.kms.backends.pkcs11_sealing import GCM
from ron.services.kms.backends.pkcs11_sessions import Seat
from tests.services.kms.backends.contract import KEM, MESSAGE, SIGNING, envelope_for, new_kid
from tests.services.kms.backends.softhsm import SoftToken
from tests.services.kms.backends.test_pkcs11 import TokenCase


class Rollback(TokenCase):
    """I-6: a token that was put back as a whole."""

    def put_back(self, older: Path) -> None:
        """Another token's objects in the place of its own."""
        shutil.rmtree(self.token.tokens)
        shutil.copytree(older, self.token.tokens)

    def test_i6_an_older_copy_of_the_token(self) -> None:
        """It is consistent in itself: what the audit log remembers tells. Newer is fine."""
        backend = self.opened()
        fresh = backend.head()
        first = backend.generate(new_kid(), SIGNING)
        known = [fresh, backend.head()]
        backend.close()
        older = self.token.home / "older"
        shutil.copytree(self.token.tokens, older)
        backend = self.opened()
        backend.destroy(first.kid)
        known.append(backend.head())
        backend.generate(new_kid(), (Alg.ED25519,))
        known.append(backend.head())
        self.assertEqual([counter for counter, _digest in known], [0, 1, 2, 3])
        backend.close()
        again = self.opened()
        self.assertEqual(again.head(), known[-1])
        for head in known:
            again.check_head(*head)
        again.close()
        self.put_back(older)
        back = self.opened()
        self.assertEqual(list(back.held()), [first])
        for head in known[:2]:
            back.check_head(*head)
        for head in known[2:]:
            error = self.assertRaises(RolledBackError, back.check_head, *head)
            self.assertIn("pkcs11", error.message)

    def test_i6_while_it_was_away(self) -> None:
        """It comes back as an older one: the probe says so each time, until the newest is there."""
        backend = self.opened()
        backend.generate(new_kid(), (Alg.ED25519,))
        older, newest = self.token.home / "older", self.token.home / "newest"
        shutil.copytree(self.token.tokens, older)
        backend.generate(new_kid(), (Alg.ED25519,))
        shutil.copytree(self.token.tokens, newest)
        with self.token.away():
            self.refused(ErrorCode.STORE_UNAVAILABLE, backend.probe)
        self.put_back(older)
        self.clock.advance(60)
        for _ in range(2):
            self.assertRaises(RolledBackError, backend.probe)
        self.put_back(newest)
        with self.token.away():
            self.refused(ErrorCode.STORE_UNAVAILABLE, backend.probe)
        self.clock.advance(60)
        backend.probe()
        backend.probe()

    def test_an_empty_token_in_its_place(self) -> None:
        """Initialised anew, without any head: older than anything that was said."""
        backend = self.opened()
        backend.generate(new_kid(), (Alg.ED25519,))
        known = backend.head()
        backend.close()
        self.token = SoftToken(self.stack)
        self.assertRaises(RolledBackError, self.opened().check_head, *known)

    def test_a_head_that_is_none(self) -> None:
        """Damaged: it is not taken for a token without a past."""
        backend = self.opened()
        backend.generate(new_kid(), (Alg.ED25519,))
        with backend._sessions.seat() as seat:
            for found in pkcs11_head._all(seat.session):
                found.destroy()
            objects.put(seat.session, pkcs11_head.LABEL, b"rubbish")
        self.assertRaises(DamagedRecordError, backend.generate, new_kid(), (Alg.ED25519,))
        backend.close()
        self.assertRaises(DamagedRecordError, self.build().open)

    def test_a_key_that_could_not_be_made_was_counted(self) -> None:
        """The count goes first: what returned was counted, and a failure more does no harm."""
        backend = self.opened()
        known = backend.head()
        put = objects.put

        def fails(session: Any, label: str, value: bytes) -> None:
            if label != pkcs11_head.LABEL:
                raise TokenNotPresent
            put(session, label, value)

        self.patch(objects, "put", fails)
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.generate, new_kid(), (Alg.ED25519,))
        self.assertEqual(backend.head()[0], known[0] + 1)
        self.clock.advance(60)
        backend.probe()
        backend.check_head(*known)

    def test_a_closed_one_stands_nowhere(self) -> None:
        """StoreUnavailable."""
        backend = self.build()
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.head)
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.check_head, 0, b"")

    def test_two_hosts_that_count_at_once(self) -> None:
        """Both heads are part of the next one's past."""
        backend = self.opened()
        mine = backend.generate(new_kid(), (Alg.ED25519,)) and backend.head()
        with backend._sessions.seat() as seat:
            rival = pkcs11_head.successor([pkcs11_head.START], b"of another host")
            objects.put(seat.session, pkcs11_head.LABEL, msgspec.msgpack.encode(rival))
        theirs = heads.told("pkcs11", rival.counter, rival.digest)
        backend.close()
        again = self.opened()
        again.check_head(*mine)
        again.check_head(*theirs)
        again.generate(new_kid(), (Alg.ED25519,))
        again.check_head(*mine)
        again.check_head(*theirs)
        self.assertEqual(again.head()[0], 2)


class Heads(SynchronousTestCase):
    """The chain, without a token."""

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.binary(max_size=8), min_size=1, max_size=60))
    def test_all_of_the_recent_past_is_known(self, changes: list[bytes]) -> None:
        """And nothing else: no other digest, no other number."""
        past = [pkcs11_head.START]
        for change in changes:
            past.append(pkcs11_head.successor(past[-1:], change))
        newest = past[-1]
        for back, head in enumerate(reversed(past)):
            self.assertEqual(pkcs11_head.knows([newest], head.counter, head.digest), back <= pkcs11_head.HISTORY, back)
        self.assertFalse(pkcs11_head.knows([newest], newest.counter, bytes(32)))
        self.assertFalse(pkcs11_head.knows([newest], newest.counter + 1, newest.digest))
        self.assertEqual(pkcs11_head.decode(msgspec.msgpack.encode(newest)), newest)

    def test_what_is_no_head(self) -> None:
        """Rubbish, another version, too long a past, too much of it."""
        good = msgspec.msgpack.decode(msgspec.msgpack.encode(pkcs11_head.START))
        for change in ({"v": 2}, {"counter": -1}, {"digest": b"x"}, {"before": [[0, bytes(32)]] * 49}, {"more": 1}):
            self.assertRaises(DamagedRecordError, pkcs11_head.decode, msgspec.msgpack.encode({**good, **change}))
        for raw in (b"", b"\xc1", bytes(17 * 1024)):
            self.assertRaises(DamagedRecordError, pkcs11_head.decode, raw)


class Hanging(TokenCase):
    """A call that went into the module and does not come back."""

    def test_nobody_waits_behind_a_hang(self) -> None:
        """At first the deadline counts; once it hangs, all are refused at once, with the time; then it goes on."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        backend = self.opened(checkout_s=30.0, hang_s=2.0)
        held = backend.generate(new_kid(), (Alg.ED25519,))
        stuck = backend._sessions._take()
        self.clock.advance(2.5)
        for call in (backend.probe, backend.held, lambda: backend.sign(held.kid, Alg.ED25519, MESSAGE)):
            error = self.refused(ErrorCode.STORE_UNAVAILABLE, call)
            self.assertIn("2 s", error.message)
            self.assertGreaterEqual(error.retry_after_s or 0, 1)
        self.assertEqual(backend._sessions.hangs_s, 2.5)
        backend._sessions._give_back(stuck, whole=True)
        self.assertEqual(backend._sessions.hangs_s, 0.0)
        backend.sign(held.kid, Alg.ED25519, MESSAGE)
        names = [event["event"] for event in events if "event" in event]
        self.assertEqual(names, ["kms_backend_error", "kms_backend_reconnected"])
        self.assertEqual(self.came_back, 0)

    def test_a_connection_that_hangs(self) -> None:
        """The same while somebody is on the way to the token."""
        backend = self.opened(checkout_s=30.0, hang_s=2.0)
        sessions = backend._sessions
        sessions._up, sessions._connecting, sessions._connecting_since_s = False, True, self.clock.seconds()
        self.clock.advance(3)
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.probe)
        sessions._connecting = False
        backend.probe()

    def test_a_token_whose_name_is_no_text(self) -> None:
        """No way to it, and the next caller tries again: nothing is left half connected."""
        backend = self.opened()
        sessions = backend._sessions
        with self.token.away():
            self.refused(ErrorCode.STORE_UNAVAILABLE, backend.probe)
        self.clock.advance(60)
        sit_down = sessions._sit_down

        def strange() -> list[Seat]:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

        sessions._sit_down = strange  # type: ignore[method-assign]
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.probe)
        sessions._sit_down = sit_down  # type: ignore[method-assign]
        self.clock.advance(60)
        backend.probe()


class Lying(TokenCase):
    """A token, or somebody in it, that does not say what is so."""

    def test_a_signature_of_another_key(self) -> None:
        """Two keys exchanged in the token: nothing is signed in the name of either."""
        backend = self.opened()
        one, other = (backend.generate(new_kid(), (Alg.ED25519,)) for _ in range(2))
        with backend._sessions.seat() as seat:
            theirs = objects.find(seat.session, other.kid, ObjectClass.PRIVATE_KEY)
            objects.find(seat.session, one.kid, ObjectClass.PRIVATE_KEY).destroy()
            theirs[Attribute.ID] = object_id(one.kid)
        error = self.refused(ErrorCode.INTERNAL, backend.sign, one.kid, Alg.ED25519, MESSAGE)
        self.assertNotIn(one.kid.uuid, error.one_line())

    def test_a_seed_of_another_key(self) -> None:
        """Or of another length: damaged, and no signature, no opened envelope."""
        backend = self.opened()
        held = backend.generate(new_kid(), (Alg.ML_DSA,))
        wraps = backend.generate(new_kid(purpose="wrap"), KEM)
        envelope, info = envelope_for(wraps, Suite.HYBRID, b"k" * 32), wrapping.info_of(wraps.kid, Suite.HYBRID)
        for lie in (bytes(32), bytes(31), b"", bytes(64)):
            self.patch(GCM, "unseal", lambda *_args, lie=lie: lie)
            self.assertRaises(DamagedRecordError, backend.sign, held.kid, Alg.ML_DSA, MESSAGE)
            self.assertRaises(DamagedRecordError, backend.unwrap, wraps.kid, Suite.HYBRID.value, envelope, info)

    def test_names_that_are_no_text(self) -> None:
        """A label of ours that is no UTF-8: a damaged record, and the pool is whole afterwards."""
        backend = self.opened()
        backend.generate(new_kid(), SIGNING)

        class Strange:
            def __getitem__(self, attribute: Attribute) -> Any:
                return AttributeMapper().unpack_attributes(attribute, b"\xff\xfe")

        self.patch(objects, "all_data", lambda _session: iter([Strange()]))
        self.assertRaises(DamagedRecordError, backend.held)
        backend.probe()
        self.assertEqual(len(backend._sessions._idle), 1)
