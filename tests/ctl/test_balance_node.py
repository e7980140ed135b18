"""`ronctl balance init` and `join`: files that a node starts with, and nothing half made."""

from __future__ import annotations

import json
import stat
import tomllib
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import x509
from ron.ctl.balance_config import Wanted, tables, toml
from ron.ctl.balance_node import load_ca
from ron.ctl.main import ronctl
from ron.kernel.config import ConfigError
from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.mesh.files import NodeFiles

NODE = ("--listen", "10.7.0.1:9470", "--port", "80:8080")


class Case(SynchronousTestCase):
    passphrase = ""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.torrc = self.folder / "snippet.torrc"
        self.torrc.write_text("")

    def run_it(self, *arguments: str, home: str = "alpha", stdin: str | None = None) -> Any:
        """What it prints, as an object."""
        environment = {"RON_HOME": str(self.folder / home), "RON_CA_PASSPHRASE": self.passphrase}
        words = ["balance", *arguments, "--json"]
        done = CliRunner().invoke(ronctl, words, env=environment, input=stdin)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        self.assertEqual(done.exit_code, 0, done.output)
        return json.loads(done.stdout)

    def refused(self, code: ErrorCode, *arguments: str, home: str = "alpha", stdin: str | None = None) -> str:
        """The error; nothing of a node is written, and no config."""
        before = self.written()
        error = self.assertRaises(RonError, self.run_it, *arguments, home=home, stdin=stdin)
        self.assertIs(error.code, code, error.one_line())
        self.assertEqual(self.written(), before)
        return str(error.one_line())

    def written(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}

    def out(self, home: str = "alpha") -> tuple[str, str]:
        return "--out", str(self.folder / home / "etc")

    def init(self, *more: str) -> Any:
        return self.run_it("init", "alpha", *NODE, "--torrc", str(self.torrc), *self.out(), *more)

    def invite(self, name: str = "beta") -> str:
        words = ("--ca-dir", str(self.folder / "alpha" / "ca"), "--seed", "10.7.0.1:9470")
        return str(self.run_it("invite", name, *words)["bundle"])


class Init(Case):
    def test_what_cannot_be_leaves_nothing_behind(self) -> None:
        for wrong in (
            ("UPPER", *NODE),
            ("alpha", "--listen", "nowhere", "--port", "80:8080"),
            ("alpha", "--listen", "10.7.0.1:9470", "--port", "80"),
            ("alpha", "--listen", "10.7.0.1:9470", "--port", "80:10.0.0.1:80"),
            ("alpha", *NODE, "--port", "80:8081"),
            ("alpha", *NODE, "--service", "Main"),
            ("alpha", *NODE, "--advertise", f"{'a' * 56}.onion:9470"),
            ("alpha", *NODE, "--public", "--torrc", str(self.torrc)),
            ("alpha", *NODE, "--admin", "everywhere"),
        ):
            self.refused(ErrorCode.BAD_REQUEST, "init", *wrong, *self.out())
        self.assertEqual(list(self.written()), [str(self.torrc)])

    def test_nothing_is_overwritten(self) -> None:
        self.init()
        self.assertIn("exists", self.refused(ErrorCode.BAD_REQUEST, "init", "alpha", *NODE, *self.out()))
        elsewhere = ("--out", str(self.folder / "etc2"))
        self.assertIn("RON_HOME", self.refused(ErrorCode.CONFLICT, "init", "alpha", *NODE, *elsewhere))

    def test_a_ca_gets_no_folder_of_somebody_elses(self) -> None:
        mine = self.folder / "mine"
        mine.mkdir()
        (mine / "letter.txt").write_text("x")
        self.refused(ErrorCode.CONFLICT, "init", "alpha", *NODE, *self.out(), "--ca-dir", str(mine))
        self.assertEqual(stat.S_IMODE(mine.stat().st_mode) & 0o055, 0o055, "and its mode is as it was")

    def test_files_and_config(self) -> None:
        made = self.init("--threshold", "2-of-3", "--approval", "token", "--admin", "127.0.0.1:9999")
        files = NodeFiles.open(self.folder / "alpha" / "balance")
        self.assertEqual((files.name, files.founder, files.cluster.hex()), ("alpha", True, made["cluster"]))
        config = tomllib.loads(Path(made["config"]).read_text())
        balance, (service,) = config["balance"], config["balance"].pop("services")
        self.assertEqual((balance["node"], balance["listen"], balance["approval"]), ("alpha", NODE[1], "token"))
        self.assertEqual(service["ports"], ["80:127.0.0.1:8080"])
        self.assertEqual((service["mode"], service["threshold"], service["members"]), ("threshold", 2, 3))
        self.assertEqual(config["onion"], {"network": "joined", "client_torrc": str(self.torrc)})
        self.assertEqual(config["admin"], {"bind": "127.0.0.1:9999"})
        self.assertIn("ronctl balance service add main --threshold 2-of-3", made["next"])
        self.assertTrue(all(path.stat().st_mode & 0o077 == 0 for path in (self.folder / "alpha").rglob("*.*")))

    def test_the_daemon_would_start_with_it(self) -> None:
        made = self.init()
        done = CliRunner().invoke(ronctl, ["validate", "--file", made["config"], "--json"])
        self.assertEqual(json.loads(done.output)["daemon"], "ron-balance")

    def test_a_ca_that_is_there_signs(self) -> None:
        keep = self.folder / "stick"
        CliRunner().invoke(ronctl, ["ca", "init", "--dir", str(keep), "--name", "ours"])
        self.init("--ca-dir", str(keep))
        files = NodeFiles.open(self.folder / "alpha" / "balance")
        self.assertTrue(
            x509.issued_by(load_ca(keep).certificate, x509.load_certificate(files.certificate.read_bytes()))
        )
        self.assertFalse((self.folder / "alpha" / "ca").exists())

    def test_the_cas_key_may_have_a_passphrase(self) -> None:
        self.passphrase = "open sesame"
        self.init()
        self.assertIn(b"ENCRYPTED", (self.folder / "alpha" / "ca" / "ca.key").read_bytes())
        self.assertIn("beta", self.invite())
        self.passphrase = "wrong"
        self.assertRaises(RonError, self.invite)

    def test_people_are_told_what_comes_next(self) -> None:
        words = ["balance", "init", "alpha", *NODE, *self.out()]
        said = CliRunner().invoke(ronctl, words, env={"RON_HOME": str(self.folder / "alpha")}).output
        order = [said.index(part) for part in ("the CA is in", "twistd -n ron-balance", "service add main", "invite")]
        self.assertEqual(order, sorted(order))


