"""The passphrase of a key store is changed: both files or neither, whatever it is killed at; keys stay as they are."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ron.crypto import ageroot
from ron.kernel.files import DirectoryLock, write_private
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg
from ron.services.kms.backends.errors import DamagedError, LockedError
from ron.services.kms.backends.filerecords import ROOT
from ron.services.kms.backends.rekeying import NEXT, Store, change_both, change_store
from tests.services.kms.backends.filecase import CHEAP, PASSPHRASE, Case, contents, unlock
from tests.services.kms.backends.software import MESSAGE, kid

NEW = b"another passphrase altogether"
CALLS = ("open", "fsync", "replace", "rename", "unlink", "write", "ftruncate")


class Change(Case):
    def setUp(self) -> None:
        super().setUp()
        self.kept = kid()
        self.signature = self.store_of(self.kept)[self.kept]
        self.home = Path(self.mktemp())
        self.file = self.home / "passphrase"
        write_private(self.file, PASSPHRASE + b"\n")
        self.store = Store(self.directory, cost=CHEAP, allow_unlocked=True)

    @property
    def next(self) -> Path:
        return self.file.with_name(self.file.name + NEXT)

    def line(self, path: Path) -> bytes:
        return path.read_bytes().splitlines()[0]

    def opens(self, passphrase: bytes) -> bool:
        """Does the store open so, with what was in it?"""
        try:
            backend = self.opened(unlock=unlock(passphrase))
        except LockedError:
            return False
        self.assertEqual(backend.sign(self.kept, Alg.ED25519, MESSAGE), self.signature)
        backend.close()
        return True

    def refused(self, kind: type[RonError], call: Callable[..., object], *args: Any) -> RonError:  # type: ignore[override]
        """And nothing was changed."""
        before, home = contents(self.directory), contents(self.home)
        error: RonError = self.assertRaises(kind, call, *args)
        self.assertEqual((contents(self.directory), contents(self.home)), (before, home))
        return error

    def test_passphrases_that_will_not_do(self) -> None:
        for new in (b"", b"short", b"\nsecond line", b"x" * 1025):
            error = self.refused(RonError, change_both, self.store, self.file, new)
            self.assertEqual(error.code, ErrorCode.BAD_REQUEST)
            self.refused(RonError, change_store, self.store, self.file, new)

    def test_a_wrong_old_one(self) -> None:
        write_private(self.file, b"not this one\n")
        self.refused(LockedError, change_both, self.store, self.file, NEW)
        self.refused(LockedError, change_store, self.store, self.file, NEW)
        self.file.unlink()
        self.refused(LockedError, change_both, self.store, self.file, NEW)

    def test_a_file_that_others_may_read(self) -> None:
        self.file.chmod(0o644)
        self.refused(RonError, change_both, self.store, self.file, NEW)

    def test_no_store(self) -> None:
        elsewhere = Store(self.home, allow_unlocked=True)
        self.refused(DamagedError, change_both, elsewhere, self.file, NEW)

    def test_while_the_service_runs(self) -> None:
        held = DirectoryLock(self.directory)
        self.addCleanup(held.release)
        self.assertEqual(self.refused(RonError, change_both, self.store, self.file, NEW).code, ErrorCode.CONFLICT)

    def test_both(self) -> None:
        before = contents(self.directory)
        self.assertEqual(change_both(self.store, self.file, NEW + b"\r\nnot this\n"), "changed")
        self.assertEqual(self.line(self.file), NEW)
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o600)
        self.assertFalse(self.next.exists())
        self.assertTrue(self.opens(NEW))
        self.assertFalse(self.opens(PASSPHRASE))
        after = contents(self.directory)
        self.assertEqual({name for name in after if after[name] != before.get(name)} - {".lock"}, {ROOT})

    def test_a_made_one(self) -> None:
        change_both(self.store, self.file)
        made = self.line(self.file)
        self.assertGreaterEqual(len(made), 43)
        self.assertTrue(self.opens(made))

    def test_the_store_alone(self) -> None:
        self.assertEqual(change_store(self.store, self.file, NEW), "changed")
        self.assertEqual(self.line(self.file), PASSPHRASE)
        self.assertTrue(self.opens(NEW))
        self.assertEqual(change_store(self.store, self.file, NEW), "nothing")

    def test_another_kdf(self) -> None:
        change_both(self.store._replace(kdf="age"), self.file, NEW)
        self.assertTrue((self.directory / ROOT).read_bytes().startswith(ageroot.MAGIC))
        # and it stays of that kind
        change_both(self.store, self.file, PASSPHRASE)
        self.assertTrue((self.directory / ROOT).read_bytes().startswith(ageroot.MAGIC))
        change_both(self.store._replace(kdf="scrypt"), self.file, NEW)
        self.assertFalse((self.directory / ROOT).read_bytes().startswith(ageroot.MAGIC))
        self.assertTrue(self.opens(NEW))

    def test_another_change_was_begun(self) -> None:
        write_private(self.next, NEW + b"\n")
        error = self.refused(RonError, change_both, self.store, self.file, b"a third passphrase")
        self.assertIn("another change was begun", error.message)
        self.assertEqual(change_both(self.store, self.file), "finished")
        self.assertTrue(self.opens(NEW))

    def test_killed_before_each_call_that_touches_the_disk(self) -> None:
        folders = [self.directory, self.home]
        for folder in folders:
            shutil.copytree(folder, folder.with_name(folder.name + "-start"))
        states = []
        for nth in range(200):
            for folder in folders:
                shutil.rmtree(folder)
                shutil.copytree(folder.with_name(folder.name + "-start"), folder)
            if not self._killed_at(nth):
                break
            # what is in one of the two files opens it, and nothing else has to be known
            known = [self.line(path) for path in (self.file, self.next) if path.exists()]
            good = [one for one in known if self.opens(one)]
            self.assertTrue(good, f"at call {nth}")
            states.append(good[0] == NEW)
            change_both(self.store, self.file, NEW)
            self.assertEqual((self.line(self.file), self.opens(NEW)), (NEW, True))
            self.assertFalse(self.next.exists())
            self.assertEqual([path for path in self.home.iterdir() if path != self.file], [])
        self.assertGreater(len(states), 12)
        # first the old one, from one point on the new one
        self.assertEqual(states, sorted(states))
        self.assertEqual(set(states), {False, True})

    def _killed_at(self, nth: int) -> bool:
        """Change it in a child that dies before its nth call, or ends well: then False."""
        child = os.fork()
        if not child:
            status = 1
            try:
                _arm(nth)
                change_both(self.store, self.file, NEW)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        self.assertIn(status, (0, signal.SIGKILL), f"at call {nth}")
        return status != 0


def _arm(nth: int) -> None:
    left = nth

    def deadly(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: Any, **options: Any) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counted

    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name)))
