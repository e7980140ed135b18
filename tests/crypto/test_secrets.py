"""Secrets in memory: what cannot be done with them, and what is left when they are let go."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.frost.errors import InvalidGroupError
from ron.crypto.secrets import MAX_BYTES, SecretBuffer, wipe_all
from tests.crypto.test_frost_support import scalar, signed, some_shares

SECRET = b"0123456789abcdef" * 2


def run(program: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return done.stdout.strip()


def mapping_of(address: int) -> str:
    """The entry of /proc/self/smaps that holds `address`."""
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        start, end = (int(part, 16) for part in entry.split(" ", 1)[0].split("-"))
        if start <= address < end:
            return entry
    raise AssertionError("not mapped")


class BadUse(SynchronousTestCase):
    def test_sizes(self) -> None:
        for size in (0, -1, MAX_BYTES + 1):
            self.assertRaises(ValueError, SecretBuffer, size)

    def test_it_is_not_copied_stored_or_shown(self) -> None:
        buffer = SecretBuffer.taking(bytearray(SECRET))
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps, bytes):
            self.assertRaises(TypeError, attempt, buffer)
        self.assertEqual(repr(buffer), "<SecretBuffer of 32 bytes>")

    def test_after_the_wipe_there_is_nothing(self) -> None:
        buffer = SecretBuffer.taking(bytearray(SECRET))
        buffer.close()
        buffer.close()
        self.assertTrue(buffer.closed)
        self.assertRaises(ValueError, buffer.open().__enter__)
        self.assertEqual(repr(buffer), "<SecretBuffer of 32 bytes, wiped>")

    def test_who_still_reads_while_it_is_wiped_reads_zeros(self) -> None:
        buffer = SecretBuffer.taking(bytearray(SECRET))
        with buffer.open() as view:
            buffer.close()
            self.assertEqual(bytes(view), bytes(32))

    def test_a_view_does_not_outlive_its_block(self) -> None:
        buffer = SecretBuffer(4)
        with buffer.open() as view:
            pass
        self.assertRaises(ValueError, bytes, view)

    def test_a_limit_too_small_is_said_with_the_way_out(self) -> None:
        said = run(
            """
            import os, resource
            from ron.crypto.secrets import NotLockedError, SecretBuffer
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
            source = bytearray(b"secret")
            try:
                SecretBuffer.taking(source)
            except NotLockedError as error:
                print(error.code, error.hint, bytes(source))
            print(SecretBuffer(8, allow_unlocked=True).locked)
            """
        )
        self.assertIn("Unsupported raise the limit", said)
        self.assertIn("LimitMEMLOCK", said)
        self.assertIn(repr(bytes(6)), said)
        self.assertTrue(said.endswith("False"), said)


class Memory(SynchronousTestCase):
    def test_it_takes_a_secret_over(self) -> None:
        source = bytearray(SECRET)
        buffer = SecretBuffer.taking(source)
        self.assertEqual(bytes(source), bytes(32))
        self.assertEqual(len(buffer), 32)
        self.assertTrue(buffer.locked)
        with buffer.open() as view:
            self.assertEqual(bytes(view), SECRET)
            view[:2] = b"xx"
        with buffer.open() as view:
            self.assertEqual(bytes(view[:3]), b"xx2")

    def test_its_pages_are_locked_and_left_out_of_dumps_and_forks(self) -> None:
        import ctypes

        buffer = SecretBuffer(100)
        with buffer.open() as view:
            address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        found = mapping_of(address)
        flags = re.search(r"^VmFlags:(.*)$", found, re.MULTILINE)
        assert flags
        self.assertTrue({"lo", "dd", "wf"} <= set(flags[1].split()), flags[1])
        self.assertGreater(int(re.findall(r"^Locked: +(\d+) kB", found, re.MULTILINE)[0]), 0)

    def test_a_forked_child_finds_zeros(self) -> None:
        buffer = SecretBuffer.taking(bytearray(SECRET))
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            with buffer.open() as view:
                os.write(writing, bytes(view))
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            self.assertEqual(pipe.read(), bytes(32))
        with buffer.open() as view:
            self.assertEqual(bytes(view), SECRET)

    def test_the_end_of_the_process_wipes_what_is_left(self) -> None:
        said = run(
            """
            import atexit
            kept = []
            # handlers run last in, first out: this one runs after the wipe
            atexit.register(lambda: print([one.closed for one in kept]))
            from ron.crypto.secrets import SecretBuffer
            kept += [SecretBuffer(1), SecretBuffer(2)]
            """
        )
        self.assertEqual(said, "[True, True]")

    def test_wiping_all_of_a_process(self) -> None:
        said = run(
            """
            from ron.crypto.secrets import SecretBuffer, wipe_all
            one = SecretBuffer(5)
            wipe_all()
            print(one.closed)
            """
        )
        self.assertEqual(said, "True")
        self.assertTrue(callable(wipe_all))

    def test_a_hardened_process_is_not_dumped(self) -> None:
        said = run(
            """
            import ctypes, resource
            from ron.crypto.secrets import harden_process
            harden_process()
            print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
            """
        )
        self.assertEqual(said, "(0, 0) 0")


class Shares(SynchronousTestCase):
    def test_a_share_in_locked_memory_signs_and_is_wiped(self) -> None:
        shares = {member: share.times(scalar(7)) for member, share in some_shares(2, 3).items()}
        free = shares[1]._secret
        self.assertFalse(shares[1].locked)
        for share in shares.values():
            self.assertIs(share.lock().lock(), share)
            self.assertTrue(share.locked)
        self.assertEqual(bytes(free), bytes(32))
        self.assertEqual(len(signed({member: shares[member] for member in (1, 3)})), 64)
        shares[1].wipe()
        self.assertRaises(InvalidGroupError, lambda: shares[1].secret)
