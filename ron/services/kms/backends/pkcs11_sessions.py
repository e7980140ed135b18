"""Sessions of one PKCS#11 token: a bounded pool that comes back by itself when the token was away.

In: where the token is, its PIN, how long a caller may wait. Out: one session at a time to each caller, or
`StoreUnavailable`. There is no thread: whoever comes first after a failure reconnects, not before the back-off says so,
and the service's probe is such a caller. Everything here may block.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pkcs11
from pkcs11 import ObjectClass, Session, Token
from pkcs11.exceptions import (
    PinExpired,
    PinIncorrect,
    PinInvalid,
    PinLenRange,
    PinLocked,
    PKCS11Error,
    UserAlreadyLoggedIn,
    UserPinNotInitialized,
)
from twisted.logger import Logger

from ron.crypto.secrets import SecretBuffer
from ron.kernel.backoff import Backoff
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.services.kms.backends.errors import LockedError

CHECKOUT_S = 2.0
"""A call to a backend has two seconds in all (CONCURRENCY §5)."""
HANG_S = 2.0
"""A call that is in the module for longer hangs: nobody waits behind it any more."""
BACKOFF_BASE_S = 0.1
BACKOFF_CEILING_S = 5.0
# python-pkcs11 calls C_Initialize(NULL): a module may take it that one thread calls it. The proxy of p11-kit locks
# all the same, and passes CKF_OS_LOCKING_OK on to the module behind it. Its client (p11-kit-client.so) is not meant: of
# several threads that wait for a server that is killed, some wait for ever (seen with 0.24.1).
_PROXY = "libp11-kit.so"
# A library that is none, or a token whose own name is no text, is as good as none.
_NO_CONNECTION = (PKCS11Error, ValueError, RuntimeError, OSError)
_BAD_PIN = (PinIncorrect, PinLocked, PinExpired, PinInvalid, PinLenRange, UserPinNotInitialized)
_log = Logger(namespace="ron.kms.pkcs11")


class TokenAddress(NamedTuple):
    """module_path: the vendor's shared library. label: of the token. sessions: at most so many, see `at_a_time`."""

    module_path: str
    label: str
    sessions: int = 4

    @property
    def at_a_time(self) -> int:
        """How many calls the module gets at a time: one, unless it is p11-kit's proxy."""
        return self.sessions if Path(self.module_path).resolve().name.startswith(_PROXY) else 1


class Seat:
    """A session in one caller's hands, and the keys it found there. age: which destroy it knows of (a handle may come
    to mean another key after one). since_s: when it was taken."""

    __slots__ = ("age", "found", "session", "since_s")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.found: dict[tuple[str, ObjectClass], pkcs11.Key] = {}
        self.age = 0
        self.since_s = 0.0


def pin_from_env(name: str, *, allow_unlocked: bool = False) -> SecretBuffer:
    """The PIN from the environment variable that the config names. The value is in no message and in no log.

    Raises `RonError` (BadRequest) where the config names none, or an empty one; `NotLockedError` as `SecretBuffer`.
    """
    if not name or not os.environ.get(name):
        what = f"the variable {name} is empty or not set" if name else "no variable with the token's PIN is named"
        raise RonError(ErrorCode.BAD_REQUEST, what, hint="backends.pkcs11.pin_env names it, the environment has it")
    return SecretBuffer.taking(bytearray(os.environb[name.encode()]), allow_unlocked=allow_unlocked)


