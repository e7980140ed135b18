"""Amnesia: no key of an onion is ever on a disk, and after an orderly end nowhere at all. Needs tor.

Looked at: the home, the working directory, the folder in memory, and every file that the daemon or a tor of its has
open or mapped, wherever it lies; for the key as tor writes it, as raw bytes, and as base64 with the usual alphabets.
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.onionwork import OnionWork, end_shared, local_app, oniond, op_id
from tests.live.support import MACRONODE, NO_TOR, ROOT, alive, new_node, process_tree, until

AMNESIA = "amnesia = true"
IN_RAM = '[log]\nto = "memory"\n'
RAM = Path("/dev/shm")
# Made by tools, not by the daemon, and large.
NOT_OURS = {".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".hypothesis"}


class Secret:
    """An onion's key in every form it may be written in."""

    def __init__(self, blob: str) -> None:
        body = blob.removeprefix("ED25519-V3:")
        raw = base64.b64decode(body)
        urlsafe = base64.urlsafe_b64encode(raw)
        # the first half is the key itself: whoever has it is the onion
        self.forms = (body.encode(), body.rstrip("=").encode(), raw, raw[:32], urlsafe, raw.hex().encode())

    def is_in(self, content: bytes) -> bool:
        return any(form in content for form in self.forms)

    def found(self, paths: Iterator[Path]) -> list[str]:
        """Those of `paths` that hold it."""
        return sorted({str(path) for path in paths if self.is_in(content_of(path))})


