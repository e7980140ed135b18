"""The cloud backend of ron-kms against a key service that speaks as AWS KMS does. Needs moto's server."""

from __future__ import annotations

import atexit
import base64
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from ron.crypto import wrapping
from ron.crypto.wrapping import Suite
from ron.proto.errors import ErrorCode
from ron.proto.kms import Alg
from ron.services.kms.backends.errors import DamagedError, ForeignFileError, LockedError, RolledBackError
from tests.live.support import free_port, listening, until
from tests.services.kms.backends.contract import KEM, MESSAGE, BackendCase, KemContract, envelope_for, new_kid
from tests.services.kms.backends.softhsm import environment

NO_CLOUD = None
try:
    import boto3
    import moto.server  # noqa: F401 - is it there?

    from ron.services.kms.backends.cloud import CloudBackend
    from ron.services.kms.backends.cloud_key import CloudAddress, CloudKey
except ImportError:
    NO_CLOUD = "boto3 or moto is not installed (extra cloud; make test installs moto)"

REGION = "eu-central-1"
START_S = 90


class Moto:
    """A server of its own process. key_id: of a key that encrypts."""

    def __init__(self) -> None:
        self._port = free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()
        self.key_id = self.client().create_key()["KeyMetadata"]["KeyId"]

    def start(self) -> None:
        """It answers when this returns. It remembers nothing of the time before."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(self._port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: listening(self._port), START_S, "moto's start")

    def client(self) -> Any:
        """An administrator's."""
        return boto3.client("kms", region_name=REGION, endpoint_url=self.endpoint)

    def kill(self) -> None:
        """At once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@functools.cache
def the_server() -> Moto:
    """One for this process, whose end it does not outlive: trial has no fixture for a module."""
    started = Moto()
    atexit.register(started.kill)
    return started


class CloudCase(BackendCase):
    """One server for all tests here; a fresh directory and a fresh key for each."""

    skip = NO_CLOUD

    def setUp(self) -> None:
        super().setUp()
        self.stack.enter_context(
            environment(
                AWS_ACCESS_KEY_ID="test",
                AWS_SECRET_ACCESS_KEY="test",
                AWS_EC2_METADATA_DISABLED="true",
                NO_PROXY="127.0.0.1",
            )
        )
        self.moto = the_server()
        self.keys = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="ron-cloud-"))) / "keys"
        self.key_id = self.moto.client().create_key()["KeyMetadata"]["KeyId"]
        self.slept: list[float] = []

    def key(self, **changes: Any) -> CloudKey:
        """On the server."""
        address = CloudAddress(**{"key_id": self.key_id, "region": REGION, "endpoint": self.moto.endpoint, **changes})
        return CloudKey(address, allow_unlocked=True, sleep=self.slept.append, deadline_s=6.0)

    def build(self, **changes: Any) -> CloudBackend:
        """Not open."""
        return CloudBackend(self.keys, self.key(**changes), allow_unlocked=True)

    def opened(self) -> CloudBackend:
        """Open until the test ends."""
        backend = self.build()
        backend.open()
        self.stack.callback(backend.close)
        return backend


class ContractOnCloud(KemContract, CloudCase):
    """What the port promises of wrapping."""


class Custody(CloudCase):
    """What is where."""

    def test_it_does_not_sign(self) -> None:
        """Unsupported with the way out, for keys it could make and for keys it has."""
        backend = self.opened()
        error = self.refused(ErrorCode.UNSUPPORTED, backend.generate, new_kid(), (Alg.ED25519, Alg.ML_DSA))
        self.assertIn("multi_backends", error.hint or "")
        held = backend.generate(new_kid(purpose="wrap"), KEM)
        self.refused(ErrorCode.UNSUPPORTED, backend.sign, held.kid, Alg.X25519, MESSAGE)
        self.refused(ErrorCode.NOT_FOUND, backend.sign, new_kid(), Alg.ED25519, MESSAGE)

    def test_bad_requests(self) -> None:
        """No version, no half, a half twice."""
        backend = self.opened()
        for kid, algs in ((new_kid(version=0), KEM), (new_kid(), ()), (new_kid(), (Alg.X25519, Alg.X25519))):
            self.refused(ErrorCode.BAD_REQUEST, backend.generate, kid, algs)

    def test_a_half_the_key_has_not(self) -> None:
        """Unsupported, before the provider is asked."""
        backend = self.opened()
        held, other = (backend.generate(new_kid(purpose="wrap"), algs) for algs in ((Alg.X25519,), KEM))
        envelope, info = envelope_for(other, Suite.PQ, b"k" * 32), wrapping.info_of(held.kid, Suite.PQ)
        self.refused(ErrorCode.UNSUPPORTED, backend.unwrap, held.kid, Suite.PQ.value, envelope, info)

    def test_the_encryption_context_binds_the_kid(self) -> None:
        """A data key of one key version does not open for another: the provider itself refuses."""
        backend = self.opened()
        first, second = (backend.generate(new_kid(purpose="wrap"), KEM) for _ in range(2))
        encrypted = backend._record(first.kid).data_key
        key = self.key()
        key.open()
        self.stack.callback(key.close)
        key.data_key(encrypted, {"ron-kms:kid": str(first.kid)}).close()
        self.assertRaises(DamagedError, key.data_key, encrypted, {"ron-kms:kid": str(second.kid)})
        self.assertRaises(DamagedError, key.data_key, encrypted, {})

    def test_files_that_were_changed(self) -> None:
        """Flipped, swapped, rubbish: damaged, at the start or when the key is used."""
        backend = self.opened()
        held, other = (backend.generate(new_kid(purpose="wrap"), KEM) for _ in range(2))
        backend.close()
        paths = sorted(self.keys.glob("*.key"))
        first, second = (path.read_bytes() for path in paths)
        paths[0].write_bytes(second)
        self.assertRaises(DamagedError, self.build().open)
        paths[0].write_bytes(b"rubbish")
        self.assertRaises(DamagedError, self.build().open)
        paths[0].write_bytes(first)
        backend.open()
        record, foreign = backend._record(held.kid), backend._record(other.kid)
        swapped = msgspec.structs.replace(record, halves=foreign.halves)
        backend._store._files[str(held.kid)] = msgspec.msgpack.encode(swapped)
        envelope, info = envelope_for(held, Suite.HYBRID, b"k" * 32), wrapping.info_of(held.kid, Suite.HYBRID)
        self.assertRaises(DamagedError, backend.unwrap, held.kid, Suite.HYBRID.value, envelope, info)

    def test_i6_an_older_copy_of_the_whole_directory(self) -> None:
        """It is consistent in itself: what the audit log remembers tells. Newer is fine."""
        backend = self.opened()
        first = backend.generate(new_kid(purpose="wrap"), KEM)
        known = [backend.head()]
        backend.close()
        older = self.keys.with_name("older")
        shutil.copytree(self.keys, older)
        backend.open()
        backend.generate(new_kid(purpose="wrap"), KEM)
        known.append(backend.head())
        backend.destroy(first.kid)
        known.append(backend.head())
        for head in known:
            backend.check_head(*head)
        backend.close()
        self.keys.rename(self.keys.with_name("newest"))
        older.rename(self.keys)
        backend.open()
        backend.check_head(*known[0])
        self.assertEqual(list(backend.held()), [first])
        for head in known[1:]:
            self.assertRaises(RolledBackError, backend.check_head, *head)

    def test_i6_older_files_in_a_newer_directory(self) -> None:
        """A destroyed key put back, an older manifest, a manifest without its head, no root: not opened."""
        backend = self.opened()
        kept, gone = (backend.generate(new_kid(purpose="wrap"), KEM) for _ in range(2))
        backend.close()
        before = {path.name: path.read_bytes() for path in self.keys.iterdir() if path.is_file()}
        backend.open()
        backend.destroy(gone.kid)
        self.refused(ErrorCode.CONFLICT, backend.generate, gone.kid, KEM)
        backend.close()
        now = {path.name: path.read_bytes() for path in self.keys.iterdir() if path.is_file()}
        (dead,) = set(before) - set(now)
        (self.keys / dead).write_bytes(before[dead])
        backend.open()
        self.assertEqual((list(backend.held()), (self.keys / dead).exists()), ([kept], False))
        backend.close()
        (self.keys / "manifest").write_bytes(before["manifest"])
        self.assertRaises(RolledBackError, self.build().open)
        (self.keys / "manifest").write_bytes(now["manifest"])
        (self.keys / "head").unlink()
        self.assertRaises(DamagedError, self.build().open)
        (self.keys / "head").write_bytes(now["head"])
        (self.keys / "head").chmod(0o600)
        (self.keys / "root").rename(self.keys.parent / "root")
        self.assertRaises(DamagedError, self.build().open)
        (self.keys.parent / "root").rename(self.keys / "root")
        stranger = self.keys / ("0" * 40 + ".key")
        stranger.write_bytes(b"rubbish")
        stranger.chmod(0o600)
        self.assertRaises(ForeignFileError, self.build().open)
        stranger.unlink()
        (self.keys / "root").write_bytes(b"rubbish")
        self.assertRaises(DamagedError, self.build().open)

    def test_killed_between_the_key_and_the_manifest(self) -> None:
        """It is no key, and goes with the next change."""
        backend = self.opened()
        write = backend._folder.write

        def dies(name: str, raw: bytes) -> None:
            if name == "manifest":
                raise OSError(5, "power is gone")
            write(name, raw)

        backend._folder.write = dies  # type: ignore[method-assign]
        kid = new_kid(purpose="wrap")
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.generate, kid, KEM)
        backend._folder.write = write  # type: ignore[method-assign]
        backend.close()
        backend.open()
        self.assertEqual((list(backend.held()), len(list(self.keys.glob("*.key")))), ([], 1))
        held = backend.generate(kid, KEM)
        self.assertEqual((list(backend.held()), len(list(self.keys.glob("*.key")))), ([held], 1))

    def test_a_disk_that_fails_at_the_last_moment(self) -> None:
        """The manifest is there and nobody said so: what came of it is looked at before anything else is done."""
        backend = self.opened()
        write = backend._folder.write

        def dies(name: str, raw: bytes) -> None:
            write(name, raw)
            if name == "manifest":
                raise OSError(5, "the disk is gone")

        kid = new_kid(purpose="wrap")
        backend._folder.write = dies  # type: ignore[method-assign]
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.generate, kid, KEM)
        backend._folder.write = write  # type: ignore[method-assign]
        backend.probe()
        self.assertEqual([held.kid for held in backend.held()], [kid])
        self.refused(ErrorCode.CONFLICT, backend.generate, kid, KEM)

    def test_attestation_is_what_the_provider_says(self) -> None:
        """Of its key, for a key of ours and for the whole."""
        backend = self.opened()
        held = backend.generate(new_kid(purpose="wrap"), KEM)
        for kid in (held.kid, None):
            attestation = backend.attest(kid)
            assert attestation is not None
            told = json.loads(base64.b64decode(attestation.evidence or ""))
            self.assertEqual((attestation.class_, told["KeyState"]), ("cloud-aws-kms", "Enabled"))
            self.assertIn(self.key_id, told["Arn"])
        self.refused(ErrorCode.NOT_FOUND, backend.attest, new_kid())

    def test_it_is_not_copied(self) -> None:
        """Nor used while it is closed; opening twice is once."""
        backend = self.opened()
        backend.open()
        self.assertRaises(TypeError, backend.__reduce__)
        backend.close()
        backend.close()
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.held)
        self.refused(ErrorCode.STORE_UNAVAILABLE, self.key().describe)


class Faults(CloudCase):
    """The provider refuses, hangs or is not there."""

    def test_a_key_that_may_not_be_used(self) -> None:
        """Disabled, unknown, made for signing: locked, and asked once."""
        backend = self.opened()
        held = backend.generate(new_kid(purpose="wrap"), KEM)
        self.moto.client().disable_key(KeyId=self.key_id)
        self.assertRaises(LockedError, backend.probe)
        backend.close()
        self.assertRaises(LockedError, self.build().open)
        self.moto.client().enable_key(KeyId=self.key_id)
        backend.open()
        self.assertEqual(list(backend.held()), [held])
        backend.close()
        signs = self.moto.client().create_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")["KeyMetadata"]["KeyId"]
        for key_id in (signs, "00000000-0000-4000-8000-000000000000"):
            self.assertRaises(LockedError, self.build(key_id=key_id).open)
        self.assertEqual(self.slept, [])

    def test_no_credentials(self) -> None:
        """Locked, with the way out; nothing of the request in it."""
        names = [name for name in os.environ if name.startswith("AWS_") and "KEY" in name]
        with environment(**dict.fromkeys(names, ""), HOME=str(self.keys.parent)):
            for name in names:
                del os.environ[name]
            error = self.assertRaises(LockedError, self.build().open)
        self.assertIn("credentials", error.hint or "")

    def test_no_region(self) -> None:
        """Locked: there is no address."""
        with environment(AWS_DEFAULT_REGION="", HOME=str(self.keys.parent)):
            del os.environ["AWS_DEFAULT_REGION"]
            self.assertRaises(LockedError, self.build(region="", endpoint="").open)

    def test_nobody_listens(self) -> None:
        """StoreUnavailable after a second try, with a short pause between."""
        self.refused(ErrorCode.STORE_UNAVAILABLE, self.build(endpoint=f"http://127.0.0.1:{free_port()}").open)
        self.assertEqual(len(self.slept), 1)
        self.assertTrue(0.05 <= self.slept[0] <= 0.1)

    def test_it_hears_and_says_nothing(self) -> None:
        """The deadline ends it, and it works again afterwards."""
        backend = self.opened()
        held = backend.generate(new_kid(purpose="wrap"), KEM)
        envelope, info = envelope_for(held, Suite.HYBRID, b"k" * 32), wrapping.info_of(held.kid, Suite.HYBRID)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            key = CloudKey(
                CloudAddress("k", REGION, f"http://127.0.0.1:{port}"), sleep=self.slept.append, deadline_s=0.6
            )
            key.open()
            self.refused(ErrorCode.STORE_UNAVAILABLE, key.describe)
            key.close()
        self.assertEqual(backend.unwrap(held.kid, Suite.HYBRID.value, envelope, info), b"k" * 32)

    def test_addresses(self) -> None:
        """Data keys come in clear inside of TLS: no plain http but on loopback, no key without a name."""
        for endpoint in (
            "http://kms.example.org",
            "http://10.0.0.1:80",
            "ftp://127.0.0.1",
            "https://",
            "x",
            "http://[1",
        ):
            self.refused(ErrorCode.BAD_REQUEST, self.key, endpoint=endpoint)
        self.refused(ErrorCode.BAD_REQUEST, self.key, key_id="")
        for endpoint in ("https://kms.example.org", "http://localhost:1", "http://[::1]:1", ""):
            self.key(endpoint=endpoint)
