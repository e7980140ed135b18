"""The garbage collector of a process that has come up: it looks at what requests leave, and at nothing older.

In: a word that everything is there. Out: shorter pauses.
"""

from __future__ import annotations

import gc

# Objects more than there were before the young are looked at; CPython's 700 is a few requests. Requests leave next to
# nothing to it: nearly all they make is freed by its reference count.
YOUNG = 10_000


def settle() -> None:
    """Call it once the process is up: modules, configs and keys stay to its end, and a full collection that walks over
    them all takes tens of milliseconds (half of the p99; DESIGN §5)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
