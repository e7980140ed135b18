"""Keys in memory: the contract, and that nothing is left of them."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.logs import kid_hash
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg
from ron.services.kms.backends import sealedkeys
from ron.services.kms.backends.errors import DamagedError
from ron.services.kms.backends.inmem import InMemoryBackend
from ron.services.kms.backends.sealedkeys import SealedKey, os_entropy
from ron.services.kms.ports import Half
from tests.services.kms.backends.software import MESSAGE, Randomness, SoftwareContract, kid

# Room for two unsealed halves of Ed25519
TIGHT = 2 * 4096


class InMemory(SoftwareContract, SynchronousTestCase):
    def setUp(self) -> None:
        self.randomness = Randomness()
        self.backend = InMemoryBackend(entropy=self.randomness, unsealed_bytes=64 * 1024)
        self.backend.open()
        self.addCleanup(self.backend.close)

    def test_opened_again_it_is_empty(self) -> None:
        self.hybrid()
        self.backend.open()
        self.assertEqual(len(self.backend.held()), 1)
        self.backend.close()
        self.backend.open()
        self.assertEqual(self.backend.held(), ())

    def test_its_class_says_where_the_keys_live(self) -> None:
        self.assertEqual(self.hybrid()[1].attestation_class, "software-inmem")

    def test_a_closed_backend_keeps_no_half(self) -> None:
        name, _ = self.hybrid()
        self.backend.sign(name, Alg.ED25519, MESSAGE)
        keys = self.backend._keys
        buffer = keys._signing.get((name, Alg.ED25519))._buffer
        self.backend.close()
        gc.collect()
        self.assertTrue(buffer.closed)
        self.assertEqual(self.assertRaises(RonError, keys.get, name).code, ErrorCode.STORE_UNAVAILABLE)


class TightInMemory(SynchronousTestCase):
    """Where few unsealed halves fit."""

    def setUp(self) -> None:
        self.backend = InMemoryBackend(unsealed_bytes=TIGHT)
        self.backend.open()
        self.addCleanup(self.backend.close)

    test_many_threads_at_once = SoftwareContract.test_many_threads_at_once

    def test_the_half_used_longest_ago_is_wiped(self) -> None:
        names = [kid() for _ in range(3)]
        buffers = []
        for name in names:
            self.backend.generate(name, [Alg.ED25519])
            self.backend.sign(name, Alg.ED25519, MESSAGE)
            buffers.append(self.backend._keys._signing.get((name, Alg.ED25519))._buffer)  # type: ignore[union-attr]
        gc.collect()
        self.assertEqual([buffer.closed for buffer in buffers], [True, False, False])

    def test_a_half_in_use_outlives_its_key(self) -> None:
        """Wiped half way through, a signature would give the key away together with a later good one."""
        name = kid()
        self.backend.generate(name, [Alg.ED25519])
        expected = self.backend.sign(name, Alg.ED25519, MESSAGE)
        half = self.backend._keys._signing.get((name, Alg.ED25519))  # type: ignore[union-attr]
        assert half is not None
        self.backend.destroy(name)
        self.backend.close()
        gc.collect()
        self.assertEqual(half.sign(MESSAGE), expected)


class Races(SynchronousTestCase):
    def test_destroyed_while_it_is_unsealed(self) -> None:
        """The signature that was begun ends; there is no second one."""
        backend = InMemoryBackend()
        backend.open()
        self.addCleanup(backend.close)
        name = kid()
        backend.generate(name, [Alg.ED25519, Alg.X25519])
        keys = backend._keys
        assert keys is not None
        unsealed = keys._unsealed

        def destroyed_then(*args: Any) -> Any:
            made = unsealed(*args)
            backend.destroy(name)
            return made

        self.patch(keys, "_unsealed", destroyed_then)
        self.assertEqual(len(backend.sign(name, Alg.ED25519, MESSAGE)), 64)
        error = self.assertRaises(RonError, backend.sign, name, Alg.ED25519, MESSAGE)
        self.assertEqual(error.code, ErrorCode.NOT_FOUND)


class Faults(SynchronousTestCase):
    """A store whose memory changed under it signs nothing."""

    def setUp(self) -> None:
        self.backend = InMemoryBackend()
        self.backend.open()
        self.addCleanup(self.backend.close)
        self.kid = kid()
        self.backend.generate(self.kid, [Alg.ED25519, Alg.X25519])

    def swap(self, **changed: object) -> None:
        keys = self.backend._keys
        assert keys is not None
        keys.add(SealedKey(**{**keys.get(self.kid)._asdict(), **changed}))  # type: ignore[arg-type]

    def test_a_blob_that_changed(self) -> None:
        key = self.backend._keys.get(self.kid)  # type: ignore[union-attr]
        self.swap(blob=key.blob[:-1] + bytes([key.blob[-1] ^ 1]))
        error = self.assertRaises(DamagedError, self.backend.sign, self.kid, Alg.ED25519, b"")
        self.assertEqual(error.kid, str(self.kid))
        self.assertIn(f"(kid_hash {kid_hash(str(self.kid))})", str(error))

    def test_a_public_half_that_changed(self) -> None:
        key = self.backend._keys.get(self.kid)  # type: ignore[union-attr]
        self.swap(held=key.held._replace(halves=(Half(Alg.ED25519, bytes(32)), key.held.halves[1])))
        self.assertRaises(DamagedError, self.backend.sign, self.kid, Alg.ED25519, MESSAGE)

    def test_a_half_that_grew_into_another(self) -> None:
        """As by a fault in an engine: the seal is whole, and binds the public half it was made with."""
        keys = self.backend._keys
        assert keys is not None
        other = keys.make(kid(), [Alg.ED25519], "software-inmem")
        held = other.held._replace(halves=(Half(Alg.ED25519, bytes(32)),))
        sealer = keys._open_sealer()
        keys.add(SealedKey(held, 0, sealer.seal(sealedkeys._label(held, 0), b"\x01" + bytes(32))))
        self.assertRaises(DamagedError, self.backend.sign, held.kid, Alg.ED25519, MESSAGE)


class LittleLockedMemory(SynchronousTestCase):
    """In a process of its own, as nobody, with 16 pages to lock."""

    def test_more_keys_than_pages(self) -> None:
        program = """
            import os, resource, uuid
            from ron.proto.kms import Alg, Kid
            from ron.services.kms.backends.inmem import InMemoryBackend
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (16 * 4096, 16 * 4096))
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
            backend = InMemoryBackend()
            backend.open()
            kids = [Kid("acme", "audit", "ed25519", str(uuid.uuid4()), 1) for _ in range(40)]
            for kid in kids:
                backend.generate(kid, [Alg.ED25519])
                backend.sign(kid, Alg.ED25519, bytes(32))
            for kid in kids:
                backend.sign(kid, Alg.ED25519, bytes(32))
            print("signed")
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd=Path(__file__).parents[4],
        )
        self.assertEqual(done.stdout.strip(), "signed")


class SystemEntropy(SynchronousTestCase):
    def test_a_source_that_comes_short(self) -> None:
        short = Path(self.mktemp())
        short.write_bytes(b"few")
        self.patch(sealedkeys, "_SOURCE", str(short))
        with memoryview(bytearray(64)) as view:
            error = self.assertRaises(RonError, os_entropy, view)
        self.assertEqual(error.code, ErrorCode.STORE_UNAVAILABLE)

    def test_it_fills_all_of_it(self) -> None:
        first, second = bytearray(64), bytearray(64)
        for made in (first, second):
            with memoryview(made) as view:
                os_entropy(view)
        self.assertNotEqual(first, second)
        self.assertNotIn(bytes(16), (first[-16:], second[-16:]))
