"""Ten minutes of load on a Macronode: what each process holds after one minute and after ten.

Tiles by wrk, messages sent, received and acknowledged by eight clients. Beside it nginx under the same tile load for
the same time. SOAK_S (seconds) shortens it.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import threading
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from bench import harness
from bench.harness import Node, free_port, memory_mib, scratch
from bench.tiles import TILE, nginx

SECONDS = int(os.environ.get("SOAK_S", "600"))
FIRST_S = min(60, SECONDS // 4)
CLIENTS = 8
CONFIG = (
    '[node]\nprofile = "macronode"\n[gateway]\nbind = "127.0.0.1:0"\n[mailbox]\nlisten = "127.0.0.1:0"\n'
    "[limits]\nrequests_per_second_per_peer = 1000000\n"
)


def main() -> None:
    """Measure, and save."""
    tile = "{}/{}/{}.png".format(*TILE)
    with scratch() as folder, Node(folder, CONFIG) as node:
        harness.build_pack(folder)
        port = free_port()
        names = ("gateway", "edge", "mailbox", "node")
        pids = {name: node.facts["pids"][name] for name in names}
        with nginx(folder, tile, port, cpu="0,1") as path:
            over, cycles = threading.Event(), [0]
            clients = [threading.Thread(target=_client, args=(node, over, cycles)) for _ in range(CLIENTS)]
            urls = [f"{node.facts['gateway_url']}/tiles/{tile}", f"http://127.0.0.1:{port}{path}"]
            loads = [
                subprocess.Popen(
                    ["wrk", "-t1", "-c4", f"-d{SECONDS}s", url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                for url in urls
            ]
            for client in clients:
                client.start()
            pids["nginx"] = _nginx_worker(port)
            time.sleep(FIRST_S)
            first = {name: memory_mib(pid)["rss_mib"] for name, pid in pids.items()}
            time.sleep(SECONDS - FIRST_S - 2)
            last = {name: memory_mib(pid)["rss_mib"] for name, pid in pids.items()}
            over.set()
            for client in clients:
                client.join()
            for load in loads:
                load.wait()
    growth = {name: round(last[name] / first[name], 3) for name in pids}
    setup = {"seconds": SECONDS, "first_s": FIRST_S, "mailbox_cycles": cycles[0], "clients": CLIENTS}
    harness.save("soak", {"setup": setup, "first_mib": first, "last_mib": last, "ratios": growth})
    rows = [[name, first[name], last[name], growth[name]] for name in pids]
    harness.show(
        f"memory under load, MiB ({SECONDS} s)", ["process", f"after {FIRST_S} s", "at the end", "ratio"], rows
    )


def _client(node: Node, over: threading.Event, cycles: list[int]) -> None:
    parts = urlsplit(node.facts["mailbox_url"])
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    topic = f"soak/{uuid.uuid4()}"
    payload = base64.b64encode(os.urandom(256)).decode()

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection.request(
            "POST",
            path,
            json.dumps(body),
            {"Authorization": f"Bearer {node.cap}", "Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"{path}: {found}")
        return found

    while not over.is_set():
        post("/v1/send", {"topic": topic, "payload_b64": payload})
        for message in post("/v1/recv", {"topic": topic, "max": 8})["messages"]:
            post(f"/v1/ack/{message['msg_id']}", {"receipt": message["receipt"]})
        cycles[0] += 1
    connection.close()


def _nginx_worker(port: int) -> int:
    """The pid of what listens on `port`: nginx's worker shares the master's socket."""
    found = subprocess.run(["ss", "-Hltnp", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return max(int(part.split("=")[1].split(",")[0]) for part in found.split("pid")[1:])
