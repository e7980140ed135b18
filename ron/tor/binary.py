"""Which tor this host has, and whether it is new enough.

In: a name or path. Out: a `TorBinary`, or `RonError` with the command that mends it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from ron.proto.errors import unavailable

MINIMUM = (0, 4, 8)
_VERSION = re.compile(r"Tor version (\d+)\.(\d+)\.(\d+)(?:\.(\d+))?")
_INSTALL = "sudo apt-get install tor"


class TorBinary(NamedTuple):
    """A usable tor: its absolute path, version, and the tor-gencert beside it."""

    path: str
    version: tuple[int, ...]
    gencert: str

    def __str__(self) -> str:
        return f"tor {'.'.join(map(str, self.version))}"


def find_tor(name: str = "tor") -> TorBinary:
    """The tor called `name` (a program name or a path). Raises `RonError` when missing or older than 0.4.8."""
    path = shutil.which(name)
    if path is None:
        raise unavailable(f"tor is missing: no program {name!r}", _INSTALL)
    try:
        asked = [path, "--version"]
        done = subprocess.run(asked, capture_output=True, text=True, errors="replace", timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise unavailable(f"{path} does not run: {error}", _INSTALL) from None
    version = parse_version(done.stdout)
    if version is None:
        raise unavailable(f"{path} does not say a tor version", "point onion.tor_binary at a real tor")
    if version[:3] < MINIMUM:
        found, wanted = (".".join(map(str, v)) for v in (version, MINIMUM))
        raise unavailable(f"tor {found} is too old: {wanted} or newer is needed", _INSTALL)
    gencert = shutil.which("tor-gencert", path=str(Path(path).parent)) or shutil.which("tor-gencert")
    if gencert is None:
        raise unavailable("tor-gencert is missing: the private network's authorities need it", _INSTALL)
    return TorBinary(path, version, gencert)


def parse_version(banner: str) -> tuple[int, ...] | None:
    """The version in the first line of `tor --version`, or None."""
    match = _VERSION.search(banner)
    return tuple(int(part) for part in match.groups() if part is not None) if match else None
