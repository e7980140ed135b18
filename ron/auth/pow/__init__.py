"""Proof of work before hot endpoints: hashcash over BLAKE3, challenges that the server signs and takes once.

In: a resource's name and the client's `PoW-Solution`. Out: a 429 with a `PoW-Challenge`, or the call may go on.
docs/pow.rst explains the scheme, its tuning and what it does not do.
"""

from ron.auth.pow.gate import KEY_BYTES, PowGate, PowResult, PowSettings, PowTarget
from ron.auth.pow.tuning import TuneState
from ron.auth.pow.wire import CHALLENGE_HEADER, SOLUTION_HEADER

__all__ = [
    "CHALLENGE_HEADER",
    "KEY_BYTES",
    "SOLUTION_HEADER",
    "PowGate",
    "PowResult",
    "PowSettings",
    "PowTarget",
    "TuneState",
]
