"""Log lines: one JSON object per event, without secrets, in a private file or a bounded ring."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import correlation, logs
from ron.kernel.logs import (
    RING_EVENTS,
    JsonLogObserver,
    kid_hash,
    open_log_file,
    redact,
)
from ron.proto.errors import RonError

SECRET = "hunter2"
BLOB = "ED25519-V3:" + "A" * 86 + "=="


class Recorder(SynchronousTestCase):
    """A logger of our own, so that nothing else's events come in between."""

    def setUp(self) -> None:
        self.observer = JsonLogObserver(None, service="ron-node", level="debug")
        self.log = Logger(namespace="ron.test", observer=self.observer)

    def last(self) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(self.observer.ring[-1], parse_constant=self.fail)
        return line


class Lines(Recorder):
    """What a line holds."""

    def test_an_event_and_its_fields(self) -> None:
        self.log.warn("{tor} ended", event="tor_down", tor="relay1", restarts=3, ms=1.5, clean=False)
        line = self.last()
        self.assertRegex(line.pop("ts"), r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(
            line,
            {
                "level": "WARN",
                "service": "ron-node",
                "event": "tor_down",
                "message": "relay1 ended",
                "tor": "relay1",
                "restarts": 3,
                "ms": 1.5,
                "clean": False,
            },
        )

    def test_without_an_event_name_the_namespace_stands_there(self) -> None:
        self.log.info("x")
        self.assertEqual(self.last()["event"], "ron.test")

    def test_fields_cannot_take_the_place_of_the_lines_own(self) -> None:
        self.observer({"log_format": "x", "level": "FAKE", "ts": "FAKE", "service": "FAKE", "message": "FAKE"})
        self.assertNotIn("FAKE", self.observer.ring[-1])

    def test_values_that_are_not_plain_stay_out(self) -> None:
        self.log.info("x", raw=b"bytes", many=["a"], thing=object(), nothing=None)
        self.assertEqual(set(self.last()), {"ts", "level", "service", "event", "message"})

    def test_one_line_whatever_the_text_holds(self) -> None:
        self.log.info("a\nb\r\n{c}", c='x\n"level":"ERROR"', d="\n\n")
        self.assertNotIn("\n", self.observer.ring[-1])
        self.assertEqual(self.last()["message"], 'a\nb\r\nx\n"level":"ERROR"')

    def test_a_failure_has_its_type_message_and_traceback(self) -> None:
        try:
            raise ValueError(f"sent Bearer {SECRET}")
        except ValueError:
            self.log.failure("the {what} broke", what="thing", event="broke")
        line = self.last()
        self.assertEqual(line["level"], "CRITICAL")
        self.assertEqual(line["message"], "the thing broke")
        self.assertEqual(line["error"], "ValueError: sent [redacted]")
        self.assertIn("test_a_failure_has_its_type", line["traceback"])
        self.assertNotIn(SECRET, self.observer.ring[-1])

    def test_numbers_that_json_does_not_have(self) -> None:
        self.log.info("x", a=float("nan"), b=float("inf"))
        self.assertEqual((self.last()["a"], self.last()["b"]), ("nan", "inf"))

    def test_text_that_utf8_does_not_have(self) -> None:
        """A file name with a stray byte comes out of the file system as a lone surrogate."""
        sink = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        observer = JsonLogObserver(sink, service="s")
        Logger(namespace="n", observer=observer).info("cannot read {path}", path=os.fsdecode(b"caf\xe9"))
        self.assertEqual(json.loads(observer.ring[0])["path"], "caf?")

    def test_a_format_that_does_not_fit_its_fields_is_still_a_line(self) -> None:
        self.log.info("{missing}", token=SECRET)
        self.assertIn("missing", self.last()["message"])
        self.assertNotIn(SECRET, self.observer.ring[-1])

    @settings(max_examples=100, deadline=None)
    @given(
        st.text(st.characters(), max_size=40),
        st.dictionaries(
            st.from_regex(r"[a-z_]{1,12}", fullmatch=True).filter(lambda name: not name.startswith("log_")),
            st.text(st.characters()) | st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.binary(),
            max_size=4,
        ),
    )
    def test_any_event_is_one_strict_json_line(self, value: str, fields: dict[str, Any]) -> None:
        fields = {name: v for name, v in fields.items() if name not in {"format", "level", "self", "source"}}
        self.log.info("{value}", **{**fields, "value": value})
        line = self.observer.ring[-1]
        self.assertNotIn("\n", line)
        line.encode("utf-8")
        self.last()


class Redaction(Recorder):
    """Credentials never reach a line."""

    def test_by_form_wherever_they_stand(self) -> None:
        for text in (
            f"Authorization: Bearer {SECRET}",
            f"authorization: bearer   {SECRET}",
            f"ADD_ONION ED25519-V3:{SECRET} Port=80,127.0.0.1:80",
            f"key={BLOB}".replace("A" * 86, SECRET),
            f"AUTHENTICATE {SECRET}",
            f"AUTHCHALLENGE SAFECOOKIE {SECRET}",
            f"Nonce={SECRET}",
        ):
            self.assertNotIn(SECRET, redact(text))
            self.assertIn("[redacted]", redact(text))
            self.log.info("tor said {text}", text=text, inside=text)
            self.assertNotIn(SECRET, self.observer.ring[-1])

    def test_what_stands_around_them_is_kept(self) -> None:
        self.assertEqual(redact(f"before Bearer {SECRET} after"), "before [redacted] after")
        self.assertEqual(redact("nothing to hide"), "nothing to hide")

    def test_by_the_fields_name(self) -> None:
        for name in (
            "secret",
            "client_secret",
            "admin_token",
            "passphrase",
            "password",
            "private_key",
            "capability",
            "macaroon",
            "Authorization",
            "cookie",
            "payload",
            "payload_b64",
        ):
            self.log.info("x", **{name: SECRET})
            self.assertEqual(self.last()[name], "[redacted]", name)

    def test_the_message_does_not_spell_out_what_the_field_hides(self) -> None:
        self.log.info("got {token} and {secret!r}", token=SECRET, secret=SECRET)
        self.assertEqual(self.last()["message"], "got [redacted] and '[redacted]'")

    def test_sizes_are_no_secrets(self) -> None:
        self.log.info("x", payload_bytes=17, payload_len=18)
        self.assertEqual((self.last()["payload_bytes"], self.last()["payload_len"]), (17, 18))

    def test_long_values_are_cut(self) -> None:
        self.log.info("{text}", text="x" * 100_000)
        self.assertLess(len(self.observer.ring[-1]), 5000)
        self.assertTrue(self.last()["text"].endswith("…"))

    @given(st.text(max_size=30), st.from_regex(r"[A-Za-z0-9_-]{20,60}", fullmatch=True))
    @settings(max_examples=100)
    def test_no_text_before_it_saves_a_token(self, before: str, token: str) -> None:
        self.assertNotIn(token, redact(f"{before} Bearer {token}"))


class Planted(Recorder):
    """A secret that somebody put into an event does not come out again, wherever it was put."""

    SECRETS = st.from_regex(r"[A-Za-z0-9]{16,40}", fullmatch=True)
    NAMES = st.sampled_from(
        [
            "token",
            "admin_token",
            "Authorization",
            "cookie",
            "hsm_pin",
            "PIN",
            "api_key",
            "payload",
            "private_key",
            "macaroon",
        ]
    )

    @settings(max_examples=100, deadline=None)
    @given(
        SECRETS,
        NAMES,
        st.sampled_from(["{%s}", "{%s!r}", "{%s!s:>80}", "{%s:.200}", "x{{{%s}}}", "{%s.real}", "{%s[0]}"]),
    )
    def test_in_a_field_whatever_its_type_and_format(self, secret: str, name: str, form: str) -> None:
        for value in (secret, secret.encode(), [secret], {"inner": secret}, {name: {name: secret}}, ValueError(secret)):
            self.log.info(form % name, **{name: value})
            self.assertNotIn(secret, self.observer.ring[-1])

    @settings(max_examples=100, deadline=None)
    @given(
        SECRETS,
        NAMES,
        st.text(max_size=20).filter(lambda text: "\\" not in text),
        st.sampled_from(
            [
                "{name}={secret}",
                "{name} = '{secret}'",
                '{{"{name}": "{secret}"}}',
                "{{'{name}': '{secret}'}}",
                "{{'{name}': b'{secret}'}}",
                "Config({name}='{secret}', port=1)",
                "auth.{name}: 'old' → '{secret}'",
                'auth.{name}: "{secret}" -> "new"',
                "auth.{name}: '{secret}",
                "{name}.value={secret}",
                "Bearer {secret}",
                "bearer\t{secret}",
                "ED25519-V3:{secret}",
                "AgEI{secret}{secret}",
                "-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----",
                "-----BEGIN EC PRIVATE KEY-----\n{secret}",
            ]
        ),
    )
    def test_in_text_by_its_form(self, secret: str, name: str, around: str, form: str) -> None:
        text = f"{around} " + form.format(name=name, secret=secret)
        self.log.info("{found} and {found!r}", found=text, event=text)
        self.assertNotIn(secret, self.observer.ring[-1])
        self.log.info("{found[0]} {found}", found=[text])
        self.assertNotIn(secret, self.observer.ring[-1])
        try:
            raise ValueError(text)
        except ValueError:
            self.log.failure("broke")
        self.assertNotIn(secret, self.observer.ring[-1])

    @settings(max_examples=100, deadline=None)
    @given(SECRETS, NAMES)
    def test_inside_of_a_value_that_the_format_reaches_into(self, secret: str, name: str) -> None:
        thing = type("Thing", (), {"inner": {name: secret}, name: secret})()
        for form in (f"{{thing.{name}}}", f"{{thing.inner[{name}]!r:>60}}", f"{{thing.{name}.real}}", "{thing.inner}"):
            self.log.info("{{kept}} " + form + " {n}", thing=thing, n=1)
            self.assertNotIn(secret, self.observer.ring[-1])
            self.assertTrue(self.last()["message"].startswith("{kept} "))
            self.assertTrue(self.last()["message"].endswith(" 1"))

    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=4000), SECRETS)
    def test_a_secret_that_the_bound_cuts_in_two(self, before: str, secret: str) -> None:
        for length in (1990, 7990):
            text = (before + "x" * length)[:length] + f" token='{secret}'"
            self.log.info("{text}", text=text)
            self.assertNotIn(secret[:8], self.observer.ring[-1])

    def test_quoted_within_quotes(self) -> None:
        inner = {"token": SECRET * 3, "it's": 1}
        for text in (json.dumps(inner), repr(inner), f"{inner}"):
            for outer in (json.dumps({"answer": text}), repr([text]), repr(repr([text + '"'])), repr(text.encode())):
                self.log.info("{outer} {outer!r}", outer=outer)
                self.assertNotIn(SECRET, self.observer.ring[-1])

    def test_a_capability_of_ours_on_its_own(self) -> None:
        # the head of a libmacaroons v2 token without a location, base64url
        token = "AgIkMDAwMDAwMDAtMDAwMC03MDAwLTgwMDAtMDAwMDAwMDAwMDAwAAIGc2NvcGUg"
        self.log.info("asked for /v1/x?c={c}", c=token)
        self.assertNotIn(token[8:], self.observer.ring[-1])

    def test_hostile_text_costs_no_more_than_its_length(self) -> None:
        """Were one of the patterns to look back and forth, this would not end."""
        for piece in (
            "token",
            "token.",
            "token=",
            "x",
            "-----BEGIN ",
            "Bearer ",
            "'",
            'token="\\',
            "AgE",
            " ",
            "kid → ",
        ):
            redact(piece * 200_000)


