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
}
VERIFY_TIMEOUT_S = 20


def render(role: str, values: Mapping[str, object]) -> str:
    """The torrc of `role` with every `${name}` filled. Raises KeyError when a value is missing."""
    texts = (files("ron.tor").joinpath(f"templates/{name}.torrc").read_text() for name in ROLE_TEMPLATES[role])
    return "\n".join(string.Template(text).substitute(values) for text in texts)


def write_verified(tor: TorBinary, path: Path, text: str) -> None:
    """Write `text` to `path` (0600) and let tor check it, unless it stands there already. Blocks.

    Raises `RonError` with tor's own complaint, and then leaves no file behind.
    """
    if path.exists() and path.read_text() == text:
        return
    write_private(path, text.encode())
    check = subprocess.run(
        [*command(tor, path), "--verify-config"], capture_output=True, text=True, timeout=VERIFY_TIMEOUT_S, check=False
    )
    if check.returncode != 0:
        path.unlink()
        complaints = [line for line in check.stdout.splitlines() if "[warn]" in line or "[err]" in line]
        why = complaints[0].split("] ", 1)[-1] if complaints else "no reason given"
        raise unavailable(f"tor refuses {path}: {why}", hint="see the templates in tor/")


def command(tor: TorBinary, torrc: Path) -> list[str]:
    """The command line that runs `torrc`, with nothing from the system's own tor configuration.

    tor ends by itself when the process that started it is gone, whatever ended it.
    """
    options = ["--defaults-torrc", str(no_defaults()), "--__OwningControllerProcess", str(os.getpid())]
    return [tor.path, "-f", str(torrc), *options]


def no_defaults() -> Path:
    """An empty torrc: `--defaults-torrc` with it keeps Debian's own settings out."""
    return Path(str(files("ron.tor").joinpath("templates/defaults.torrc")))
