"""An op_id is good once, for as long as it is remembered, and it is never forgotten early."""

from __future__ import annotations

import uuid

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import ReplayGuard
from ron.proto.errors import ErrorCode, RonError

A, B, C = (str(uuid.UUID(int=number)) for number in (1, 2, 3))


class Claims(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.guard = ReplayGuard(10.0, 2, self.clock.seconds)

    def refused(self, code: ErrorCode, cap_id: str, op_id: str) -> RonError:
        error: RonError = self.assertRaises(RonError, self.guard.claim, cap_id, op_id)
        self.assertIs(error.code, code)
        return error

    def test_only_uuids(self) -> None:
        for op_id in ("", "1", "x" * 36, A + " ", A.replace("-", ""), f"{{{A}}}", "urn:uuid:" + A):
            self.refused(ErrorCode.BAD_REQUEST, "cap", op_id)
        self.assertEqual(len(self.guard), 0)

    def test_once_within_the_window(self) -> None:
        op_id = "abcdefab-0000-4000-8000-000000000000"
        self.guard.claim("cap", op_id)
        self.clock.advance(9.9)
        self.refused(ErrorCode.CONFLICT, "cap", op_id)
        self.refused(ErrorCode.CONFLICT, "cap", op_id.upper())
        self.clock.advance(0.1)
        self.guard.claim("cap", op_id)

    def test_for_each_capability_by_itself(self) -> None:
        self.guard.claim("one", A)
        self.guard.claim("other", A)

    def test_full(self) -> None:
        self.guard.claim("cap", A)
        self.clock.advance(4)
        self.guard.claim("cap", B)
        error = self.refused(ErrorCode.BACKPRESSURE, "cap", C)
        self.assertEqual(error.retry_after_s, 6)
        self.refused(ErrorCode.CONFLICT, "cap", A)
        self.clock.advance(6)
        self.guard.claim("cap", C)
        self.refused(ErrorCode.CONFLICT, "cap", B)

    def test_a_failed_operation_may_be_tried_again(self) -> None:
        self.guard.claim("cap", A)
        self.guard.release("cap", A)
        self.guard.claim("cap", A)
        self.guard.release("cap", B)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.sampled_from([0.0, 1.0, 5.0, 10.0])), max_size=30))
    def test_against_a_plain_model(self, steps: list[tuple[str, float]]) -> None:
        clock, used = Clock(), dict[str, float]()
        guard = ReplayGuard(10.0, 3, clock.seconds)
        for op_id, pause_s in steps:
            clock.advance(pause_s)
            fresh = op_id not in used or clock.seconds() - used[op_id] >= 10
            try:
                guard.claim("cap", op_id)
                self.assertTrue(fresh)
                used[op_id] = clock.seconds()
            except RonError:
                self.assertFalse(fresh)