class KeyIds(Recorder):
    """A key id is never written, its hash is (ron-kms OBSERVABILITY §3.2)."""

    def test_the_hash(self) -> None:
        # BLAKE3 of nothing, from its own test vectors
        self.assertEqual(kid_hash(""), "af1349b9")
        self.assertEqual(kid_hash(b"abc"), kid_hash("abc"))

    def test_a_field_and_the_message(self) -> None:
        for kid in ("kms:core/ed25519/01", b"kms:core/ed25519/01"):
            self.log.info("signed with {kid}", kid=kid, signer_kid=kid, kid_version=3)
            line = self.last()
            self.assertEqual(line["message"], f"signed with {kid_hash(kid)}")
            self.assertEqual((line["kid_hash"], line["signer_kid_hash"]), (kid_hash(kid),) * 2)
            self.assertEqual(line["kid_version"], 3)
            self.assertNotIn("kid", line)
            self.assertNotIn("ed25519/01", self.observer.ring[-1])

    def test_in_text(self) -> None:
        self.assertNotIn("abc123", redact("kid=abc123 and {'kid': 'abc123'}"))

    def test_a_kid_of_another_type_is_cut(self) -> None:
        self.log.info("{kid}", kid=[b"abc123"])
        self.assertEqual((self.last()["kid_hash"], self.last()["message"]), ("[redacted]", "[redacted]"))


