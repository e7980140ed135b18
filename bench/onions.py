"""The onion runtime as its callers see it: a real `ron-oniond`, and plain stem on another tor of the same network.

One by one, ten and a hundred at once, ours and stem's in turn: from the call to the first directory that has the
descriptor (told by the same kind of listener on either tor), to ready, to the first GET through a third tor, which
tells too whether any directory had to say "not found". Then STATUS and CREATE with a hundred onions, and a Macronode
whose onion runtime is killed while it has a hundred.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import harness
from bench.harness import memory_mib
from bench.onionsides import PATIENCE_S, Ours, Plain, Watch
from bench.unixload import closed_loop, figures, request
from tests.live.onionwork import OnionWork, local_app
from tests.live.support import MACRONODE, Daemon, http, new_node

ROUNDS = int(os.environ.get("ONIONS_ROUNDS", "50"))
# how many at once: how often
BATCHES = {10: 3, 100: 3}
MANY = max(BATCHES)
STATUS_CALLS = {"one": 4000, "list": 1500}
CLIENTS = (1, 8)
CREATES = 50
KILLS = 3
CARELESS_S = 30.0
TARGETS = {
    "bring-up p95, ms": 5000.0,
    "overhead over stem, %": 10.0,
    "STATUS p95, ms": 5.0,
    "not found after ready": 0.0,
}
_LIMITS = "[limits]\nrequests_per_second_per_peer = 1000000\n"
_ONION = "max_per_app = 1000\n"


def main() -> None:
    """Measure and save."""
    local = local_app()
    result: dict[str, Any] = {
        "setup": {"rounds": ROUNDS, "batches": BATCHES, "status_calls": STATUS_CALLS, "config": _ONION + _LIMITS}
    }
    # neighbours matter: a shared machine's figures are no worse than they look, but may be worse than they need be
    result["load_before"] = [round(one, 2) for one in os.getloadavg()]
    result |= _runtime(local) | {"restart": _restarts(local)}
    result["load_after"] = [round(one, 2) for one in os.getloadavg()]
    result["targets"] = _targets(result)
    harness.save("onions", result)
    _show(result)


# The runs


@contextlib.contextmanager
def _sides(local: str) -> Iterator[tuple[Ours, Plain]]:
    config = f'[admin]\nbind = "127.0.0.1:0"\n[onion]\n{_ONION}{_LIMITS}'
    work = OnionWork(Daemon("ron-oniond", config, "onions.json"), local)
    try:
        work.daemon.start()
        with harness.scratch() as folder:
            plain = Plain(work.tornet / "onion", folder / "stem", local)
            try:
                yield Ours(work), plain
            finally:
                plain.end()
    finally:
        work.end()


def _runtime(local: str) -> dict[str, Any]:
    with _sides(local) as (ours, plain):
        client = Watch(ours.work.tors()["client"]["control_port"])
        rss = {side.name: {"0": memory_mib(side.pid)["rss_mib"]} for side in (ours, plain)}
        result: dict[str, Any] = {"one_by_one": _one_by_one(ours, plain, client, rss)}
        result["at_once"] = {str(count): _batches(ours, plain, count, rss) for count in BATCHES}
        result["tor_rss_mib"] = rss
        result["oniond_rss_mib"] = memory_mib(ours.work.daemon.pid)["rss_mib"]
        result["status"] = _status(ours)
        result["create"] = _create_rate(ours)
        # last: its tor and the relays are busy with it for a while
        result["stem_without_a_gate"] = _careless(plain)
        client.control.close()
        ours.watch.control.close()
    return result


def _one_by_one(ours: Ours, plain: Plain, client: Watch, rss: dict[str, dict[str, float]]) -> dict[str, Any]:
    times: dict[str, list[float]] = {}
    failed: dict[str, int] = {ours.name: 0, plain.name: 0}
    seen: dict[str, list[str]] = {ours.name: [], plain.name: []}

    def note(what: str, since_s: float, at_s: float | None = None) -> None:
        times.setdefault(what, []).append(((at_s or time.monotonic()) - since_s) * 1000)

    for number in range(ROUNDS):
        for side in (ours, plain) if number % 2 else (plain, ours):
            time.sleep(random.random())  # tor does its work once a second: not always at the same moment
            if isinstance(side, Ours):
                onions, began = side.create(1, wait_s=60)
                view = side.work.show(side.ids[0])
                if not view["ready"]:
                    raise RuntimeError(f"not ready within a minute: {view}")
                times.setdefault(f"{side.name}: bringup_ms", []).append(view["bringup_ms"])
                note(f"{side.name}: call to ready", began[0])
            else:
                onions, began = side.create(1)
            first_s = side.watch.uploaded(onions)[0]
            if first_s is None:
                raise RuntimeError(f"no directory has the descriptor of {side.name}'s onion")
            note(f"{side.name}: call to first upload", began[0], first_s)
            asked_s = time.monotonic()
            failed[side.name] += not ours.work.reachable(f"{onions[0]}.onion")
            note(f"{side.name}: first GET", asked_s)
            seen[side.name] += onions
            rss[side.name].setdefault("1", memory_mib(side.pid)["rss_mib"])
            side.remove()
    return {
        "figures_ms": {name: harness.spread(values) for name, values in sorted(times.items())},
        "first_get_failed": failed,
        "not_found": {name: sum(client.not_found[onion] for onion in onions) for name, onions in seen.items()},
        "overhead": _overhead(
            times[f"{ours.name}: call to first upload"], times[f"{plain.name}: call to first upload"]
        ),
        "times_ms": {name: [round(value, 1) for value in values] for name, values in times.items()},
    }


def _overhead(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Of the time from the call to the first upload, in percent: by the medians and by the means."""
    p50 = harness.percentile(ours, 50) / harness.percentile(theirs, 50)
    mean = statistics.fmean(ours) / statistics.fmean(theirs)
    return {"p50_percent": round((p50 - 1) * 100, 1), "mean_percent": round((mean - 1) * 100, 1)}


