"""A process to be killed: appends for ever, and prints each index that it was told, with what it appended."""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from ron.services.kms.audit import TransparencyLog
from tests.services.kms.audit.support import Held, entry

IN_FLIGHT = 24


async def client(log: TransparencyLog, numbers: count[int]) -> None:
    for number in numbers:
        index = await log.append(entry(number))
        # one write, so that no line is torn
        os.write(1, b"%d %d\n" % (index, number))


async def main(_reactor: Any) -> None:
    held = Held(Path(sys.argv[1]), checkpoint_ops=40)
    held.segment_bytes = 60_000
    log = await held.opened()
    if log.trouble is not None:
        os.write(1, b"trouble %b\n" % log.trouble.encode())
    numbers = count(int(sys.argv[2]))
    await gatherResults([Deferred.fromCoroutine(client(log, numbers)) for _ in range(IN_FLIGHT)])


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