class Diffs(Recorder):
    """A redacted config diff is written as it is: what is no secret stays readable."""

    def test_what_is_no_secret_stays(self) -> None:
        diff = (
            "mailbox.max_inflight: 128 → 64; gateway.bind: '127.0.0.1:9080' → '127.0.0.1:9081'; mailbox.payload_bytes=5"
        )
        self.log.info("config is version {version}: {diff}", event="config_updated", version=2, diff=diff)
        self.assertEqual(self.last()["diff"], diff)

    def test_what_is_one_goes_old_and_new(self) -> None:
        cut = redact("api.token: 'old secret' → 'new secret'; log.level: 'info' → 'debug'")
        self.assertEqual(cut, "api.token=[redacted]; log.level: 'info' → 'debug'")


class Correlation(Recorder):
    """Who asked: given with the event, or for all that happens within a block."""

    CORR = "018f3a6e-0000-7000-8000-000000000001"

    def test_fields_of_the_event(self) -> None:
        self.log.info("x", corr_id=self.CORR, request_id="r-1", peer_addr="127.0.0.1:5")
        line = self.last()
        self.assertEqual((line["corr_id"], line["request_id"], line["peer_addr"]), (self.CORR, "r-1", "127.0.0.1:5"))

    def test_what_is_known_of_the_request(self) -> None:
        mark = correlation.begin(self.CORR, request_id=None, peer_addr="::1")
        self.log.info("inside")
        inside = self.last()
        self.log.info("own", corr_id="other")
        own = self.last()
        correlation.end(mark)
        self.log.info("outside")
        self.assertEqual((inside["corr_id"], inside["peer_addr"]), (self.CORR, "::1"))
        self.assertNotIn("request_id", inside)
        self.assertEqual(own["corr_id"], "other")
        self.assertNotIn("corr_id", self.last())

    def test_coroutines_keep_theirs_while_they_wait(self) -> None:
        gates: list[Deferred[None]] = [Deferred(), Deferred()]

        async def work(gate: Deferred[None]) -> None:
            await gate
            self.log.info("done")

        for number, gate in enumerate(gates):
            mark = correlation.begin(str(number))
            Deferred.fromCoroutine(work(gate))
            correlation.end(mark)
        seen = []
        for gate in reversed(gates):
            gate.callback(None)
            seen.append(self.last()["corr_id"])
        self.assertEqual(seen, ["1", "0"])


