"""torrc files from the templates in `tor/`, checked by tor itself before they are used.

In: a role and its values. Out: torrc text; `RonError` naming what tor disliked.
"""

from __future__ import annotations

import os
import string
import subprocess
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from ron.kernel.files import write_private
from ron.proto.errors import unavailable
from ron.tor.binary import TorBinary

ROLE_TEMPLATES: dict[str, Sequence[str]] = {
    "authority": ("common", "relay", "authority"),
    "relay": ("common", "relay"),
    "client": ("common", "client"),
    "public": ("public",),
    "joined": ("joined",),
}
VERIFY_TIMEOUT_S = 20
MAX_COMPLAINT_CHARS = 500
_USUAL = (
    "You have used DirAuthority",
    "TestingTorNetwork is set",
    "V3AuthVotingInterval is",
    "You are running Tor as root",
)


def render(role: str, values: Mapping[str, object]) -> str:
    """The torrc of `role` with every `${name}` filled. Raises KeyError when a value is missing."""
    return "\n".join(fill(name, values) for name in ROLE_TEMPLATES[role])


def fill(template: str, values: Mapping[str, object]) -> str:
    """One template, filled in the same way."""
    text = files("ron.tor").joinpath(f"templates/{template}.torrc").read_text()
    return string.Template(text).substitute(values)


def write_verified(tor: TorBinary, path: Path, text: str) -> None:
    """Let tor check `text`, then put it at `path` (0600); nothing to do when it stands there already. Blocks.

    What lies at `path` has therefore always been checked. Raises `RonError` with tor's own complaint.
    """
    if path.exists() and path.read_text() == text:
        return
    path.unlink(missing_ok=True)
    unchecked = path.with_name(f".{path.name}.unchecked")
    write_private(unchecked, text.encode())
    try:
        _check(tor, unchecked, path)
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)


def _check(tor: TorBinary, unchecked: Path, path: Path) -> None:
    asked = [*command(tor, unchecked), "--verify-config"]
    try:
        check = subprocess.run(
            asked, capture_output=True, text=True, errors="replace", timeout=VERIFY_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise unavailable(f"tor did not check {path} in {VERIFY_TIMEOUT_S} s", hint="try again") from None
    if check.returncode != 0:
        raise unavailable(f"tor refuses {path}: {_complaint(check.stdout)}", hint="see the templates in tor/")


def _complaint(log: str) -> str:
    """tor's warnings, without the ones that every network of our kind gets; the last of them sums up the others."""
    warnings = [line.split("] ", 1)[-1] for line in log.splitlines() if "[warn]" in line]
    telling = [warning for warning in warnings if not warning.startswith(_USUAL)]
    return "; ".join(telling)[:MAX_COMPLAINT_CHARS] or "no reason given"


def command(tor: TorBinary, torrc: Path, owner: int | None = None) -> list[str]:
    """The command line that runs `torrc`, with nothing from the system's own tor configuration.

    tor ends by itself, within 15 s, when the process `owner` is gone, whatever ended it; ours, where none is named.
    """
    options = ["--defaults-torrc", str(no_defaults()), "--__OwningControllerProcess", str(owner or os.getpid())]
    return [tor.path, "-f", str(torrc), *options]


def no_defaults() -> Path:
    """An empty torrc: `--defaults-torrc` with it keeps Debian's own settings out."""
    return Path(str(files("ron.tor").joinpath("templates/defaults.torrc")))
