"""Resident memory of a Micronode and of each of its tors, after a minute's use; beside a bare twistd.

RSS counts pages that processes share again and again; PSS shares them out, so its sum is what the machine really gives.
"""

from __future__ import annotations

import subprocess
import time

from bench import harness
from bench.harness import BIN, ROOT, Node


def main() -> None:
    """Measure and save."""
    with harness.scratch() as folder:
        with Node(folder / "home", '[gateway]\nbind = "127.0.0.1:0"\n[mailbox]\nlisten = "127.0.0.1:0"\n') as node:
            pids: dict[str, int] = node.facts["pids"]
            _use(node.facts["gateway_url"])
            mib = {name: harness.memory_mib(pid) for name, pid in pids.items()}
        mib["bare twistd web"] = _bare(["web", "--listen", f"tcp:{harness.free_port()}:interface=127.0.0.1"])
    total = {kind: round(sum(mib[n][kind] for n in pids), 1) for kind in ("rss_mib", "pss_mib")}
    ratio = round(mib["node"]["rss_mib"] / mib["bare twistd web"]["rss_mib"], 2)
    result = {"processes": mib, "total": total, "ratios": {"node, of a bare twistd web (rss)": ratio}}
    harness.save("memory", result)
    rows = [[name, m["rss_mib"], m["pss_mib"]] for name, m in mib.items()]
    rows.append(["node and its tors together", total["rss_mib"], total["pss_mib"]])
    harness.show("memory, MiB", ["process", "RSS", "PSS"], rows)


def _use(gateway: str) -> None:
    """Tiles by the thousand over loopback, and pings over the onion for a minute."""
    harness.wrk(f"{gateway}/tiles/3/4/2.png", 10, connections=8, cpu=None)
    end = time.monotonic() + 50
    while time.monotonic() < end:
        subprocess.run(["curl", "-s", f"{gateway}/hello.json"], capture_output=True, check=True)
        time.sleep(2)


def _bare(arguments: list[str]) -> dict[str, float]:
    command = ["setpriv", "--pdeathsig", "TERM", "--", str(BIN / "twistd"), "--pidfile=", "-n", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(3)
    try:
        return harness.memory_mib(process.pid)
    finally:
        process.terminate()
        process.wait(30)
