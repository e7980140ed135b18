"""The authorities' identity keys, which stay with the operator: made and used by tor-gencert, under a passphrase.

In: a folder per authority and the passphrase. Out: a signing key and a certificate for the host, nothing else.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ron.kernel.files import private_dir, read_private, write_private
from ron.proto.errors import bad_request, unavailable
from ron.tor.binary import TorBinary
from ron.tor.hostnet.plan import Node

IDENTITY = "authority_identity_key"
SIGNING_KEY, CERTIFICATE = "authority_signing_key", "authority_certificate"
CERTIFICATE_MONTHS = 12
MIN_PASSPHRASE_CHARS = 12
_TIMEOUT_S = 120
_FINGERPRINT = re.compile(r"^fingerprint ([0-9A-F]{40})$", re.MULTILINE)
_EXPIRES = re.compile(r"^dir-key-expires (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)$", re.MULTILINE)


class Certified(NamedTuple):
    """What an authority's host needs in order to vote, and what the certificate says: 40 hex, and its end (UTC)."""

    signing_key: bytes
    certificate: bytes
    v3ident: str
    expires: datetime

    def members(self) -> dict[str, bytes]:
        """As bundle members."""
        return {f"keys/{SIGNING_KEY}": self.signing_key, f"keys/{CERTIFICATE}": self.certificate}


def check_passphrase(passphrase: bytes) -> bytes:
    """`passphrase`. Raises BadRequest for one that tor-gencert would cut short or a thief would guess."""
    if len(passphrase) < MIN_PASSPHRASE_CHARS or b"\0" in passphrase or b"\n" in passphrase:
        raise bad_request(
            f"the passphrase needs {MIN_PASSPHRASE_CHARS} characters on one line",
            "it protects the keys that decide who is in the network",
        )
    return passphrase


def new_identity(tor: TorBinary, folder: Path, node: Node, passphrase: bytes) -> Certified:
    """Make an identity key in `folder` and certify a first signing key. Blocks for some seconds (RSA 3072)."""
    return _gencert(tor, private_dir(folder), node, passphrase, ["--create-identity-key"])


def certify(tor: TorBinary, folder: Path, node: Node, passphrase: bytes) -> Certified:
    """A new signing key with a certificate from the identity key in `folder`. Raises BadRequest when it is not there,
    not private, of another authority, or the passphrase is another."""
    if not (folder / IDENTITY).is_file():
        raise bad_request(f"there is no {folder / IDENTITY}", "bring the vault back from where it is kept offline")
    read_private(folder / IDENTITY)
    made = _gencert(tor, folder, node, passphrase, [])
    if made.v3ident != node.v3ident:
        raise bad_request(f"{folder / IDENTITY} is not {node.name}'s identity", "restore the vault of this network")
    return made


def read_certificate(certificate: bytes) -> tuple[str, datetime]:
    """The v3 identity and the end of validity in a key certificate (dir-spec §3.1). Raises BadRequest without them."""
    text = certificate.decode("ascii", "replace")
    identity, expires = _FINGERPRINT.search(text), _EXPIRES.search(text)
    if identity is None or expires is None:
        raise bad_request("that is no authority certificate", "make a new one: ronctl tornet rotate-certs")
    return identity[1], datetime.strptime(expires[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)


def _gencert(tor: TorBinary, folder: Path, node: Node, passphrase: bytes, create: list[str]) -> Certified:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as scratch:
        signing_key, certificate = Path(scratch, SIGNING_KEY), Path(scratch, CERTIFICATE)
        asked = [tor.gencert, *create, "-m", str(CERTIFICATE_MONTHS), "-a", f"{node.address}:{node.dir_port}"]
        asked += ["-i", str(folder / IDENTITY), "-s", str(signing_key), "-c", str(certificate)]
        _run(asked, passphrase, node.name)
        (folder / IDENTITY).chmod(0o600)
        made = certificate.read_bytes()
        write_private(folder / CERTIFICATE, made)
        return Certified(signing_key.read_bytes(), made, *read_certificate(made))


def _run(asked: list[str], passphrase: bytes, name: str) -> None:
    """Run tor-gencert; the passphrase goes through a pipe, so that it is on no disk and in no process list."""
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(passphrase + b"\n")
        done = subprocess.run(
            [*asked, "--passphrase-fd", str(reading)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            pass_fds=(reading,),
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise unavailable(f"tor-gencert took over {_TIMEOUT_S} s for {name}", "try again") from None
    finally:
        os.close(reading)
    if done.returncode != 0:
        words = [line.split("] ", 1)[-1] for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise bad_request(
            f"tor-gencert refuses for {name}: {words[0] if words else 'no reason given'}",
            "is the passphrase the one the vault was made with?",
        )
