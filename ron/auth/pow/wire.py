"""The text forms of a challenge and its solution, and the work itself: hashcash over BLAKE3 (Back 2002).

In: text as it came. Out: its parts, or None when it is not spelt exactly so; how many leading zero bits a text has.
Form: `v1.<difficulty>.<expires_unix>.<resource>.<nonce>.<mac>`, solved by appending `.<counter>`.
"""

from __future__ import annotations

import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import NamedTuple

from blake3 import blake3

CHALLENGE_HEADER = "PoW-Challenge"
SOLUTION_HEADER = "PoW-Solution"
# A challenge is at most 87 characters, a solution 20 digits and a dot more.
MAX_SOLUTION_CHARS = 128
MAX_DIFFICULTY = 32
FIELD_BYTES = 16
CALIBRATION_TRIES = 10_000
_HASH_BITS = 256

_CHALLENGE = r"v1\.([1-9][0-9]?)\.([1-9][0-9]{0,11})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{22})"
_CHALLENGE_FORM = re.compile(_CHALLENGE, re.ASCII)
_SOLUTION_FORM = re.compile(_CHALLENGE + r"\.(0|[1-9][0-9]{0,19})", re.ASCII)


class Challenge(NamedTuple):
    """A challenge taken apart. Nothing here is trusted before the MAC over `signed` was compared.

    difficulty: leading zero bits wanted. expires_unix: seconds. resource, nonce, mac: 128 bits each, base64url text.
    """

    difficulty: int
    expires_unix: int
    resource: str
    nonce: str
    mac: str

    @property
    def signed(self) -> str:
        """What the MAC covers: everything before it."""
        return f"v1.{self.difficulty}.{self.expires_unix}.{self.resource}.{self.nonce}"

    def __str__(self) -> str:
        return f"{self.signed}.{self.mac}"


def parse_challenge(text: str) -> Challenge | None:
    """`text` as a challenge, or None. Each challenge has one spelling; its MAC is not looked at."""
    if len(text) > MAX_SOLUTION_CHARS:
        return None
    form = _CHALLENGE_FORM.fullmatch(text)
    return _challenge(form) if form else None


def parse_solution(text: str) -> Challenge | None:
    """The challenge that `text` claims to solve, or None when it is no solution's form."""
    if len(text) > MAX_SOLUTION_CHARS:
        return None
    form = _SOLUTION_FORM.fullmatch(text)
    return _challenge(form) if form else None


def encode_field(raw: bytes) -> str:
    """128 bits as 22 characters of base64url."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def is_solved(solution: str, difficulty: int) -> bool:
    """True when BLAKE3 of the solution's text begins with `difficulty` zero bits."""
    return blake3(solution.encode("ascii")).digest() < _threshold(difficulty)


def search(challenge: bytes, difficulty: int, first: int, tries: int) -> int | None:
    """The reference client's loop: a counter in `first` … `first + tries - 1` that solves `challenge`, or None."""
    threshold, stem = _threshold(difficulty), challenge + b"."
    for counter in range(first, first + tries):
        if blake3(stem + b"%d" % counter).digest() < threshold:
            return counter
    return None


def measured_hash_rate(timer: Callable[[], float] = time.perf_counter) -> float:
    """Tries a second of the reference client on this machine; takes some 30 ms. The best of three, the least disturbed.

    `timer` gives seconds.
    """
    challenge = f"v1.{MAX_DIFFICULTY}.1.{'.'.join(['A' * 22] * 3)}".encode()
    rates = []
    for _ in range(3):
        started = timer()
        search(challenge, _HASH_BITS, 0, CALIBRATION_TRIES)
        rates.append(CALIBRATION_TRIES / max(timer() - started, 1e-9))
    return max(rates)


def expected_tries(difficulty: int) -> int:
    """Tries that a solution takes on average; the number is geometric, so e^-8 of all take over eight times that."""
    return 1 << difficulty


def _challenge(form: re.Match[str]) -> Challenge:
    difficulty, expires, resource, nonce, mac = form.groups()[:5]
    return Challenge(int(difficulty), int(expires), resource, nonce, mac)


def _threshold(difficulty: int) -> bytes:
    """The least hash that has too few leading zero bits; `difficulty` is 1 … 256."""
    return (1 << (_HASH_BITS - difficulty)).to_bytes(_HASH_BITS // 8, "big")
