"""The config a process runs on: one immutable snapshot, swapped whole or not at all.

In: layers, observers. Out: `current`; after a reload that failed anywhere, the old snapshot and the reason.
Everything happens in one synchronous step on the reactor's thread, so nobody sees half a change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.logger import Logger

from ron.kernel.config.changes import Changes, differences
from ron.kernel.config.errors import ConfigError
from ron.kernel.config.layers import Inputs, Layers
from ron.kernel.config.watching import FileWatch

T = TypeVar("T")
V = TypeVar("V")
Observer = Callable[[T, T], None]
HISTORY = 8
_log = Logger(namespace="ron.config")


class Config(Generic[T]):
    """Holder of the snapshot. Raises `ConfigError` when the layers give none at the start.

    announce: called with the new version after every change (the bus's `ConfigUpdated{version}`).
    """

    def __init__(self, layers: Layers[T], *, announce: Callable[[int], None] = lambda _version: None) -> None:
        self._layers = layers
        self._announce: list[Callable[[int], None]] = [announce]
        self._complain: list[Callable[[ConfigError], None]] = []
        self._observers: list[Observer[T]] = []
        self._earlier: deque[T] = deque(maxlen=HISTORY)
        self._version = 1
        self._busy = False
        # what the last attempt was made with: its inputs, or why they could not be read
        self._seen: Inputs | str
        # what `current` was made from; None after a rollback
        self._applied: Inputs | None
        self._seen = self._applied = inputs = layers.inputs()
        self._current = layers.judge(inputs).value
        # inputs that were rolled back from; not taken again until they change
        self._rejected: Inputs | None = None
        self._watch: FileWatch | None = None
        self.last_error: ConfigError | None = None

    @property
    def current(self) -> T:
        """The snapshot in force."""
        return self._current

    @property
    def version(self) -> int:
        """1 at first; grows by one with every change, also with a rollback."""
        return self._version

    def observe(self, fn: Observer[T]) -> None:
        """Call `fn(old, new)` before every swap. If it raises, the swap is off and `fn(new, old)` is called."""
        self._observers.append(fn)

    def on_change(self, fn: Callable[[int], None]) -> None:
        """Call `fn(version)` after every swap, like `announce`."""
        self._announce.append(fn)

    def on_refused(self, fn: Callable[[ConfigError], None]) -> None:
        """Call `fn(error)` when a change was refused and the old snapshot stays; `last_error` has the error too."""
        self._complain.append(fn)

    def reload(self) -> Changes:
        """Take what the layers say now: whole, or not at all. Raises `ConfigError`; then the old snapshot stays."""
        return self._attempt(again=True)

    def reload_if_changed(self) -> Changes:
        """Like `reload`, but inputs that were tried already are left alone, good or bad."""
        return self._attempt(again=False)

    def rollback(self) -> Changes:
        """Back to the snapshot before. Raises `ConfigError` when there is none or an observer refuses.

        The layers as they are now count as rejected: a reload takes them again only after they changed.
        """
        self._not_from_an_observer()
        if not self._earlier:
            raise ConfigError("there is no earlier config to go back to", hint="correct the file and reload")
        try:
            changes = self._swap(self._earlier[-1])
        except ConfigError as error:
            self._refused(error)
            raise
        self._earlier.pop()
        if self._applied == self._seen:
            self._rejected = self._applied
        self._applied = None
        self._tell(changes, "rolled back")
        return changes

    def adopt(self, value: T) -> Changes:
        """Take the snapshot that another process of ours has judged. Raises `ConfigError` when an observer refuses."""
        self._not_from_an_observer()
        earlier = self._current
        try:
            changes = self._swap(value)
        except ConfigError as error:
            self._refused(error)
            raise
        if changes:
            self._earlier.append(earlier)
            self._tell(changes, "adopted")
        return changes

    def watch(self, reactor: Any, interval_s: float = 1.0) -> None:
        """Look at the file every `interval_s` seconds and reload when it changed; trouble is logged once a change."""
        self.stop_watching()
        if self._layers.path is not None:
            self._watch = FileWatch(self._layers.path, self._changed_on_disk)
            self._watch.start(reactor, interval_s)

    def stop_watching(self) -> None:
        """Stop looking at the file."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _changed_on_disk(self) -> None:
        try:
            self.reload_if_changed()
        except ConfigError:
            return  # logged, and kept in `last_error`

    def _attempt(self, *, again: bool) -> Changes:
        self._not_from_an_observer()
        try:
            inputs = self._layers.inputs()
        except ConfigError as error:
            if again or self._seen != str(error):
                self._seen, self._rejected = str(error), None
                self._refused(error)
            raise
        if inputs == self._seen and not again:
            return Changes()
        self._seen = inputs
        if inputs in (self._applied, self._rejected):
            self.last_error = None
            return Changes()
        self._rejected = None
        try:
            return self._take(inputs)
        except ConfigError as error:
            self._refused(error)
            raise

    def _take(self, inputs: Inputs) -> Changes:
        resolved = self._layers.judge(inputs)
        if self._layers.path is not None and not resolved.from_file:
            # an editor or a full disk leaves such files; all defaults is hardly what was meant
            raise ConfigError(f"{self._layers.path} is empty", hint="write the config, or restart to run on defaults")
        earlier = self._current
        changes = self._swap(resolved.value)
        self._applied, self.last_error = inputs, None
        if changes:
            self._earlier.append(earlier)
            self._tell(changes, "updated")
        return changes

    def _not_from_an_observer(self) -> None:
        if self._busy:
            raise ConfigError("a change of the config is under way", hint="do not reload from an observer")

    def _swap(self, new: T) -> Changes:
        old = self._current
        changes = differences(old, new)
        if not changes:
            return changes
        self._busy = True
        try:
            self._run(old, new)
        finally:
            self._busy = False
        self._current = new
        self._version += 1
        return changes

    def _run(self, old: T, new: T) -> None:
        for observer in self._observers:
            try:
                observer(old, new)
            except Exception as error:
                self._undo(old, new)
                if isinstance(error, ConfigError):
                    raise
                what = str(error) or type(error).__name__
                raise ConfigError(f"the new config could not be applied: {what}", hint="the old one stays") from error

    def _undo(self, old: T, new: T) -> None:
        for observer in self._observers:
            try:
                observer(new, old)
            except Exception:  # noqa: BLE001 - the others must still be brought back
                _log.failure("an observer could not go back to the old config", event="config_undo_failed")

    def _refused(self, error: ConfigError) -> None:
        self.last_error = error
        _log.error("the config stays as it is: {reason}", event="config_refused", reason=error.one_line())
        for complain in self._complain:
            self._call(complain, error)

    def _tell(self, changes: Changes, how: str) -> None:
        self.last_error = None
        _log.info(
            "config {how}, version {version}: {changes}",
            event="config_updated",
            how=how,
            version=self._version,
            changes=str(changes),
            restart_needed=", ".join(changes.restart_needed),
        )
        for announce in self._announce:
            self._call(announce, self._version)

    def _call(self, listener: Callable[[V], None], value: V) -> None:
        try:
            listener(value)
        except Exception:  # noqa: BLE001 - what happened has happened; whoever listens must not undo it
            _log.failure("a listener of the config failed", event="config_listener_failed")
