"""One snapshot, swapped whole or not at all; whatever becomes of the file, the last valid config stays in force."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import Changes, Config, ConfigError, Layers
from ron.kernel.config.watching import FileWatch
from tests.kernel.configfiles import BAD, Box, House, box, check, replace, spoil


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        self.path = folder / "box.toml"
        self.path.write_bytes(box(size=1))
        self.versions: list[int] = []
        self.logged: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    def config(self, environ: dict[str, str] | None = None, **flags: str) -> Config[House]:
        layers = Layers(House, check, self.path, environ or {}, {f"box.{k}": v for k, v in flags.items()})
        return Config(layers, announce=self.versions.append)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.logged if event.get("event") == name]

    def refused(self, act: Callable[[], object]) -> ConfigError:
        error: ConfigError = self.assertRaises(ConfigError, act)
        return error


class BadFiles(Case):
    """Whatever replaces the file: the old snapshot stays, and says so."""

    def test_on_reload(self) -> None:
        for name in BAD:
            replace(self.path, box(size=5))
            config = self.config()
            before = config.current
            word = spoil(self.path, name)
            error = self.refused(config.reload)
            self.assertIn(word, error.one_line(), name)
            self.assertIn("box.toml", error.one_line(), name)
            self.assertIs(config.current, before, name)
            self.assertEqual((config.version, config.last_error), (1, error), name)
            replace(self.path, box(size=6))
            config.reload()
            self.assertEqual((config.current.box.size, config.version, config.last_error), (6, 2, None), name)

    def test_at_first_start(self) -> None:
        for name in BAD:
            word = spoil(self.path, name)
            if word == "is empty":
                self.assertEqual(self.config().current, House())
            else:
                self.assertIn(word, self.refused(self.config).one_line(), name)

    def test_the_old_content_again_is_fine_again(self) -> None:
        config = self.config()
        self.path.write_bytes(b"garbage")
        self.refused(config.reload)
        self.path.write_bytes(box(size=1))
        self.assertFalse(config.reload())
        self.assertEqual((config.last_error, config.version, self.versions), (None, 1, []))


class Reload(Case):
    def test_nothing_new_is_no_version(self) -> None:
        config = self.config()
        self.assertFalse(config.reload())
        self.path.write_bytes(b"# the same\n" + box(size=1))
        self.assertEqual(config.reload(), Changes())
        self.assertEqual((config.version, self.versions, self.events("config_updated")), (1, [], []))

    def test_what_changed_is_told_and_announced(self) -> None:
        config = self.config()
        self.path.write_bytes(box(size=2, name="b"))
        changes = config.reload()
        self.assertEqual(changes, (("box.size", "1", "2"), ("box.name", '"a"', '"b"')))
        self.assertEqual(changes.restart_needed, ("box.name",))
        self.assertEqual((config.version, self.versions), (2, [2]))
        [event] = self.events("config_updated")
        self.assertEqual((event["version"], event["restart_needed"]), (2, "box.name"))
        self.assertIn("box.size: 1 → 2", event["changes"])

    def test_secrets_credentials_and_long_lists_are_not_told(self) -> None:
        config = self.config()
        peers = [f"peer{n}" for n in range(9)]
        self.path.write_bytes(box(api_token="hunter2", endpoint="http://me:hunter2@host/", peers=peers))
        told = str(config.reload()) + str(self.events("config_updated"))
        self.assertNotIn("hunter2", told)
        self.assertNotIn("peer3", told)
        self.assertIn("box.api_token", told)
        self.assertIn("[9 items]", told)
        self.assertIn("@host/", told)

    def test_variables_and_flags_stay_on_top(self) -> None:
        config = self.config({"RON_BOX_NAME": "env"}, size="7")
        self.path.write_bytes(box(size=2, name="file", peers=["x"]))
        self.assertEqual([change.key for change in config.reload()], ["box.peers"])
        self.assertEqual(config.current.box, Box(size=7, name="env", peers=("x",)))

    def test_without_a_file(self) -> None:
        config = Config(Layers(House, check, None, {"RON_BOX_SIZE": "3"}))
        self.assertFalse(config.reload())
        config.watch(Clock())
        config.stop_watching()
        self.assertEqual(config.current.box.size, 3)

    def test_a_listener_that_fails_undoes_nothing(self) -> None:
        config = self.config()
        heard: list[int] = []
        config.on_change(lambda _version: 1 / 0)
        config.on_change(heard.append)
        self.path.write_bytes(box(size=2))
        config.reload()
        self.assertEqual((config.version, heard, self.versions), (2, [2], [2]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_refusals_are_heard(self) -> None:
        config = self.config()
        heard: list[ConfigError] = []
        config.on_refused(heard.append)
        self.path.write_bytes(b"garbage")
        error = self.refused(config.reload)
        self.assertEqual(heard, [error])


class Observers(Case):
    """They agree, or nothing happens."""

    def test_they_see_old_and_new_before_the_swap(self) -> None:
        config = self.config()
        seen: list[tuple[int, int, int]] = []
        config.observe(lambda old, new: seen.append((old.box.size, new.box.size, config.current.box.size)))
        self.path.write_bytes(box(size=2))
        config.reload()
        self.assertEqual(seen, [(1, 2, 1)])

    def test_one_that_raises_brings_all_back(self) -> None:
        config = self.config()
        calls: list[tuple[str, int, int]] = []

        def watch(name: str, allowed: int) -> Callable[[House, House], None]:
            def observer(old: House, new: House) -> None:
                calls.append((name, old.box.size, new.box.size))
                if new.box.size > allowed:
                    raise RuntimeError("no room")

            return observer

        for name, allowed in (("first", 9), ("second", 1), ("third", 9)):
            config.observe(watch(name, allowed))
        self.path.write_bytes(box(size=2))
        error = self.refused(config.reload)
        self.assertIn("no room", error.message)
        self.assertEqual(calls, [("first", 1, 2), ("second", 1, 2), ("first", 2, 1), ("second", 2, 1), ("third", 2, 1)])
        self.assertEqual((config.current.box.size, config.version, self.versions), (1, 1, []))
        self.assertIs(config.last_error, error)

    def test_one_that_cannot_go_back_does_not_keep_the_others(self) -> None:
        config = self.config()
        back: list[int] = []
        config.observe(lambda old, new: 1 / 0)  # type: ignore[arg-type,return-value]
        config.observe(lambda old, new: back.append(new.box.size))
        self.path.write_bytes(box(size=2))
        self.refused(config.reload)
        self.assertEqual(back, [1])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_they_cannot_reload(self) -> None:
        config = self.config()
        config.observe(lambda _old, _new: config.reload() and None)
        self.path.write_bytes(box(size=2))
        self.assertIn("under way", self.refused(config.reload).message)
        self.assertEqual(config.current.box.size, 1)
        self.assertEqual(len(self.flushLoggedErrors(ConfigError)), 1)  # going back, it tried again


class Rollback(Case):
    def test_there_is_nothing_before_the_first(self) -> None:
        self.assertIn("no earlier", self.refused(self.config().rollback).message)

    def test_the_file_rolled_back_from_is_taken_only_after_it_changed(self) -> None:
        config = self.config()
        self.path.write_bytes(box(size=2))
        config.reload()
        self.assertEqual(config.rollback(), (("box.size", "2", "1"),))
        self.assertEqual((config.current.box.size, config.version, self.versions), (1, 3, [2, 3]))
        self.assertFalse(config.reload())
        self.assertEqual(config.current.box.size, 1)
        self.path.write_bytes(b"# better\n" + box(size=2))
        self.assertTrue(config.reload())
        self.assertEqual((config.current.box.size, config.version), (2, 4))

    def test_away_and_back_is_a_change_too(self) -> None:
        config = self.config()
        self.path.write_bytes(box(size=2))
        config.reload()
        for kind in ("garbage", "nothing", "a directory"):
            config.rollback()
            spoil(self.path, kind)
            self.refused(config.reload)
            replace(self.path, box(size=2))
            self.assertTrue(config.reload(), kind)

    def test_garbage_stays_refused_after_a_rollback(self) -> None:
        config = self.config()
        self.path.write_bytes(box(size=2))
        config.reload()
        self.path.write_bytes(b"garbage")
        self.refused(config.reload)
        config.rollback()
        self.refused(config.reload)

    def test_step_by_step_to_the_first(self) -> None:
        config = self.config()
        for size in (2, 3, 4):
            self.path.write_bytes(box(size=size))
            config.reload()
        sizes = [config.rollback()[0].new for _ in range(3)]
        self.assertEqual(sizes, ["3", "2", "1"])
        self.refused(config.rollback)
        self.assertFalse(config.reload())

    def test_an_observer_can_refuse_it(self) -> None:
        config = self.config()
        self.path.write_bytes(box(size=2))
        config.reload()
        config.observe(lambda old, new: (_ for _ in ()).throw(RuntimeError("no")) if new.box.size == 1 else None)
        self.refused(config.rollback)
        self.assertEqual((config.current.box.size, config.version), (2, 2))


class Watching(Case):
    """Once a change, and never a second time for the same."""

    def watched(self) -> tuple[Config[House], Clock]:
        clock, config = Clock(), self.config()
        config.watch(clock, 1.0)
        self.addCleanup(config.stop_watching)
        return config, clock

    def test_a_changed_file_is_taken_within_an_interval(self) -> None:
        config, clock = self.watched()
        clock.pump([1] * 5)
        replace(self.path, box(size=2))
        clock.advance(0.5)
        self.assertEqual(config.version, 1)
        clock.advance(0.5)
        self.assertEqual((config.current.box.size, config.version), (2, 2))
        clock.pump([1] * 5)
        self.assertEqual((config.version, len(self.events("config_updated"))), (2, 1))

    def test_trouble_is_told_once_a_change(self) -> None:
        config, clock = self.watched()
        for count, name in enumerate(BAD, 1):
            spoil(self.path, name)
            clock.pump([1] * 5)
            self.assertEqual(len(self.events("config_refused")), count, name)
            self.assertEqual(self.events("config_refused")[-1]["log_level"], LogLevel.error)
            self.assertEqual((config.current.box.size, config.version), (1, 1), name)
            # in between it is well again, else `nothing` after a dead link would be the same trouble
            replace(self.path, box(size=1))
            clock.pump([1] * 3)
            self.assertIsNone(config.last_error, name)

    def test_two_writes_within_one_tick_of_the_files_clock(self) -> None:
        """Same inode, size and time: the second look an interval later finds it."""
        config, clock = self.watched()
        clock.pump([1] * 3)
        self.path.write_bytes(box(size=2))
        os.utime(self.path, ns=(5, 5))
        clock.advance(1)
        self.assertEqual(config.current.box.size, 2)
        self.path.write_bytes(box(size=3))
        os.utime(self.path, ns=(5, 5))
        clock.advance(1)
        self.assertEqual(config.current.box.size, 3)

    def test_a_change_between_start_and_watch(self) -> None:
        clock, config = Clock(), self.config()
        self.path.write_bytes(box(size=2))
        config.watch(clock)
        self.addCleanup(config.stop_watching)
        clock.advance(1)
        self.assertEqual(config.current.box.size, 2)

    def test_an_observer_that_refuses_is_asked_once(self) -> None:
        config, clock = self.watched()
        asked: list[int] = []

        def refuse(_old: House, new: House) -> None:
            asked.append(new.box.size)
            raise RuntimeError("no")

        config.observe(refuse)
        replace(self.path, box(size=2))
        clock.pump([1] * 5)
        self.flushLoggedErrors(RuntimeError)
        self.assertEqual(asked, [2, 1])
        self.assertEqual(len(self.events("config_refused")), 1)

    def test_a_rollback_holds_while_the_file_is_watched(self) -> None:
        config, clock = self.watched()
        replace(self.path, box(size=2))
        clock.pump([1] * 3)
        config.rollback()
        clock.pump([1] * 5)
        self.path.touch()
        clock.pump([1] * 5)
        self.assertEqual((config.current.box.size, config.version), (1, 3))

    def test_a_broken_listener_does_not_end_the_watch(self) -> None:
        clock, calls = Clock(), []

        def listener() -> None:
            calls.append(1)
            raise RuntimeError("broken")

        watch = FileWatch(self.path, listener)
        watch.start(clock, 1.0)
        replace(self.path, box(size=2))
        clock.pump([1] * 4)
        watch.stop()
        self.assertEqual(len(calls), 2)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_stopped_it_looks_no_more(self) -> None:
        config, clock = self.watched()
        config.stop_watching()
        config.stop_watching()
        replace(self.path, box(size=2))
        clock.pump([1] * 5)
        self.assertEqual(config.version, 1)
        self.assertEqual(clock.getDelayedCalls(), [])
