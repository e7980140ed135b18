"""Where visitors are sent, as operators write it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.heads.targets import Target, read_targets

ONION = "a" * 56 + ".onion"


class TargetsTests(SynchronousTestCase):
    def test_what_is_none(self) -> None:
        for text in (
            "",
            "80",
            "80:",
            "80:8080",
            "0:127.0.0.1:80",
            "80:127.0.0.1:0",
            "080:127.0.0.1:80",
            "80:127.0.0.1:70000",
            "80:127.0.0.1",
            "80:example.org:80",
            "80:999.0.0.1:80",
            "80:10.0.0.1:80",
            "80:[fd00::1]:80",
            "80:[::1:80",
            "80:[127.0.0.1]:80",
            "80:unix:run/app.sock",
            "80:unix:/run/a b",
            '80:unix:/run/a"b',
            "80:unix:/run/a\nHiddenServiceDir /x",
            "80:unix:/" + "a" * 107,
            "80:127.0.0.1:80\n",
            f"80:{ONION}",
            f"80:{ONION.upper()}:80",
        ):
            error = self.assertRaises(RonError, read_targets, [text])
            self.assertIs(error.code, ErrorCode.BAD_REQUEST, text)

    def test_two_targets_for_one_port(self) -> None:
        error = self.assertRaises(RonError, read_targets, ["80:127.0.0.1:1", "80:127.0.0.1:2"])
        self.assertIs(error.code, ErrorCode.CONFLICT)

    def test_what_is_one(self) -> None:
        texts = ["80:127.0.0.1:8080", "81:[::1]:8080", "82:unix:/run/app.sock", f"83:{ONION}:80", "84:localhost:9"]
        targets = read_targets([*texts, texts[0]])
        self.assertEqual(
            targets,
            (
                Target(80, "tcp", "127.0.0.1", 8080),
                Target(81, "tcp", "::1", 8080),
                Target(82, "unix", "/run/app.sock"),
                Target(83, "onion", ONION, 80),
                Target(84, "tcp", "127.0.0.1", 9),
            ),
        )
        self.assertEqual(
            [target.line() for target in targets if target.kind != "onion"],
            ["80 127.0.0.1:8080", "81 [::1]:8080", "82 unix:/run/app.sock", "84 127.0.0.1:9"],
        )
        self.assertRaises(ValueError, targets[3].line)

    @given(st.text(max_size=60) | st.from_regex(r"\A[0-9]{1,5}:(unix:/|127\.0\.0\.1:|\[::1\]:)[ -~]{0,20}\Z"))
    def test_a_line_of_torrc_is_one_line_without_quotes(self, text: str) -> None:
        try:
            targets = read_targets([text])
        except RonError:
            return
        for target in targets:
            if target.kind != "onion":
                self.assertRegex(target.line(), r"\A[1-9][0-9]* [!#-\[\]-~]+\Z")
