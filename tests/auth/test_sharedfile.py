"""Turns of writing between threads and between processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ron.auth.sharedfile import SharedFile, SharedLock
from ron.proto.errors import ErrorCode, RonError

_ADD = """
import sys
from pathlib import Path
from ron.auth.sharedfile import SharedLock
folder = Path(sys.argv[1])
for _ in range(50):
    with SharedLock(folder).held(30):
        count = folder / "count"
        number = int(count.read_text())
        count.write_text(str(number + 1))
"""


class Turns(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.lock = SharedLock(self.folder)

    def test_processes_take_turns(self) -> None:
        self.folder.mkdir()
        (self.folder / "count").write_text("0")
        adders = [subprocess.Popen([sys.executable, "-c", _ADD, self.folder]) for _ in range(3)]
        self.assertEqual([adder.wait(60) for adder in adders], [0, 0, 0])
        self.assertEqual((self.folder / "count").read_text(), "150")

    def test_again_by_its_holder_and_by_nobody_else(self) -> None:
        with self.lock.held(), self.lock.held():
            for other in (SharedLock(self.folder), SharedLock(self.folder)):
                with self.assertRaises(RonError) as caught, other.held(wait_s=0):
                    pass
                self.assertIs(caught.exception.code, ErrorCode.STORE_UNAVAILABLE)
            self.assertEqual(self.in_a_thread(), [False, "busy"])
        self.assertEqual(self.in_a_thread(), [True, "held"])
        with SharedLock(self.folder).held(wait_s=0):
            pass

    def in_a_thread(self) -> list[object]:
        """What another thread of ours gets: may it read, may it write."""
        got: list[object] = []

        def other() -> None:
            with self.lock.idle() as free:
                got.append(free)
            try:
                with self.lock.held(wait_s=0):
                    got.append("held")
            except RonError:
                got.append("busy")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(10)
        return got

    def test_given_back_when_the_work_fails(self) -> None:
        with self.assertRaises(ZeroDivisionError), self.lock.held():
            raise ZeroDivisionError
        with SharedLock(self.folder).held(wait_s=0):
            pass

    def test_no_descriptor_is_left_behind(self) -> None:
        def count() -> int:
            return len(list(Path("/proc/self/fd").iterdir()))

        with self.lock.held():
            held = count()
            for _ in range(20):
                with self.assertRaises(RonError), SharedLock(self.folder).held(wait_s=0):
                    pass
            self.assertEqual(count(), held)
        self.assertEqual(count(), held - 1)

    def test_somebody_elses_folder(self) -> None:
        """As root on the node's own folder: what root writes 0600 there, the node could not read."""
        if os.geteuid() == 0:
            self.folder.mkdir(mode=0o700)
            os.chown(self.folder, 12345, 12345)
        else:
            self.lock = SharedLock(Path("/"))
        with self.assertRaises(RonError) as caught, self.lock.held():
            pass
        self.assertTrue(caught.exception.hint)
        self.assertFalse((self.folder / ".lock").exists())


class Reading(SynchronousTestCase):
    def test_over_the_limit(self) -> None:
        path = Path(self.mktemp()).absolute()
        path.write_bytes(b"x" * 11)
        path.chmod(0o600)
        got: list[bytes | None] = []
        file = SharedFile(path, lambda _path, content: got.append(content), limit_bytes=10)
        self.assertFalse(file.refresh())
        self.assertIsNotNone(file.fault)
        path.write_bytes(b"x" * 10)
        self.assertTrue(file.refresh())
        self.assertEqual(got, [b"x" * 10])
        path.unlink()
        self.assertTrue(file.refresh())
        self.assertTrue(file.missing)
        self.assertEqual(got[-1], None)
