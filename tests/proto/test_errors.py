"""The error taxonomy and its envelope (ron-kms API §3, Appendix A)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto import errors
from ron.proto.errors import HTTP_STATUS, RETRYABLE, ErrorCode, RonError, envelope, from_envelope

APPENDIX_A = {
    "NoCapability": 403,
    "NotFound": 404,
    "BadRequest": 400,
    "StoreUnavailable": 503,
    "AttestationMissing": 403,
    "Backpressure": 429,
    "Timeout": 504,
    "TooLarge": 413,
    "Unsupported": 400,
    "Conflict": 409,
    "Internal": 500,
}
TS = "2026-01-02T03:04:05Z"


def wired(error: RonError) -> bytes:
    """`error` as a service sends it."""
    return msgspec.json.encode(envelope(error, ts=TS, request_id="r-1"))


class Table(SynchronousTestCase):
    def test_codes_and_statuses_are_the_specs(self) -> None:
        self.assertEqual({code.value: status for code, status in HTTP_STATUS.items()}, APPENDIX_A)
        self.assertEqual({code.value for code in ErrorCode}, set(APPENDIX_A))

    def test_an_error_has_its_codes_status_unless_it_says_otherwise(self) -> None:
        for code in ErrorCode:
            self.assertEqual(RonError(code, "x").status, APPENDIX_A[code.value])
            self.assertEqual(RonError(code, "x", status=418).status, 418)

    def test_only_what_may_work_later_is_retryable(self) -> None:
        self.assertEqual(RETRYABLE, {ErrorCode.STORE_UNAVAILABLE, ErrorCode.BACKPRESSURE, ErrorCode.TIMEOUT})
        for code in ErrorCode:
            self.assertIs(RonError(code, "x").retryable, code in RETRYABLE)

    def test_short_forms(self) -> None:
        for made, code in (
            (errors.bad_request("m", "h"), ErrorCode.BAD_REQUEST),
            (errors.not_found("m"), ErrorCode.NOT_FOUND),
            (errors.too_large("m", "h"), ErrorCode.TOO_LARGE),
            (errors.conflict("m", "h"), ErrorCode.CONFLICT),
            (errors.backpressure("m"), ErrorCode.BACKPRESSURE),
            (errors.unavailable("m", "h"), ErrorCode.STORE_UNAVAILABLE),
        ):
            self.assertIs(made.code, code)
            self.assertEqual(str(made), "m")
            self.assertIn(made.hint, ("h", None))

    def test_headers_of_one_error_are_not_another_ones(self) -> None:
        errors.not_found("a").headers["Allow"] = "GET"
        self.assertEqual(errors.not_found("b").headers, {})


class Envelope(SynchronousTestCase):
    def test_on_the_wire(self) -> None:
        self.assertEqual(
            json.loads(wired(errors.unavailable("the disk is full", "make room"))),
            {
                "error": {
                    "code": "StoreUnavailable",
                    "message": "the disk is full",
                    "retryable": True,
                    "hint": "make room",
                    "ts": TS,
                    "request_id": "r-1",
                }
            },
        )

    def test_without_a_hint_there_is_none(self) -> None:
        self.assertNotIn("hint", json.loads(wired(errors.not_found("x")))["error"])

    @given(st.sampled_from(ErrorCode), st.text(), st.none() | st.text(), st.integers(400, 599))
    def test_there_and_back(self, code: ErrorCode, message: str, hint: str | None, status: int) -> None:
        error = from_envelope(wired(RonError(code, message, hint=hint, status=status)), status)
        self.assertEqual((error.code, error.message, error.hint, error.status), (code, message, hint, status))

    @given(st.binary(), st.integers(400, 599))
    @example(b'{"error":{"code":"Ba\xffd"}}', 400)
    @example(b"[" * 100_000, 502)
    @example(b'{"error":{"code":' + b"[" * 100_000, 502)
    @example(b'{"error":{"code":"BadRequest","x":' + b"[" * 100_000, 502)
    def test_garbage_is_an_internal_error_with_the_status_it_came_with(self, body: bytes, status: int) -> None:
        error = from_envelope(body, status)
        self.assertIs(error.code, ErrorCode.INTERNAL)
        self.assertEqual(error.status, status)
        self.assertIn(str(status), error.message)

    def test_near_misses(self) -> None:
        good = json.loads(wired(errors.not_found("x")))
        self.assertIs(from_envelope(json.dumps(good).encode(), 404).code, ErrorCode.NOT_FOUND)
        for change in (
            {"code": "Nonsense"},
            {"code": "notfound"},
            {"code": 404},
            {"message": None},
            {"retryable": "yes"},
        ):
            bad: dict[str, Any] = {"error": {**good["error"], **change}}
            self.assertIs(from_envelope(json.dumps(bad).encode(), 404).code, ErrorCode.INTERNAL, change)
        for missing in good["error"]:
            bad = {"error": {k: v for k, v in good["error"].items() if k != missing}}
            self.assertIs(from_envelope(json.dumps(bad).encode(), 404).code, ErrorCode.INTERNAL, missing)

    def test_a_newer_peer_may_say_more(self) -> None:
        told = json.loads(wired(errors.not_found("x")))
        told["error"]["trace"] = "abc"
        self.assertIs(from_envelope(json.dumps(told).encode(), 404).code, ErrorCode.NOT_FOUND)
