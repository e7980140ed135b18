"""The caveats read once judge exactly as the plain sentences of `ron.auth.caveats` do, and narrowing only narrows."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import Authority, Caveat, RootKeys, Wanted, attenuate
from ron.auth.caveats import RESOURCE, expired, path_allows, scope_allows
from ron.auth.refusals import Refused
from ron.auth.terms import Terms
from ron.proto.errors import RonError

NOW = 1_800_000_000.0
AUDIENCE = "ron-node"

caveats = st.one_of(
    st.builds(Caveat, st.just("aud"), st.sampled_from([AUDIENCE, AUDIENCE, "ron-kms"])),
    st.builds(
        Caveat,
        st.just("scope"),
        st.sampled_from(["a:b", "a:*", "*", "a:c,a:b", "a:b, x:y", "a", ":", "*:b", "b:*,c:*"]),
    ),
    st.builds(Caveat, st.just("method"), st.sampled_from(["GET", "POST"])),
    st.builds(Caveat, st.just("path"), st.sampled_from(["/", "/v1", "/v1/", "/v1/a", "/v1//", "v1"])),
    st.builds(
        Caveat,
        st.just("exp"),
        st.sampled_from(
            ["2020-01-01T00:00:00Z", "2027-01-15T08:00:00Z", "2027-01-15T10:00:01+02:00", "2040-01-01T00:00:00Z"]
        ),
    ),
    st.builds(Caveat, st.sampled_from(sorted(RESOURCE - {"holder"})), st.sampled_from(["x", "y"])),
    st.builds(Caveat, st.just("holder"), st.sampled_from(["0" * 64, "1" * 64])),
    st.builds(Caveat, st.sampled_from(["rps", "bytes_per_day"]), st.sampled_from(["1", "5", "100000"])),
)
wanteds = st.builds(
    Wanted,
    st.sampled_from(["a:b", "a:c", "a", "x:y", "b:"]),
    st.sampled_from(["GET", "POST"]),
    st.sampled_from(["/", "/v1", "/v1/", "/v1/a", "/v1/a/b", "/v10"]),
    st.frozensets(st.sampled_from([*sorted(RESOURCE), "scope", "exp"])),
)


def covered(caveat: Caveat, wanted: Wanted, now_s: float) -> bool:
    """One caveat in plain words."""
    name, value = caveat
    return {
        "aud": lambda: value == AUDIENCE,
        "scope": lambda: scope_allows(value, wanted.scope),
        "method": lambda: value == wanted.method,
        "path": lambda: path_allows(value, wanted.path),
        "exp": lambda: not expired(value, now_s),
        "rps": lambda: True,
        "bytes_per_day": lambda: True,
    }.get(name, lambda: name in wanted.enforces)()


class Judging(SynchronousTestCase):
    @settings(max_examples=100, deadline=None)
    @given(st.lists(caveats, max_size=5), wanteds, st.sampled_from([NOW, NOW + 1, NOW + 10**9]))
    def test_as_the_plain_sentences_say(self, held: list[Caveat], wanted: Wanted, now_s: float) -> None:
        terms = Terms("0" * 32, 1, tuple(held), audience=AUDIENCE, retires_s=None)
        try:
            terms.judge(wanted, now_s)
            passed = True
        except Refused:
            passed = False
        self.assertEqual(passed, all(covered(caveat, wanted, now_s) for caveat in held))

    @settings(max_examples=100, deadline=None)
    @given(st.lists(caveats, max_size=3), st.lists(caveats, min_size=1, max_size=3), wanteds)
    def test_attenuation_never_widens(self, held: list[Caveat], added: list[Caveat], wanted: Wanted) -> None:
        keys = RootKeys.generate(NOW)
        before = Authority(keys, audience=AUDIENCE, now=lambda: NOW).mint(held)
        after = attenuate(before, added)
        if self.outcome(keys, after, wanted):
            self.assertTrue(self.outcome(keys, before, wanted))
            self.assertTrue(all(covered(caveat, wanted, NOW) for caveat in [*held, *added]))

    def outcome(self, keys: RootKeys, token: str, wanted: Wanted) -> bool:
        try:
            Authority(keys, audience=AUDIENCE, now=lambda: NOW).admit(token, wanted)
        except RonError:
            return False
        return True

    def test_only_what_can_bind_is_counted(self) -> None:
        held = tuple(Caveat("rps", value) for value in ("9", "10", "9", "3", "8"))
        terms = Terms("0" * 32, 1, held, audience=AUDIENCE, retires_s=None)
        self.assertEqual([rate.limit for rate in terms.rates], [9.0, 3.0])
        self.assertEqual(len({rate.key for rate in terms.rates}), 2)

    def test_an_allowance_is_known_by_its_whole_chain(self) -> None:
        def key(*held: tuple[str, str]) -> bytes:
            return Terms("0" * 32, 1, tuple(Caveat(*c) for c in held), audience=AUDIENCE, retires_s=None).rates[-1].key

        one = key(("topic", "a"), ("rps", "1"))
        self.assertEqual(one, key(("topic", "a"), ("rps", "1"), ("method", "GET")))
        self.assertNotEqual(one, key(("topic", "b"), ("rps", "1")))
        self.assertNotEqual(one, key(("rps", "1"), ("topic", "a")))
