"""Keys in sealed files, when the process is killed at any point or the disk fails."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg
from ron.services.kms.backends import filerecords as records
from ron.services.kms.backends.file import FileBackend
from ron.services.kms.backends.folder import KeyFolder
from tests.services.kms.backends.filecase import Case, contents, unlock
from tests.services.kms.backends.software import ALL, MESSAGE, kid


class Killed(Case):
    """`kill -9` before each call that touches the disk, one after the other: the old state is found, or the new one."""

    CALLS = ("open", "fsync", "replace", "unlink", "pwrite")

    def setUp(self) -> None:
        super().setUp()
        self.kept = kid()
        self.signature = self.store_of(self.kept)[self.kept]

    def killed_at(self, nth: int, act: Callable[[FileBackend], object]) -> bool:
        """Do `act` in a child that dies at its nth call, or ends well: then False."""
        child = os.fork()
        if not child:
            status = 1
            try:
                backend = FileBackend(self.directory, unlock())
                backend.open()
                self.arm(nth)
                act(backend)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        self.assertIn(status, (0, signal.SIGKILL), f"at call {nth}")
        return status != 0

    def arm(self, nth: int) -> None:
        """In the child: die instead of the nth call."""
        left = nth

        def deadly(call: Callable[..., object]) -> Callable[..., object]:
            def counted(*args: Any, **options: Any) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **options)

            return counted

        for name in self.CALLS:
            setattr(os, name, deadly(getattr(os, name)))

    def every_point(self, act: Callable[[FileBackend], object]) -> list[tuple[bool, int]]:
        """(was it done, by the next start; the counter) after a kill at each point, from the same state."""
        start = self.directory.with_name("start")
        shutil.copytree(self.directory, start)
        found = []
        for nth in range(100):
            shutil.rmtree(self.directory)
            shutil.copytree(start, self.directory)
            if not self.killed_at(nth, act):
                break
            backend = self.opened()
            self.assertEqual(backend.sign(self.kept, Alg.ED25519, MESSAGE), self.signature)
            found.append((len(backend.held()) != 1 + self.extra, backend.head()[0]))
            # and it can go on from there
            another = kid()
            backend.generate(another, [Alg.ED25519])
            backend.close()
            backend = self.opened()
            backend.sign(another, Alg.ED25519, MESSAGE)
            backend.close()
            self.assertEqual(len(contents(self.directory)), len(backend_files(backend)) + 1)
        self.assertGreater(len(found), 8)
        return found

    extra = 0

    def test_generate(self) -> None:
        found = self.every_point(lambda backend: backend.generate(kid(), ALL))
        # first the old state, from one point on the new one
        self.assertEqual(found, sorted(found))
        self.assertEqual(set(found), {(False, 1), (True, 2)})

    def test_destroy(self) -> None:
        doomed = kid()
        self.store_of(doomed)
        self.extra = 1
        found = self.every_point(lambda backend: backend.destroy(doomed))
        self.assertEqual(found, sorted(found))
        self.assertEqual(set(found), {(False, 2), (True, 3)})

    def test_the_first_start(self) -> None:
        """Whatever it was killed at, the next one makes a store."""
        for nth in range(100):
            shutil.rmtree(self.directory)
            child = os.fork()
            if not child:
                status = 1
                try:
                    self.arm(nth)
                    FileBackend(self.directory, unlock()).open()
                    status = 0
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            backend = self.opened()
            self.assertEqual((backend.head()[0], backend.held()), (0, ()))
            backend.close()
            if not status:
                break
        self.assertGreater(nth, 8)


def backend_files(backend: FileBackend) -> set[str]:
    """What belongs into its directory, but the lock."""
    backend.open()
    kept = {records.file_name(held.kid) for held in backend.held()}
    backend.close()
    return kept | {records.ROOT, records.MANIFEST, records.HEAD}


class FullDisk(Case):
    """A disk that takes nothing more: the change is refused, what was there stays, and it goes on afterwards."""

    def setUp(self) -> None:
        super().setUp()
        self.kid = kid()
        self.store_of(self.kid)
        self.backend = self.opened()

    def fail(self, names: Callable[[str], bool], *, after: bool = False) -> None:  # type: ignore[override]
        """Writing such a file fails, after it was put in place or before."""
        real = KeyFolder.write.__get__(self.backend._folder)

        def write(name: str, raw: bytes) -> None:
            if not names(name):
                real(name, raw)
                return
            if after:
                real(name, raw)
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(self.backend._folder, "write", write)
        self.healed = lambda: setattr(self.backend._folder, "write", real)

    def unavailable(self, call: Callable[..., object], *args: object) -> str:
        error = self.assertRaises(RonError, call, *args)
        self.assertEqual(error.code, ErrorCode.STORE_UNAVAILABLE)
        return error.one_line()

    def test_the_key_file(self) -> None:
        self.fail(lambda name: name.endswith(".key"))
        self.assertIn("No space left", self.unavailable(self.backend.generate, kid(), ALL))
        self.goes_on()

    def test_the_manifest(self) -> None:
        self.fail(lambda name: name == records.MANIFEST)
        self.unavailable(self.backend.generate, kid(), ALL)
        self.unavailable(self.backend.destroy, self.kid)
        self.goes_on()

    def goes_on(self) -> None:
        self.backend.probe()
        self.assertEqual(len(self.backend.held()), 1)
        self.healed()
        again = kid()
        self.backend.generate(again, ALL)
        self.backend.close()
        # the key, the new one, root, manifest, head, lock: nothing is left of what failed
        self.assertEqual(len(contents(self.directory)), 6)
        self.backend.open()
        self.assertEqual({held.kid for held in self.backend.held()}, {self.kid, again})

    def test_nobody_knows_whether_it_is_on_disk(self) -> None:
        for doubtful in (records.MANIFEST, records.HEAD):
            name = kid()
            self.fail(doubtful.__eq__, after=doubtful == records.MANIFEST)
            before = len(self.backend.held())
            self.unavailable(self.backend.generate, name, ALL)
            self.assertEqual(len(self.backend.held()), before)
            self.backend.sign(self.kid, Alg.ED25519, MESSAGE)
            self.fail(lambda name: True)
            # the head is missing, and cannot be written
            self.unavailable(self.backend.probe)
            self.unavailable(self.backend.destroy, self.kid)
            self.backend.sign(self.kid, Alg.ED25519, MESSAGE)
            self.healed()
            self.backend.probe()
            self.assertEqual(len(self.backend.held()), before + 1)
            self.backend.sign(name, Alg.ED25519, MESSAGE)
            self.backend.close()
            self.backend.open()
            self.assertEqual(len(self.backend.held()), before + 1)

    def test_a_file_that_cannot_be_removed_is_removed_later(self) -> None:
        def stuck(name: str) -> None:
            raise OSError(errno.EIO, "Input/output error")

        real = self.backend._folder.shred
        self.patch(self.backend._folder, "shred", stuck)
        self.unavailable(self.backend.destroy, self.kid)
        self.assertEqual(self.backend.held(), ())
        self.assertTrue(self.path_of(self.kid).exists())
        self.patch(self.backend._folder, "shred", real)
        self.backend.destroy(self.kid)
        self.assertFalse(self.path_of(self.kid).exists())

    def test_a_directory_that_cannot_be_made(self) -> None:
        (self.directory / ".lock").touch()
        backend = FileBackend(self.directory / ".lock" / "deeper", unlock())
        self.assertIn("opened", self.unavailable(backend.open))
        self.assertIn("closed", repr(backend))
