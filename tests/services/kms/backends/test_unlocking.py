"""Where the key store's passphrase comes from, and what is said when it does not come."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.kdf import Label
from ron.crypto.sealing import Aead, BrokenSealError, ScryptCost
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg
from ron.services.kms.backends import filerecords as records
from ron.services.kms.backends.errors import DamagedError, LockedError
from ron.services.kms.backends.fileopening import change_passphrase
from ron.services.kms.backends.folder import KeyFolder
from ron.services.kms.backends.unlocking import CREDENTIAL, ByPassphrase, find_passphrase
from tests.services.kms.backends.filecase import PASSPHRASE, contents, unlock
from tests.services.kms.backends.filecase import Case as StoreCase
from tests.services.kms.backends.software import MESSAGE, kid

CHEAP = ScryptCost(log_n=4, r=1)
SECRET = b"correct horse battery staple"
AGE = Path(__file__).parents[3] / "vectors" / "kms" / "age-root.json"
LABEL = Label("acme", "audit", "test")


class Case(SynchronousTestCase):
    def file(self, content: bytes, mode: int = 0o600) -> Path:
        path = Path(self.mktemp())
        path.write_bytes(content)
        path.chmod(mode)
        return path


class WhereItComesFrom(Case):
    def refused(self, **where: object) -> str:
        error = self.assertRaises(LockedError, find_passphrase({}, **where))  # type: ignore[arg-type]
        self.assertTrue(error.hint)
        return str(error.one_line())

    def test_nowhere(self) -> None:
        error = self.assertRaises(RonError, find_passphrase, {})
        self.assertEqual(error.code, ErrorCode.BAD_REQUEST)

    def test_a_variable_that_is_not_set(self) -> None:
        self.assertIn("KMS_PASS", self.refused(variable="KMS_PASS"))
        self.assertRaises(LockedError, find_passphrase({"KMS_PASS": ""}, variable="KMS_PASS"))

    def test_a_file_that_is_not_there_is_empty_or_open_to_others(self) -> None:
        self.assertIn("No such file", self.refused(file=Path(self.mktemp())))
        self.assertIn("first line", self.refused(file=self.file(b"\nsecond line\n")))
        self.assertIn("chmod 600", self.refused(file=self.file(SECRET, 0o640)))

    def test_a_credential_that_everybody_may_read(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / CREDENTIAL).write_bytes(SECRET)
        (directory / CREDENTIAL).chmod(0o444)
        found = find_passphrase({"CREDENTIALS_DIRECTORY": str(directory)})
        self.assertRaises(LockedError, found)
        # systemd's own, with an ACL: the mask shows as the group's bits
        (directory / CREDENTIAL).chmod(0o440)
        self.assertEqual(found(), SECRET)

    def test_no_error_shows_the_secret(self) -> None:
        for text in (self.refused(file=self.file(SECRET, 0o644)), self.refused(file=self.file(b""))):
            self.assertNotIn("horse", text)

    def test_a_variable_comes_before_a_file_and_a_file_before_the_credential(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / CREDENTIAL).write_bytes(b"of systemd")
        (directory / CREDENTIAL).chmod(0o400)
        environ = {"KMS_PASS": "of the variable", "CREDENTIALS_DIRECTORY": str(directory)}
        file = self.file(b"of the file\r\nsecond line")
        self.assertEqual(find_passphrase(environ, variable="KMS_PASS", file=file)(), b"of the variable")
        self.assertEqual(find_passphrase(environ, file=file)(), b"of the file")
        self.assertEqual(find_passphrase(environ, fallback=file)(), b"of systemd")

    def test_the_fallback_is_made_once(self) -> None:
        """Also where systemd has a credentials' directory without ours in it."""
        path = Path(self.mktemp()) / "kms.pass"
        environ = {"CREDENTIALS_DIRECTORY": str(path.parent)}
        made = find_passphrase(environ, fallback=path)()
        self.assertEqual(len(made), 43)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(find_passphrase(environ, fallback=path)(), made)


