"""Does the proof of work a service asks for, in slices, so that the reactor goes on serving everything else.

In: the challenge of a 429 answer. Out: the text for `PoW-Solution`, or `RonError`; progress on the way.
BLAKE3 of so short a text holds Python's global lock, so that a thread would stop the reactor more, not less.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from twisted.internet.task import deferLater

from ron.auth.pow.wire import CHALLENGE_HEADER, MAX_DIFFICULTY, expected_tries, parse_challenge, search
from ron.proto.errors import ErrorCode, RonError, bad_request

T = TypeVar("T")
# No service makes us work harder than that without being asked: some minutes of one core.
DIFFICULTY_BOUND = 28
DEADLINE_S = 60.0
SLICE_S = 0.004
# Between two looks at the clock; 0.1 ms or so.
_BATCH_TRIES = 64


class PowProgress(NamedTuple):
    """tries: hashes done. expected: what a solution takes on average; `tries` may well go past it."""

    tries: int
    expected: int


def challenge_of(error: RonError) -> str | None:
    """The challenge that came with `error`, or None when proof of work would not help. Header names in any case."""
    wanted = CHALLENGE_HEADER.lower()
    return next((value for name, value in error.headers.items() if name.lower() == wanted), None)


async def paying(
    reactor: Any,
    once: Callable[[str | None], Awaitable[T]],
    *,
    deadline_s: float = DEADLINE_S,
    on_progress: Callable[[PowProgress], None] = lambda progress: None,
) -> T:
    """What `once(None)` gives; when it is refused with a challenge, what `once(solution)` gives.

    Raises what `once` or `solve` raises. A second refusal is the caller's: it comes with the next challenge.
    """
    try:
        return await once(None)
    except RonError as error:
        challenge = challenge_of(error)
        if challenge is None:
            raise
    return await once(await solve(reactor, challenge, deadline_s=deadline_s, on_progress=on_progress))


async def solve(
    reactor: Any,
    challenge: str,
    *,
    difficulty_bound: int = DIFFICULTY_BOUND,
    deadline_s: float = DEADLINE_S,
    on_progress: Callable[[PowProgress], None] = lambda progress: None,
    slice_s: float = SLICE_S,
    timer: Callable[[], float] = time.perf_counter,
) -> str:
    """`challenge` with the counter that solves it. Works `slice_s` seconds at a time; `on_progress` follows each.

    Raises `RonError`: BadRequest when it is no challenge, Unsupported when it asks for more than `difficulty_bound`
    bits, Timeout after `deadline_s`. Cancel its Deferred to stop it. `timer` gives seconds.
    """
    parts = parse_challenge(challenge)
    if parts is None:
        raise bad_request("the service's proof-of-work challenge is malformed", "is it one of ours?")
    if parts.difficulty > min(difficulty_bound, MAX_DIFFICULTY):
        raise RonError(
            ErrorCode.UNSUPPORTED,
            f"the service asks for {parts.difficulty} bits of proof of work, our bound is {difficulty_bound}",
            hint="raise the bound if you trust the service, or come back later",
        )
    stem, expected = challenge.encode("ascii"), expected_tries(parts.difficulty)
    end_s = reactor.seconds() + deadline_s
    tries = 0
    while reactor.seconds() < end_s:
        slice_ends = timer() + slice_s
        while True:
            counter = search(stem, parts.difficulty, tries, _BATCH_TRIES)
            if counter is not None:
                on_progress(PowProgress(counter + 1, expected))
                return f"{challenge}.{counter}"
            tries += _BATCH_TRIES
            if timer() >= slice_ends:
                break
        on_progress(PowProgress(tries, expected))
        await deferLater(reactor, 0)
    raise RonError(
        ErrorCode.TIMEOUT,
        f"no proof of work of {parts.difficulty} bits within {deadline_s:.0f} s ({tries} tries of {expected} expected)",
        hint="come back when the service asks for less",
    )