class Join(Case):
    def setUp(self) -> None:
        super().setUp()
        self.init()

    def join(self, bundle: str, *more: str) -> Any:
        words = ("--listen", "10.7.0.2:9470", "--port", "80:8081", "--torrc", str(self.torrc))
        return self.run_it("join", "-", *words, *self.out("beta"), *more, home="beta", stdin=bundle)

    def test_what_is_no_bundle(self) -> None:
        bundle = self.invite()
        words = ("join", "-", *NODE, "--torrc", str(self.torrc), *self.out("beta"))
        for wrong in ("", "{}", "hello", bundle[:-20], bundle.replace("beta", "gamma", 1), bundle * 2, "x" * 300_000):
            self.refused(ErrorCode.BAD_REQUEST, *words, home="beta", stdin=wrong)
        self.refused(ErrorCode.BAD_REQUEST, "join", str(self.folder / "gone"), *words[2:], home="beta")

    def test_a_bundle_that_others_may_read_is_refused(self) -> None:
        path = self.folder / "beta.bundle"
        path.write_text(self.invite())
        path.chmod(0o644)
        said = self.refused(ErrorCode.STORE_UNAVAILABLE, "join", str(path), *NODE, *self.out("beta"), home="beta")
        self.assertIn("chmod 600", said)

    def test_another_host_does_not_share_a_network_of_this_one(self) -> None:
        words = ("join", "-", *NODE, *self.out("beta"))
        said = self.refused(ErrorCode.BAD_REQUEST, *words, home="beta", stdin=self.invite())
        self.assertIn("onion.network", said)

    def test_a_node_of_the_same_cluster(self) -> None:
        made = self.join(self.invite())
        alpha, beta = (NodeFiles.open(self.folder / name / "balance") for name in ("alpha", "beta"))
        self.assertEqual((beta.name, beta.cluster, beta.founder), ("beta", alpha.cluster, False))
        self.assertEqual(beta.ca.read_bytes(), alpha.ca.read_bytes())
        self.assertNotEqual(beta.signing, alpha.signing)
        config = tomllib.loads(Path(made["config"]).read_text())
        self.assertEqual((config["balance"]["seeds"], config["balance"]["node"]), (["10.7.0.1:9470"], "beta"))
        self.assertIn("ronctl balance approve beta", " ".join(made["next"]))

    def test_a_bundle_without_the_ca_or_a_seed(self) -> None:
        for words in (("--seed", "10.7.0.1:9470"), ("--ca-dir", str(self.folder / "alpha" / "ca"))):
            done = CliRunner().invoke(ronctl, ["balance", "invite", "beta", *words])
            self.assertEqual(done.exit_code, 2)
        words = ("--seed", "10.7.0.1:9470", "--ca-dir", str(self.folder / "nowhere"))
        self.refused(ErrorCode.NOT_FOUND, "invite", "beta", *words)
        self.refused(ErrorCode.NOT_FOUND, "invite", "beta", *words[:3], str(self.folder / "alpha" / "ca"), home="gone")

    def test_anothers_ca_cannot_invite(self) -> None:
        CliRunner().invoke(ronctl, ["ca", "init", "--dir", str(self.folder / "other")])
        words = ("--seed", "10.7.0.1:9470", "--ca-dir", str(self.folder / "other"))
        self.refused(ErrorCode.BAD_REQUEST, "invite", "beta", *words)


class Text(SynchronousTestCase):
    """What is written is what was meant."""

    @given(some.text(max_size=30), some.integers(), some.booleans(), some.lists(some.text(max_size=10), max_size=3))
    def test_any_value_comes_back(self, text: str, number: int, flag: bool, several: list[str]) -> None:
        number %= 2**63
        found = {"a": {"text": text, "number": number, "flag": flag, "several": several, "rows": [{"text": text}]}}
        self.assertEqual(tomllib.loads(toml(found)), found)

    def test_rules_are_the_daemons(self) -> None:
        good = Wanted(node="alpha", listen="10.7.0.1:9470", service="main", ports=("80:127.0.0.1:8080",))
        tables(good)
        for wrong in (
            {"seeds": ("10.7.0.2:9470",)},
            {"mode": "threshold", "threshold": 3, "members": 2},
            {"ports": ()},
        ):
            self.assertRaises(ConfigError, tables, good._replace(**wrong))