class Levels(Recorder):
    """The level can be turned while it runs."""

    def test_up_and_down(self) -> None:
        self.assertEqual(self.observer.level, "debug")
        self.observer.set_level("error")
        self.log.warn("x")
        self.assertEqual(len(self.observer.ring), 0)
        self.observer.set_level("warn")
        self.log.warn("x")
        self.assertEqual((len(self.observer.ring), self.observer.level), (1, "warn"))

    def test_an_unknown_one_changes_nothing(self) -> None:
        self.assertRaises(RonError, self.observer.set_level, "loud")
        self.assertEqual(self.observer.level, "debug")


class Sinks(SynchronousTestCase):
    """Where lines go."""

    def test_the_level_is_the_least_that_is_written(self) -> None:
        names = ("debug", "info", "warn", "error")
        for index, level in enumerate(names):
            sink = io.StringIO()
            log = Logger(namespace="n", observer=JsonLogObserver(sink, service="s", level=level))
            for name in names:
                getattr(log, name)("x", event=name)
            log.critical("x", event="critical")
            events = [json.loads(line)["event"] for line in sink.getvalue().splitlines()]
            self.assertEqual(events, [*names[index:], "critical"])

    def test_an_unknown_level_is_refused(self) -> None:
        self.assertRaises(RonError, JsonLogObserver, None, service="s", level="loud")

    def test_the_ring_keeps_the_last_ones_only(self) -> None:
        self.patch(logs, "RING_EVENTS", 10)
        observer = JsonLogObserver(None, service="s")
        log = Logger(namespace="n", observer=observer)
        for number in range(25):
            log.info("x", number=number)
        self.assertEqual([json.loads(line)["number"] for line in observer.ring], list(range(15, 25)))
        self.assertLessEqual(RING_EVENTS, 10_000)

    def test_the_file_is_private_and_whole_after_every_event(self) -> None:
        path = Path(self.mktemp()).absolute() / "log" / "node.jsonl"
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)
        file = open_log_file(path)
        self.addCleanup(file.close)
        log = Logger(namespace="n", observer=JsonLogObserver(file, service="s"))
        log.info("grüße", event="hello")
        self.assertEqual(json.loads(path.read_text(encoding="utf-8"))["message"], "grüße")
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(path.parent.stat().st_mode), 0o700)

    def test_a_log_file_left_open_to_others_is_closed_to_them(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        path = folder / "node.jsonl"
        path.write_text("old\n")
        path.chmod(0o644)
        file = open_log_file(path)
        self.addCleanup(file.close)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertEqual(path.read_text(), "old\n")

    def test_rotation_keeps_five_old_files_all_private(self) -> None:
        self.patch(logs, "ROTATE_BYTES", 100)
        folder = Path(self.mktemp()).absolute()
        file = open_log_file(folder / "node.jsonl")
        self.addCleanup(file.close)
        log = Logger(namespace="n", observer=JsonLogObserver(file, service="s"))
        for _ in range(20):
            log.info("x" * 100)
        files = sorted(folder.iterdir())
        self.assertEqual([f.name for f in files], ["node.jsonl", *(f"node.jsonl.{n}" for n in range(1, 6))])
        self.assertEqual({stat.S_IMODE(f.stat().st_mode) for f in files}, {0o600})
