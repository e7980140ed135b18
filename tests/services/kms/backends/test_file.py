"""Keys in sealed files: the contract, what is found again after a restart, and what is found out at one."""

from __future__ import annotations

import gc
import os
import shutil
import stat
from pathlib import Path

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import signing
from ron.crypto.sealing import Aead, BrokenSealError
from ron.kernel.logs import kid_hash
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg, Kid
from ron.services.kms.backends import filerecords as records
from ron.services.kms.backends.errors import (
    CustodyError,
    DamagedError,
    ForeignFileError,
    LockedError,
    RolledBackError,
)
from ron.services.kms.backends.file import FileBackend
from ron.services.kms.backends.fileopening import open_folder
from ron.services.kms.backends.folder import KeyFolder
from ron.services.kms.backends.sealedkeys import SealedKeys
from tests.services.kms.backends.filecase import Case, contents, unlock
from tests.services.kms.backends.software import ALL, MESSAGE, Randomness, SoftwareContract, kid


class Contract(SoftwareContract, Case):
    def setUp(self) -> None:
        super().setUp()
        self.randomness = Randomness()
        self.backend = self.opened(entropy=self.randomness, unsealed_bytes=64 * 1024)

    def test_its_class_says_where_the_keys_live(self) -> None:
        self.assertEqual(self.hybrid()[1].attestation_class, "software-file")

    def test_no_file_shows_a_seed_a_tenant_or_a_purpose(self) -> None:
        self.hybrid()
        for name, raw in contents(self.directory).items():
            self.assertNotIn("acme", name)
            for seed in self.randomness.given:
                self.assertNotIn(seed, raw)


class AtRest(Case):
    """What is found again."""

    def test_all_of_it_after_a_restart(self) -> None:
        for aead in Aead:
            name = kid()
            backend = self.opened(unlock=unlock(aead=aead))
            held = backend.generate(name, ALL)
            head = backend.head()
            before = backend.sign(name, Alg.ED25519, MESSAGE)
            backend.close()
            again = self.opened(unlock=unlock(aead=aead))
            self.assertIn(held, again.held())
            self.assertEqual(again.head(), head)
            self.assertEqual(again.sign(name, Alg.ED25519, MESSAGE), before)
            signature = again.sign(name, Alg.ML_DSA, MESSAGE)
            self.assertTrue(signing.verify(Alg.ML_DSA, held.halves[1].public, MESSAGE, signature))
            again.close()

    def test_what_was_destroyed_stays_so(self) -> None:
        name = kid()
        backend = self.opened()
        backend.generate(name, ALL)
        backend.destroy(name)
        self.assertFalse(self.path_of(name).exists())
        backend.close()
        again = self.opened()
        again.destroy(name)
        self.assertEqual(again.held(), ())
        self.assertEqual(self.assertRaises(RonError, again.generate, name, ALL).code, ErrorCode.CONFLICT)

    def test_what_was_destroyed_is_overwritten(self) -> None:
        name = kid()
        backend = self.opened()
        backend.generate(name, ALL)
        kept = self.directory.with_name("kept")
        kept.hardlink_to(self.path_of(name))
        self.assertIn(str(name).encode(), kept.read_bytes())
        backend.destroy(name)
        self.assertEqual(kept.read_bytes(), bytes(kept.stat().st_size))

    def test_only_the_owner_may_look(self) -> None:
        self.store_of(kid())
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)
        self.assertEqual({stat.S_IMODE(path.stat().st_mode) for path in self.directory.iterdir()}, {0o600})

    def test_signing_asks_no_disk(self) -> None:
        name = kid()
        backend = self.opened()
        backend.generate(name, [Alg.ED25519])
        shutil.rmtree(self.directory)
        self.assertEqual(len(backend.sign(name, Alg.ED25519, MESSAGE)), 64)
        self.assertEqual(self.assertRaises(RonError, backend.probe).code, ErrorCode.STORE_UNAVAILABLE)

    def test_one_process_at_a_time(self) -> None:
        backend = self.opened()
        backend.open()
        other = FileBackend(self.directory, unlock())
        self.assertEqual(self.assertRaises(RonError, other.open).code, ErrorCode.CONFLICT)
        backend.close()
        other.open()
        other.close()

    def test_closed_it_holds_no_secret(self) -> None:
        name = kid()
        backend = self.opened()
        backend.generate(name, [Alg.ED25519])
        backend.sign(name, Alg.ED25519, MESSAGE)
        at = backend._at
        assert at is not None
        buffers = [at.sealer._master, at.keys._signing.get((name, Alg.ED25519))._buffer]  # type: ignore[union-attr]
        self.assertEqual([buffer.closed for buffer in buffers], [False, False])
        backend.close()
        gc.collect()
        self.assertEqual([buffer.closed for buffer in buffers], [True, True])

    def test_a_full_store(self) -> None:
        backend = self.opened()
        self.patch(records, "MAX_KEYS", 1)
        first = kid()
        for name in (first, first.at(2)):
            backend.generate(name, [Alg.ED25519])
            error = self.assertRaises(RonError, backend.generate, kid(), [Alg.ED25519])
            self.assertEqual(error.code, ErrorCode.STORE_UNAVAILABLE)
            backend.destroy(name)
        # two were destroyed: as many names as the manifest keeps
        self.assertRaises(RonError, backend.generate, kid(), [Alg.ED25519])
        self.assertEqual(backend.held(), ())


