"""`ronctl audit`: a log that somebody touched is never called whole, and its words cannot move the cursor."""

from __future__ import annotations

import json
import time
from pathlib import Path

from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.audit import LOG, audit
from ron.ctl.main import ronctl
from ron.proto.errors import ErrorCode, RonError
from ron.services.oniond.audit import FileAudit


def written(path: Path, records: int, **limits: int) -> str:
    """A log of so many records, and its head."""
    log = FileAudit(path, time.time, **limits)
    for number in range(records):
        log.append("client_added", {"app": "wiki", "client": f"phone {number}", "sequence": number})
    log.close()
    return log.head


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.log = self.home / LOG
        self.log.parent.mkdir(parents=True)

    def run_it(self, *arguments: str) -> Result:
        result = CliRunner().invoke(audit, arguments, env={"RON_HOME": str(self.home)})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def refused(self, *arguments: str) -> RonError:
        error = self.assertRaises(RonError, self.run_it, *arguments)
        self.assertTrue(error.hint)
        return error


class Verify(Case):
    def test_a_log_that_is_gone_is_not_whole(self) -> None:
        self.assertIs(self.refused("verify").code, ErrorCode.NOT_FOUND)
        written(self.log, 3)
        self.assertIs(self.refused("verify", str(self.log), str(self.home / "other")).code, ErrorCode.NOT_FOUND)

    def test_what_is_no_log(self) -> None:
        self.log.mkdir()
        self.assertIn("cannot be read", self.refused("verify").message)

    def test_no_head(self) -> None:
        written(self.log, 1)
        for head in ("", "x", "A" * 64, "0" * 63):
            self.assertIs(self.refused("verify", "--head", head).code, ErrorCode.BAD_REQUEST)
        other = self.home / "other.jsonl"
        written(other, 1)
        self.refused("verify", str(self.log), str(other), "--head", "0" * 64)

    def test_the_record_that_is_broken_is_named(self) -> None:
        written(self.log, 5)
        lines = self.log.read_bytes().splitlines(keepends=True)
        lines[2] = lines[2].replace(b"phone 2", b"phone 9")
        self.log.write_bytes(b"".join(lines))
        result = self.run_it("verify")
        self.assertEqual(result.exit_code, 1)
        self.assertIn(f"broken at {self.log}, line 4: it does not follow", result.stdout)
        (shown,) = json.loads(self.run_it("verify", "--json").stdout)["logs"]
        self.assertEqual((shown["whole"], shown["records"], shown["broken"]["line"]), (False, 3, 4))
        self.assertEqual(shown["broken"]["file"], str(self.log))

    @given(some.data())
    @settings(deadline=None, max_examples=40)
    def test_no_line_can_be_lost_moved_or_changed(self, draw: some.DataObject) -> None:
        log = Path(self.mktemp()).absolute() / "x.jsonl"
        head = written(log, 6)
        lines = log.read_bytes().splitlines(keepends=True)
        place = draw.draw(some.integers(0, 5))
        other = draw.draw(some.integers(0, 5).filter(lambda n: n != place))
        act = draw.draw(some.sampled_from(["lost", "moved", "changed", "doubled"]))
        if act == "lost":
            del lines[place]
        elif act == "moved":
            lines[place], lines[other] = lines[other], lines[place]
        elif act == "changed":
            lines[place] = lines[place].replace(b"wiki", b"chat")
        else:
            lines.insert(place, lines[place])
        log.write_bytes(b"".join(lines))
        self.assertEqual(self.run_it("verify", str(log), "--head", head).exit_code, 1, act)

    def test_an_end_that_is_missing_shows_against_a_noted_head(self) -> None:
        head = written(self.log, 4)
        self.assertEqual(self.run_it("verify", "--head", head).exit_code, 0)
        lines = self.log.read_bytes().splitlines(keepends=True)
        self.log.write_bytes(b"".join(lines[:-1]))
        self.assertEqual(self.run_it("verify").exit_code, 0)
        result = self.run_it("verify", "--head", head)
        self.assertEqual(result.exit_code, 1)
        self.assertIn("the noted head is not in it", result.stdout)

    def test_one_whole_and_one_not(self) -> None:
        head, other = written(self.log, 2), self.home / "other.jsonl"
        written(other, 2)
        other.write_bytes(other.read_bytes()[10:])
        result = self.run_it("verify", str(self.log), str(other), "--json")
        whole, broken = json.loads(result.stdout)["logs"]
        self.assertEqual((result.exit_code, whole["whole"], whole["head"], broken["whole"]), (1, True, head, False))

    def test_rotated_files_are_one_log_whichever_is_named(self) -> None:
        written(self.log, 40, max_bytes=2048)
        files = sorted(str(path) for path in self.log.parent.iterdir())
        self.assertGreater(len(files), 3)
        for words in ((), files, files[-1:], files[:1]):
            shown = json.loads(self.run_it("verify", *words, "--json").stdout)
            self.assertEqual([(log["records"], log["whole"]) for log in shown["logs"]], [(40, True)], words)
        Path(files[2]).unlink()
        self.assertEqual(self.run_it("verify").exit_code, 1)


class Show(Case):
    def test_all_of_it_over_rotated_files(self) -> None:
        written(self.log, 40, max_bytes=2048)
        lines = self.run_it("show").stdout.splitlines()
        self.assertEqual(len(lines), 40)
        self.assertTrue(lines[0].endswith('client_added         app=wiki client="phone 0" sequence=0'), lines[0])
        last = self.run_it("show", "-n", "2", "--json").stdout.splitlines()
        self.assertEqual([json.loads(line)["seq"] for line in last], [39, 40])

    def test_records_of_one_event(self) -> None:
        log = FileAudit(self.log, time.time)
        for event in ("onion_exported", "onion_deleted", "onion_exported"):
            log.append(event, {"app": "wiki"})
        shown = self.run_it("show", "--event", "onion_exported").stdout
        self.assertEqual((shown.count("onion_exported"), shown.count("onion_deleted")), (2, 0))

    def test_a_line_that_is_no_record_hides_no_other(self) -> None:
        written(self.log, 3)
        lines = self.log.read_bytes().splitlines(keepends=True)
        self.log.write_bytes(lines[0] + b'\xff{"seq"\n' + lines[2])
        result = self.run_it("show")
        self.assertEqual((result.exit_code, len(result.stdout.splitlines())), (1, 2))
        self.assertIn("line 2: no record", result.stderr)

    def test_nothing_moves_the_cursor(self) -> None:
        """A log that somebody else wrote may hold anything."""
        nasty = "\x1b[2J\u2028"
        record = {"seq": 1, "at": nasty, "event": nasty, "fields": {nasty: nasty}, "prev": "0" * 64}
        self.log.write_text(json.dumps(record) + "\n")
        (shown,) = self.run_it("show").stdout.splitlines()
        self.assertTrue(shown.isprintable(), shown)

    def test_no_log(self) -> None:
        self.assertIs(self.refused("show").code, ErrorCode.NOT_FOUND)

    def test_help(self) -> None:
        self.assertIn("audit", CliRunner().invoke(ronctl, ["--help"]).output)
        for command in ("verify", "show"):
            self.assertIn("Example", CliRunner().invoke(audit, [command, "--help"]).output)
