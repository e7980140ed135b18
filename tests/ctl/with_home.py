"""A home with nothing running in it, for commands that work on its files and need no reactor."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import AuthFiles
from ron.proto.errors import RonError


class WithHome(SynchronousTestCase):
    """`home` is RON_HOME, `files` its capabilities; `command` is called in this process."""

    command: click.Command

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()
        before = dict(os.environ)
        self.addCleanup(os.environ.update, before)
        self.addCleanup(os.environ.clear)  # cleanups run last in, first out
        os.environ.update({"RON_HOME": str(self.home), "RON_CAP": ""})
        self.files = AuthFiles(self.home / "auth", time.time)

    def ran(self, *arguments: str, stdin: str = "") -> Result:
        """What became of it; it must not have raised."""
        result = CliRunner().invoke(self.command, arguments, input=stdin)
        self.assertIsNone(result.exception, f"{arguments}: {result.exception!r} {result.output}")
        return result

    def refused(self, *arguments: str, stdin: str = "") -> RonError:
        """What it raised, with its advice."""
        error = CliRunner().invoke(self.command, arguments, input=stdin).exception
        assert isinstance(error, RonError), f"{arguments}: {error!r}"
        self.assertTrue(error.hint, error.message)
        return error
