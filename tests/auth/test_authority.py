"""Capabilities: what is minted is admitted for what it covers; everything else is 401 or 403, and nothing else."""

from __future__ import annotations

import base64

from hypothesis import given, settings
from hypothesis import strategies as st
from pymacaroons import MACAROON_V1, MACAROON_V2, Macaroon
from pymacaroons.serializers import JsonSerializer
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import Authority, Capability, Caveat, Epoch, RootKeys, Wanted
from ron.auth import authority as authority_module
from ron.auth.caveats import expiry
from ron.auth.refusals import REASONS
from ron.auth.revocations import Revocation, Revocations
from ron.auth.tokens import MAX_TOKEN_CHARS
from ron.proto.errors import ErrorCode, RonError

NOW = 1_800_000_000.0
SEND = Wanted("mailbox:send", "POST", "/v1/send")


def decoded(token: str) -> bytes:
    """The binary macaroon."""
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def encoded(raw: bytes) -> str:
    """As it is minted: base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def narrowed(token: str, *caveats: str) -> str:
    """What a holder makes of a token with any macaroon library; no key is needed."""
    macaroon = Macaroon.deserialize(token)
    for caveat in caveats:
        macaroon.add_first_party_caveat(caveat)
    return str(macaroon.serialize())


def epochs(**keys: bytes) -> RootKeys:
    """Root keys as `k3=b"3" * 32`, the newest minting, the others in their grace."""
    numbers = {int(name[1:]): key for name, key in keys.items()}
    newest = max(numbers)
    return RootKeys(Epoch(kid, key, NOW, None if kid == newest else NOW + 100) for kid, key in numbers.items())


class Judged(SynchronousTestCase):
    """An authority with a clock we can turn."""

    def setUp(self) -> None:
        self.now_s = NOW
        self.keys = RootKeys.generate(NOW)
        self.authority = self.made(self.keys)

    def made(self, keys: RootKeys, audience: str = "ron-node") -> Authority:
        return Authority(keys, audience=audience, now=lambda: self.now_s)

    def minted(self, *caveats: tuple[str, str]) -> str:
        return self.authority.mint(Caveat(*c) for c in caveats)

    def admitted(self, token: str | None, wanted: Wanted = SEND) -> Capability:
        return self.authority.admit(token, wanted)

    def refused(self, status: int, token: str | None, wanted: Wanted = SEND) -> RonError:
        error: RonError = self.assertRaises(RonError, self.authority.admit, token, wanted)
        self.assertIs(error.code, ErrorCode.NO_CAPABILITY)
        self.assertEqual(error.status, status, error.message)
        self.assertTrue(error.hint)
        self.assertEqual("WWW-Authenticate" in error.headers, status == 401)
        return error


class Minting(Judged):
    def test_what_is_minted_is_admitted(self) -> None:
        token = self.minted(("scope", "mailbox:send"))
        capability = self.admitted(token)
        self.assertEqual(capability.kid, 1)
        self.assertEqual(len(bytes.fromhex(capability.cap_id)), 16)
        self.assertEqual(capability.caveats, (Caveat("aud", "ron-node"), Caveat("scope", "mailbox:send")))

    def test_it_is_a_v2_macaroon_in_base64url_without_padding(self) -> None:
        for length in range(1, 7):
            token = self.minted(("topic", "x" * length))
            self.assertRegex(token, r"^[A-Za-z0-9_-]+$")
            self.assertEqual(decoded(token)[0], MACAROON_V2)
            self.admitted(token, SEND._replace(enforces=frozenset({"topic"})))

    def test_no_two_are_alike(self) -> None:
        self.assertEqual(len({self.admitted(self.minted()).cap_id for _ in range(50)}), 50)

    def test_a_caveat_that_would_never_be_understood_is_not_minted(self) -> None:
        for caveat in (("colour", "red"), ("exp", "tomorrow"), ("scope", ""), ("scope", "x" * 600)):
            self.assertRaises(ValueError, self.minted, caveat)

    def test_with_the_newest_epoch(self) -> None:
        self.authority = self.made(epochs(k3=b"3" * 32, k9=b"9" * 32))
        self.assertEqual(self.admitted(self.minted()).kid, 9)


class Caveats(Judged):
    """Each kind lets pass what it names and nothing else."""

    def covers(self, caveat: tuple[str, str], good: Wanted, *bad: Wanted) -> None:
        token = self.minted(caveat)
        self.admitted(token, good)
        for wanted in bad:
            self.refused(403, token, wanted)

    def test_scope(self) -> None:
        self.covers(
            ("scope", "mailbox:send,edge:*"),
            SEND,
            SEND._replace(scope="mailbox:recv"),
            SEND._replace(scope="node:read"),
        )

    def test_method(self) -> None:
        self.covers(("method", "POST"), SEND, SEND._replace(method="GET"), SEND._replace(method="post"))

    def test_path(self) -> None:
        self.covers(("path", "/v1/send"), SEND, SEND._replace(path="/v1"), SEND._replace(path="/v1/sender"))

    def test_audience(self) -> None:
        token = self.made(self.keys, "ron-kms").mint([])
        self.assertIn("audience", self.refused(403, token).message)

    def test_expiry(self) -> None:
        token = self.authority.mint([expiry(NOW, 60)])
        self.now_s = NOW + 59
        self.admitted(token)
        self.now_s = NOW + 60
        self.assertIn("expired", self.refused(401, token).message)

    def test_the_strictest_of_several_counts(self) -> None:
        token = self.minted(("scope", "*"), ("scope", "mailbox:*"), ("scope", "mailbox:recv"))
        self.refused(403, token)
        self.admitted(token, SEND._replace(scope="mailbox:recv"))

    def test_a_resource_is_refused_where_nobody_checks_it(self) -> None:
        for name in ("tenant", "app", "topic"):
            token = self.minted((name, "7"))
            self.assertIn(name, self.refused(403, token).message)
            self.refused(403, token, SEND._replace(enforces=frozenset({"tenant", "app", "topic"} - {name})))
            self.admitted(token, SEND._replace(enforces=frozenset({name})))

    def test_an_endpoint_cannot_take_over_what_the_authority_checks(self) -> None:
        everything = frozenset({"scope", "method", "path", "aud", "exp"})
        for caveat in (("scope", "x"), ("method", "GET"), ("path", "/x"), ("exp", "2020-01-01T00:00:00Z")):
            self.assertRaises(RonError, self.admitted, self.minted(caveat), SEND._replace(enforces=everything))

    def test_require_wants_every_one_to_be_equal(self) -> None:
        wanted = SEND._replace(enforces=frozenset({"topic"}))
        free, one, two = (
            self.admitted(self.minted(*caveats), wanted)
            for caveats in ((), (("topic", "a"),), (("topic", "a"), ("topic", "b")))
        )
        free.require("topic", "anything")
        one.require("topic", "a")
        for capability, value in ((one, "b"), (one, ""), (one, "a "), (one, "ä"), (two, "a"), (two, "b")):
            error = self.assertRaises(RonError, capability.require, "topic", value)
            self.assertEqual((error.code, error.status), (ErrorCode.NO_CAPABILITY, 403))


class Refused(Judged):
    """Tokens that are not ours, or no longer what we minted: 401."""

    def test_none_at_all(self) -> None:
        for token in (None, ""):
            error = self.refused(401, token)
            self.assertIn("mailbox:send", str(error.hint))

    def test_another_root_key(self) -> None:
        self.refused(401, self.made(RootKeys.generate()).mint([Caveat("scope", "*")]))

    def test_a_retired_epoch(self) -> None:
        token = self.minted()
        self.authority = self.made(epochs(k2=b"2" * 32))
        self.assertIn("retired", self.refused(401, token).message)

    def test_any_bit_flipped(self) -> None:
        raw = decoded(self.minted(("scope", "mailbox:send")))
        for at in range(len(raw)):
            for bit in range(8):
                changed = bytearray(raw)
                changed[at] ^= 1 << bit
                self.refused(401, encoded(bytes(changed)))

    def test_cut_short_or_drawn_out(self) -> None:
        raw = decoded(self.minted(("scope", "mailbox:send")))
        for length in range(1, len(raw)):
            self.refused(401, encoded(raw[:length]))
        for more in (b"\0", b"x", b"\0\0", raw):
            self.refused(401, encoded(raw + more))

    def test_caveats_taken_off_or_put_in_another_order(self) -> None:
        token = self.minted(("scope", "mailbox:send"), ("method", "POST"), ("path", "/v1"))
        self.admitted(token)
        for order in ((), (0,), (0, 1), (0, 1, 2), (1, 2, 3), (0, 2, 1, 3), (3, 2, 1, 0), (0, 1, 2, 3, 3)):
            macaroon = Macaroon.deserialize(token)
            macaroon.caveats = [macaroon.caveats[index] for index in order]
            self.refused(401, str(macaroon.serialize()))

    def test_another_text_for_a_caveat(self) -> None:
        raw = decoded(self.minted(("scope", "mailbox:recv")))
        self.refused(401, encoded(raw.replace(b"mailbox:recv", b"mailbox:send")))

    def test_a_caveat_slipped_in_without_signing_it(self) -> None:
        """pymacaroons leaves what no predicate accepts out of the chain: it must not come through as harmless."""
        for text in ("colour = red", "scope = *"):
            forged = Macaroon.deserialize(self.minted(("scope", "mailbox:send")))
            signature = forged.signature
            forged.add_first_party_caveat(text)
            forged.signature = signature
            self.refused(401, str(forged.serialize()))

    def test_another_identifier(self) -> None:
        for identifier in ("", "ron1", "ron1 1", "ron1 1 abc", "ron2 1 " + "0" * 32, "ron1 x " + "0" * 32):
            macaroon = Macaroon("ron", identifier, "guess", version=MACAROON_V2)
            self.assertIn("not one of ours", self.refused(401, str(macaroon.serialize())).message)

    def test_an_epoch_number_of_many_digits(self) -> None:
        macaroon = Macaroon("ron", f"ron1 {'9' * 2500} {'0' * 32}", "guess", version=MACAROON_V2)
        self.refused(401, str(macaroon.serialize()))

    def test_signed_with_a_guess(self) -> None:
        for guess in ("", "this is our super secret key; only we should know it", b"\0" * 32):
            macaroon = Macaroon("ron", f"ron1 1 {'0' * 32}", guess, version=MACAROON_V2)
            self.refused(401, str(macaroon.serialize()))

    def test_a_third_party_caveat(self) -> None:
        """Nobody can discharge it here, so it fails closed."""
        macaroon = Macaroon.deserialize(self.minted())
        macaroon.add_third_party_caveat("elsewhere", "their key", "are they a member?")
        self.refused(401, str(macaroon.serialize()))

    def test_an_unknown_caveat_fails_closed(self) -> None:
        for caveat in ("colour = red", "scope=mailbox:send", "SCOPE = *", "", "time < 2030-01-01", "exp = later"):
            self.refused(401, narrowed(self.minted(), caveat))

    def test_too_long(self) -> None:
        self.assertIn("too long", self.refused(401, "A" * (MAX_TOKEN_CHARS + 1)).message)
        token = self.minted()
        while len(narrowed(token, "scope = *")) <= MAX_TOKEN_CHARS:
            token = narrowed(token, "scope = *")
        self.admitted(token)
        self.assertIn("too long", self.refused(401, narrowed(token, "scope = *")).message)

    def test_other_spellings_of_a_good_one(self) -> None:
        """One spelling each: no second form of a token gets past a list of revoked ones, or fills the cache."""
        token = self.minted(("topic", "xx"))
        wanted = SEND._replace(enforces=frozenset({"topic"}))
        self.admitted(token, wanted)
        good = Macaroon.deserialize(token)
        v1 = Macaroon("ron", good.identifier, caveats=good.caveats, signature=good.signature, version=MACAROON_V1)
        elsewhere = good.copy()
        elsewhere.location = "elsewhere"
        for other in (
            token + "=" * (-len(token) % 4 or 4),
            token + "\n",
            " " + token,
            token[:20] + "\n" + token[20:],
            token.replace("-", "+").replace("_", "/") + "!",
            str(v1.serialize()),
            str(elsewhere.serialize()),
            str(good.serialize(serializer=JsonSerializer())),
        ):
            self.refused(401, other, wanted)

    @settings(max_examples=100, deadline=None)
    @given(st.text(st.characters(), max_size=200) | st.from_regex(r"[A-Za-z0-9_=-]{1,200}", fullmatch=True))
    def test_arbitrary_text_is_refused_and_nothing_worse(self, token: str) -> None:
        self.refused(401, token)

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=120), st.sampled_from([b"\x02", b"\x02\x01\x03ron\x02", b"0", b"f", b"-0", b"{"]))
    def test_arbitrary_packets_are_refused_and_nothing_worse(self, raw: bytes, start: bytes) -> None:
        self.refused(401, encoded(start + raw))


class Attenuation(Judged):
    """A holder can make a capability smaller and never larger."""

    NARROWING = (
        "scope = mailbox:send",
        "scope = mailbox:*",
        "scope = *",
        "method = GET",
        "method = POST",
        "path = /v1",
        "path = /",
        "aud = ron-node",
        "aud = ron-kms",
        "exp = 2030-01-01T00:00:00Z",
        "exp = 2020-01-01T00:00:00Z",
        "topic = a",
        "rps = 1000000",
    )

    def outcome(self, token: str, wanted: Wanted) -> bool:
        try:
            self.admitted(token, wanted)
        except RonError:
            return False
        return True

    def test_narrowed_by_hand(self) -> None:
        token = narrowed(self.minted(("scope", "mailbox:*")), "scope = mailbox:recv", "path = /v1/recv")
        self.admitted(token, Wanted("mailbox:recv", "POST", "/v1/recv"))
        self.refused(403, token)
        self.refused(403, narrowed(self.minted(("scope", "mailbox:recv")), "scope = *"))

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.sampled_from(NARROWING), max_size=3),
        st.lists(st.sampled_from(NARROWING), min_size=1, max_size=3),
        st.builds(
            Wanted,
            st.sampled_from(["mailbox:send", "mailbox:recv", "node:read"]),
            st.sampled_from(["GET", "POST"]),
            st.sampled_from(["/v1/send", "/"]),
            st.sampled_from([frozenset(), frozenset({"topic"}), frozenset({"topic", "rps"})]),
        ),
    )
    def test_only_ever_narrower(self, given_out: list[str], added: list[str], wanted: Wanted) -> None:
        before = narrowed(self.minted(), *given_out)
        after = narrowed(before, *added)
        if self.outcome(after, wanted):
            self.assertTrue(self.outcome(before, wanted))
            self.assertEqual(self.admitted(after, wanted).cap_id, self.admitted(before, wanted).cap_id)


class Remembering(Judged):
    """Signatures that held are remembered; decisions are not."""

    def test_an_expiry_is_never_outlived(self) -> None:
        token = self.authority.mint([expiry(NOW, 10)])
        for _ in range(3):
            self.admitted(token)
        self.now_s = NOW + 10
        self.refused(401, token)
        self.now_s = NOW
        self.admitted(token)

    def test_each_call_is_judged_by_what_it_wants(self) -> None:
        token = self.minted(("scope", "mailbox:send"))
        self.admitted(token)
        self.refused(403, token, SEND._replace(scope="node:read"))
        self.admitted(token)

    def test_refusals_are_not_remembered_as_admissions(self) -> None:
        raw = decoded(self.minted())
        forged = encoded(raw[:-1] + bytes([raw[-1] ^ 1]))
        for _ in range(3):
            self.refused(401, forged)

    def test_a_retired_epoch_is_refused_though_remembered(self) -> None:
        token = self.minted()
        self.admitted(token)
        self.keys.rotate(NOW, grace_s=60)
        self.now_s = NOW + 59
        self.admitted(token)
        self.now_s = NOW + 60
        self.assertIn("retired", self.refused(401, token).message)

    def test_keys_that_were_replaced_are_noticed_at_the_next_call(self) -> None:
        token = self.minted()
        self.admitted(token)
        self.keys._replace({1: Epoch(1, b"another key under the same number", NOW)})
        self.refused(401, token)

    def test_a_revocation_is_never_outlived(self) -> None:
        revocations = Revocations(self.keys)
        self.authority = Authority(self.keys, audience="ron-node", now=lambda: self.now_s, revocations=revocations)
        token = self.minted()
        child = narrowed(token, "scope = mailbox:send")
        other = self.minted()
        for good in (token, child, other):
            self.admitted(good)
        revocations.revoke([Revocation(cap_id=self.admitted(token).cap_id, kid=1)], NOW)
        for void in (token, child, narrowed(token, "method = POST")):
            self.assertIn("revoked", self.refused(401, void).message)
        self.admitted(other)

    def test_it_stays_bounded_and_forgets_the_least_used(self) -> None:
        self.patch(authority_module, "VERIFIED_CACHE", 8)
        tokens = [self.minted() for _ in range(8)]
        for token in [*tokens, tokens[0], self.minted()]:
            self.admitted(token)
        self.assertEqual(len(self.authority._verified), 8)
        # under another key only a signature that is not looked at again can hold (no word of the change: no generation)
        self.keys._epochs = {1: Epoch(1, b"another key under the same number", NOW)}
        self.refused(401, tokens[1])
        for token in (tokens[0], *tokens[2:]):
            self.admitted(token)

    def test_garbage_is_not_remembered(self) -> None:
        for number in range(100):
            self.refused(401, f"garbage{number}")
        self.assertEqual(len(self.authority._verified), 0)


class Counting(Judged):
    """Every outcome is counted under a reason of a closed set."""

    def test_reasons(self) -> None:
        revocations = Revocations(self.keys)
        self.authority = Authority(self.keys, audience="ron-node", now=lambda: self.now_s, revocations=revocations)
        counts = self.authority.counts
        gone = self.minted(("topic", "gone"))
        revocations.revoke([Revocation(cap_id=self.authority.recognise(gone).cap_id, kid=1)], NOW)
        raw = decoded(self.minted())
        expected = {
            "missing": None,
            "too_long": "A" * 5000,
            "malformed": "garbage",
            "forged": encoded(raw[:-1] + bytes([raw[-1] ^ 1])),
            "retired": self.made(epochs(k7=b"7" * 32)).mint([]),
            "expired": self.minted(("exp", "2020-01-01T00:00:00Z")),
            "revoked": gone,
            "audience": self.made(self.keys, "ron-kms").mint([]),
            "scope": self.minted(("scope", "x")),
            "method": self.minted(("method", "GET")),
            "path": self.minted(("path", "/x")),
            "resource": self.minted(("tenant", "x")),
        }
        for reason, token in expected.items():
            self.assertRaises(RonError, self.authority.admit, token, SEND)
            self.assertEqual({name for name, count in counts.refused.items() if count}, {reason})
            counts.refused[reason] = 0
        self.assertEqual(set(counts.refused), set(REASONS))
        self.assertEqual(set(REASONS) - set(expected), {"rate", "bytes", "unreadable"})

    def test_hits_and_misses(self) -> None:
        token = self.minted()
        for _ in range(3):
            self.admitted(token)
        self.admitted(narrowed(token, "method = POST"))
        self.assertEqual((self.authority.counts.hits, self.authority.counts.misses), (2, 2))


class Allowances(Judged):
    """`rps` and `bytes_per_day`: what one token may use up, whatever is made of it."""

    def spent(self, token: str) -> RonError:
        error: RonError = self.assertRaises(RonError, self.authority.admit, token, SEND)
        self.assertEqual((error.code, error.status), (ErrorCode.BACKPRESSURE, 429))
        self.assertGreaterEqual(error.retry_after_s or 0, 1)
        return error

    def test_requests_a_second(self) -> None:
        token = self.minted(("rps", "3"))
        for _ in range(3):
            self.admitted(token)
        self.assertEqual(self.spent(token).retry_after_s, 1)
        self.admitted(self.minted(("rps", "3")))
        self.now_s = NOW + 0.34
        self.admitted(token)
        self.spent(token)
        self.now_s = NOW + 1000
        for _ in range(3):
            self.admitted(token)
        self.spent(token)

    def test_less_than_one_a_second(self) -> None:
        token = self.minted(("rps", "0.1"))
        self.admitted(token)
        self.assertEqual(self.spent(token).retry_after_s, 10)
        self.now_s = NOW + 10
        self.admitted(token)

    def test_the_smallest_of_several(self) -> None:
        for caveats in ((("rps", "5"), ("rps", "2")), (("rps", "2"), ("rps", "5"))):
            token = self.minted(*caveats)
            self.admitted(token)
            self.admitted(token)
            self.spent(token)

    def test_many_children_use_up_what_their_parent_has(self) -> None:
        parent = self.minted(("rps", "4"))
        children = [narrowed(parent, f"rps = 3.{number}", f"exp = 2030-01-01T00:00:0{number}Z") for number in range(8)]
        for child in children[:4]:
            self.admitted(child)
        for token in (*children, parent):
            self.spent(token)

    def test_a_child_cannot_starve_its_parent(self) -> None:
        parent = self.minted(("rps", "4"))
        child = narrowed(parent, "rps = 1")
        self.admitted(child)
        for _ in range(20):
            self.spent(child)
        for _ in range(3):
            self.admitted(parent)
        self.spent(parent)

    def test_what_is_refused_for_other_reasons_costs_nothing(self) -> None:
        token = self.minted(("rps", "1"), ("scope", "mailbox:send"))
        for _ in range(5):
            self.refused(403, token, SEND._replace(scope="node:read"))
        self.admitted(token)
        self.spent(token)

    def test_bytes_a_day(self) -> None:
        token = self.minted(("bytes_per_day", "1000"))
        capability = self.admitted(token)
        self.authority.charge_bytes(capability, 999)
        self.authority.charge_bytes(self.admitted(token), 500)
        error = self.spent(token)
        midnight = NOW - NOW % 86_400 + 86_400
        self.assertEqual(error.retry_after_s, midnight - NOW)
        self.now_s = midnight - 1
        self.spent(token)
        self.now_s = midnight
        self.admitted(token)

    def test_bytes_of_children_are_the_parents(self) -> None:
        parent = self.minted(("bytes_per_day", "1000"))
        child, sibling = narrowed(parent, "bytes_per_day = 100"), narrowed(parent, "method = POST")
        self.authority.charge_bytes(self.admitted(child), 100)
        self.spent(child)
        self.authority.charge_bytes(self.admitted(sibling), 900)
        self.spent(sibling)
        self.spent(parent)
        self.authority.charge_bytes(self.admitted(self.minted(("bytes_per_day", "1000"))), 1)

    def test_bytes_of_a_token_without_such_a_caveat_are_not_counted(self) -> None:
        capability = self.admitted(self.minted())
        self.authority.charge_bytes(capability, 10**18)
        self.admitted(self.minted())
        self.assertEqual(len(self.authority._budgets), 0)

    def test_a_chain_of_ever_smaller_ones_has_an_end(self) -> None:
        token = self.minted(*(("rps", str(20 - number)) for number in range(9)))
        self.refused(403, token)
