"""Runs the benchmarks one after another and shows them as tables.

python -m bench                 all of them (about half an hour)
python -m bench tiles mailbox   just these
"""

from __future__ import annotations

import importlib
import sys
import time

NAMES = (
    "tiles",
    "mailbox",
    "bus",
    "oap",
    "capability",
    "pow",
    "tls",
    "onions",
    "balance",
    "kms",
    "startup",
    "memory",
    "node",
    "soak",
)


def main() -> int:
    """Run what was asked for; 1 when one of them could not be run."""
    asked = sys.argv[1:] or list(NAMES)
    unknown = [name for name in asked if name not in NAMES]
    if unknown:
        print(f"bench: there is no {', '.join(unknown)}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    failed = []
    for name in asked:
        started = time.monotonic()
        print(f"\n== {name}", flush=True)
        try:
            importlib.import_module(f"bench.{name}").main()
        except Exception as error:
            print(f"bench: {name} failed: {error}", file=sys.stderr)
            failed.append(name)
        print(f"   ({time.monotonic() - started:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
