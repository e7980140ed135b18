"""Keys of the private network's authorities and relays: made once by tor's own tools, and kept.

In: a node's folder. Out: an identity fingerprint, and for an authority its v3 identity and certificate.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ron.kernel.files import private_dir
from ron.proto.errors import unavailable
from ron.tor.binary import TorBinary
from ron.tor.torrc import no_defaults

CERTIFICATE_MONTHS = 12
RENEW_BEFORE = timedelta(days=30)
_FINGERPRINT = re.compile(r"^fingerprint ([0-9A-F]{40})$", re.MULTILINE)
_EXPIRES = re.compile(r"^dir-key-expires (\S+ \S+)$", re.MULTILINE)
_TIMEOUT_S = 60


def relay_fingerprint(tor: TorBinary, data_directory: Path, nickname: str) -> str:
    """The 40-hex fingerprint of the relay in `data_directory`; its keys are made when there are none. Blocks."""
    private_dir(data_directory)
    if not (data_directory / "fingerprint").exists():
        _run(
            [tor.path, "--list-fingerprint", "--hush", "-f", str(no_defaults()), "--defaults-torrc", str(no_defaults())]
            # tor wants a whole authority list before it makes keys; this one is never contacted
            + ["--DirAuthority", f"x 127.0.0.1:1 {'F' * 40}", "--ORPort", "1", "--Nickname", nickname]
            + ["--DataDirectory", str(data_directory)],
            "making relay keys",
        )
    return (data_directory / "fingerprint").read_text().split()[1]


def authority_identity(tor: TorBinary, data_directory: Path) -> str:
    """The 40-hex v3 identity of the authority in `data_directory`.

    Its identity key and signing certificate are made when missing; the certificate is renewed 30 days before it ends.
    The identity key's passphrase lies beside it, 0600: it keeps the key usable by tor-gencert alone, not secret from
    whoever owns this folder.
    """
    keys = private_dir(private_dir(data_directory) / "keys")
    certificate = keys / "authority_certificate"
    if not certificate.exists() or _expires_soon(certificate):
        _make_certificate(tor, keys)
    match = _FINGERPRINT.search(certificate.read_text())
    if match is None:
        raise unavailable(f"{certificate} is damaged", hint=f"remove {data_directory} to make new keys")
    return match[1]


def _make_certificate(tor: TorBinary, keys: Path) -> None:
    secret = keys / "authority_passphrase"
    identity = keys / "authority_identity_key"
    create = [] if identity.exists() else ["--create-identity-key"]
    if create:
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(16) + "\n")
    with secret.open("rb") as passphrase:
        _run(
            [tor.gencert, *create, "-m", str(CERTIFICATE_MONTHS), "--passphrase-fd", str(passphrase.fileno())]
            + ["-i", str(identity), "-s", str(keys / "authority_signing_key")]
            + ["-c", str(keys / "authority_certificate")],
            "making authority keys",
            pass_fds=(passphrase.fileno(),),
        )
    for made in keys.iterdir():
        made.chmod(0o600)


def _expires_soon(certificate: Path) -> bool:
    match = _EXPIRES.search(certificate.read_text())
    if match is None:
        return True
    expires = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    return expires - datetime.now(tz=UTC) < RENEW_BEFORE


def _run(command: list[str], what: str, pass_fds: tuple[int, ...] = ()) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, pass_fds=pass_fds, env=environment
    )
    if done.returncode != 0:
        why = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no reason given"]
        raise unavailable(f"{what} failed: {why[0]}", hint="is the folder writable and the disk not full?")
