"""`ronctl tornet init|join|…` with the real tor and tor-gencert: what lands where, who may read it, what is refused."""

from __future__ import annotations

import atexit
import json
import os
import pwd
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from click.testing import CliRunner
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ron.ctl.main import ronctl
from ron.proto.errors import ErrorCode, RonError
from ron.tor.binary import find_tor
from ron.tor.hostnet.bundles import Bundle, digests, pack, read_bundle
from ron.tor.hostnet.vault import CERTIFICATE, IDENTITY, SIGNING_KEY, read_certificate

PASSPHRASE = "the test's own passphrase"
NODES = [f"--authority=a{n}=10.0.0.{n}" for n in (1, 2, 3)] + ["--relay=r1=10.0.0.1", "--relay=r2=10.0.0.2:443"]
_made: list[Path] = []


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def a_network() -> Path:
    """A network made once; tests work on copies."""
    if not _made:
        place = Path(tempfile.mkdtemp(prefix="ron-net-"))
        atexit.register(shutil.rmtree, place, True)
        _made.append(place / "net")
        done = CliRunner(env={"RON_TORNET_PASSPHRASE": PASSPHRASE}).invoke(
            ronctl, ["tornet", "init", "--out", str(_made[0]), *NODES, "--region", "eu", "--region", "r2=us"]
        )
        assert done.exit_code == 0, done.output
    return _made[0]


