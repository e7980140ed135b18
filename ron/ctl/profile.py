"""`ronctl profile`: where the running node spends its CPU time, as a flame graph, and what lies on its heap."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from twisted.internet.task import LoopingCall

from ron.ctl.console import StageConsole
from ron.ctl.flamegraph import flame_graph, hottest
from ron.ctl.node import cap_option, connect, json_option, node_option, print_json, run
from ron.kernel.profiling import MAX_SECONDS, MIN_SECONDS, Heap, Profile
from ron.proto.errors import unavailable

SHOWN = 15
# beyond the profile itself, for counting the heap and for the answer to travel
_GRACE_S = 40.0
_TICK_S = 0.25


class Request(msgspec.Struct):
    """Body of `/v1/profile`."""

    seconds: float
    heap: bool


class Hot(msgspec.Struct, frozen=True):
    """A function and the CPU time spent in itself."""

    function: str
    cpu_us: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints. written: the file with the graph or the stacks, null without `-o`."""

    seconds: float
    samples: int
    cpu_us: int
    truncated: int
    hottest: list[Hot]
    written: str | None
    heap: Heap | None


@click.command("profile")
@click.option(
    "--seconds",
    type=click.FloatRange(MIN_SECONDS, MAX_SECONDS),
    default=10.0,
    show_default=True,
    help="How long to look.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the flame graph (.svg) or the folded stacks (any other name).",
)
@click.option("--heap", is_flag=True, help="Count objects and trace allocations too; slows the node meanwhile.")
@node_option
@cap_option
@json_option
def profile(seconds: float, out: Path | None, heap: bool, node: str | None, cap: str | None, as_json: bool) -> None:
    """Profile the running node for a while: CPU time by function, and with --heap what lies in memory.

    Needs a capability with scope node:profile. Off under amnesia.

    \b
    Examples:
      ronctl profile --seconds 10 -o out.svg
      ronctl profile --seconds 5 --heap
      ronctl profile --json | jq .hottest[0]
    """
    if math.isnan(seconds):
        raise click.BadParameter("not a number", param_hint="--seconds")
    if out is not None and not out.absolute().parent.is_dir():
        raise unavailable(f"cannot write {out}: there is no such folder", hint="name another file with -o")
    found = run(lambda reactor: _profile(reactor, seconds, heap, node, cap, quiet=as_json))
    stacks = {stack.frames: stack.cpu_us for stack in found.stacks}
    if out is not None:
        _write(out, _rendered(out, stacks, found))
    if as_json:
        print_json(_summary(found, stacks, out))
    else:
        click.echo(_text(found, stacks, out))


async def _profile(
    reactor: Any, seconds: float, heap: bool, node: str | None, cap: str | None, *, quiet: bool
) -> Profile:
    # one try: a second one would profile again
    api = connect(reactor, node, cap, deadline_s=seconds + _GRACE_S, tries=1)
    with StageConsole(sys.stderr) as console:
        ticking = LoopingCall(_show, console, reactor, reactor.seconds(), seconds)
        ticking.clock = reactor
        if not quiet:
            ticking.start(_TICK_S)
        try:
            found = await api.call("POST", "/v1/profile", Profile, Request(seconds, heap))
        finally:
            if ticking.running:
                ticking.stop()
        if not quiet:
            console.show("profile", 100, 100, "done")
        return found


def _show(console: StageConsole, reactor: Any, started_s: float, seconds: float) -> None:
    """A bar that moves on a terminal; elsewhere a line at each quarter."""
    part = min(1.0, (reactor.seconds() - started_s) / seconds)
    step = 1 if sys.stderr.isatty() else 25
    console.show("profile", int(99 * part) // step * step, 100, "waiting for the answer" if part >= 1.0 else "sampling")


def _rendered(out: Path, stacks: dict[str, int], found: Profile) -> str:
    if out.suffix.lower() != ".svg":
        return "".join(f"{frames} {cpu_us}\n" for frames, cpu_us in stacks.items())
    return flame_graph(stacks, title="CPU time by stack", subtitle=_headline(found))


def _write(out: Path, text: str) -> None:
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise unavailable(f"cannot write {out}: {error.strerror}", hint="name another file with -o") from None


def _headline(found: Profile) -> str:
    cpu_s = found.cpu_us / 1e6
    load = 100 * cpu_s / found.seconds
    cut = f", {found.truncated} samples not told apart" if found.truncated else ""
    return f"{found.seconds:g} s, {cpu_s:.2f} s on the CPU ({load:.0f} % of a core), {found.samples} samples{cut}"


def _summary(found: Profile, stacks: dict[str, int], out: Path | None) -> Summary:
    return Summary(
        seconds=found.seconds,
        samples=found.samples,
        cpu_us=found.cpu_us,
        truncated=found.truncated,
        hottest=[Hot(name, cpu_us) for name, cpu_us in hottest(stacks)[:SHOWN]],
        written=str(out) if out is not None else None,
        heap=found.heap,
    )


def _text(found: Profile, stacks: dict[str, int], out: Path | None) -> str:
    lines = [_headline(found)]
    total = found.cpu_us or 1
    rows = [(f"{cpu_us / 1000:.1f}", f"{100 * cpu_us / total:.1f}", name) for name, cpu_us in hottest(stacks)[:SHOWN]]
    lines += _table(("ms", "%", "function"), rows)
    if found.heap is not None:
        lines += ["", *_heap_lines(found.heap)]
    if out is not None:
        lines.append(f"written to {out}")
    return "\n".join(lines)


def _heap_lines(heap: Heap) -> list[str]:
    types = [(f"{t.count}", _size(t.bytes), t.type) for t in heap.types[:SHOWN]]
    sites = [(f"{s.count}", _size(s.bytes), s.where) for s in heap.sites[:SHOWN]]
    return [
        f"memory: {_size(heap.rss_bytes)} resident, {heap.objects} objects ({heap.frozen} more since start-up)",
        *_table(("objects", "bytes", "type"), types),
        "",
        "allocated meanwhile and still there:",
        *_table(("blocks", "bytes", "line"), sites),
    ]


def _table(head: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> list[str]:
    """Two columns of numbers to the right, one of names."""
    first, second = (max(len(row[i]) for row in [head, *rows]) for i in (0, 1))
    return [f"  {a:>{first}}  {b:>{second}}  {c}" for a, b, c in [head, *rows]]


def _size(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
