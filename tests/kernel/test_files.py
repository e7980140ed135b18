"""Private files are whole or untouched, closed to others, and a folder has one owner."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.files import DirectoryLock, private_dir, read_private, sync_dir, write_private
from ron.proto.errors import ErrorCode, RonError

HOLD = """
import sys
from pathlib import Path
from ron.kernel.files import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextlib.contextmanager
def files_of_at_most(limit_bytes: int) -> Iterator[None]:
    """As long as it lasts this process may write no larger file: a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


class SystemDirectories(SynchronousTestCase):
    def test_those_of_the_system_are_left_as_they_are(self) -> None:
        mode = Path("/usr").stat().st_mode
        error = self.assertRaises(RonError, private_dir, Path("/usr"))
        self.assertIn("RON_HOME", str(error.hint))
        self.assertEqual(Path("/usr").stat().st_mode, mode)


class Folders(SynchronousTestCase):
    """Every test in a folder of its own, with a umask that closes nothing by itself."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.folder.chmod(0o755)
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)

    def names(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir())


class Writing(Folders):
    def test_new_and_again(self) -> None:
        path = self.folder / "key"
        for content in (b"first", b"", b"second" * 1000):
            write_private(path, content)
            self.assertEqual(path.read_bytes(), content)
            self.assertEqual(mode(path), 0o600)
        self.assertEqual(self.names(), ["key"])

    def test_an_existing_folder_keeps_its_mode(self) -> None:
        write_private(self.folder / "key", b"x")
        self.assertEqual(mode(self.folder), 0o755)

    def test_a_missing_folder_is_made_private(self) -> None:
        write_private(self.folder / "a" / "key", b"x")
        self.assertEqual(mode(self.folder / "a"), 0o700)

    def test_a_file_that_others_could_read_is_closed(self) -> None:
        path = self.folder / "key"
        path.write_bytes(b"old")
        path.chmod(0o644)
        write_private(path, b"new")
        self.assertEqual(mode(path), 0o600)

    def test_a_link_is_replaced_and_what_it_named_is_not_touched(self) -> None:
        other = self.folder / "other"
        other.write_bytes(b"theirs")
        (self.folder / "key").symlink_to(other)
        write_private(self.folder / "key", b"ours")
        self.assertEqual(other.read_bytes(), b"theirs")
        self.assertFalse((self.folder / "key").is_symlink())

    def test_a_full_disk_leaves_the_old_file_whole_and_no_crumbs(self) -> None:
        path = self.folder / "key"
        write_private(path, b"old" * 10)
        with files_of_at_most(100):
            error = self.assertRaises(OSError, write_private, path, b"new" * 100)
        self.assertIn("File too large", str(error))
        self.assertEqual(path.read_bytes(), b"old" * 10)
        self.assertEqual(self.names(), ["key"])

    def test_a_folder_in_the_way(self) -> None:
        (self.folder / "key").mkdir()
        self.assertRaises(OSError, write_private, self.folder / "key", b"x")
        self.assertEqual(self.names(), ["key"])

    @settings(max_examples=25, deadline=None)
    @given(st.binary(max_size=300))
    def test_what_is_written_is_what_is_read(self, content: bytes) -> None:
        write_private(self.folder / "key", content)
        self.assertEqual(read_private(self.folder / "key"), content)

    def test_sync_dir_wants_a_directory(self) -> None:
        sync_dir(self.folder)
        write_private(self.folder / "key", b"x")
        self.assertRaises(NotADirectoryError, sync_dir, self.folder / "key")


class Reading(Folders):
    def test_an_exposed_secret_is_refused_with_the_command_that_mends_it(self) -> None:
        path = self.folder / "key"
        write_private(path, b"secret")
        for exposed in (0o640, 0o604, 0o610, 0o602, 0o666):
            path.chmod(exposed)
            error = self.assertRaises(RonError, read_private, path)
            self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
            self.assertEqual(error.hint, f"chmod 600 {path}")
            self.assertNotIn("b'secret'", error.message)
        for private in (0o600, 0o400):
            path.chmod(private)
            self.assertEqual(read_private(path), b"secret")

    def test_a_missing_one_is_missing(self) -> None:
        self.assertRaises(FileNotFoundError, read_private, self.folder / "key")


class PrivateFolders(Folders):
    def test_made_with_parents(self) -> None:
        made = private_dir(self.folder / "a" / "b")
        self.assertEqual(made, self.folder / "a" / "b")
        self.assertEqual(mode(made), 0o700)

    def test_narrowed_when_others_may_enter(self) -> None:
        for open_mode in (0o755, 0o710, 0o701, 0o777):
            self.folder.chmod(open_mode)
            private_dir(self.folder)
            self.assertEqual(mode(self.folder), 0o700)

    def test_a_narrower_one_stays(self) -> None:
        inner = self.folder / "a"
        inner.mkdir(mode=0o500)
        private_dir(inner)
        self.assertEqual(mode(inner), 0o500)


class Ownership(Folders):
    """One process at a time; the second learns who holds it."""

    def held_by_another(self) -> subprocess.Popen[str]:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self.addCleanup(holder.communicate)
        assert holder.stdout is not None
        self.assertEqual(holder.stdout.readline(), "held\n")
        return holder

    def refusal(self) -> RonError:
        error: RonError = self.assertRaises(RonError, DirectoryLock, self.folder)
        self.assertIs(error.code, ErrorCode.CONFLICT)
        self.assertIn(str(self.folder), error.message)
        return error

    def test_the_second_learns_the_owners_pid(self) -> None:
        holder = self.held_by_another()
        error = self.refusal()
        self.assertIn(f"process {holder.pid}", error.message)
        self.assertIn(f"kill {holder.pid}", str(error.hint))

    def test_free_again_once_the_owner_is_gone_however_it_ended(self) -> None:
        holder = self.held_by_another()
        holder.kill()
        holder.wait()
        lock = DirectoryLock(self.folder)
        self.assertEqual((self.folder / ".lock").read_text(), f"{os.getpid()}\n")
        lock.release()

    def test_not_twice_in_one_process_either(self) -> None:
        lock = DirectoryLock(self.folder)
        self.assertIn(f"process {os.getpid()}", self.refusal().message)
        lock.release()
        lock.release()
        DirectoryLock(self.folder).release()

    def test_a_refused_second_leaves_the_first_in_possession(self) -> None:
        lock = DirectoryLock(self.folder)
        for _ in range(3):
            self.refusal()
        lock.release()

    def test_an_owner_that_has_not_signed_yet(self) -> None:
        """Between taking the lock and writing the pid there is a moment; the refusal then names nobody."""
        lock = DirectoryLock(self.folder)
        self.addCleanup(lock.release)
        (self.folder / ".lock").write_text("")
        error = self.refusal()
        self.assertIn("another process", error.message)
        self.assertNotIn("kill", str(error.hint))

    def test_folder_and_lock_are_private(self) -> None:
        lock = DirectoryLock(self.folder / "home")
        self.addCleanup(lock.release)
        self.assertEqual(mode(self.folder / "home"), 0o700)
        self.assertEqual(mode(self.folder / "home" / ".lock"), 0o600)

    def test_a_process_that_we_start_does_not_inherit_it(self) -> None:
        lock = DirectoryLock(self.folder)
        child = subprocess.Popen(["sleep", "5"], close_fds=False)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        lock.release()
        DirectoryLock(self.folder).release()
