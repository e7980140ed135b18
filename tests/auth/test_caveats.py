"""What a capability may be narrowed by: pure text and decisions."""

from __future__ import annotations

import contextlib

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.auth.caveats import (
    ALLOWANCES,
    GENERAL,
    KNOWN,
    MAX_CAVEAT_CHARS,
    RESOURCE,
    Caveat,
    expired,
    expiry,
    parse_caveat,
    path_allows,
    scope_allows,
)

words = st.from_regex(r"[a-z_]{2,8}", fullmatch=True)
segments = st.lists(st.from_regex(r"[a-z0-9.%~-]{1,5}", fullmatch=True), min_size=1, max_size=4)


class Forms(SynchronousTestCase):
    def test_the_names_of_the_design(self) -> None:
        self.assertEqual(
            KNOWN,
            {"aud", "tenant", "app", "scope", "method", "path", "exp", "rps", "bytes_per_day", "topic", "holder"},
        )
        self.assertEqual(len(GENERAL) + len(RESOURCE) + len(ALLOWANCES), len(KNOWN))

    @given(
        st.sampled_from(sorted(KNOWN - ALLOWANCES - {"exp", "holder"})),
        st.text(min_size=1, max_size=300).map(str.strip).filter(bool),
    )
    def test_there_and_back(self, name: str, value: str) -> None:
        self.assertEqual(parse_caveat(str(Caveat(name, value))), Caveat(name, value))

    @given(st.text(st.characters(), max_size=60))
    @example("exp = 0001-01-01T00:00:00+23:59")
    def test_any_other_text_is_a_value_error(self, text: str) -> None:
        with contextlib.suppress(ValueError):
            caveat = parse_caveat(text)
            self.assertIn(caveat.name, KNOWN)
            self.assertEqual(str(caveat), text)

    def test_a_holder_is_a_key_in_one_spelling(self) -> None:
        key = "0123456789abcdef" * 4
        self.assertEqual(parse_caveat(f"holder = {key}"), Caveat("holder", key))
        for value in (key[:-1], key + "0", key.upper(), "g" * 64, "٠" * 64, f"0x{key[:-2]}", f"{key}\n"):
            self.assertRaises(ValueError, parse_caveat, f"holder = {value}")

    def test_near_misses(self) -> None:
        for text in (
            "",
            "scope",
            "scope=x",
            "scope = ",
            "scope =  x",
            "scope = x ",
            "scope = x\n",
            " scope = x",
            "Scope = x",
            "scopes = x",
            "time < 2030-01-01",
            "topic = " + "x" * MAX_CAVEAT_CHARS,
        ):
            self.assertRaises(ValueError, parse_caveat, text)

    def test_the_length_limit_to_the_character(self) -> None:
        longest = "topic = " + "x" * (MAX_CAVEAT_CHARS - 8)
        self.assertEqual(str(parse_caveat(longest)), longest)
        self.assertRaises(ValueError, parse_caveat, longest + "x")

    def test_an_expiry_that_is_no_instant(self) -> None:
        for value in ("tomorrow", "2030-01-01", "2030-01-01T00:00:00", "2030-13-01T00:00:00Z", "1767225600", "9" * 400):
            self.assertRaises(ValueError, parse_caveat, f"exp = {value}")

    @given(st.integers(0, 9_999_999), st.integers(0, 999))
    @example(0, 0)
    @example(0, 1)
    def test_requests_per_second(self, whole: int, thousandths: int) -> None:
        text = f"rps = {whole}.{thousandths:03}"
        if whole or thousandths:
            self.assertEqual(parse_caveat(text).name, "rps")
        else:
            self.assertRaises(ValueError, parse_caveat, text)

    def test_numbers_have_one_spelling(self) -> None:
        for value in (
            "-1",
            "+1",
            "1e3",
            "01",
            "1_000",
            "nan",
            "inf",
            "0",
            "0.0",
            "1.",
            ".5",
            "٣",
            "10000000",
            "1.0005",
        ):
            self.assertRaises(ValueError, parse_caveat, f"rps = {value}")
        for value in ("-1", "0", "01", "1.5", "1e3", "1MiB", "1" + "0" * 15, "٣"):
            self.assertRaises(ValueError, parse_caveat, f"bytes_per_day = {value}")
        self.assertEqual(parse_caveat("bytes_per_day = 999999999999999").value, "9" * 15)