class Tornet(SynchronousTestCase):
    def setUp(self) -> None:
        try:
            self.tor = find_tor()
        except RonError as error:
            raise SkipTest(f"needs tor: {error.message}") from None
        self.folder = Path(tempfile.mkdtemp(prefix="ron-tn-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.net = self.folder / "net"
        self.host = self.folder / "host"

    def copy(self) -> None:
        shutil.copytree(a_network(), self.net)

    def run_it(self, *arguments: str, **environment: str) -> str:
        variables = {"RON_HOME": str(self.folder), "RON_TORNET_PASSPHRASE": PASSPHRASE, **environment}
        done = CliRunner(env=variables).invoke(ronctl, ["tornet", *arguments], catch_exceptions=False)
        self.assertEqual(done.exit_code, 0, done.output)
        return done.output

    def told(self, *arguments: str) -> Any:
        return json.loads(self.run_it(*arguments, "--json"))

    def refused(self, code: ErrorCode, *arguments: str, **environment: str) -> str:
        """The complaint. Nothing on disk has changed."""
        before = contents(self.folder)
        error = self.assertRaises(RonError, self.run_it, *arguments, **environment)
        self.assertEqual((error.code, contents(self.folder)), (code, before), error.message)
        self.assertIsNotNone(error.hint, error.message)
        return str(error.one_line())

    def bundle(self, name: str, generation: int = 1) -> str:
        return str(self.net / "bundles" / f"{generation:04}" / f"{name}.tar")

    def join(self, name: str, generation: int = 1, *options: str) -> Any:
        return self.told("join", "--bundle", self.bundle(name, generation), "--dir", str(self.host), *options)


class Refusals(Tornet):
    """Bad input first."""

    def test_init_without_enough(self) -> None:
        out = ["--out", str(self.net)]
        self.refused(ErrorCode.BAD_REQUEST, "init", *out)
        self.refused(ErrorCode.BAD_REQUEST, "init", *out, *NODES[1:])
        self.refused(ErrorCode.BAD_REQUEST, "init", *out, *NODES[:4])
        self.refused(ErrorCode.CONFLICT, "init", *out, *NODES, "--relay=r1=10.0.0.9")
        self.refused(ErrorCode.BAD_REQUEST, "init", *out, *NODES, "--voting-interval", "7s")
        self.refused(ErrorCode.BAD_REQUEST, "init", *out, *NODES, "--voting-interval", "soon")
        self.refused(ErrorCode.BAD_REQUEST, "init", *out, *NODES, "--region", "eu", "--region", "us")
        self.refused(ErrorCode.BAD_REQUEST, "init", *out, *NODES, "--region", "r9=eu")
        self.refused(ErrorCode.BAD_REQUEST, "init", *out, *NODES, RON_TORNET_PASSPHRASE="short")
        self.assertIn("passphrase", self.refused(ErrorCode.BAD_REQUEST, "init", *out, *NODES, RON_TORNET_PASSPHRASE=""))

    def test_a_folder_that_is_in_use(self) -> None:
        self.net.mkdir()
        (self.net / "letter").write_text("dear all")
        self.refused(ErrorCode.CONFLICT, "init", "--out", str(self.net), *NODES)

    def test_changing_what_is_not_there(self) -> None:
        net = ["--net", str(self.net)]
        self.refused(ErrorCode.NOT_FOUND, "add-relay", "r3=10.0.0.4", *net)
        self.refused(ErrorCode.NOT_FOUND, "rotate-certs", *net)
        self.refused(ErrorCode.NOT_FOUND, "replace-authority", "a1", "a4=10.0.0.4", *net)
        self.refused(ErrorCode.NOT_FOUND, "check", *net)

    def test_changes_that_make_no_network(self) -> None:
        self.copy()
        net = ["--net", str(self.net)]
        self.refused(ErrorCode.CONFLICT, "add-relay", "r1=10.0.0.4", *net)
        self.refused(ErrorCode.CONFLICT, "add-relay", "r3=10.0.0.1:9001", *net)
        self.refused(ErrorCode.BAD_REQUEST, "replace-authority", "r1", "a4=10.0.0.4", *net)
        self.assertRaises(RonError, self.run_it, "replace-authority", "a9", "a4=10.0.0.4", *net)
        self.refused(ErrorCode.BAD_REQUEST, "rotate-certs", "--authority", "r1", *net)

    def test_the_wrong_passphrase_and_a_vault_elsewhere(self) -> None:
        self.copy()
        rotate = ["rotate-certs", "--net", str(self.net), "--authority", "a1"]
        self.assertIn("a1", self.refused(ErrorCode.BAD_REQUEST, *rotate, RON_TORNET_PASSPHRASE="another passphrase"))
        shutil.rmtree(self.net / "vault" / "a1")
        self.assertIn("vault", self.refused(ErrorCode.BAD_REQUEST, *rotate))

    def test_another_authoritys_identity(self) -> None:
        self.copy()
        shutil.copy(self.net / "vault" / "a2" / IDENTITY, self.net / "vault" / "a1" / IDENTITY)
        error = self.assertRaises(RonError, self.run_it, "rotate-certs", "--net", str(self.net), "--authority", "a1")
        self.assertIn("not a1's identity", error.message)

    def test_bundles_that_do_not_fit(self) -> None:
        self.copy()
        self.run_it("add-relay", "r3=10.0.0.4", "--net", str(self.net))
        join = ["join", "--dir", str(self.host), "--bundle"]
        self.assertIn("only updates", self.refused(ErrorCode.BAD_REQUEST, *join, self.bundle("a1", 2)))
        self.refused(ErrorCode.BAD_REQUEST, *join, self.bundle("a1"), "--socks-port", "9050")
        self.refused(ErrorCode.BAD_REQUEST, *join, self.bundle("a1"), "--sha256", "00" * 32)
        self.refused(ErrorCode.BAD_REQUEST, *join, self.bundle("a1"), "--user", "nobody-of-that-name")
        self.join("a1")
        self.refused(ErrorCode.CONFLICT, *join, self.bundle("a2"))
        self.join("a1", 2)
        self.assertIn("has 2 already", self.refused(ErrorCode.CONFLICT, *join, self.bundle("a1")))

    def test_places_that_do_not_fit(self) -> None:
        self.copy()
        (self.folder / "real").mkdir()
        (self.folder / "link").symlink_to(self.folder / "real")
        (self.folder / "a b").mkdir()
        (self.folder / "full").mkdir()
        (self.folder / "full" / "letter").write_text("dear all")
        for name, code in (
            ("link", "Conflict"),
            ("a b", "BadRequest"),
            ("full", "Conflict"),
            ("x" * 90, "Unsupported"),
        ):
            self.refused(ErrorCode(code), "join", "--bundle", self.bundle("r1"), "--dir", str(self.folder / name))

    def test_a_torrc_that_tor_refuses_leaves_the_old_one(self) -> None:
        self.copy()
        self.join("r1")
        good = read_bundle(Path(self.bundle("r1")))
        files = {**good.files, "torrc": good.files["torrc"] + b"NoSuchOption 1\n"}
        index = msgspec.structs.replace(good.index, sha256=digests(files))
        bad = Bundle(index=index, files=files)
        path = self.folder / "bad.tar"
        path.write_bytes(pack(bad))
        path.chmod(0o600)
        told = self.refused(ErrorCode.BAD_REQUEST, "join", "--bundle", str(path), "--dir", str(self.host))
        self.assertIn("NoSuchOption", told)


class Init(Tornet):
    def test_identity_keys_stay_and_are_encrypted(self) -> None:
        net = a_network()
        identities = {(net / "vault" / name / IDENTITY).read_bytes() for name in ("a1", "a2", "a3")}
        self.assertEqual(len(identities), 3)
        self.assertTrue(all(b"ENCRYPTED" in identity for identity in identities))
        for path in net.rglob("*"):
            self.assertEqual(mode(path), 0o700 if path.is_dir() else 0o600, path)
            if path.is_file():
                self.assertNotIn(PASSPHRASE.encode(), path.read_bytes(), path)
        for path in (net / "bundles").rglob("*.tar"):
            with tarfile.open(path) as made:
                self.assertNotIn(IDENTITY, " ".join(made.getnames()))
            self.assertFalse(any(identity in path.read_bytes() for identity in identities))
        for secret in (b"PRIVATE KEY", b"secret"):
            self.assertNotIn(secret, (net / "network.json").read_bytes())

    def test_who_gets_what(self) -> None:
        files = {n: set(read_bundle(a_network() / "bundles/0001" / f"{n}.tar").files) for n in ("a1", "r1", "client")}
        self.assertTrue({f"keys/{SIGNING_KEY}", f"keys/{CERTIFICATE}", "ron-tor-a1-probe.timer"} <= files["a1"])
        self.assertTrue("keys/secret_id_key" in files["r1"] and f"keys/{SIGNING_KEY}" not in files["r1"])
        self.assertEqual(files["client"], {"torrc", "snippet.torrc", "README", "ron-tor-client.service"})
        manifest = json.loads((a_network() / "network.json").read_text())
        self.assertEqual({n["name"]: n["region"] for n in manifest["nodes"]}["r2"], "us")
        self.assertEqual({n["name"]: n["region"] for n in manifest["nodes"]}["a1"], "eu")

    def test_the_snippet_makes_a_client(self) -> None:
        files = read_bundle(a_network() / "bundles/0001/client.tar").files
        torrc = self.folder / "torrc"
        torrc.write_bytes(files["snippet.torrc"] + f"DataDirectory {self.folder}\nSocksPort 9050\n".encode())
        asked = [self.tor.path, "--verify-config", "-f", str(torrc), "--defaults-torrc", str(self.folder / "none")]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout)


class Join(Tornet):
    def test_for_oneself(self) -> None:
        self.copy()
        told = self.join("a1")
        self.assertEqual((told["role"], told["generation"], told["socks_port"]), ("authority", 1, None))
        self.assertEqual((mode(self.host), mode(self.host / "data" / "keys")), (0o700, 0o700))
        for path in (self.host / "data" / "keys").iterdir():
            self.assertEqual(mode(path), 0o600, path)
        before = contents(self.host)
        self.join("a1")
        self.assertEqual(contents(self.host), before, "twice is once")

    def test_for_another_user(self) -> None:
        """tor may use its keys, and read its torrc, but change neither torrc nor unit."""
        if os.getuid() != 0:
            raise SkipTest("only root can hand files to another user")
        self.copy()
        nobody = pwd.getpwnam("nobody")
        self.join("r1", 1, "--user", "nobody")
        self.join("r1", 1, "--user", "nobody")
        owners = {p.relative_to(self.host).parts[0]: p.stat().st_uid for p in self.host.rglob("*")}
        self.assertEqual(owners["data"], nobody.pw_uid)
        self.assertEqual({owners[n] for n in ("torrc", "README", "node.json", "ron-tor-r1.service")}, {0})
        self.assertEqual((mode(self.host), mode(self.host / "torrc")), (0o711, 0o644))
        self.assertIn("\nUser=nobody\n", (self.host / "ron-tor-r1.service").read_text())

    def test_a_clients_port_is_remembered(self) -> None:
        self.copy()
        self.join("client", 1, "--socks-port", "9155")
        self.assertEqual(self.join("client")["socks_port"], 9155)
        self.assertIn("\nSocksPort 127.0.0.1:9155 ", (self.host / "torrc").read_text())

    def test_the_units_as_systemd_sees_them(self) -> None:
        if shutil.which("systemd-analyze") is None:
            raise SkipTest("systemd-analyze is not installed")
        self.copy()
        self.join("a1")
        for name in ("ron-tor-a1.service", "ron-tor-a1-probe.service"):
            asked = ["systemd-analyze", "security", "--offline=yes", "--threshold=25", str(self.host / name)]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 0, done.stdout[-200:] + done.stderr)


