"""Progress for people: a live bar per stage on a terminal, a plain line per change elsewhere.

In: stages as (name, done, total, detail). Out: text on the stream; nothing is ever written to a log.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class StageConsole:
    """Shows stages as they move. Use as a context manager or call `close` before other output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, str] = {}
        self._started = time.monotonic()
        if stream.isatty():
            self._live = Progress(
                TextColumn("{task.fields[stage]:<10}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[detail]}"),
                console=Console(file=stream),
                auto_refresh=False,
            )
            self._live.start()

    def show(self, name: str, done: int, total: int, detail: str) -> None:
        """Stage `name` is at `done` of `total`."""
        if self._live is None:
            self._print(name, done, total, detail)
            return
        if name not in self._tasks:
            self._tasks[name] = self._live.add_task(name, total=total, stage=name, detail=detail)
        self._live.update(self._tasks[name], completed=done, total=total, detail=detail)
        self._live.refresh()

    def _print(self, name: str, done: int, total: int, detail: str) -> None:
        percent = 100 * done // total if total else 100
        line = f"{name:<10} {percent:3d} %  {detail}"
        if self._last.get(name) != line:
            self._last[name] = line
            self._stream.write(f"[{time.monotonic() - self._started:5.1f} s] {line}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the bars as they stand."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
