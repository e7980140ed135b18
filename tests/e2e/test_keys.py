"""Keys as text and files, and `ronctl e2e` at a prompt, in a pipe and on a terminal."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron import e2e
from ron.ctl.e2e import e2e as command
from ron.e2e import DecryptionFailed, KeyFileError, KeyInvalid, KeyPair, LimitExceeded, PublicKey, Suite
from ron.e2e.keys import MAX_KEY_FILE_BYTES
from ron.proto.errors import ErrorCode, RonError

RING = {suite: KeyPair.generate(suite) for suite in Suite}
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

suites = st.sampled_from(list(Suite))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class Identity(SynchronousTestCase):
    """Key ids, equality and what a key shows of itself."""

    def test_hybrid_is_the_default(self) -> None:
        self.assertIs(KeyPair.generate().suite, Suite.PQ)
        self.assertIs(e2e.DEFAULT_SUITE, Suite.PQ)

    def test_kid_binds_the_suite(self) -> None:
        """The same 32 bytes under another suite number would be another key."""
        from ron.e2e.keys import key_id

        raw = RING[Suite.CLASSICAL].public.raw
        self.assertNotEqual(key_id(Suite.CLASSICAL, raw), key_id(Suite.PQ, raw))
        self.assertEqual(len(key_id(Suite.PQ, raw)), 16)

    def test_equal_keys_are_equal(self) -> None:
        for suite, pair in RING.items():
            same = KeyPair(suite, pair.seed).public
            self.assertEqual(same, pair.public)
            self.assertEqual(len({same, pair.public, KeyPair.generate(suite).public}), 2)

    def test_repr_shows_suite_and_kid_only(self) -> None:
        for suite, pair in RING.items():
            kid = pair.public.kid.hex()
            self.assertEqual(repr(pair), f"<KeyPair {suite.label} {kid}>")
            self.assertEqual(repr(pair.public), f"<PublicKey {suite.label} {kid}>")

    def test_a_seed_of_the_wrong_length_is_not_quoted(self) -> None:
        error = self.assertRaises(KeyInvalid, KeyPair, Suite.PQ, b"secret-secret")
        self.assertNotIn("secret-secret", error.message + str(error.hint))


class PublicLine(SynchronousTestCase):
    """One key, one line, one spelling."""

    @settings(max_examples=20, deadline=None)
    @given(suite=suites)
    def test_round_trip(self, suite: Suite) -> None:
        public = KeyPair.generate(suite).public
        line = public.to_line()
        self.assertTrue(line.startswith(f"ron-e2e-pub:{int(suite)}:"))
        self.assertEqual(PublicKey.from_line(line), public)
        self.assertEqual(PublicKey.from_line(line).kid, public.kid)

    @settings(max_examples=100, deadline=None)
    @given(suite=suites, data=st.data())
    def test_any_other_character_anywhere(self, suite: Suite, data: st.DataObject) -> None:
        """A changed line is refused or is visibly another key; it is never the same key spelt differently."""
        line = RING[suite].public.to_line()
        at = data.draw(st.integers(0, len(line) - 1))
        other = data.draw(st.sampled_from([c for c in ALPHABET + "+/= :\n\t\u0661" if c != line[at]]))
        with contextlib.suppress(e2e.E2EError):
            self.assertNotEqual(PublicKey.from_line(line[:at] + other + line[at + 1 :]).kid, RING[suite].public.kid)

    def test_near_misses(self) -> None:
        for suite, pair in RING.items():
            line = pair.public.to_line()
            prefix, number, text = line.split(":")
            for wrong in (
                "",
                line + "=",
                line + "\n",
                " " + line,
                line[:-1],
                line + "A",
                line.upper(),
                f"{prefix}:0{number}:{text}",
                f"{prefix}:{text}",
                f"{prefix}:{number}:{text}:",
                f"{prefix}:{number}:{text[:-5]}\n{text[-5:]}",
                f"{prefix}:{number}:" + base64.b64encode(b"\xff" * suite.public_bytes).decode(),
            ):
                self.assertRaises(e2e.E2EError, PublicKey.from_line, wrong)

    def test_spare_bits_must_be_zero(self) -> None:
        """32 bytes leave two spare bits in the last character; four spellings would decode to the same key."""
        line = RING[Suite.CLASSICAL].public.to_line()
        last = ALPHABET.index(line[-1])
        self.assertEqual(last % 4, 0)
        for spare in (1, 2, 3):
            self.assertRaises(KeyInvalid, PublicKey.from_line, line[:-1] + ALPHABET[last + spare])

    def test_unknown_suite(self) -> None:
        line = RING[Suite.PQ].public.to_line().replace(":1:", ":7:")
        self.assertIs(self.assertRaises(e2e.UnsupportedSuite, PublicKey.from_line, line).code, ErrorCode.UNSUPPORTED)

    def test_a_key_that_gives_the_secret_away(self) -> None:
        line = "ron-e2e-pub:0:" + base64.urlsafe_b64encode(bytes(32)).rstrip(b"=").decode()
        self.assertRaises(KeyInvalid, PublicKey.from_line, line)


class KeyFiles(SynchronousTestCase):
    """What is written can be read again, by its owner only."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "alice.key"

    def stored(self, suite: Suite = Suite.CLASSICAL) -> dict[str, Any]:
        RING[suite].save(self.path)
        record: dict[str, Any] = json.loads(self.path.read_text())
        return record

    def load(self, text: str | bytes) -> KeyPair:
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        self.path.chmod(0o600)
        return KeyPair.load(self.path)

    def test_round_trip(self) -> None:
        for suite, pair in RING.items():
            private, public = self.folder / f"{suite.label}.key", self.folder / f"{suite.label}.pub"
            pair.save(private)
            pair.public.save(public)
            self.assertEqual((KeyPair.load(private).suite, KeyPair.load(private).seed), (suite, pair.seed))
            self.assertEqual(PublicKey.load(public), pair.public)
            self.assertEqual(public.read_text(), pair.public.to_line() + "\n")

    def test_private_from_its_first_byte_whatever_the_umask(self) -> None:
        self.addCleanup(os.umask, os.umask(0))
        self.stored()
        self.assertEqual(mode(self.path), 0o600)

    def test_no_key_is_ever_overwritten(self) -> None:
        self.path.write_text("precious")
        for save in (RING[Suite.PQ].save, RING[Suite.PQ].public.save):
            error = self.assertRaises(KeyFileError, save, self.path)
            self.assertIs(error.code, ErrorCode.CONFLICT)
        self.assertEqual(self.path.read_text(), "precious")

    def test_a_dangling_link_is_not_written_through(self) -> None:
        self.path.symlink_to(self.folder / "elsewhere")
        self.assertRaises(KeyFileError, RING[Suite.PQ].save, self.path)
        self.assertFalse((self.folder / "elsewhere").exists())

    def test_a_half_written_file_is_removed(self) -> None:
        def disk_full(_: int) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "fsync", disk_full)
        error = self.assertRaises(KeyFileError, RING[Suite.PQ].save, self.path)
        self.assertIn("No space left", error.message)
        self.assertFalse(self.path.exists())

    def test_private_file_open_to_others_is_refused_with_the_remedy(self) -> None:
        self.stored()
        for exposed in (0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666, 0o777):
            self.path.chmod(exposed)
            error = self.assertRaises(KeyFileError, KeyPair.load, self.path)
            self.assertIn(f"chmod 600 {self.path}", str(error.hint))
        for closed in (0o600, 0o400, 0o700):
            self.path.chmod(closed)
            self.assertEqual(KeyPair.load(self.path).seed, RING[Suite.CLASSICAL].seed)

    def test_public_file_may_be_open_to_all(self) -> None:
        RING[Suite.PQ].public.save(self.path)
        self.path.chmod(0o644)
        self.assertEqual(PublicKey.load(self.path), RING[Suite.PQ].public)

    def test_missing_file(self) -> None:
        for load in (KeyPair.load, PublicKey.load):
            self.assertIs(self.assertRaises(KeyFileError, load, self.path).code, ErrorCode.NOT_FOUND)

    def test_things_that_are_no_files(self) -> None:
        """A pipe without a writer must not hang us."""
        os.mkfifo(self.path, 0o600)
        for path in (self.folder, self.path, Path("/dev/null")):
            for load in (KeyPair.load, PublicKey.load):
                self.assertRaises(KeyFileError, load, path)

    def test_a_file_too_large_to_be_a_key(self) -> None:
        record = json.dumps(self.stored())
        self.assertRaises(KeyFileError, self.load, record + " " * MAX_KEY_FILE_BYTES)
        self.assertEqual(self.load(record + " " * (MAX_KEY_FILE_BYTES - len(record))).seed, RING[Suite.CLASSICAL].seed)

    def test_unknown_fields_versions_kinds_and_suites(self) -> None:
        record = self.stored()
        self.assertEqual(self.load(json.dumps(record)).seed, RING[Suite.CLASSICAL].seed)
        for change in (
            {"comment": "mine"},
            {"version": 2},
            {"version": "1"},
            {"kind": "ron-e2e-public-key"},
            {"suite": "pqq"},
            {"suite": 0},
            {"seed": record["seed"] + "="},
            {"seed": record["seed"][:-1]},
            {"seed": ""},
            {"seed": None},
        ):
            self.assertRaises(KeyFileError, self.load, json.dumps(record | change))
        for missing in ("suite", "kid", "seed"):
            self.assertRaises(KeyFileError, self.load, json.dumps({k: v for k, v in record.items() if k != missing}))

    def test_damage_shows_in_the_kid(self) -> None:
        record = self.stored()
        other = KeyPair.generate(Suite.CLASSICAL)
        other.save(self.folder / "other.key")
        foreign_seed = json.loads((self.folder / "other.key").read_text())["seed"]
        for change in ({"kid": other.public.kid.hex()}, {"seed": foreign_seed}, {"suite": "pq"}):
            error = self.assertRaises(KeyFileError, self.load, json.dumps(record | change))
            self.assertIn("damaged", error.message)

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=200))
    def test_junk(self, junk: bytes) -> None:
        self.assertRaises(KeyFileError, self.load, junk)
        self.assertRaises((KeyFileError, KeyInvalid), PublicKey.load, self.path)

    def test_errors_do_not_quote_the_file(self) -> None:
        """Somebody edits the private file, and the mistake ends up in a log."""
        record = self.stored()
        seed = record["seed"]
        for text in (
            json.dumps(record | {"suite": seed}),
            json.dumps(record | {seed: 1}),
            seed,
            f'{{"seed": "{seed}!"}}',
        ):
            error = self.assertRaises(KeyFileError, self.load, text)
            self.assertNotIn(seed, f"{error.message} {error.hint} {error!r} {error.__cause__}")
            self.assertTrue(error.__suppress_context__)


