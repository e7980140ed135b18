"""How a key store at rest is opened: with a passphrase, from where an operator put it.

In: a file (0600), the name of an environment variable, or a systemd credential. Out: the `Sealer` of the store. Another
way (a TPM that unseals the master key) is another `Unlock`. The passphrase itself is never in a configuration.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol

from ron.crypto import ageroot, sealing
from ron.crypto.sealing import Aead, BrokenSealError, ScryptCost, Sealer, WrongPassphraseError
from ron.kernel.files import read_private, write_private
from ron.proto.errors import RonError, bad_request
from ron.services.kms.backends.errors import DamagedError, LockedError

CREDENTIAL = "ron-kms-passphrase"
"""`LoadCredential=ron-kms-passphrase:…` in a systemd unit."""
_MADE_CHARACTERS = 43

Passphrase = Callable[[], bytearray]
"""Each call reads it anew; whoever called overwrites it."""


class Unlock(Protocol):
    """root: the bytes that lie beside the blobs and mean nothing to anybody else."""

    def create(self) -> tuple[bytes, Sealer]:
        """A new master key."""

    def open(self, root: bytes) -> Sealer:
        """The master key of `root`. Raises `LockedError`, `DamagedError`."""


class ByPassphrase:
    """scrypt and AEAD (`ron.crypto.sealing`), or an age file (`ron.crypto.ageroot`)."""

    def __init__(
        self,
        passphrase: Passphrase,
        *,
        kdf: Literal["scrypt", "age"] = "scrypt",
        cost: ScryptCost | None = None,
        aead: Aead = Aead.CHACHA20_POLY1305,
        allow_unlocked: bool = False,
    ) -> None:
        """kdf, cost (of scrypt): of a new root; an existing one says its own. aead: for new blobs."""
        self._passphrase = passphrase
        self._kdf = kdf
        self._cost = cost or ScryptCost()
        self._aead = aead
        self._allow_unlocked = allow_unlocked

    def create(self) -> tuple[bytes, Sealer]:
        """Half a second at the usual cost. Raises `RonError` (BadRequest) for a passphrase that is too short."""
        secret = self._passphrase()
        try:
            if self._kdf == "age":
                return ageroot.new_root(secret, self._aead, allow_unlocked=self._allow_unlocked)
            return sealing.new_root(secret, self._cost, self._aead, allow_unlocked=self._allow_unlocked)
        except ValueError as error:
            raise bad_request(f"the key store's passphrase will not do: {error}") from None
        finally:
            secret[:] = bytes(len(secret))

    def open(self, root: bytes) -> Sealer:
        """Half a second at the usual cost."""
        secret = self._passphrase()
        open_root = ageroot.open_root if root.startswith(ageroot.MAGIC) else sealing.open_root
        try:
            return open_root(root, secret, self._aead, allow_unlocked=self._allow_unlocked)
        except WrongPassphraseError as error:
            raise LockedError(
                f"the key store stays closed: {error}",
                hint="check where the passphrase comes from; if it is right, restore the file `root` from the backup",
            ) from None
        except BrokenSealError as error:
            raise DamagedError(
                f"the key store's file `root` cannot be used: {error}", hint="restore it from the backup"
            ) from None
        finally:
            secret[:] = bytes(len(secret))

    def change(self, root: bytes, to: Passphrase) -> bytes:
        """A root for the same master key under another passphrase, or of another kdf. Raises as `open` and `create`.

        Whoever kept a copy of the old root still opens it with the old passphrase.
        """
        sealer, secret = self.open(root), to()
        try:
            if self._kdf == "age":
                return ageroot.reseal_root(sealer, secret)
            return sealing.reseal_root(sealer, secret, self._cost, self._aead, allow_unlocked=self._allow_unlocked)
        except ValueError as error:
            raise bad_request(f"the key store's passphrase will not do: {error}") from None
        finally:
            secret[:] = bytes(len(secret))
            sealer.close()


def find_passphrase(
    environ: Mapping[str, str], *, variable: str = "", file: Path | None = None, fallback: Path | None = None
) -> Passphrase:
    """Where it is: `variable`, else `file`, else systemd's credential, else `fallback`, a file that is made (0600).

    The first line counts. Raises `RonError` (BadRequest) when none of them was said; the calls raise `LockedError`.
    """
    if variable:
        return lambda: _of_variable(environ, variable)
    if file is not None:
        return lambda: _of_file(file, read_private)
    if directory := environ.get("CREDENTIALS_DIRECTORY"):
        credential = Path(directory) / CREDENTIAL
        if credential.exists():
            return lambda: _of_file(credential, _read_credential)
    if fallback is None:
        raise bad_request(
            "nothing says where the key store's passphrase is",
            hint="set backends.file.passphrase_file or passphrase_env, or LoadCredential=ron-kms-passphrase:FILE",
        )
    return lambda: _of_file(_made(fallback), read_private)


def _of_variable(environ: Mapping[str, str], variable: str) -> bytearray:
    text = environ.get(variable, "")
    if not text:
        raise LockedError(
            f"the environment variable {variable} is to hold the key store's passphrase and is not set",
            hint=f"set {variable} for the service, or use a file or a systemd credential",
        )
    return bytearray(text.encode())


def _of_file(path: Path, read: Callable[[Path], bytes]) -> bytearray:
    try:
        line = read(path).split(b"\n", 1)[0].rstrip(b"\r")
    except OSError as error:
        raise LockedError(
            f"the key store's passphrase cannot be read: {path}: {error.strerror}", hint="make it, with mode 600"
        ) from None
    except RonError as error:
        raise LockedError(error.message, hint=error.hint or "") from None
    if not line:
        raise LockedError(f"the first line of {path} is empty", hint="write the key store's passphrase there")
    return bytearray(line)


def _read_credential(path: Path) -> bytes:
    """systemd may grant it by an ACL, whose mask shows as the group's bits: only what all may read is refused."""
    if path.stat().st_mode & 0o007:
        raise LockedError(f"{path} holds a secret and everybody may read it", hint="let systemd make it")
    return path.read_bytes()


def _made(path: Path) -> Path:
    """256 bits, when there is nothing yet."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32)[:_MADE_CHARACTERS].encode() + b"\n")
    return path
