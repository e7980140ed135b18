"""Resident memory of a Micronode and of each of its tors, after a minute's use; beside a bare twistd.

RSS counts pages that processes share again and again; PSS shares them out, so its sum is what the machine really gives.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from bench import harness
from bench.harness import BIN, ROOT


def main() -> None:
    """Measure and save."""
    with harness.scratch() as folder:
        home = folder / "home"
        (home / "packs").mkdir(parents=True)
        harness.build_pack(home / "packs")
        config = folder / "node.toml"
        config.write_text('[gateway]\nbind = "127.0.0.1:0"\n[mailbox]\nlisten = "127.0.0.1:0"\n')
        node = _start(["ron-node", "--config", str(config)], home)
        try:
            _wait(home / "node.json")
            facts = json.loads((home / "node.json").read_text())
            _use(facts, home)
            mib = {name: harness.memory_mib(pid) for name, pid in facts["pids"].items()}
        finally:
            _stop(node)
        mib["bare twistd web"] = _bare(["web", "--listen", f"tcp:{harness.free_port()}:interface=127.0.0.1"], folder)
    total = {kind: round(sum(mib[n][kind] for n in facts["pids"]), 1) for kind in ("rss_mib", "pss_mib")}
    ratio = round(mib["node"]["rss_mib"] / mib["bare twistd web"]["rss_mib"], 2)
    result = {"processes": mib, "total": total, "ratios": {"node, of a bare twistd web (rss)": ratio}}
    harness.save("memory", result)
    rows = [[name, m["rss_mib"], m["pss_mib"]] for name, m in mib.items()]
    rows.append(["node and its tors together", total["rss_mib"], total["pss_mib"]])
    harness.show("memory, MiB", ["process", "RSS", "PSS"], rows)


def _start(arguments: list[str], home: Path) -> subprocess.Popen[bytes]:
    command = ["setpriv", "--pdeathsig", "TERM", "--", str(BIN / "twistd"), "--pidfile=", "-n", *arguments]
    environment = {**os.environ, "RON_HOME": str(home)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(30)


def _wait(path: Path) -> None:
    deadline = time.monotonic() + 150
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path.name} did not appear")
        time.sleep(0.1)


def _use(facts: dict[str, object], home: Path) -> None:
    """Tiles by the thousand over loopback, and pings over the onion for a minute."""
    port = str(facts["gateway_url"]).rpartition(":")[2]
    url = f"http://127.0.0.1:{port}/tiles/3/4/2.png"
    subprocess.run(["wrk", "-t1", "-c8", "-d10s", url], capture_output=True, check=True)
    end = time.monotonic() + 50
    while time.monotonic() < end:
        subprocess.run(["curl", "-s", f"http://127.0.0.1:{port}/hello.json"], capture_output=True, check=True)
        time.sleep(2)


def _bare(arguments: list[str], folder: Path) -> dict[str, float]:
    process = _start(arguments, folder)
    time.sleep(3)
    try:
        return harness.memory_mib(process.pid)
    finally:
        _stop(process)
