"""Secrets in memory that is not swapped, not dumped, not inherited, and overwritten when it is let go.

In: a length, or a secret to take over. Out: a `SecretBuffer`, whose bytes are seen through `open` only. The one place
that calls the C library by itself: Python offers anonymous mappings and `madvise`, and nothing that locks a page.
Whatever a library is given as `bytes` is a copy that CPython may keep for a while: see docs/vault.rst.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import resource
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, NoReturn

from ron.proto.errors import ErrorCode, RonError

MAX_BYTES = 1 << 20
# linux/mman.h and linux/prctl.h; the standard library does not name them
_MADV_WIPEONFORK = 18
_PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)


class NotLockedError(RonError):
    """The system does not let us keep this memory out of the swap."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            ErrorCode.UNSUPPORTED,
            f"a secret cannot be locked in memory: {reason}",
            hint="raise the limit (systemd: LimitMEMLOCK=64M; shell: ulimit -l 65536), or grant CAP_IPC_LOCK",
        )


class Uncopied:
    """What is neither copied nor pickled: `TypeError`. `_called` is how the error names it."""

    __slots__ = ()
    _called: ClassVar[str]

    def __copy__(self) -> NoReturn:
        raise TypeError(f"{self._called} is not copied")

    def __deepcopy__(self, _memo: object) -> NoReturn:
        raise TypeError(f"{self._called} is not copied")

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self._called} is not stored")


class SecretBuffer(Uncopied):
    """So many bytes of locked memory, zero at first. They stay until `close`, or the end of the process.

    It cannot be copied, stored or shown. A forked child finds zeros in it. locked: false only where `allow_unlocked`
    was said and the system refused; somebody should then be told.
    """

    __slots__ = ("__weakref__", "_map", "_open", "_size", "locked")
    _called = "a secret"

    def __init__(self, size: int, *, allow_unlocked: bool = False) -> None:
        """size: 1 to 1 MiB; each buffer takes whole pages. Raises `NotLockedError`; `ValueError` for a wrong size."""
        if not 1 <= size <= MAX_BYTES:
            raise ValueError(f"a secret buffer has 1 to {MAX_BYTES} bytes")
        self._size = size
        self._open = 0
        self._map: mmap.mmap | None = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_DONTDUMP)
        self._map.madvise(_MADV_WIPEONFORK)
        self.locked = not (failed := _lock(self._map, size))
        if failed and not allow_unlocked:
            self.close()
            raise NotLockedError(failed)
        _live.add(self)

    @classmethod
    def taking(cls, secret: bytearray, *, allow_unlocked: bool = False) -> SecretBuffer:
        """A buffer with the bytes of `secret`, which is overwritten with zeros in any case. Raises as `__init__`."""
        try:
            made = cls(len(secret), allow_unlocked=allow_unlocked)
            with made.open() as view:
                view[:] = secret
        finally:
            secret[:] = bytes(len(secret))
        return made

    @contextmanager
    def open(self) -> Iterator[memoryview]:
        """The bytes themselves, to read and to write, until the block ends. Raises `ValueError` once it is closed."""
        if self._map is None:
            raise ValueError("the secret was wiped")
        self._open += 1
        try:
            with memoryview(self._map) as view:
                yield view
        finally:
            self._open -= 1

    def close(self) -> None:
        """Overwrite it with zeros and give the memory back. A second time does nothing."""
        if self._map is None:
            return
        self._map[:] = bytes(len(self._map))
        held, self._map = self._map, None
        # somebody is reading it: it is wiped under their eyes, and unmapped when they let go of it
        if not self._open:
            held.close()

    @property
    def closed(self) -> bool:
        """Was it wiped?"""
        return self._map is None

    def __len__(self) -> int:
        return self._size

    def __del__(self) -> None:
        # the constructor may have failed before there was anything to wipe
        if getattr(self, "_map", None) is not None:
            self.close()

    def __bytes__(self) -> NoReturn:
        raise TypeError("a secret is read inside open() only")

    def __repr__(self) -> str:
        return f"<SecretBuffer of {self._size} bytes{'' if self._map is not None else ', wiped'}>"


def harden_process() -> None:
    """No core dump of this process, and no other of the same user may read its memory (PR_SET_DUMPABLE). Linux only.

    Raises `OSError` when the system refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise _os_error()


def _lock(held: mmap.mmap, size: int) -> str:
    """Why the pages could not be locked; empty when they are."""
    start = ctypes.c_char.from_buffer(held)
    address = ctypes.addressof(start)
    # a buffer that is exported cannot be unmapped
    del start
    return str(_os_error()) if _libc.mlock(address, size) else ""


def _os_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


_live: weakref.WeakSet[SecretBuffer] = weakref.WeakSet()


@atexit.register
def wipe_all() -> None:
    """Close every buffer there is: what the end of the process does by itself."""
    for buffer in list(_live):
        buffer.close()