def content_of(path: Path) -> bytes:
    """What a file holds; nothing, when it has gone or is no file."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(path.stat().st_mode):
            return path.read_bytes()
    return b""


def files_below(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        for where, names, files in os.walk(folder):
            names[:] = [name for name in names if name not in NOT_OURS and not name.startswith("_trial_")]
            yield from (Path(where, name) for name in files)


def written_since(began_s: float, *folders: Path) -> Iterator[Path]:
    """Files below that were changed after `began_s`."""
    for path in files_below(*folders):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime >= began_s:
                yield path


def in_memory() -> list[Path]:
    """Folders of ours on tmpfs."""
    return list(RAM.glob(f"ron-{os.getuid()}-*"))


def held_open(pids: list[int]) -> Iterator[Path]:
    """Files that these processes have open or mapped, deleted ones too."""
    for pid in pids:
        with contextlib.suppress(OSError):
            yield from Path(f"/proc/{pid}/fd").iterdir()
        with contextlib.suppress(OSError):
            yield from Path(f"/proc/{pid}/map_files").iterdir()


def on_a_disk(paths: Iterator[Path]) -> Iterator[Path]:
    """Those that do not lie in memory."""
    memory = RAM.stat().st_dev
    for path in paths:
        with contextlib.suppress(OSError):
            if path.stat().st_dev != memory:
                yield path


class Amnesia(SynchronousTestCase):
    """What a whole life leaves behind."""

    skip = NO_TOR

    def setUp(self) -> None:
        end_shared()
        self.before = set(in_memory())
        self.began_s = time.time() - 1

    def ours(self) -> list[Path]:
        """The daemon's folder in memory."""
        return [path for path in in_memory() if path not in self.before]

    def places(self, work: OnionWork, *more: Path) -> Iterator[Path]:
        """The home, what the daemon printed, and what has changed in the working directory."""
        yield from files_below(work.daemon.home, work.daemon.output.parent, *more)
        yield from written_since(self.began_s, ROOT)

    def pids(self, work: OnionWork) -> list[int]:
        return sorted({work.daemon.pid, *process_tree(str(work.daemon.home)), *process_tree(str(work.tornet))})

    def live(self, work: OnionWork, client: str) -> Secret:
        """All that may bring a key to a file: an onion is made, visited, rotated, lost with its tor, exported."""
        made = work.create("chat", persistence="durable")
        self.assertTrue(work.reachable(made["onion"], client))
        path = f"/v1/onions/{made['id']}"
        rotated = work.call("POST", f"{path}/rotate", {"op_id": op_id(), "grace_s": 0, "wait_s": 60}).json()
        self.assertTrue(rotated["ready"], rotated)
        work.signal(signal.SIGKILL, "onion")
        until(lambda: not work.show(made["id"])["ready"], 10, "its being lost")
        until(lambda: work.show(made["id"])["ready"], 60, "its being back")
        exported = work.call("POST", f"{path}/export", {"op_id": op_id()}).json()
        self.assertEqual(exported["onion"], rotated["onion"])
        return Secret(exported["key"])

    def is_on_no_disk(self, work: OnionWork, secret: Secret) -> None:
        home = work.daemon.home
        self.assertEqual(secret.found(self.places(work)), [])
        pids = self.pids(work)
        self.assertGreater(len(pids), 7, "the daemon and its tors")
        self.assertEqual(secret.found(on_a_disk(held_open(pids))), [])
        self.assertEqual([str(path) for path in files_below(home) if "log" in path.parts], [], "logs are in memory")
        self.assertEqual(list(files_below(home / "onions", home / "tornet")), [])

    def is_nowhere(self, work: OnionWork, secret: Secret) -> None:
        self.assertEqual(self.ours(), [])
        self.assertEqual(secret.found(self.places(work, RAM)), [])
        self.assertEqual(process_tree(str(work.daemon.home)), [])

    def alone(self) -> OnionWork:
        """A running ron-oniond."""
        work = oniond(IN_RAM, AMNESIA)
        self.addCleanup(work.end)
        work.daemon.start()
        (ram,) = self.ours()
        work.tornet = ram / "tornet"
        return work

    def test_the_scan_finds_a_key(self) -> None:
        """Otherwise it would prove nothing."""
        raw = os.urandom(64)
        secret = Secret("ED25519-V3:" + base64.b64encode(raw).decode())
        folder = Path(self.mktemp())
        folder.mkdir()
        forms = {"raw": b"x" * 5 + raw, "text": base64.b64encode(raw), "half": raw[:32], "url": b'"' + secret.forms[4]}
        for name, content in forms.items():
            (folder / name).write_bytes(content)
        (folder / "other").write_bytes(os.urandom(64))
        self.assertEqual(secret.found(files_below(folder)), sorted(str(folder / name) for name in forms))
        gone = folder / "raw"
        with gone.open("rb"):
            gone.unlink()
            self.assertTrue(secret.found(on_a_disk(held_open([os.getpid()]))))

    def test_a_life_and_its_end(self) -> None:
        work = self.alone()
        secret = self.live(work, "client")
        self.is_on_no_disk(work, secret)
        self.assertEqual(stat.S_IMODE(self.ours()[0].stat().st_mode), 0o700)
        self.assertEqual(secret.found(files_below(RAM)), [], "alone, the runtime keeps keys in its own memory")
        self.assertEqual(work.daemon.stop(), 0)
        self.is_nowhere(work, secret)
        self.assertFalse((work.daemon.home / "admin.cap").exists())

    def test_killed(self) -> None:
        """Memory-backed files of tor stay, without any onion's key, until the next start or boot."""
        work = self.alone()
        secret = self.live(work, "client")
        pids = self.pids(work)
        work.daemon.stop(signal.SIGKILL)
        until(lambda: not any(map(alive, pids)), 30, "the tors ending")
        self.assertEqual(secret.found(self.places(work, RAM)), [])
        (left,) = self.ours()
        self.assertEqual([path.name for path in left.iterdir()], ["tornet"])
        self.assertEqual(stat.S_IMODE(left.stat().st_mode), 0o700)
        (work.daemon.home / "onions.json").unlink()
        work.daemon.start()
        (anew,) = self.ours()
        self.assertNotEqual(anew, left, "what the one before left is removed")
        work.tornet = anew / "tornet"
        self.assertEqual([view["app"] for view in work.listed().values()], ["wiki"], "nobody remembers the others")
        self.assertEqual(work.daemon.stop(), 0)
        self.is_nowhere(work, secret)

    def test_a_macronode(self) -> None:
        """Its processes share what one alone keeps to itself: in memory-backed files, removed at the end."""
        node = new_node(MACRONODE + IN_RAM, onion=AMNESIA)
        self.addCleanup(node.destroy)
        node.start()
        (ram,) = self.ours()
        work = OnionWork(node, local_app(), ram / "tornet")
        secret = self.live(work, "device-a")
        self.is_on_no_disk(work, secret)
        self.assertTrue(secret.found(files_below(ram)), "in memory it is, and there the scan finds it")
        self.assertEqual(node.stop(), 0)
        self.is_nowhere(work, secret)
