"""What the key service stands on before it begins: files that must be there, who decides, one life in a process.

In: the config, the home. Out: `ConfigError` for what this machine cannot follow, and the parts that hosting is made of.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed

from ron.kernel.config import ConfigError
from ron.kernel.files import socket_path
from ron.nodes.runtime import Runtime
from ron.proto.errors import ErrorCode, RonError
from ron.proto.governance import SignerSet
from ron.services.kms.config import KmsConfig
from ron.services.kms.governance.signers import Profile, read_signers

CONTROL_SOCKET = "run/kms.sock"


class Startable(Protocol):
    """What lives once."""

    def start(self) -> None:
        """Begin."""

    async def stop(self) -> None:
        """End."""


class NoQuorum:
    """Nobody was named who could decide: what takes a quorum is not done."""

    def require(self, action: str, scope: str, change: Mapping[str, str], proposal: str | None) -> None:
        """Raises `RonError` (403)."""
        raise RonError(
            ErrorCode.NO_CAPABILITY, f"{action} takes a quorum, and there is none", hint="see governance.signers"
        )

    def frozen(self, tenant: str) -> str | None:
        """Nobody is."""
        return None

    def pq_mode(self, tenant: str) -> str | None:
        """As the config says."""
        return None


class Life(Service):
    """For the supervisor. lives: how often it was started; stores, threads and metrics are good for one."""

    def __init__(self, hosted: Startable) -> None:
        self._hosted = hosted
        self.lives = 0

    def startService(self) -> None:
        """Begin, once."""
        super().startService()
        self.lives += 1
        if self.lives == 1:
            self._hosted.start()

    def stopService(self) -> Deferred[None]:
        """End; fires when nothing of it is left."""
        if not self.running:
            return succeed(None)
        super().stopService()
        return Deferred.fromCoroutine(self._hosted.stop()) if self.lives == 1 else succeed(None)


def check_files(config: KmsConfig, home: Path, prefix: str) -> None:
    """What must be on this machine, and what must not. Raises `ConfigError`."""
    book = home / config.governance.dir
    if config.service.amnesia and book.is_dir() and any(book.iterdir()):
        # it could not even be read: there is no store to remember with
        raise ConfigError(
            "a quorum governs the keys of this home, and amnesia would forget both",
            key=f"{prefix}service.amnesia",
            hint="set it to false, or use another home",
        )
    if not config.tls.enabled:
        return
    for name, text in (("cert_path", config.tls.cert_path), ("key_path", config.tls.key_path)):
        path = home / text
        if not path.is_file():
            raise ConfigError(f"there is no file {path}", key=f"{prefix}tls.{name}", hint="name its PEM file")
        if name == "key_path" and path.stat().st_mode & 0o077:
            raise ConfigError(f"others may read {path}", key=f"{prefix}tls.{name}", hint=f"chmod 600 {path}")


def control_socket(runtime: Runtime, config: KmsConfig) -> Path:
    """Where operators reach it."""
    if config.control.startswith("/"):
        return socket_path(Path(config.control))
    return socket_path(runtime.home / (config.control or CONTROL_SOCKET))


def signers_of(path: Path, profile: Profile) -> SignerSet:
    """The first signers, of a file. Raises `ConfigError`."""
    try:
        return read_signers(path.read_bytes(), int(time.time()), profile=profile)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", key="governance.signers", hint="`ronctl governance`") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}", key="governance.signers", hint="see docs/kms") from None
    except RonError as error:
        raise ConfigError(f"{path}: {error.message}", key="governance.signers", hint=error.hint or "docs/kms") from None
