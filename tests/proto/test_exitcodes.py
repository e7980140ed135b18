"""Exit codes that scripts branch on; a number that changes breaks somebody's script."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import ConfigError
from ron.proto.errors import ErrorCode, RonError
from ron.proto.exitcodes import Exit, Unreachable, exit_code


class Pinned(SynchronousTestCase):
    def test_numbers(self) -> None:
        self.assertEqual(
            {e.name: int(e) for e in Exit},
            {
                "OK": 0,
                "FAILED": 1,
                "USAGE": 2,
                "INVALID": 3,
                "UNREACHABLE": 4,
                "REFUSED": 5,
                "TIMEOUT": 6,
                "NOT_FOUND": 7,
                "UNAVAILABLE": 8,
                "CUT_OFF": 9,
            },
        )

    def test_every_error_code_has_its_number(self) -> None:
        self.assertEqual(
            {code.value: int(exit_code(RonError(code, "x"))) for code in ErrorCode},
            {
                "BadRequest": 3,
                "TooLarge": 3,
                "Unsupported": 3,
                "Conflict": 3,
                "NoCapability": 5,
                "AttestationMissing": 5,
                "Timeout": 6,
                "NotFound": 7,
                "StoreUnavailable": 8,
                "Backpressure": 8,
                "Internal": 1,
            },
        )

    def test_nobody_there_is_not_the_same_as_a_service_that_says_no(self) -> None:
        error = Unreachable("no node", hint="start it")
        self.assertIs(exit_code(error), Exit.UNREACHABLE)
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertTrue(error.retryable)
        self.assertEqual(error.hint, "start it")

    def test_a_wrong_config_is_invalid(self) -> None:
        self.assertIs(exit_code(ConfigError("x", key="a.b")), Exit.INVALID)
