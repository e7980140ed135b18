"""What is there when a process has come up is the collector's business no more; what comes later is."""

from __future__ import annotations

import gc
import weakref

from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import memory


class _Loop:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.me = self


class Settle(SynchronousTestCase):
    def setUp(self) -> None:
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        self.addCleanup(gc.unfreeze)

    def test_rubbish_of_before_goes_and_the_rest_is_passed_over(self) -> None:
        gone, kept = weakref.ref(_Loop()), _Loop()
        memory.settle()
        self.assertIsNone(gone())
        self.assertGreater(gc.get_freeze_count(), 1000)
        self.assertFalse(any(one is kept for one in gc.get_objects()))

    def test_rubbish_of_later_still_goes(self) -> None:
        memory.settle()
        later = weakref.ref(_Loop())
        gc.collect()
        self.assertIsNone(later())
        self.assertGreater(gc.get_threshold()[0], 700)