def _batches(ours: Ours, plain: Plain, count: int, rss: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The last one of ours stays when these are the most there are."""
    times: dict[str, list[float]] = {}
    late = {ours.name: 0, plain.name: 0}
    for number in range(BATCHES[count]):
        for side in (plain, ours) if (BATCHES[count] - number) % 2 else (ours, plain):
            onions, began = side.create(count)
            uploaded = side.watch.uploaded(onions)
            took = [(at - since) * 1000 for at, since in zip(uploaded, began, strict=True) if at is not None]
            late[side.name] += count - len(took)
            times.setdefault(f"{side.name}: call to first upload", []).extend(took)
            last_s = max(at for at in uploaded if at is not None)
            times.setdefault(f"{side.name}: all uploaded", []).append((last_s - began[0]) * 1000)
            if isinstance(side, Ours):
                shown = _all_ready(side.work, count)
                times.setdefault(f"{side.name}: all ready", []).append((time.monotonic() - began[0]) * 1000)
                bringups = [view["bringup_ms"] for view in shown if view["bringup_ms"] is not None]
                times.setdefault(f"{side.name}: bringup_ms", []).extend(bringups)
            time.sleep(3)
            rss[side.name][str(count)] = memory_mib(side.pid)["rss_mib"]
            if not (side is ours and count == MANY and number == BATCHES[count] - 1):
                side.remove()
    fresh = _overhead(times[f"{ours.name}: bringup_ms"], times[f"{plain.name}: call to first upload"])
    whole = _overhead(times[f"{ours.name}: all uploaded"], times[f"{plain.name}: all uploaded"])
    found = {"figures_ms": {n: harness.spread(v) for n, v in sorted(times.items())}, "overhead": fresh, "whole": whole}
    return {**found, "never_uploaded": late}


def _careless(plain: Plain) -> dict[str, float]:
    """What becomes of the most onions when a program with stem adds them all at once, as nothing keeps it from."""
    onions, _began = plain.create(MANY, at_once=MANY)
    time.sleep(CARELESS_S)
    uploaded = sum(onion in plain.watch.first for onion in onions)
    plain.remove()
    return {"onions": MANY, "uploaded": uploaded, "after_s": CARELESS_S}


def _all_ready(work: OnionWork, count: int) -> list[dict[str, Any]]:
    """As they are once so many are ready, or when patience is over."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        shown = list(work.listed().values())
        if sum(view["ready"] for view in shown) >= count or time.monotonic() > deadline:
            return shown
        time.sleep(0.1)


def _status(ours: Ours) -> dict[str, Any]:
    cap, one = ours.work.daemon.admin_cap(), ours.ids[MANY // 2]
    paths = {"one": f"/v1/onions/{one}", "list": "/v1/onions"}
    closed_loop(ours.work.socket, [request("GET", path, cap) for path in paths.values()] * 20)
    return {
        f"{what}, {clients} client{'s' * (clients > 1)}": figures(
            closed_loop(ours.work.socket, [request("GET", paths[what], cap)] * STATUS_CALLS[what], clients=clients)
        )
        for what in paths
        for clients in CLIENTS
    }


def _create_rate(ours: Ours) -> dict[str, Any]:
    """Accepted, and on the disk when it is answered; tor publishes them meanwhile."""
    found = {}
    for clients in CLIENTS:
        found[f"{clients} client{'s' * (clients > 1)}"] = figures(
            closed_loop(ours.work.socket, ours.creates(CREATES), clients=clients)
        )
    return found


# The kill


def _restarts(local: str) -> dict[str, Any]:
    node = new_node(f"{MACRONODE}{_LIMITS}", onion=_ONION)
    work = OnionWork(node, local)
    try:
        node.start()
        client = next(name for name in work.tors() if name not in ("onion",) and not name.startswith(("auth", "relay")))
        watch = Watch(work.tors()[client]["control_port"])
        ours = Ours(work)
        onions, _began = ours.create(MANY)
        failed, found = _visit_when_ready(work, client)
        ready = sum(view["ready"] for view in work.listed().values())
        kills = [_kill(work, ready) for _ in range(KILLS)]
        failed_after = sum(not work.reachable(f"{onion}.onion", client) for onion in onions[:10])
        for one in (watch, ours.watch):
            one.control.close()
    finally:
        work.end()
    return {
        "onions": MANY,
        "ready_before": ready,
        "api_answers_ms": harness.spread([kill["api_ms"] for kill in kills]),
        "all_ready_ms": harness.spread([kill["ready_ms"] for kill in kills]),
        "published_anew": sum(kill["anew"] for kill in kills),
        "get_failed_after": failed_after,
        "while_coming_up": {"visited": found, "first_get_failed": failed, "not_found": sum(watch.not_found.values())},
    }


def _visit_when_ready(work: OnionWork, client: str) -> tuple[int, int]:
    """Each onion as soon as STATUS says that it is ready, while others still come up: failures, and visits."""
    visited: dict[str, Any] = {}
    with ThreadPoolExecutor(8) as visitors:
        deadline = time.monotonic() + PATIENCE_S
        while len(visited) < MANY and time.monotonic() < deadline:
            for view in work.listed().values():
                if view["ready"] and view["app"].startswith("app-") and view["onion"] not in visited:
                    visited[view["onion"]] = visitors.submit(work.reachable, view["onion"], client)
            time.sleep(0.1)
    return sum(not one.result() for one in visited.values()), len(visited)


def _kill(work: OnionWork, ready: int) -> dict[str, Any]:
    """Until it answers, and until as many are ready as before."""
    time.sleep(5)  # a spare process is started two seconds after the last was taken
    services = http("GET", f"{work.daemon.facts()['gateway_url']}/v1/services", cap=work.daemon.admin_cap()).json()
    pid = next(unit["pid"] for unit in services if unit["name"] == "oniond")
    began_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        time.sleep(0.001)
    while not work.answers():
        if time.monotonic() - began_s > 60:
            raise RuntimeError("oniond did not come back")
        time.sleep(0.005)
    api_ms = (time.monotonic() - began_s) * 1000
    shown = _all_ready(work, ready)
    ready_ms = (time.monotonic() - began_s) * 1000
    return {"api_ms": api_ms, "ready_ms": ready_ms, "anew": sum(view["bringup_ms"] is not None for view in shown)}


# What comes of it


def _targets(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    single, coming = result["one_by_one"], result["restart"]["while_coming_up"]
    ours = Ours.name
    measured = {
        "bring-up p95, ms": single["figures_ms"][f"{ours}: call to ready"]["p95"],
        "overhead over stem, %": single["overhead"]["p50_percent"],
        "not found after ready": single["not_found"][ours] + single["first_get_failed"][ours],
    }
    found = {name: {"target": TARGETS[name], "measured": value} for name, value in measured.items()}
    for count, batch in result["at_once"].items():
        for what, part in (("one, p50", "overhead"), ("all of them", "whole")):
            found[f"overhead over stem, %, {count} at once, {what}"] = {
                "target": TARGETS["overhead over stem, %"],
                "measured": batch[part]["p50_percent"],
            }
        # from ADD_ONION; with what waits for its turn it is "call to first upload"
        found[f"bring-up p95, ms, {count} at once"] = {
            "target": TARGETS["bring-up p95, ms"],
            "measured": batch["figures_ms"][f"{ours}: bringup_ms"]["p95"],
        }
    found["not found after ready, 100 coming up"] = {
        "target": TARGETS["not found after ready"],
        "measured": coming["not_found"] + coming["first_get_failed"],
    }
    for name, figure in result["status"].items():
        found[f"STATUS p95, ms: {name}"] = {"target": TARGETS["STATUS p95, ms"], "measured": figure["p95"]}
    return {name: {**one, "met": one["measured"] <= one["target"]} for name, one in found.items()}


def _show(result: dict[str, Any]) -> None:
    blocks = {"one by one": result["one_by_one"], **{f"{n} at once": one for n, one in result["at_once"].items()}}
    rows = [
        [f"{title}, {name}", *(figure[k] for k in ("n", "p50", "p95", "max"))]
        for title, block in blocks.items()
        for name, figure in block["figures_ms"].items()
    ]
    restart = result["restart"]
    rows += [
        [f"killed, {k}", *(restart[k][i] for i in ("n", "p50", "p95", "max"))] for k in restart if k.endswith("_ms")
    ]
    harness.show("onions, ms", ["", "n", "p50", "p95", "max"], rows)
    calls = {**result["status"], **{f"CREATE, {n}": one for n, one in result["create"].items()}}
    rows = [[name, *(f[k] for k in ("n", "p50", "p95", "max", "per_s"))] for name, f in calls.items()]
    harness.show(f"control API with {MANY} onions, ms", ["", "n", "p50", "p95", "max", "a second"], rows)
    kinds = list(result["tor_rss_mib"][Ours.name])
    rows = [[name, *(of[kind] for kind in kinds)] for name, of in result["tor_rss_mib"].items()]
    harness.show("RSS of the tor with so many onions, MiB", ["", *kinds], rows)
    rows = [[name, t["target"], t["measured"], "yes" if t["met"] else "NO"] for name, t in result["targets"].items()]
    harness.show("targets", ["", "target", "measured", "met"], rows)
