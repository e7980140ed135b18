"""One key of a cloud's key service, AWS KMS or what speaks like it: data keys under it, and nothing else.

In: which key, an encryption context. Out: data keys in the clear and encrypted, as the provider made them. Every call
ends within `deadline_s`, with one more try for what may pass. Blocks; from any thread. Credentials are botocore's
business: environment, file, instance role. Extra `cloud`.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
)
from twisted.logger import Logger

from ron.crypto.secrets import SecretBuffer
from ron.kernel.backoff import Backoff
from ron.proto.errors import RonError, bad_request, unavailable
from ron.services.kms.backends.errors import DamagedError, LockedError

DEADLINE_S = 2.0
TRIES = 2
PAUSE_S = (0.05, 0.1)
DATA_KEY_BYTES = 32
MAX_ENCRYPTED_BYTES = 6144
# AWS KMS API reference, common errors and those of Decrypt and GenerateDataKey
_LOCKED = frozenset(
    {
        "AccessDeniedException",
        "DisabledException",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncorrectKeyException",
        "InvalidClientTokenId",
        "InvalidGrantTokenException",
        "InvalidKeyUsageException",
        "KMSInvalidStateException",
        "NotFoundException",
        "UnrecognizedClientException",
    }
)
_DAMAGED = frozenset({"InvalidCiphertextException", "ValidationException", "ValidationError"})
_log = Logger(namespace="ron.kms.cloud")


class CloudAddress(NamedTuple):
    """key_id: its id, ARN or alias. region: may be botocore's own choice. endpoint: empty for the provider's own."""

    key_id: str
    region: str = ""
    endpoint: str = ""


class CloudKey:
    """A provider's key. sleep: between the two tries, seconds."""

    def __init__(
        self,
        address: CloudAddress,
        *,
        deadline_s: float = DEADLINE_S,
        sleep: Callable[[float], None] = time.sleep,
        allow_unlocked: bool = False,
    ) -> None:
        """Raises `RonError` (BadRequest) for no key id, or an endpoint that would carry keys over a wire in clear."""
        if not address.key_id:
            raise bad_request("no key of the cloud is named", "set backends.cloud.key_id")
        _check_endpoint(address.endpoint)
        self._address = address
        self._deadline_s = deadline_s
        self._sleep = sleep
        self._allow_unlocked = allow_unlocked
        self._client: Any = None

    def open(self) -> None:
        """Make the client; asks nobody. Raises `LockedError` where botocore lacks a region."""
        try_s = (self._deadline_s - TRIES * PAUSE_S[1]) / TRIES
        config = Config(
            connect_timeout=try_s * 0.4,
            read_timeout=try_s * 0.6,
            # ours are bounded in time as well
            retries={"total_max_attempts": 1, "mode": "standard"},
        )
        try:
            self._client = boto3.session.Session().client(
                "kms",
                region_name=self._address.region or None,
                endpoint_url=self._address.endpoint or None,
                config=config,
            )
        except (NoRegionError, ValueError) as error:
            raise LockedError("the cloud's key service has no address", hint="set backends.cloud.region") from error

    def close(self) -> None:
        """Let go of the connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def describe(self) -> dict[str, Any]:
        """The key's metadata. Raises `LockedError` unless it may encrypt and decrypt now."""
        told = self._call("describe_key", KeyId=self._address.key_id)["KeyMetadata"]
        # what only resembles AWS KMS may leave the usual usage out
        if told.get("KeyState") != "Enabled" or told.get("KeyUsage", "ENCRYPT_DECRYPT") != "ENCRYPT_DECRYPT":
            raise LockedError("the cloud's key may not be used", hint="enable it; it has to be one that encrypts")
        return dict(told)

    def new_data_key(self, context: Mapping[str, str]) -> tuple[SecretBuffer, bytes]:
        """32 random bytes of the provider's, and the same encrypted; bound to `context`, which is in its log."""
        told = self._call(
            "generate_data_key",
            KeyId=self._address.key_id,
            NumberOfBytes=DATA_KEY_BYTES,
            EncryptionContext=dict(context),
        )
        return self._taken(told["Plaintext"]), bytes(told["CiphertextBlob"])

    def data_key(self, encrypted: bytes, context: Mapping[str, str]) -> SecretBuffer:
        """The data key again. Raises `DamagedError` for other bytes, or another context."""
        told = self._call(
            "decrypt", KeyId=self._address.key_id, CiphertextBlob=encrypted, EncryptionContext=dict(context)
        )
        return self._taken(told["Plaintext"])

    def _taken(self, plain: bytes) -> SecretBuffer:
        if len(plain) != DATA_KEY_BYTES:
            raise DamagedError("the cloud gave a data key of another size", hint="is it AWS KMS, or another service?")
        return SecretBuffer.taking(bytearray(plain), allow_unlocked=self._allow_unlocked)

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """All of them are safe to repeat: a second data key is one that nobody uses."""
        client = self._client
        if client is None:
            raise unavailable("the cloud's key service is not open")
        backoff = Backoff(base_s=PAUSE_S[0], ceiling_s=PAUSE_S[1])
        for left in reversed(range(TRIES)):
            try:
                return dict(getattr(client, operation)(**arguments))
            except (BotoCoreError, ClientError) as error:
                named = _named(error)
                _log.warn(
                    "{operation}: {why}",
                    event="kms_backend_error",
                    backend="cloud",
                    operation=operation,
                    why=_why(error),
                )
                if not left or isinstance(named, LockedError | DamagedError):
                    raise named from None
            self._sleep(backoff.next_delay_s())
        raise AssertionError("unreachable")


def _check_endpoint(endpoint: str) -> None:
    if not endpoint:
        return
    try:
        url = urlsplit(endpoint)
        host, _port = url.hostname or "", url.port
    except ValueError:
        raise bad_request("backends.cloud.endpoint is no URL") from None
    if url.scheme == "https" and host:
        return
    if url.scheme != "http" or not _is_loopback(host):
        raise bad_request("backends.cloud.endpoint has to be https://…", "http:// is for loopback only")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _named(error: BotoCoreError | ClientError) -> RonError:
    code = _why(error)
    if code in _DAMAGED:
        return DamagedError(
            "the cloud does not decrypt what it is said to have encrypted",
            hint="restore the key's file from the backup",
        )
    if code in _LOCKED or isinstance(error, NoCredentialsError | PartialCredentialsError):
        return LockedError(
            f"the cloud's key service refuses: {code}", hint="check the credentials, the key's state and its policy"
        )
    return unavailable("the cloud's key service cannot be used for now", "see docs/kms/runbook.rst, backend outage")


def _why(error: BotoCoreError | ClientError) -> str:
    # the code alone: the text of some has the request in it
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "ClientError"))[:64]
    return type(error).__name__
