"""Reload, rollback and watch against a model: in force is what was valid last."""

from __future__ import annotations

import itertools
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import Config, ConfigError, Layers
from tests.kernel.configfiles import BAD, House, box, check, replace, spoil, stamp


class ConfigMachine(RuleBasedStateMachine):
    """Any file after any other, by hand or watched, with rollbacks: in force is what was valid last.

    The model: `valid` is the size in force and `history` those before it; `content` is what the file holds (None:
    something bad), `seen` what it held at the last look, `applied` what `valid` was made from, `rejected` what was
    rolled back from, `refuse` what an observer will not have.
    """

    folder: Path
    runs = itertools.count(1)

    def __init__(self) -> None:
        super().__init__()
        home = self.folder / str(next(self.runs))
        home.mkdir()
        self.path = home / "box.toml"
        self.path.write_bytes(box(size=1))
        self.clock = Clock()
        self.versions: list[int] = []
        self.config = Config(Layers(House, check, self.path), announce=self.versions.append)
        self.config.watch(self.clock)
        self.valid, self.version = 1, 1
        self.history: list[int] = []
        self.content: int | None = 1
        self.seen: int | None = 1
        self.applied: int | None = 1
        self.rejected: int | None = None
        self.refuse: int | None = None
        self.config.observe(self.observer)

    def observer(self, _old: House, new: House) -> None:
        if new.box.size == self.refuse:
            raise ConfigError("refused by an observer")

    @rule(size=st.integers(1, 4), atomically=st.booleans())
    def write(self, size: int, atomically: bool) -> None:
        if not self.path.is_file() or atomically:
            replace(self.path, box(size=size))
        else:
            self.path.write_bytes(box(size=size))
            stamp(self.path)
        self.content = size

    @rule(kind=st.sampled_from(sorted(BAD)))
    def spoil(self, kind: str) -> None:
        spoil(self.path, kind)
        self.content = None

    @rule(size=st.none() | st.none() | st.integers(1, 4))
    def let_an_observer_refuse(self, size: int | None) -> None:
        self.refuse = None if size == self.valid else size

    @rule()
    def reload(self) -> None:
        wanted = self.expect()
        try:
            self.config.reload()
        except ConfigError:
            assert wanted is False
        else:
            assert wanted is True

    @rule()
    def wait(self) -> None:
        """Two intervals: one to notice, one to look again."""
        if self.content != self.seen or self.content is None:
            self.expect()
        self.clock.pump([1, 1])

    @precondition(lambda self: self.history and self.refuse != self.history[-1])
    @rule()
    def roll_back(self) -> None:
        self.config.rollback()
        if self.applied is not None and self.applied == self.seen:
            self.rejected = self.applied
        self.applied = None
        self.valid = self.history.pop()
        self.version += 1

    @precondition(lambda self: not self.history)
    @rule()
    def cannot_roll_back(self) -> None:
        try:
            self.config.rollback()
        except ConfigError:
            return
        raise AssertionError("there was nothing to go back to")

    def expect(self) -> bool:
        """Bring the model to what a look at the file must lead to; false when it must be refused."""
        self.seen = self.content
        if self.content is None:
            self.rejected = None
            return False
        if self.content in (self.applied, self.rejected):
            return True
        self.rejected = None
        if self.content == self.refuse and self.content != self.valid:
            return False
        self.applied = self.content
        if self.content != self.valid:
            self.history = [*self.history, self.valid][-8:]
            self.valid = self.content
            self.version += 1
        return True

    @invariant()
    def the_last_valid_is_in_force(self) -> None:
        assert self.config.current.box.size == self.valid, (self.config.current, self.valid)
        assert self.config.version == self.version
        assert self.versions == list(range(2, self.version + 1))

    def teardown(self) -> None:
        self.config.stop_watching()
        assert not self.clock.getDelayedCalls()


class Stateful(SynchronousTestCase):
    def test_any_file_after_any_other(self) -> None:
        ConfigMachine.folder = Path(self.mktemp()).absolute()
        ConfigMachine.folder.mkdir()
        run_state_machine_as_test(
            ConfigMachine, settings=settings(max_examples=100, stateful_step_count=30, deadline=None)
        )
        self.assertGreater(next(ConfigMachine.runs), 40)
