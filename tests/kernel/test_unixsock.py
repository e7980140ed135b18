"""A Unix socket others can find: also after its file was removed, and never one that cannot end."""

from __future__ import annotations

import shutil
import socket
import stat
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from ron.kernel.files import SOCKET_PATH_BYTES
from ron.kernel.unixsock import UnixListener
from ron.proto.errors import ErrorCode, RonError


def reachable(path: Path) -> bool:
    """True when somebody listens at `path`."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class UnixListenerTests(TestCase):
    def setUp(self) -> None:
        # short: trial's own folders may be too deep for a socket
        self.folder = Path(tempfile.mkdtemp(prefix="ron-sock-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.path = self.folder / "run" / "x.sock"
        self.listener = UnixListener(reactor, self.path, Factory.forProtocol(Protocol), backlog=4)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.listener.stop()))

    def test_a_path_that_is_too_long_is_refused_with_the_way_out(self) -> None:
        long = self.folder / ("x" * SOCKET_PATH_BYTES)
        error = self.assertRaises(RonError, UnixListener(reactor, long, Factory(), backlog=4).listen)
        self.assertIs(error.code, ErrorCode.UNSUPPORTED)
        self.assertIn("RON_HOME", error.hint or "")

    def test_the_longest_path_that_fits_is_taken(self) -> None:
        path = self.folder / ("x" * (SOCKET_PATH_BYTES - len(str(self.folder)) - 1))
        listener = UnixListener(reactor, path, Factory.forProtocol(Protocol), backlog=4)
        listener.listen()
        self.addCleanup(lambda: Deferred.fromCoroutine(listener.stop()))
        self.assertTrue(reachable(path))

    async def test_private_and_gone_when_stopped(self) -> None:
        self.listener.listen()
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o700)
        await self.listener.stop()
        await self.listener.stop()
        self.assertFalse(self.path.exists())

    async def test_what_an_earlier_process_left_is_replaced(self) -> None:
        self.path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as earlier:
            earlier.bind(str(self.path))
        self.listener.listen()
        self.assertTrue(reachable(self.path))

    async def test_a_removed_file_is_there_again(self) -> None:
        self.listener.listen()
        self.assertFalse(await self.listener.mend())
        for remove in (self.path.unlink, lambda: shutil.rmtree(self.path.parent)):
            remove()
            self.assertTrue(self.listener.lost)
            self.assertTrue(await self.listener.mend())
            self.assertTrue(reachable(self.path))
        self.path.unlink()
        self.path.write_text("somebody else's")
        self.assertTrue(await self.listener.mend())
        self.assertTrue(reachable(self.path))

    async def test_it_ends_when_its_file_is_gone(self) -> None:
        for remove in (self.path.unlink, lambda: shutil.rmtree(self.path.parent)):
            self.listener.listen()
            remove()
            await self.listener.stop()
            self.assertFalse(self.path.exists())

    async def test_stopped_while_being_mended_it_stays_stopped(self) -> None:
        self.listener.listen()
        self.path.unlink()
        mending = Deferred.fromCoroutine(self.listener.mend())
        await self.listener.stop()
        await mending
        self.assertFalse(reachable(self.path))
        self.assertFalse(self.listener.lost)