class Commands(SynchronousTestCase):
    """`ronctl e2e keygen | seal | open`. Errors come up as `RonError`, for `ronctl` to word."""

    def setUp(self) -> None:
        self.runner = CliRunner()
        folder = self.runner.isolated_filesystem()
        folder.__enter__()
        self.addCleanup(folder.__exit__, None, None, None)

    def run_ok(self, *arguments: str, stdin: bytes | str | None = None) -> Result:
        result = self.runner.invoke(command, arguments, input=stdin)
        self.assertEqual((result.exit_code, result.exception), (0, None), result.output)
        return result

    def run_error(self, *arguments: str, stdin: bytes | None = None) -> RonError:
        result = self.runner.invoke(command, arguments, input=stdin)
        self.assertIsInstance(result.exception, RonError, result.output)
        self.assertEqual(result.stdout_bytes, b"")
        assert isinstance(result.exception, RonError)
        return result.exception

    def test_keygen_writes_both_files_and_prints_the_public_half(self) -> None:
        result = self.run_ok("keygen", "--out", "alice.key")
        pair = KeyPair.load(Path("alice.key"))
        self.assertIs(pair.suite, Suite.PQ)
        self.assertEqual(mode(Path("alice.key")), 0o600)
        self.assertEqual(PublicKey.load(Path("alice.key.pub")), pair.public)
        self.assertIn(pair.public.kid.hex(), result.output)
        self.assertIn(pair.public.to_line(), result.output)
        self.assertNotIn(json.loads(Path("alice.key").read_text())["seed"], result.output)

    def test_keygen_json(self) -> None:
        facts = json.loads(self.run_ok("keygen", "--out", "small.key", "--suite", "classical", "--json").stdout)
        public = PublicKey.from_line(facts["public"])
        self.assertEqual((facts["suite"], facts["kid"]), ("classical", public.kid.hex()))
        self.assertEqual((facts["private_file"], facts["public_file"]), ("small.key", "small.key.pub"))
        self.assertEqual(KeyPair.load(Path("small.key")).public, public)

    def test_keygen_overwrites_neither_file_and_leaves_no_half(self) -> None:
        self.run_ok("keygen", "--out", "alice.key")
        before = Path("alice.key").read_bytes()
        self.assertIs(self.run_error("keygen", "--out", "alice.key").code, ErrorCode.CONFLICT)
        self.assertEqual(Path("alice.key").read_bytes(), before)
        Path("bob.key.pub").write_text("somebody else's")
        self.assertIs(self.run_error("keygen", "--out", "bob.key").code, ErrorCode.CONFLICT)
        self.assertFalse(Path("bob.key").exists())
        self.assertEqual(Path("bob.key.pub").read_text(), "somebody else's")

    def test_through_files_and_pipes_for_a_file_and_a_line(self) -> None:
        plaintext = bytes(range(256))
        for suite in Suite:
            alice, bob = f"alice-{suite.label}.key", f"bob-{suite.label}.key"
            for name in (alice, bob):
                self.run_ok("keygen", "--out", name, "--suite", suite.label)
            line = Path(bob + ".pub").read_text().strip()
            sealed = self.run_ok(
                "seal", "--to", alice + ".pub", "--to", line, "--aad", "t/1", stdin=plaintext
            ).stdout_bytes
            Path("sealed").write_bytes(sealed)
            piped = self.run_ok("open", "--key", bob, "--aad", "t/1", stdin=sealed)
            self.assertEqual(piped.stdout_bytes, plaintext)
            self.run_ok("open", "--key", alice, "--aad", "t/1", "--in", "sealed", "--out", f"plain-{suite.label}")
            self.assertEqual(Path(f"plain-{suite.label}").read_bytes(), plaintext)
            self.assertEqual(mode(Path(f"plain-{suite.label}")), 0o600)
            self.assertIsInstance(self.run_error("open", "--key", alice, "--in", "sealed"), DecryptionFailed)

    def test_seal_json_with_and_without_a_file(self) -> None:
        self.run_ok("keygen", "--out", "alice.key")
        pair = KeyPair.load(Path("alice.key"))
        inline = json.loads(self.run_ok("seal", "--to", "alice.key.pub", "--json", stdin=b"hello").stdout)
        envelope = base64.b64decode(inline["envelope"])
        self.assertEqual(e2e.open(pair, envelope), b"hello")
        self.assertEqual(inline["recipients"], [pair.public.kid.hex()])
        self.assertEqual((inline["suite"], inline["envelope_bytes"]), ("pq", len(envelope)))
        filed = json.loads(self.run_ok("seal", "--to", "alice.key.pub", "--json", "--out", "f", stdin=b"hello").stdout)
        self.assertEqual((filed["file"], filed["envelope_bytes"]), ("f", Path("f").stat().st_size))
        self.assertNotIn("envelope", filed)

    def test_seal_to_a_file_says_so_on_stderr_only(self) -> None:
        self.run_ok("keygen", "--out", "alice.key")
        result = self.run_ok("seal", "--to", "alice.key.pub", "--out", "sealed", stdin=b"hello")
        self.assertEqual(result.stdout, "")
        self.assertIn("sealed", result.stderr)

    def test_too_much_input(self) -> None:
        self.run_ok("keygen", "--out", "a", "--suite", "classical")
        Path("big").write_bytes(bytes(e2e.MAX_ENVELOPE_BYTES + 1))
        self.assertIsInstance(self.run_error("seal", "--to", "a.pub", "--in", "big"), LimitExceeded)
        self.assertIsInstance(self.run_error("open", "--key", "a", "--in", "big"), LimitExceeded)
        big = bytes(e2e.MAX_PLAINTEXT_BYTES + 1)
        self.assertIsInstance(self.run_error("seal", "--to", "a.pub", stdin=big), LimitExceeded)

    def test_missing_and_unwritable_files(self) -> None:
        self.run_ok("keygen", "--out", "a")
        self.assertIs(self.run_error("seal", "--to", "a.pub", "--in", "nowhere").code, ErrorCode.NOT_FOUND)
        self.assertIs(self.run_error("seal", "--to", "nowhere.pub", stdin=b"").code, ErrorCode.NOT_FOUND)
        self.assertIs(self.run_error("open", "--key", "nowhere", stdin=b"").code, ErrorCode.NOT_FOUND)
        self.assertIs(self.run_error("keygen", "--out", "no/such/folder").code, ErrorCode.NOT_FOUND)
        self.assertIs(self.run_error("seal", "--to", "a.pub", "--out", ".", stdin=b"").code, ErrorCode.BAD_REQUEST)

    def test_nothing_is_written_when_opening_fails(self) -> None:
        self.run_ok("keygen", "--out", "a")
        self.run_error("open", "--key", "a", "--out", "plain", stdin=b"junk")
        self.assertFalse(Path("plain").exists())

    def test_exposed_key_is_refused(self) -> None:
        self.run_ok("keygen", "--out", "a")
        Path("a").chmod(0o644)
        self.assertIn("chmod 600 a", str(self.run_error("open", "--key", "a", stdin=b"").hint))

    def test_help_shows_examples_line_by_line(self) -> None:
        for arguments in (["--help"], ["keygen", "--help"], ["seal", "--help"], ["open", "--help"]):
            output = self.run_ok(*arguments).output
            self.assertRegex(output, r"\n  +ronctl e2e \w+ --")

    def test_starting_ronctl_loads_no_cryptography(self) -> None:
        heavy = ("cryptography", "cbor2", "blake3", "ron.e2e")
        script = f"import sys, ron.ctl.e2e; print([name for name in {heavy} if name in sys.modules])"
        self.assertEqual(self.python(script).stdout.strip(), b"[]")

    def python(self, script: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
        root = Path(e2e.__file__).parent.parent.parent
        return subprocess.run(
            [sys.executable, "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            env=os.environ | {"PYTHONPATH": str(root)},
        )

    def on_terminal(self, *arguments: str) -> tuple[bytes, bytes]:
        """What the command puts on a real terminal, and on stderr."""
        ours, theirs = pty.openpty()
        try:
            done = self.python(f"from ron.ctl.e2e import e2e; e2e({list(arguments)!r})", stdout=theirs)
        finally:
            os.close(theirs)
        os.set_blocking(ours, False)
        try:
            shown = os.read(ours, 65536)
        except OSError:  # EIO: the other side is closed and wrote nothing
            shown = b""
        os.close(ours)
        return shown, done.stderr

    def test_a_terminal_gets_text_but_no_binary(self) -> None:
        self.run_ok("keygen", "--out", "a", "--suite", "classical")
        shown, errors = self.on_terminal("seal", "--to", "a.pub")
        self.assertEqual(shown, b"")
        self.assertIn(b"not written to a terminal", errors)
        for plaintext, expected in ((b"\x1b[2Jgotcha", b""), (b"\xff\xfe", b""), ("grün\tist\n".encode(), b"gr")):
            Path("sealed").write_bytes(e2e.seal([PublicKey.load(Path("a.pub"))], plaintext))
            shown, errors = self.on_terminal("open", "--key", "a", "--in", "sealed")
            self.assertEqual(shown[:2], expected)
            self.assertEqual(b"not written to a terminal" in errors, expected == b"")