class Changes(Tornet):
    def setUp(self) -> None:
        super().setUp()
        self.copy()

    def made(self, *arguments: str) -> dict[str, bool]:
        told = self.told(*arguments, "--net", str(self.net))
        return {bundle["name"]: bundle["whole"] for bundle in told["bundles"]}

    def test_a_relay_more_is_news_for_the_authorities_alone(self) -> None:
        made = self.made("add-relay", "r3=10.0.0.4")
        self.assertEqual(made, {"a1": False, "a2": False, "a3": False, "r3": True})
        self.assertIn(b"10.0.0.4:*", read_bundle(Path(self.bundle("a2", 2))).files["torrc"])
        self.assertEqual([name for name in read_bundle(Path(self.bundle("a2", 2))).files if "keys/" in name], [])
        self.assertTrue(Path(self.bundle("a1")).exists(), "the first bundles are still there")

    def test_certificates_are_renewed_when_they_are_due(self) -> None:
        self.assertEqual(self.made("rotate-certs"), {})
        self.assertEqual(self.made("rotate-certs", "--before", "400d"), {"a1": False, "a2": False, "a3": False})
        self.assertEqual(self.made("rotate-certs", "--authority", "a2"), {"a2": False})
        old, new = (read_bundle(Path(self.bundle("a2", n))).files for n in (1, 3))
        self.assertNotEqual(old[f"keys/{SIGNING_KEY}"], new[f"keys/{SIGNING_KEY}"])
        self.assertEqual(*(read_certificate(files[f"keys/{CERTIFICATE}"])[0] for files in (old, new)))
        self.assertEqual(sorted(n for n in new if "keys/" in n), [f"keys/{CERTIFICATE}", f"keys/{SIGNING_KEY}"])
        self.join("a2")
        self.join("a2", 3)
        self.assertEqual((self.host / "data/keys" / SIGNING_KEY).read_bytes(), new[f"keys/{SIGNING_KEY}"])
        self.assertTrue((self.host / "data/keys/secret_id_key").exists())

    def test_nothing_due_needs_no_passphrase(self) -> None:
        self.assertIn(
            "No certificate is due", self.run_it("rotate-certs", "--net", str(self.net), RON_TORNET_PASSPHRASE="")
        )

    def test_another_authority_is_news_for_everybody(self) -> None:
        made = self.made("replace-authority", "a2", "a4=10.0.0.8")
        self.assertEqual(made, {"a1": False, "a3": False, "r1": False, "r2": False, "a4": True, "client": True})
        torrc = read_bundle(Path(self.bundle("client", 2))).files["torrc"].decode()
        self.assertEqual(
            [line.split()[1] for line in torrc.splitlines() if line.startswith("DirAuthority ")], ["a1", "a3", "a4"]
        )
        self.assertEqual(sorted(p.name for p in (self.net / "vault").iterdir()), ["a1", "a2", "a3", "a4"])

    def test_the_passphrase_from_a_file(self) -> None:
        path = self.folder / "pass"
        path.write_text(f"{PASSPHRASE}\nnot this\n")
        rotate = ["rotate-certs", "--net", str(self.net), "--authority", "a1", "--passphrase-file", str(path)]
        path.chmod(0o644)
        self.refused(ErrorCode.STORE_UNAVAILABLE, *rotate, RON_TORNET_PASSPHRASE="")
        path.chmod(0o600)
        self.run_it(*rotate, RON_TORNET_PASSPHRASE="")


class Check(Tornet):
    def test_a_network_that_is_down(self) -> None:
        self.copy()
        manifest = self.net / "network.json"
        manifest.write_text(manifest.read_text().replace("10.0.0.", "192.0.2."))
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ronctl"), "tornet", "check", "--net", str(self.net)]
            + ["--timeout", "100ms", "--before", "400d", "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 8, done.stderr)
        report = json.loads(done.stdout)
        self.assertFalse(report["whole"])
        self.assertIn("a1: nothing answers at 192.0.2.1:9001", report["problems"])
        self.assertTrue(any("rotate-certs --authority a3" in problem for problem in report["problems"]))

    def test_probing_what_does_not_run_or_is_no_authority(self) -> None:
        self.copy()
        self.assertIn("node.json", self.refused_in_process("probe", "--dir", str(self.host), code=3))
        self.join("r1")
        self.assertIn("is a relay", self.refused_in_process("probe", "--dir", str(self.host), code=3))
        shutil.rmtree(self.host)
        self.join("a1")
        self.assertIn("no tor answers", self.refused_in_process("probe", "--dir", str(self.host), code=4))

    def refused_in_process(self, *arguments: str, code: int) -> str:
        """The reactor runs once a process."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ronctl"), "tornet", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stderr
