"""`ronctl kms passphrase change` as an operator calls it, on a store with a key in it."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from ron.ctl.kms import kms as group
from ron.kernel.files import write_private
from ron.proto.errors import RonError
from ron.proto.kms import Alg
from tests.services.kms.backends.filecase import PASSPHRASE, Case, unlock
from tests.services.kms.backends.software import MESSAGE, kid

NEW = b"another passphrase altogether"


class Change(Case):
    """In a home as the daemon makes it."""

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.directory = self.home / "kms-sealed"
        self.kept = kid()
        self.signature = self.store_of(self.kept)[self.kept]
        self.file = self.home / "kms" / "passphrase"
        write_private(self.file, PASSPHRASE + b"\n")
        self.new = self.home / "new"
        write_private(self.new, NEW + b"\n")

    def call(self, *words: str, stdin: bytes = b"") -> Result:
        environment = {"RON_HOME": str(self.home)}
        given = [*words, "--allow-unlocked"]
        return CliRunner().invoke(group, ["passphrase", "change", *given], env=environment, input=stdin)

    def opens(self, passphrase: bytes) -> None:
        backend = self.opened(unlock=unlock(passphrase))
        self.assertEqual(backend.sign(self.kept, Alg.ED25519, MESSAGE), self.signature)
        backend.close()

    def told(self, *words: str) -> RonError:
        error = self.call(*words).exception
        assert isinstance(error, RonError)
        return error

    def test_what_cannot_be(self) -> None:
        self.assertIn("--new FILE", self.told("--store-only").hint or self.told("--store-only").message)
        self.assertIn("cannot be read", self.told("--new", str(self.home / "none")).message)
        self.new.chmod(0o644)
        self.assertIn("others may read", self.told("--new", str(self.new)).message)
        self.assertIn("no `root`", self.told("--store", str(self.home / "kms")).message)
        self.assertIn("passphrase", self.told("--old", str(self.home / "none")).message)
        self.opens(PASSPHRASE)

    def test_a_fresh_one(self) -> None:
        done = self.call("--json")
        self.assertEqual(done.exit_code, 0, done.output)
        self.assertEqual(json.loads(done.output), {"store": str(self.directory), "did": "changed"})
        self.opens(self.file.read_bytes().strip())

    def test_a_chosen_one(self) -> None:
        done = self.call("--new", str(self.new))
        self.assertIn("opens with the new passphrase", done.output)
        self.assertNotIn(NEW.decode(), done.output)
        self.assertEqual(self.file.read_bytes().strip(), NEW)
        self.opens(NEW)

    def test_from_stdin_and_for_somebody_elses_file(self) -> None:
        done = self.call("--new", "-", "--store-only", stdin=NEW + b"\n")
        self.assertEqual(done.exit_code, 0, done.output)
        self.assertEqual(self.file.read_bytes().strip(), PASSPHRASE)
        self.opens(NEW)
        self.assertIn("already", self.call("--new", str(self.new), "--store-only").output)
