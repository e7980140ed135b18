"""What no single key of the section can know (specs/ron-kms.md, CONFIG §4).

In: `KmsConfig`. Out: nothing, or `ConfigError` with the key and the fix. Pure: files are looked at when it starts.
"""

from __future__ import annotations

import posixpath
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from ron.kernel.config import ConfigError
from ron.proto.addresses import HostPort, parse_host_port
from ron.services.kms.config import KmsConfig

# What keeps nothing on a disk of ours: a cloud's key is not here at all
_FLEETING = frozenset({"inmem", "cloud"})
_NO_EVIDENCE = frozenset({"inmem", "file", "cloud"})
# the same folders as for every daemon with amnesia (`ron.services.rules`)
_MEMORY = (PurePosixPath("/dev/shm"), PurePosixPath("/run/user"))  # noqa: S108 - compared with, not written to


def check_kms(config: KmsConfig, section: str = "") -> None:
    """Rules across keys. section: `kms.` in a node's file. Raises `ConfigError`."""
    _check_listener(config, section)
    _check_backends(config, section)
    _check_export(config, section)
    _check_witnesses(config, section)
    check_workers(config, section)
    if config.service.amnesia:
        _check_amnesia(config, section)
    if config.observability.log_inputs:
        raise ConfigError(
            "inputs are in no log of ours", key=f"{section}observability.log_inputs", hint="set it to false"
        )
    if config.pq.verify_mode != "or" and not config.pq.produce_hybrid:
        raise ConfigError(
            "signatures without a second half would be made, and nobody could verify them",
            key=f"{section}pq.verify_mode",
            hint='set pq.produce_hybrid to true, or verify_mode to "or"',
        )
    if config.pq.verify_mode == "pq_only" and "ml-dsa" not in config.service.allowed_algs:
        raise ConfigError(
            "nothing could be verified without ml-dsa", key=f"{section}pq.verify_mode", hint="allow it in allowed_algs"
        )


def check_workers(config: KmsConfig, section: str = "") -> None:
    """Workers share keys that lie in sealed files, and sign by themselves. Raises `ConfigError` where they cannot."""
    if not config.workers:
        return
    key = f"{section}workers"
    if config.order != ("file",):
        raise ConfigError(
            f"workers need keys in sealed files, and the backend is {', '.join(config.order)}",
            key=key,
            hint='set it to 0, or service.backend to "file"',
        )
    if section:
        raise ConfigError(
            "the key service of a node has no processes of its own", key=key, hint="set it to 0, or run ron-kms"
        )


def socket_of(text: str, key: str) -> HostPort:
    """`text` as an address to listen on. Raises `ConfigError` naming `key`."""
    try:
        return parse_host_port(text)
    except ValueError as error:
        raise ConfigError(str(error), key=key, hint="write an address like 127.0.0.1:9446") from None


def _check_listener(config: KmsConfig, section: str) -> None:
    address = socket_of(config.bind_addr, f"{section}bind_addr")
    tls = config.tls
    if tls.enabled:
        for name, path in (("cert_path", tls.cert_path), ("key_path", tls.key_path)):
            if not path:
                raise ConfigError(
                    "TLS needs a certificate and its key", key=f"{section}tls.{name}", hint="name its PEM file"
                )
    else:
        _check_near(address, f"{section}bind_addr")
    for name, text in (("grpc_addr", config.grpc_addr), ("oap_addr", config.oap_addr)):
        if text:
            door = socket_of(text, f"{section}{name}")
            if not tls.enabled:
                _check_near(door, f"{section}{name}")


def _check_near(address: HostPort, key: str) -> None:
    if not address.is_loopback:
        raise ConfigError(
            f"{address} can be reached by others, and capabilities would go out readable",
            key=key,
            hint="use 127.0.0.1, or set tls.enabled",
        )


def _check_export(config: KmsConfig, section: str) -> None:
    if config.audit.export_url:
        _check_url(config.audit.export_url, f"{section}audit.export_url", "who asked for what would go out readable")