class FutureVersions(Case):
    """What a later program wrote is not guessed at."""

    def test_a_manifest_and_a_head(self) -> None:
        self.store_of(kid())
        at = open_folder(KeyFolder(self.directory), unlock(), SealedKeys)
        future = {"v": 2, "counter": 1, "keys": {}, "gone": [], "history": [], "digest": bytes(32), "colour": "red"}
        for name, label in ((records.MANIFEST, records._MANIFEST), (records.HEAD, records._HEAD)):
            kept = (self.directory / name).read_bytes()
            (self.directory / name).write_bytes(at.sealer.seal(label, msgspec.msgpack.encode(future)))
            self.assertIn("version", self.refused(DamagedError).message)
            (self.directory / name).write_bytes(kept)
        self.assertRaises(BrokenSealError, records.decode_key, bytes(records.MAX_KEY_FILE_BYTES + 1))


class Tampered(Case):
    """Anything but the store as it was is told at the start, with the key it is about."""

    def setUp(self) -> None:
        super().setUp()
        self.first, self.second = kid(), kid()
        self.signatures = self.store_of(self.first, self.second)

    def test_another_passphrase(self) -> None:
        error = self.refused(LockedError, unlock=unlock(b"wrong horse battery staple"))
        self.assertNotIn("horse", error.one_line())

    def test_a_flipped_bit_in_any_file(self) -> None:
        for name, raw in contents(self.directory).items():
            if name == ".lock":
                continue
            for at in (0, 5, len(raw) // 2, len(raw) - 1):
                changed = bytearray(raw)
                changed[at] ^= 4
                (self.directory / name).write_bytes(changed)
                error = self.refused(CustodyError)
                if name == records.file_name(self.first):
                    self.assertEqual(error.kid, str(self.first))
                    self.assertIn(kid_hash(str(self.first)), error.message)
            (self.directory / name).write_bytes(raw)
        self.assertEqual(self.opened().sign(self.first, Alg.ED25519, MESSAGE), self.signatures[self.first])

    def test_a_file_cut_short_or_empty(self) -> None:
        for name, raw in contents(self.directory).items():
            if name == ".lock":
                continue
            for cut in (b"", raw[:-1], raw[:20]):
                (self.directory / name).write_bytes(cut)
                self.refused(DamagedError)
            (self.directory / name).write_bytes(raw)

    def test_a_file_longer_than_it_gets(self) -> None:
        for name in (records.ROOT, records.file_name(self.first)):
            raw = (self.directory / name).read_bytes()
            (self.directory / name).write_bytes(raw + bytes(100_000))
            self.refused(DamagedError)
            (self.directory / name).write_bytes(raw)

    def test_a_missing_file(self) -> None:
        for name, raw in contents(self.directory).items():
            if name == ".lock":
                continue
            (self.directory / name).unlink()
            error = self.refused(DamagedError)
            if name == records.file_name(self.second):
                self.assertEqual(error.kid, str(self.second))
            (self.directory / name).write_bytes(raw)
            (self.directory / name).chmod(0o600)
        self.opened()

    def test_a_secret_that_others_may_read(self) -> None:
        self.path_of(self.first).chmod(0o644)
        self.assertIn("chmod 600", self.refused(DamagedError).hint or "")

    def test_two_files_changed_places(self) -> None:
        one, other = self.path_of(self.first), self.path_of(self.second)
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
        self.refused(DamagedError)

    def test_a_strange_file(self) -> None:
        for name in ("notes.txt", "0" * 40 + ".key", "manifest.bak"):
            (self.directory / name).write_bytes(b"hello")
            (self.directory / name).chmod(0o600)
            self.assertIn(name, self.refused(ForeignFileError).message)
            (self.directory / name).unlink()

    def test_what_is_no_file(self) -> None:
        (self.directory / "more").mkdir()
        self.refused(ForeignFileError)
        (self.directory / "more").rmdir()
        (self.directory / "link.key").symlink_to(self.path_of(self.first))
        self.refused(ForeignFileError)

    def test_a_key_of_another_store(self) -> None:
        mine, self.directory = self.directory, Path(self.mktemp())
        third = kid()
        # made by the change that would be the next one here
        self.store_of(kid(), kid(), third)
        shutil.copy2(self.path_of(third), mine)
        self.directory = mine
        self.assertIn(records.file_name(third), self.refused(ForeignFileError).message)

    def test_a_file_that_others_would_wait_for(self) -> None:
        """A pipe in the place of a key: nobody hangs on it."""
        self.path_of(self.first).unlink()
        os.mkfifo(self.path_of(self.first), 0o600)
        self.refused(ForeignFileError)


class RolledBack(Case):
    """Older copies, of everything or of a part."""

    def setUp(self) -> None:
        super().setUp()
        self.first = kid()
        self.store_of(self.first)
        self.old = contents(self.directory)

    def restore(self, *names: str) -> None:
        for name in names:
            (self.directory / name).write_bytes(self.old[name])

    def test_an_older_manifest(self) -> None:
        for changes in (1, 2):
            self.store_of(*(kid() for _ in range(changes)))
            new = contents(self.directory)
            self.restore(records.MANIFEST)
            self.assertIn("older copy", self.refused(RolledBackError).message)
            # and nothing was thrown away meanwhile
            self.assertEqual(set(contents(self.directory)), set(new))
            (self.directory / records.MANIFEST).write_bytes(new[records.MANIFEST])

    def test_manifest_and_head_two_changes_old(self) -> None:
        self.store_of(kid(), kid())
        self.restore(records.MANIFEST, records.HEAD)
        self.refused(ForeignFileError)

    def test_a_head_that_is_older_by_more_than_a_kill_explains(self) -> None:
        self.store_of(kid(), kid())
        self.restore(records.HEAD)
        self.refused(RolledBackError)

    def test_manifest_and_head_of_two_histories(self) -> None:
        """Both went on from the same copy; the manifest's number is the one after the head's."""
        other = self.directory.with_name("other")
        shutil.copytree(self.directory, other)
        self.store_of(kid())
        head = (self.directory / records.HEAD).read_bytes()
        shutil.rmtree(self.directory)
        other.rename(self.directory)
        self.store_of(kid(), kid())
        (self.directory / records.HEAD).write_bytes(head)
        self.assertIn("different copies", self.refused(RolledBackError).message)

    def test_an_older_manifest_names_what_was_destroyed(self) -> None:
        backend = self.opened()
        backend.destroy(self.first)
        backend.close()
        self.restore(records.MANIFEST, records.HEAD)
        error = self.refused(DamagedError)
        self.assertEqual(error.kid, str(self.first))

    def test_a_destroyed_key_put_back_is_destroyed_again(self) -> None:
        backend = self.opened()
        backend.destroy(self.first)
        backend.close()
        name = records.file_name(self.first)
        (self.directory / name).write_bytes(self.old[name])
        self.assertEqual(self.opened().held(), ())
        self.assertFalse(self.path_of(self.first).exists())

    def test_the_whole_directory_is_known_by_its_head(self) -> None:
        backend = self.opened()
        heads = [backend.head()]
        for _ in range(3):
            backend.generate(kid(), [Alg.ED25519])
            heads.append(backend.head())
        for head in heads:
            backend.check_head(*head)
        backend.close()
        for name in set(contents(self.directory)) - set(self.old):
            (self.directory / name).unlink()
        self.restore(*self.old)
        again = self.opened()
        again.check_head(*heads[0])
        for head in heads[1:]:
            self.assertRaises(RolledBackError, again.check_head, *head)

    def test_one_change_back_nothing_is_lost_before_it_is_noticed(self) -> None:
        """Manifest and head of one change ago look like a kill before the last one: its key waits for the check."""
        newest = kid()
        self.store_of(newest)
        backend = self.opened()
        head = backend.head()
        backend.close()
        new = contents(self.directory)
        self.restore(records.MANIFEST, records.HEAD)
        backend = self.opened()
        self.assertRaises(RolledBackError, backend.check_head, *head)
        self.assertTrue(self.path_of(newest).exists())
        backend.close()
        for name in (records.MANIFEST, records.HEAD):
            (self.directory / name).write_bytes(new[name])
        self.opened().sign(newest, Alg.ED25519, MESSAGE)

    def test_another_history_of_the_same_length(self) -> None:
        self.store_of(kid())
        backend = self.opened()
        known = backend.head()
        backend.close()
        shutil.rmtree(self.directory)
        self.store_of(kid(), kid())
        backend = self.opened()
        self.assertEqual(backend.head()[0], known[0])
        self.assertRaises(RolledBackError, backend.check_head, *known)

    def test_a_log_that_is_too_far_behind_proves_nothing(self) -> None:
        backend = self.opened()
        known = backend.head()
        self.patch(records, "HISTORY", 2)
        for _ in range(3):
            backend.generate(kid(), [Alg.ED25519])
        self.assertRaises(RolledBackError, backend.check_head, *known)


class Sizes(SynchronousTestCase):
    def test_the_key_file_has_room_for_all_halves(self) -> None:
        directory = Path(self.mktemp())
        backend = FileBackend(directory, unlock())
        backend.open()
        self.addCleanup(backend.close)
        longest = Kid("t" * 63, "p" * 63, "hybrid", kid().uuid, 999_999_999)
        backend.generate(longest, ALL)
        self.assertLess((directory / records.file_name(longest)).stat().st_size, records.MAX_KEY_FILE_BYTES)
