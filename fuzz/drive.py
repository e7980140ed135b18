"""One target under atheris. In: `python -m fuzz.drive TARGET [libFuzzer arguments and folders]`. Out: libFuzzer's own.

Only `fuzz.__main__` starts it.
"""

from __future__ import annotations

import shlex
import sys

import atheris

from fuzz.targets import TARGETS

# Their branches guide the fuzzer; parsers written in C are opaque to it.
INSTRUMENTED = ["ron", "pymacaroons", "tomllib", "yaml"]


def main() -> None:
    """Never returns."""
    name = sys.argv.pop(1)
    # for -merge libFuzzer starts itself anew through the shell, by this name
    sys.argv[0] = f"{shlex.quote(sys.executable)} -m fuzz.drive {name}"
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        target = TARGETS[name]()
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
