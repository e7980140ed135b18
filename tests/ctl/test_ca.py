"""`ronctl ca`: nothing is overwritten by accident, keys are private, and what it writes serves TLS."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from cryptography import x509 as x509_library
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import x509
from ron.ctl.main import ronctl
from ron.kernel.tls import ClientTls, ServerTls
from ron.proto.errors import ErrorCode, RonError
from tests.ctl.forkserver import RONCTL


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class InAFolder(SynchronousTestCase):
    """`ronctl` in this process, with a home of its own."""

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()
        self.ca = self.home / "ca"
        self.out = self.home / "out"

    def run_it(self, *arguments: str, **environment: str) -> str:
        """What it prints. Raises what it raises."""
        variables = {"RON_HOME": str(self.home), "RON_CA_PASSPHRASE": "", **environment}
        done = CliRunner(env=variables).invoke(ronctl, ["ca", *arguments], catch_exceptions=False)
        self.assertEqual(done.exit_code, 0, done.output)
        return done.output

    def told(self, *arguments: str, **environment: str) -> Any:
        return json.loads(self.run_it(*arguments, "--json", **environment))

    def refused(self, code: ErrorCode, *arguments: str, **environment: str) -> str:
        """The complaint. Nothing on disk has changed."""
        before = contents(self.home)
        error = self.assertRaises(RonError, self.run_it, *arguments, **environment)
        self.assertEqual((error.code, contents(self.home)), (code, before), error.message)
        self.assertIsNotNone(error.hint, error.message)
        return str(error.one_line())

    def certificate(self, path: Path) -> x509_library.Certificate:
        return x509.load_certificate(path.read_bytes())


class Refusals(InAFolder):
    """Bad input first."""

    def test_without_a_ca(self) -> None:
        for command in (["issue", "alpha"], ["renew", "alpha"], ["show"]):
            self.assertIn("ronctl ca init", self.refused(ErrorCode.NOT_FOUND, *command))

    def test_a_second_ca_in_the_same_place(self) -> None:
        self.run_it("init")
        self.assertIn("there is a CA", self.refused(ErrorCode.CONFLICT, "init"))

    def test_a_folder_with_other_things_keeps_its_mode(self) -> None:
        self.home.chmod(0o755)
        (self.home / "letter").write_text("dear all")
        self.refused(ErrorCode.CONFLICT, "init", "--dir", str(self.home))
        self.assertEqual(mode(self.home), 0o755)

    def test_a_file_where_the_folder_should_be(self) -> None:
        self.ca.write_text("")
        self.refused(ErrorCode.BAD_REQUEST, "init")
        self.refused(ErrorCode.BAD_REQUEST, "show")

    def test_a_node_that_was_issued(self) -> None:
        self.run_it("init")
        self.run_it("issue", "alpha")
        for more in ([], ["--out", str(self.out)]):
            self.assertIn("ronctl ca renew alpha", self.refused(ErrorCode.CONFLICT, "issue", "alpha", *more))

    def test_a_key_of_somebody_elses_in_the_way(self) -> None:
        self.run_it("init")
        self.out.mkdir()
        (self.out / "alpha.key").symlink_to("nowhere")
        self.refused(ErrorCode.CONFLICT, "issue", "alpha", "--out", str(self.out))

    def test_renewing_nobody(self) -> None:
        self.run_it("init")
        self.assertIn("ronctl ca issue beta", self.refused(ErrorCode.NOT_FOUND, "renew", "beta"))

    def test_names_that_are_paths(self) -> None:
        self.run_it("init")
        for name in ("../ca", "a/b", "..", "A", ""):
            self.refused(ErrorCode.BAD_REQUEST, "issue", name)
            self.refused(ErrorCode.BAD_REQUEST, "renew", name)

    def test_names_the_ca_may_not_sign_for(self) -> None:
        self.run_it("init")
        self.assertIn("--permit-dns", self.refused(ErrorCode.BAD_REQUEST, "issue", "a", "--dns", "example.org"))
        self.refused(ErrorCode.BAD_REQUEST, "issue", "a", "--ip", "8.8.8.8")

    def test_a_damaged_ca(self) -> None:
        self.run_it("init")
        (self.ca / "ca.key").write_bytes(b"garbage")
        self.refused(ErrorCode.BAD_REQUEST, "issue", "alpha")
        (self.ca / "ca.key").unlink()
        self.refused(ErrorCode.BAD_REQUEST, "issue", "alpha")
        (self.ca / "ca.pem").write_bytes(b"garbage")
        self.assertIn("ca.pem", self.refused(ErrorCode.BAD_REQUEST, "show"))

    def test_a_ca_key_that_others_may_read(self) -> None:
        self.run_it("init")
        (self.ca / "ca.key").chmod(0o640)
        self.assertIn("chmod 600", self.refused(ErrorCode.STORE_UNAVAILABLE, "issue", "alpha"))

    @settings(max_examples=50, deadline=None)
    @given(st.text(alphabet=st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=80))
    def test_no_name_leaves_the_folder(self, name: str) -> None:
        if not self.ca.exists():
            self.run_it("init")
        before = {path for path in self.home.rglob("*") if self.ca not in path.parents}
        with contextlib.suppress(RonError):
            self.run_it("issue", "--", name)
        self.assertEqual({path for path in self.home.rglob("*") if self.ca not in path.parents}, before)


class Life(InAFolder):
    """From the first key to the third certificate."""

    def test_what_is_written_is_private_and_serves_tls(self) -> None:
        self.run_it("init", "--name", "my nodes")
        told = self.told("issue", "alpha", "--dns", "alpha.internal", "--ip", "10.0.0.7", "--out", str(self.out))
        self.assertEqual(
            (told["identity"], told["dns"], told["addresses"], told["days_left"]),
            ("ron://node/alpha", ["alpha.internal"], ["10.0.0.7"], 90),
        )
        self.assertEqual(sorted(contents(self.out)), ["alpha.key", "alpha.pem", "ca.pem"])
        self.assertEqual({mode(self.out / "alpha.key"), mode(self.ca / "ca.key")}, {0o600})
        self.assertEqual({mode(self.ca), mode(self.ca / "nodes"), mode(self.out)}, {0o700})
        self.assertFalse((self.ca / "nodes" / "alpha.key").exists())
        files = self.out / "alpha.pem", self.out / "alpha.key"
        ServerTls(*files, self.out / "ca.pem")
        ClientTls(self.out / "ca.pem", *files, "ron://node/beta")
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files)

    def test_an_existing_folder_of_the_users_keeps_its_mode(self) -> None:
        self.run_it("init")
        self.out.mkdir(mode=0o755)
        self.out.chmod(0o755)
        self.run_it("issue", "alpha", "--out", str(self.out))
        self.assertEqual(mode(self.out), 0o755)

    def test_for_loopback_when_nothing_is_named(self) -> None:
        self.run_it("init")
        told = self.told("issue", "alpha")
        self.assertEqual((told["dns"], told["addresses"]), (["localhost"], ["127.0.0.1", "::1"]))

    def test_other_domains_when_the_ca_permits_them(self) -> None:
        self.run_it("init", "--permit-dns", "nodes.example.org", "--permit-net", "203.0.113.0/24")
        self.run_it("issue", "alpha", "--dns", "a.nodes.example.org", "--ip", "203.0.113.9", "--dns", "localhost")

    def test_renewing_keeps_the_key_and_the_names(self) -> None:
        self.run_it("init")
        first = self.told("issue", "alpha", "--days", "5")
        key = (self.ca / "nodes" / "alpha.key").read_bytes()
        second = self.told("renew", "alpha")
        self.assertEqual((second["identity"], second["dns"]), (first["identity"], first["dns"]))
        self.assertEqual((first["days_left"], second["days_left"]), (5, 90))
        self.assertNotEqual(first["serial"], second["serial"])
        self.assertEqual((self.ca / "nodes" / "alpha.key").read_bytes(), key)
        ServerTls(self.ca / "nodes" / "alpha.pem", self.ca / "nodes" / "alpha.key")

    def test_renewing_where_the_key_is_not(self) -> None:
        self.run_it("init")
        self.run_it("issue", "alpha", "--out", str(self.out))
        self.assertIn("not here", self.run_it("renew", "alpha"))
        self.run_it("renew", "alpha", "--out", str(self.out))
        ServerTls(self.out / "alpha.pem", self.out / "alpha.key")
        self.assertEqual((self.out / "alpha.pem").read_bytes(), (self.ca / "nodes" / "alpha.pem").read_bytes())

    def test_renewing_with_a_new_key(self) -> None:
        self.run_it("init")
        self.run_it("issue", "alpha")
        old = self.certificate(self.ca / "nodes" / "alpha.pem").public_key()
        self.run_it("renew", "alpha", "--new-key")
        self.assertNotEqual(self.certificate(self.ca / "nodes" / "alpha.pem").public_key(), old)
        ServerTls(self.ca / "nodes" / "alpha.pem", self.ca / "nodes" / "alpha.key")

    def test_show(self) -> None:
        self.run_it("init", "--days", "30")
        self.run_it("issue", "alpha")
        self.run_it("issue", "beta", "--days", "7")
        (self.ca / "nodes" / "gamma.pem").write_text("garbage")
        shown = self.told("show")
        self.assertEqual([(n["name"], n["days_left"]) for n in shown["nodes"]], [("alpha", 30), ("beta", 7)])
        self.assertEqual((shown["ca"]["days_left"], len(shown["damaged"])), (30, 1))
        text = self.run_it("show")
        self.assertIn("gamma.pem", text)
        self.assertIn("(7 days)", text)

    def test_show_says_what_has_expired(self) -> None:
        made = x509.init_ca("old", 1, now=x509.datetime.now(x509.UTC) - x509.timedelta(days=3))
        self.ca.mkdir()
        (self.ca / "ca.pem").write_bytes(x509.certificate_pem(made.certificate))
        self.assertIn("EXPIRED", self.run_it("show"))
        self.assertEqual(self.told("show")["ca"]["days_left"], -3)


class Passphrase(InAFolder):
    """The CA key need not lie open on a disk."""

    def setUp(self) -> None:
        super().setUp()
        self.secret = self.home / "passphrase"
        self.secret.write_text("open sesame\nsecond line\n")
        self.secret.chmod(0o600)
        self.run_it("init", "--passphrase-file", str(self.secret))

    def test_nothing_is_issued_without_it(self) -> None:
        self.assertIn(b"ENCRYPTED", (self.ca / "ca.key").read_bytes())
        self.assertIn("passphrase", self.refused(ErrorCode.BAD_REQUEST, "issue", "alpha"))

    def test_from_the_file_or_the_environment(self) -> None:
        self.run_it("issue", "alpha", "--passphrase-file", str(self.secret))
        self.run_it("renew", "alpha", RON_CA_PASSPHRASE="open sesame")
        self.run_it("show")

    def test_wrong_empty_missing_or_open_to_others(self) -> None:
        self.refused(ErrorCode.BAD_REQUEST, "issue", "alpha", RON_CA_PASSPHRASE="open sesam")
        issue = ("issue", "alpha", "--passphrase-file")
        self.refused(ErrorCode.BAD_REQUEST, *issue, str(self.home / "nowhere"))
        self.secret.write_text("\n")
        self.refused(ErrorCode.BAD_REQUEST, *issue, str(self.secret))
        self.secret.chmod(0o644)
        self.refused(ErrorCode.STORE_UNAVAILABLE, *issue, str(self.secret))


class AsAScriptCallsIt(InAFolder):
    """Exit codes and one clear line."""

    def test_exit_codes(self) -> None:
        def code(*arguments: str) -> tuple[int, str]:
            done = subprocess.run(
                [RONCTL, "ca", *arguments],
                env={**os.environ, "RON_HOME": str(self.home), "RON_CA_PASSPHRASE": ""},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            return done.returncode, done.stderr

        self.assertEqual(code("show")[0], 7)
        self.assertEqual(code("init"), (0, ""))
        status, complaint = code("init")
        self.assertEqual((status, complaint.count("\n")), (3, 1))
        self.assertTrue(complaint.startswith("ronctl: there is a CA in "))

    def test_every_command_shows_an_example(self) -> None:
        for command in ("init", "issue", "renew", "show"):
            self.assertIn(f"ronctl ca {command}", self.run_it(command, "--help"))
