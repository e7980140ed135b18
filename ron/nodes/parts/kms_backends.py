"""The backends that a config names, made: what one needs is loaded only where it is used.

In: `[kms]`, the home, the environment. Out: one `Backend`, several behind one where there are several. Nothing is
opened yet. Raises `ConfigError` for what is missing on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ron.kernel.config import ConfigError
from ron.proto.errors import RonError
from ron.services.kms.backends.measured import BackendMeters, Measured
from ron.services.kms.config import BackendName, KmsConfig
from ron.services.kms.ports import Backend
from ron.services.kms.split import SplitBackend

T = TypeVar("T")
MADE_PASSPHRASE = "kms/passphrase"  # noqa: S105 - where it is, and not it


def make_backend(config: KmsConfig, home: Path, section: str = "", meters: BackendMeters | None = None) -> Backend:
    """section: `kms.` in a node's file. meters: each one's calls are timed with them."""
    made: list[Backend] = [_MAKERS[name](config, home, section) for name in config.order]
    if meters is not None:
        made = [Measured(backend, meters) for backend in made]
    if len(made) == 1:
        return made[0]
    if config.order[0] == "cloud":
        return SplitBackend(*made)
    from ron.services.kms.backends.multi import MultiBackend

    return MultiBackend(made, allow_sign_fallback=config.service.allow_sign_fallback)


def _inmem(config: KmsConfig, _home: Path, _section: str) -> Backend:
    from ron.services.kms.backends.inmem import InMemoryBackend

    return InMemoryBackend(allow_unlocked=config.security.allow_unlocked)


def _file(config: KmsConfig, home: Path, _section: str) -> Backend:
    from ron.crypto.sealing import Aead
    from ron.services.kms.backends.file import FileBackend
    from ron.services.kms.backends.unlocking import ByPassphrase, find_passphrase

    section, unlocked = config.backends.file, config.security.allow_unlocked
    aead = Aead.CHACHA20_POLY1305 if section.aead == "chacha20poly1305" else Aead.AES_256_GCM
    passphrase = find_passphrase(
        os.environ,
        variable=section.passphrase_env,
        file=home / section.passphrase_file if section.passphrase_file else None,
        fallback=home / MADE_PASSPHRASE,
    )
    unlock = ByPassphrase(passphrase, kdf=section.kdf, aead=aead, allow_unlocked=unlocked)
    return FileBackend(home / section.dir, unlock, allow_unlocked=unlocked)


def _pkcs11(config: KmsConfig, _home: Path, section: str) -> Backend:
    wanted, unlocked = config.backends.pkcs11, config.security.allow_unlocked
    if not Path(wanted.module_path).exists():
        raise ConfigError(
            f"there is no {wanted.module_path}",
            key=f"{section}backends.pkcs11.module_path",
            hint="install the token's library, or correct the path",
        )
    try:
        from ron.services.kms.backends.pkcs11 import Pkcs11Backend
        from ron.services.kms.backends.pkcs11_sessions import TokenAddress, pin_from_env
    except ImportError:
        raise _not_installed("pkcs11", section) from None
    address = TokenAddress(wanted.module_path, wanted.slot_label, wanted.sessions)
    pin = _secret(lambda: pin_from_env(wanted.pin_env, allow_unlocked=unlocked), f"{section}backends.pkcs11.pin_env")
    return Pkcs11Backend(address, pin)


def _tpm(config: KmsConfig, home: Path, section: str) -> Backend:
    try:
        from ron.services.kms.backends.tpm import TpmBackend
        from ron.services.kms.backends.tpm_device import TpmDevice, owner_auth_from_env
    except ImportError:
        raise _not_installed("tpm", section) from None
    wanted, unlocked = config.backends.tpm, config.security.allow_unlocked
    auth = _secret(
        lambda: owner_auth_from_env(wanted.auth_env, allow_unlocked=unlocked), f"{section}backends.tpm.auth_env"
    )
    device = TpmDevice(wanted.tcti, owner_auth=auth)
    return TpmBackend(home / wanted.dir, device, pcrs=wanted.pcrs, allow_unlocked=unlocked)


def _secret(read: Callable[[], T], key: str) -> T:
    """What a variable holds. Raises `ConfigError` with the config's key for one that is empty."""
    try:
        return read()
    except RonError as error:
        raise ConfigError(error.message, key=key, hint=error.hint or "set it for the service") from None


def _cloud(config: KmsConfig, home: Path, section: str) -> Backend:
    try:
        from ron.services.kms.backends.cloud import CloudBackend
        from ron.services.kms.backends.cloud_key import CloudAddress, CloudKey
    except ImportError:
        raise _not_installed("cloud", section) from None
    wanted, unlocked = config.backends.cloud, config.security.allow_unlocked
    address = CloudAddress(key_id=wanted.key_id, region=wanted.region, endpoint=wanted.endpoint)
    return CloudBackend(home / wanted.dir, CloudKey(address, allow_unlocked=unlocked), allow_unlocked=unlocked)


def _not_installed(name: str, section: str) -> ConfigError:
    return ConfigError(
        f"the backend {name} is not installed",
        key=f"{section}service.backend",
        hint=f"pip install 'rustyonions[{name}]', or choose another",
    )


_MAKERS: dict[BackendName, Callable[[KmsConfig, Path, str], Backend]] = {
    "inmem": _inmem,
    "file": _file,
    "pkcs11": _pkcs11,
    "tpm": _tpm,
    "cloud": _cloud,
}
