"""Which messages of a sender were here before. Pure, bounded: one window a sender.

In: a sender's run, boot and sequence numbers. Out: nothing, or `Refused` (replayed).
A run begins with a hello that answers a fresh nonce of ours and says where the sequence stands, so nothing recorded
earlier fits: not of an older run, nor of this run before we (re)started.
"""

from __future__ import annotations

from ron.services.balance.mesh.wire import Refused

WINDOW = 1024


class Window:
    """Sequence numbers already seen, back to `WINDOW` below the highest. after: none up to here is taken."""

    __slots__ = ("_seen", "highest")

    def __init__(self, after: int = 0) -> None:
        self.highest = after
        # bit n: `highest - n` was seen; what lies before the beginning passes for seen
        self._seen = (1 << WINDOW) - 1

    def take(self, seq: int) -> bool:
        """True when `seq` is new; from then on it is not."""
        if seq > self.highest:
            shift = seq - self.highest
            self._seen = ((self._seen << shift) | 1) & ((1 << WINDOW) - 1) if shift < WINDOW else 1
            self.highest = seq
            return True
        bit = 1 << (self.highest - seq) if self.highest - seq < WINDOW else 0
        if not bit or self._seen & bit:
            return False
        self._seen |= bit
        return True


class Life:
    """One run of a sender: what its hello said, and what came since."""

    __slots__ = ("boot", "run", "window")

    def __init__(self, run: int, boot: bytes, seq: int) -> None:
        self.run = run
        self.boot = boot
        self.window = Window(seq)

    def is_of(self, run: int, boot: bytes) -> bool:
        """Whether a message with these is of this run."""
        return (self.run, self.boot) == (run, boot)


class Lives:
    """The present run of each sender. `begin` at a hello, `take` at each message after it."""

    def __init__(self) -> None:
        self._lives: dict[str, Life] = {}

    def present(self, sender: str) -> Life | None:
        """The run we take messages of."""
        return self._lives.get(sender)

    def begin(self, sender: str, run: int, boot: bytes, seq: int) -> None:
        """A hello: of a new run, or again of the present one, whose window stays.

        Raises `Refused` (replayed) for an older run, and for another with the same number.
        """
        life = self._lives.get(sender)
        if life is not None and life.is_of(run, boot):
            return
        if life is not None and run <= life.run:
            raise Refused("replayed", f"run {run} of {sender} after run {life.run}", fatal=True)
        self._lives[sender] = Life(run, boot, seq)

    def take(self, sender: str, run: int, boot: bytes, seq: int) -> None:
        """Take note of a message. Raises `Refused` (replayed)."""
        life = self._lives.get(sender)
        if life is None or not life.is_of(run, boot):
            raise Refused("replayed", f"of another run of {sender}", fatal=True)
        if not life.window.take(seq):
            raise Refused("replayed", f"{seq} of {sender}, after {life.window.highest}")

    def forget(self, sender: str) -> None:
        """It is no member any more."""
        self._lives.pop(sender, None)