class Sessions:
    """The pool. now: seconds that never go back. on_reconnect: called after each connection but the first.

    A token may hang instead of failing: a call goes into the module and does not come back. Nothing can end it. Who
    waits behind it is refused after checkout_s, and once it is there for hang_s, at once; when it comes back, all goes
    on. connections: how many there were. One of these for a module and process: `C_Finalize` ends the sessions of all.
    """

    def __init__(
        self,
        address: TokenAddress,
        pin: SecretBuffer,
        *,
        checkout_s: float = CHECKOUT_S,
        hang_s: float = HANG_S,
        now: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
        on_reconnect: Callable[[], None] = lambda: None,
    ) -> None:
        self._address = address
        self._pin = pin
        self._checkout_s = checkout_s
        self._hang_s = hang_s
        self._now = now
        self._backoff = backoff or Backoff(base_s=BACKOFF_BASE_S, ceiling_s=BACKOFF_CEILING_S)
        self._on_reconnect = on_reconnect
        self._cond = threading.Condition()
        self._idle: list[Seat] = []
        self._all: list[Seat] = []
        self._out = 0
        self._open = self._up = self._connecting = self._was_up = self._refused = False
        self._not_before = 0.0
        self._connecting_since_s = 0.0
        self._taken: set[Seat] = set()
        self._hung = False
        self.connections = 0
        self.token: Token | None = None

    def open(self) -> None:
        """Connect and log in. Raises `RonError` (StoreUnavailable), `LockedError` for a wrong PIN."""
        with self._cond:
            self._open, self._not_before = True, 0.0
        try:
            with self.seat():
                pass
        except RonError:
            self.close()
            raise

    def close(self) -> None:
        """Log out and let go of the module; callers that still wait are refused."""
        with self._cond:
            if not self._open:
                return
            self._open = self._was_up = False
            self._cond.notify_all()
            # a call that hangs in the module holds its session for good: the module is then left as it is
            if self._cond.wait_for(lambda: not self._out and not self._connecting, timeout=self._checkout_s):
                self._leave()
            self._up = False

    @property
    def up(self) -> bool:
        """Was it there when it was last used?"""
        return self._up

    @contextmanager
    def seat(self) -> Iterator[Seat]:
        """A session until the block ends. Raises `RonError` (StoreUnavailable): none came free, or the token is away.

        An error of the module that leaves the block counts as the token's: all sessions are made anew.
        """
        seat = self._take()
        try:
            yield seat
        except PKCS11Error as error:
            self._give_back(seat, whole=False)
            _log.warn("the token failed: {why}", event="kms_backend_error", backend="pkcs11", why=_name(error))
            raise unavailable("the token does not answer", "see docs/kms/runbook.rst, backend outage") from error
        except BaseException:
            self._give_back(seat, whole=None)
            raise
        self._give_back(seat, whole=True)

    def _take(self) -> Seat:
        with self._cond:
            self._refuse_behind_a_hang()
            if not self._cond.wait_for(self._decided, timeout=self._checkout_s):
                self._refuse_behind_a_hang()
                raise unavailable(f"no session of the token came free in {self._checkout_s:g} s")
            if not self._open:
                raise unavailable("the token was closed")
            if self._up:
                return self._handed_out(self._idle.pop())
            self._refuse_early()
            self._connecting, self._connecting_since_s = True, self._now()
        return self._connect()

    def _handed_out(self, seat: Seat) -> Seat:
        seat.since_s = self._now()
        self._taken.add(seat)
        self._out += 1
        return seat

    @property
    def hangs_s(self) -> float:
        """For how long a call has kept everybody from the token, seconds; 0 while others could have a session.

        A token that answers slowly looks the same for a moment.
        """
        if self._connecting:
            return self._now() - self._connecting_since_s
        if self._idle or not self._taken:
            return 0.0
        # copied: it is read from other threads
        return self._now() - max((seat.since_s for seat in tuple(self._taken)), default=self._now())

    def _refuse_behind_a_hang(self) -> None:
        hangs_s = self.hangs_s
        if hangs_s < self._hang_s:
            return
        if not self._hung:
            self._hung = True
            _log.warn("the token hangs", event="kms_backend_error", backend="pkcs11", why="hang")
        error = unavailable(
            f"the token has not answered for {hangs_s:.0f} s", "see docs/kms/runbook.rst, backend outage"
        )
        error.retry_after_s = max(1, round(BACKOFF_CEILING_S))
        raise error

    def _answered(self) -> None:
        if self._hung:
            self._hung = False
            _log.info("the token answers again", event="kms_backend_reconnected", backend="pkcs11")

    def _decided(self) -> bool:
        if not self._open or self._up:
            return not self._open or bool(self._idle)
        return self._waits() or not (self._out or self._connecting)

    def _waits(self) -> bool:
        return self._refused or self._now() < self._not_before

    def _refuse_early(self) -> None:
        if self._refused:
            # a token locks itself for good after a few wrong PINs: it is never asked twice with the same one
            raise LockedError("the token refused the PIN", hint="put the right one into the variable, and restart")
        left_s = self._not_before - self._now()
        # never while a call is still in the module: to connect is to finalize it
        if left_s > 0 or self._out or self._connecting:
            error = unavailable("the token is away", "see docs/kms/runbook.rst, backend outage")
            error.retry_after_s = max(1, round(left_s))
            raise error

    def _connect(self) -> Seat:
        try:
            seats = self._sit_down()
        except _NO_CONNECTION as error:
            with self._cond:
                self._connecting, self._refused = False, isinstance(error, _BAD_PIN)
                self._later()
                self._answered()
                self._cond.notify_all()
            _log.warn("no way to the token: {why}", event="kms_backend_error", backend="pkcs11", why=_name(error))
            if self._refused:
                self._refuse_early()
            raise unavailable("the token cannot be reached", "is there a token of that label?") from error
        with self._cond:
            again, self._was_up = self._was_up, True
            self._connecting, self._up, self._out = False, True, 0
            self._taken.clear()
            self._all, self._idle = list(seats), seats
            self.connections += 1
            first = self._handed_out(seats.pop())
            self._answered()
            self._cond.notify_all()
        if again:
            _log.info("the token is back", event="kms_backend_reconnected", backend="pkcs11")
            self._on_reconnect()
        return first

    def _sit_down(self) -> list[Seat]:
        """All sessions, the first of which logs in: a login is the process's, not the session's."""
        module = pkcs11.lib(self._address.module_path)
        # a token that came or went is seen by a module that starts anew, and by no other
        module.reinitialize()
        self.token = module.get_token(token_label=self._address.label)
        with self._pin.open() as view:
            pin = bytes(view).decode()
        try:
            first = self.token.open(rw=True, user_pin=pin)
        except UserAlreadyLoggedIn:
            first = self.token.open(rw=True)
        return [Seat(first), *(Seat(self.token.open(rw=True)) for _ in range(self._address.at_a_time - 1))]

    def _give_back(self, seat: Seat, *, whole: bool | None) -> None:
        """whole: it worked; None: nobody can say, for the caller's own error ended it."""
        with self._cond:
            self._out -= 1
            self._taken.discard(seat)
            self._answered()
            if whole is False and self._up and seat in self._all:
                self._up = False
                self._idle.clear()
                self._later()
            elif self._up and seat in self._all:
                self._idle.append(seat)
                if whole:
                    self._backoff.reset()
            self._cond.notify_all()

    def _later(self) -> None:
        self._not_before = self._now() + self._backoff.next_delay_s()

    def _leave(self) -> None:
        for seat in reversed(self._all):
            # gone already when the token is
            with suppress(PKCS11Error):
                seat.session.close()
        self._all, self._idle = [], []
        with suppress(PKCS11Error):
            pkcs11.lib(self._address.module_path).finalize()


def _name(error: Exception) -> str:
    # the class only: some modules put what they were given into the text
    return type(error).__name__