class Passphrases(Case):
    """The passphrase is overwritten once it was used, whatever came of it."""

    def setUp(self) -> None:
        self.lent: list[bytearray] = []
        self.secret = SECRET
        self.unlock = ByPassphrase(self.lend, cost=CHEAP)

    def tearDown(self) -> None:
        self.assertTrue(self.lent)
        self.assertEqual([bytes(one) for one in self.lent], [bytes(len(one)) for one in self.lent])

    def lend(self) -> bytearray:
        self.lent.append(bytearray(self.secret))
        return self.lent[-1]

    def test_a_short_one_and_a_long_one(self) -> None:
        for secret in (b"1234567", b"x" * 1025):
            self.secret = secret
            self.assertEqual(self.assertRaises(RonError, self.unlock.create).code, ErrorCode.BAD_REQUEST)

    def test_a_wrong_one(self) -> None:
        root, _ = self.unlock.create()
        self.secret = SECRET + b"?"
        self.assertIn("passphrase", self.assertRaises(LockedError, self.unlock.open, root).message)

    def test_what_is_no_root(self) -> None:
        for root in (b"", b"RKR\x01", bytes(124)):
            self.assertRaises(DamagedError, self.unlock.open, root)

    def test_the_right_one(self) -> None:
        root, sealer = self.unlock.create()
        self.assertEqual(self.unlock.open(root).open(LABEL, sealer.seal(LABEL, b"hello")), b"hello")

    def test_another_one_for_the_same_keys(self) -> None:
        root, sealer = self.unlock.create()
        changed = self.unlock.change(root, lambda: bytearray(b"another passphrase"))
        self.assertRaises(LockedError, self.unlock.open, changed)
        self.secret = b"another passphrase"
        self.assertEqual(self.unlock.open(changed).open(LABEL, sealer.seal(LABEL, b"hello")), b"hello")
        self.assertRaises(RonError, self.unlock.change, changed, lambda: bytearray(b"short"))

    def test_age(self) -> None:
        """Either kind is opened, whatever new ones are."""
        unlock = ByPassphrase(self.lend, kdf="age")
        pinned = bytes.fromhex(json.loads(AGE.read_text())["root"])
        blob = self.unlock.open(pinned).seal(LABEL, b"hello")
        scrypt = self.unlock.change(pinned, lambda: bytearray(SECRET))
        self.assertFalse(scrypt.startswith(b"age"))
        self.assertEqual(unlock.open(scrypt).open(LABEL, blob), b"hello")
        self.secret = SECRET + b"!"
        self.assertRaises(LockedError, unlock.open, pinned)
        self.secret = b"1234567"
        self.assertRaises(LockedError, unlock.open, pinned)
        self.assertEqual(self.assertRaises(RonError, unlock.create).code, ErrorCode.BAD_REQUEST)
        self.secret = SECRET
        self.assertRaises(RonError, unlock.change, pinned, lambda: bytearray(b"short"))

    def test_each_aead(self) -> None:
        for aead in Aead:
            unlock = ByPassphrase(self.lend, cost=CHEAP, aead=aead)
            root, sealer = unlock.create()
            blob = sealer.seal(LABEL, b"hello")
            self.assertEqual(blob[4], aead)
            self.assertEqual(self.unlock.open(root).open(LABEL, blob), b"hello")
            self.assertRaises(BrokenSealError, sealer.open, LABEL._replace(ctx="other"), blob)


class NewPassphrase(StoreCase):
    def change(self, old: bytes = PASSPHRASE, new: bytes = b"another passphrase") -> None:
        change_passphrase(KeyFolder(self.directory), unlock(old), lambda: bytearray(new))

    def test_where_there_is_nothing(self) -> None:
        self.assertRaises(DamagedError, self.change)

    def test_while_the_store_is_open(self) -> None:
        self.opened()
        self.assertEqual(self.assertRaises(RonError, self.change).code, ErrorCode.CONFLICT)

    def test_a_wrong_old_one_and_a_short_new_one(self) -> None:
        name = kid()
        self.store_of(name)
        self.assertRaises(LockedError, self.change, b"wrong horse battery staple")
        self.assertEqual(self.assertRaises(RonError, self.change, new=b"short").code, ErrorCode.BAD_REQUEST)
        self.opened().sign(name, Alg.ED25519, MESSAGE)

    def test_the_same_keys_under_another_one(self) -> None:
        name = kid()
        signature = self.store_of(name)[name]
        before = contents(self.directory)
        self.change()
        after = contents(self.directory)
        self.assertEqual({file for file in after if after[file] != before[file]} - {".lock"}, {records.ROOT})
        self.refused(LockedError)
        backend = self.opened(unlock=unlock(b"another passphrase"))
        self.assertEqual(backend.sign(name, Alg.ED25519, MESSAGE), signature)