def _check_witnesses(config: KmsConfig, section: str) -> None:
    audit = config.audit
    for one in audit.witnesses:
        _check_url(one.url, f"{section}audit.witnesses", "anybody on the way could speak for the witness")
    if audit.witness_quorum > len(audit.witnesses):
        raise ConfigError(
            f"there are {len(audit.witnesses)} witnesses, and {audit.witness_quorum} have to sign",
            key=f"{section}audit.witness_quorum",
            hint="name more in audit.witnesses",
        )
    if audit.witness_required and not audit.witness_quorum:
        raise ConfigError(
            "none has to sign", key=f"{section}audit.witness_required", hint="say how many in audit.witness_quorum"
        )
    if config.service.amnesia and audit.witness_for:
        raise ConfigError(
            "a witness that forgets what it saw is none",
            key=f"{section}audit.witness_for",
            hint="leave it out, or set service.amnesia to false",
        )


def _check_url(url: str, key: str, why: str) -> None:
    """https, or http on loopback."""
    try:
        found = urlsplit(url)
        at = socket_of(f"{found.hostname}:{found.port or 80}", key) if found.scheme == "http" else None
    except ValueError:
        raise ConfigError("this is no address", key=key, hint="https://host/path") from None
    if not found.hostname or (at is not None and not at.is_loopback):
        raise ConfigError(why, key=key, hint="write https://…")


def _check_backends(config: KmsConfig, section: str) -> None:
    service = config.service
    names = service.multi_backends
    if len(set(names)) != len(names):
        raise ConfigError("one backend is there twice", key=f"{section}service.multi_backends", hint="remove one")
    if names and names[0] != service.backend:
        raise ConfigError(
            f"the first one signs, and service.backend says {service.backend}",
            key=f"{section}service.multi_backends",
            hint=f"put {service.backend} first, or change service.backend",
        )
    if service.allow_sign_fallback and len(names) < 2:
        raise ConfigError(
            "there is no other backend to fall back to",
            key=f"{section}service.allow_sign_fallback",
            hint="name two in service.multi_backends, or set it to false",
        )
    if "cloud" in config.order and (config.order[0] != "cloud" or len(config.order) != 2):
        raise ConfigError(
            "a cloud wraps and does not sign: it goes before one that does",
            key=f"{section}service.multi_backends",
            hint='write ["cloud", "file"]',
        )
    _check_each(config, section)
    if config.security.attest_require == "required" and config.order[0] in _NO_EVIDENCE:
        raise ConfigError(
            f"{config.order[0]} cannot prove where a key lives",
            key=f"{section}security.attest_require",
            hint='use pkcs11 or tpm, or set it to "if-available"',
        )
    if config.audit.sealing == "attested" and config.order[0] in _NO_EVIDENCE:
        raise ConfigError(
            f"{config.order[0]} has no device to bind the log to", key=f"{section}audit.sealing", hint='"software"'
        )


def _check_each(config: KmsConfig, section: str) -> None:
    """What the backends that are used must be told."""
    backends = config.backends
    told = {
        "pkcs11": (("module_path", backends.pkcs11.module_path), ("pin_env", backends.pkcs11.pin_env)),
        "file": (("dir", backends.file.dir),),
        "tpm": (("tcti", backends.tpm.tcti), ("dir", backends.tpm.dir)),
        "cloud": (("key_id", backends.cloud.key_id),),
    }
    for name in config.order:
        for key, value in told.get(name, ()):
            if not value:
                raise ConfigError(
                    f"the backend {name} needs it", key=f"{section}backends.{name}.{key}", hint="see docs/kms"
                )


def _check_amnesia(config: KmsConfig, section: str) -> None:
    lasting = [name for name in config.order if name not in _FLEETING]
    if lasting:
        raise ConfigError(
            f"amnesia keeps no key, and {lasting[0]} does", key=f"{section}service.backend", hint='set it to "inmem"'
        )
    # the default means memory then; what somebody wrote must be in memory
    folder = config.audit.dir
    if folder not in {"", type(config.audit)().dir} and not _in_memory(folder):
        raise ConfigError(
            "amnesia keeps nothing in a folder that persists",
            key=f"{section}audit.dir",
            hint=f"leave it out, or name one below {_MEMORY[0]}",
        )


def _in_memory(folder: str) -> bool:
    return any(memory in PurePosixPath(posixpath.normpath(folder)).parents for memory in _MEMORY)