class Scopes(SynchronousTestCase):
    @given(words, words)
    def test_itself_its_family_and_everything(self, family: str, verb: str) -> None:
        scope = f"{family}:{verb}"
        for pattern in (scope, f"{family}:*", "*", f"other:x, {scope}", f"{scope},other:x"):
            self.assertTrue(scope_allows(pattern, scope), pattern)

    @given(words, words, words)
    def test_nothing_else(self, family: str, verb: str, other: str) -> None:
        scope = f"{family}:{verb}"
        for pattern in (
            f"{family}{other}:*",
            f"{scope}{other}",
            family,
            f"*:{verb}",
            f"{family}:",
            "",
            ":*",
            f"{family[:-1]}*",
            f"{family} {verb}",
        ):
            self.assertFalse(scope_allows(pattern, scope), pattern)

    @given(st.lists(st.sampled_from(["mailbox:send", "mailbox:*", "edge:prefetch", "*", "x"]), max_size=4))
    def test_a_list_allows_what_one_of_it_allows(self, patterns: list[str]) -> None:
        for scope in ("mailbox:send", "edge:prefetch", "kms:sign"):
            self.assertEqual(scope_allows(",".join(patterns), scope), any(scope_allows(p, scope) for p in patterns))


class Paths(SynchronousTestCase):
    @given(segments, st.integers(1, 4))
    def test_itself_and_what_lies_below(self, parts: list[str], kept: int) -> None:
        path = "/" + "/".join(parts)
        prefix = "/" + "/".join(parts[:kept])
        self.assertTrue(path_allows(prefix, path))
        self.assertTrue(path_allows("/", path))
        if kept < len(parts):
            self.assertTrue(path_allows(prefix + "/", path))

    @given(segments, st.from_regex(r"[a-z0-9.]{1,3}", fullmatch=True))
    def test_whole_segments_only(self, parts: list[str], more: str) -> None:
        """`/v1` covers `/v1/send` and not `/v10`."""
        prefix = "/" + "/".join(parts)
        self.assertFalse(path_allows(prefix, prefix + more))
        self.assertFalse(path_allows(prefix, prefix[:-1]))
        self.assertFalse(path_allows(prefix, "/!" + prefix))

    def test_a_trailing_slash_means_below_only(self) -> None:
        self.assertFalse(path_allows("/v1/", "/v1"))
        self.assertTrue(path_allows("/v1/", "/v1/send"))

    def test_no_decoding_before_the_comparison(self) -> None:
        self.assertFalse(path_allows("/v1/send", "/v1/%73end"))
        self.assertFalse(path_allows("/v1/send", "/V1/send"))


class Expiry(SynchronousTestCase):
    @given(st.integers(0, 4_000_000_000), st.integers(1, 10**8), st.integers(0, 2 * 10**8))
    def test_it_ends_when_it_says(self, now_s: int, ttl_s: int, later_s: int) -> None:
        caveat = parse_caveat(str(expiry(now_s, ttl_s)))
        self.assertEqual(expired(caveat.value, now_s + later_s), later_s >= ttl_s)

    @given(st.integers(0, 10**10), st.integers(0, 10**7))
    def test_never_later_than_asked_for(self, now_ms: int, ttl_ms: int) -> None:
        caveat = expiry(now_ms / 1000, ttl_ms / 1000)
        self.assertTrue(expired(caveat.value, (now_ms + ttl_ms) / 1000))

    def test_the_time_zone_counts(self) -> None:
        noon_utc = 1767268800.0  # 2026-01-01T12:00:00Z
        for value in ("2026-01-01T12:00:00Z", "2026-01-01T14:00:00+02:00", "2026-01-01T07:00:00-05:00"):
            self.assertFalse(expired(value, noon_utc - 0.001))
            self.assertTrue(expired(value, noon_utc))

    def test_the_ends_of_time(self) -> None:
        self.assertTrue(expired("0001-01-01T00:00:00+23:59", 0.0))
        self.assertFalse(expired("9999-12-31T23:59:59-23:59", 1e11))
