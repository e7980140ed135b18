"""The pages of ron-kms say what is there: commands and their options, config keys, variables, metrics, tests, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
from docutils.core import publish_doctree
from docutils.utils import SystemMessage
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.main import ronctl
from ron.services.kms.config import KmsConfig
from ron.services.kms.environment import VARIABLES
from tests.test_prometheus import sample_names

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "kms"
OPERATORS = ("index", "runbook", "pq-migration", "security")
_INVARIANTS = "tests/services/kms/test_invariants.py"
_SECTIONS = "service|tls|limits|security|entropy_time|pq|audit|observability|backends|governance"


def text_of(name: str) -> str:
    return (PAGES / f"{name}.rst").read_text(encoding="utf-8")


def commands(text: str) -> Iterator[list[str]]:
    """Every `ronctl` that a page has somebody type, as words; what follows in a pipe is left out."""
    literal = re.findall(r"``(ronctl [^`]+)``", text)
    blocks = re.findall(r"^ {4,}(.*\bronctl .*)$", text, re.MULTILINE)
    for line in (*literal, *blocks):
        for found in re.findall(r"ronctl [^|&>)]*", line):
            bare = re.sub(r"\s#.*", "", found).replace("…", "x")
            yield shlex.split(bare.replace("$(cat", ""))[1:]


def unknown(words: list[str]) -> str | None:
    """What of it does not exist; None for a good command."""
    command: click.Command = ronctl
    context = click.Context(ronctl)
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        if found is None:
            return rest[0]
        command, rest = found, rest[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return next((word for word in rest if word.startswith("--") and word.split("=")[0] not in options), None)


def config_keys(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    """Every key, and every table."""
    for field in msgspec.structs.fields(struct):
        yield prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from config_keys(field.type, f"{prefix}{field.name}.")


class Pages(SynchronousTestCase):
    def test_they_parse(self) -> None:
        for path in sorted(PAGES.glob("*.rst")):
            settings = {"report_level": 2, "halt_level": 2, "warning_stream": False}
            try:
                publish_doctree(path.read_text(encoding="utf-8"), str(path), settings_overrides=settings)
            except SystemMessage as error:
                self.fail(f"{path.name}: {error}")

    def test_every_page_is_in_the_index(self) -> None:
        index = text_of("index")
        for path in PAGES.glob("*.rst"):
            if path.stem != "index":
                self.assertIn(f"<{path.name}>`_", index)

    def test_pages_and_files_they_name_are_there(self) -> None:
        for name in OPERATORS:
            for page in re.findall(r"``([a-z-]+\.rst)``", text_of(name)):
                self.assertTrue((PAGES / page).exists() or (ROOT / "docs" / page).exists(), f"{name}: {page}")
            for path in re.findall(r"``((?:ron|etc|tests|docs)/[\w./-]+\.\w+)``", text_of(name)):
                self.assertTrue((ROOT / path).exists(), f"{name}: {path}")

    def test_every_section_they_send_to_is_there(self) -> None:
        text = text_of("runbook")
        titles = set(re.findall(r"^(\S.*)\n[-~=]{4,}$", text, re.MULTILINE))
        prose = re.sub(r"``[^`]*``|^ {4}.*$", "", text, flags=re.MULTILINE)
        named = set(re.findall(r'"([A-Z][^"\n]{4,60})"', prose))
        self.assertGreater(len(named & titles), 10)
        self.assertEqual(named - titles, set())


class Said(SynchronousTestCase):
    def test_every_command_exists_with_its_options(self) -> None:
        found = [(name, words) for name in OPERATORS for words in commands(text_of(name))]
        self.assertGreater(len(found), 60)
        for name, words in found:
            self.assertIsNone(unknown(words), f"{name}: ronctl {' '.join(words)}")

    def test_what_is_no_command_is_found(self) -> None:
        """Or the test before proves nothing."""
        self.assertEqual(unknown(["kms", "export", "KID"]), "export")
        self.assertEqual(unknown(["kms", "sign", "--key", "x"]), "--key")
        self.assertIsNone(unknown(["kms", "sign", "--kid", "x", "file", "--json"]))

    def test_every_config_key_is_one(self) -> None:
        known = set(config_keys(KmsConfig))
        for name in OPERATORS:
            found = re.findall(rf"``((?:{_SECTIONS})\.[a-z0-9_.]+)(?: = [^`]+)?``", text_of(name))
            found = [key for key in found if not key.endswith((".py", ".rst"))]
            self.assertEqual({key for key in found if key not in known}, set(), name)

    def test_every_variable_is_one(self) -> None:
        found = {one for name in OPERATORS for one in re.findall(r"``((?:RON_)?KMS_[A-Z_0-9]+)``", text_of(name))}
        self.assertGreater(len(found), 5)
        self.assertLessEqual(found, set(VARIABLES))

    def test_every_metric_is_ours(self) -> None:
        ours = sample_names()
        for name in OPERATORS:
            for metric in re.findall(r"\b(kms_[a-z_]+_(?:total|seconds|percent|mode|ms)|queue_depth)\b", text_of(name)):
                self.assertTrue(metric in ours or f"{metric}_bucket" in ours, f"{name}: {metric}")

    def test_every_test_is_where_it_is_said_to_be(self) -> None:
        table = text_of("security").partition("\nInvariants\n")[2]
        for number in range(1, 21):
            self.assertRegex(table, rf"\* - I-{number} ")
        for number in range(1, 9):
            self.assertRegex(table, rf"\* - K-G{number} ")
        checked = 0
        for cell in re.findall(r"^     - ((?:.*``test_.*\n|       .*\n)+)", table, re.MULTILINE):
            path = _INVARIANTS
            for word in re.findall(r"``([\w/]+\.py)``|``(test_\w+)``", cell):
                if word[0]:
                    path = word[0] if word[0].startswith("tests/") else f"tests/services/kms/{word[0]}"
                    continue
                self.assertIn(f"def {word[1]}(", (ROOT / path).read_text(encoding="utf-8"), path)
                checked += 1
        self.assertGreater(checked, 50)
