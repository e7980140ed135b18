"""What may befall the onion runtime and its tors: readiness tells, the onions come back where they were, nothing leaks.

Needs tor; root for the full disk and for cutting connections (ss -K).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from http.client import HTTPException
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.onionwork import OnionWork, ask, end_shared, frozen, local_app, once, oniond, op_id
from tests.live.support import MACRONODE, NO_TOR, alive, http, new_node, until

# A burn and its end within seconds; at other times a machine that is busy with tests is no incident.
SLO = "[slo]\nshort_window_s = 2\nlong_window_s = 2\nhold_s = 2\nlatency_ms = 10000\n"
LIMITS = "max_onions = 40\nmax_per_app = 4"
NOT_ROOT = None if os.getuid() == 0 else "only root may mount a small disk and cut other programs' connections"


def on_a_small_disk() -> OnionWork:
    """A running daemon whose store is on a disk of 1 MiB."""
    home = Path(tempfile.mkdtemp(prefix="ron-live-"))
    store = home / "onions"
    store.mkdir(mode=0o700)
    if NOT_ROOT is None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(store)], check=True)
    work = oniond(SLO, LIMITS, home)
    work.at_end("umount", "-l", str(store))
    work.at_end("rm", "-rf", str(home))
    work.daemon.start()
    work.create("chat")
    return work


class Faults(SynchronousTestCase):
    """One daemon for all: each test leaves it well."""

    skip = NO_TOR

    def setUp(self) -> None:
        self.work = once("faults", on_a_small_disk)
        self.onions = [view["onion"] for view in self.work.listed().values() if view["app"] in ("wiki", "chat")]
        self.assertEqual(len(self.onions), 2)
        until(self.work.is_well, 60, "all being well before")

    def tells(self, key: str, *parts: str, within_s: float = 20) -> None:
        """Readiness says one of `parts` of `key` before long."""

        def told() -> bool:
            reason = self.work.reason(key)
            return any(part in reason for part in parts)

        until(told, within_s, f"readiness telling of {key}")

    def creating(self, app: str) -> tuple[threading.Thread, list[dict[str, Any]]]:
        """A CREATE under way, and where its answer will be."""
        answers: list[dict[str, Any]] = []
        body = self.work.creation(app, wait_s=60)
        thread = threading.Thread(target=lambda: answers.append(self.work.call("POST", "/v1/onions", body).json()))
        thread.start()
        time.sleep(1)
        return thread, answers

    def delete(self, *ids: str) -> None:
        gone = [self.work.call("DELETE", f"/v1/onions/{one}", {"op_id": op_id()}).status for one in ids]
        self.assertEqual(gone, [200] * len(ids))

    def control_connections(self) -> list[str]:
        """Our ends of the daemon's connections to the onion tor's control port, the oldest first."""
        port = self.work.tors()["onion"]["control_port"]
        shown = subprocess.run(["ss", "-tnHe", "dst", f"127.0.0.1:{port}"], capture_output=True, text=True, check=True)
        found = re.findall(r"127\.0\.0\.1:(\d+) +127\.0\.0\.1:\d+ .*ino:(\d+)", shown.stdout)
        return [ours for ours, _inode in sorted(found, key=lambda one: int(one[1]))]

    def cut(self, *ours: str) -> None:
        """End these connections as a broken network would."""
        for port in ours:
            subprocess.run(["ss", "-K", "-tn", "sport", "=", f":{port}"], capture_output=True, check=True)


class TorFaults(Faults):
    """What happens to the tor that hosts the onions."""

    def test_killed(self) -> None:
        self.work.signal(signal.SIGKILL, "onion")
        self.tells("tor.onion", "being restarted")
        self.tells("onion.wiki", "is gone and will be started again", "not published yet")
        self.tells("onions", "not published")
        self.work.comes_back(*self.onions)

    def test_frozen(self) -> None:
        before = self.work.pid()
        with frozen(self.work, "onion"):
            self.tells("tor.onion", "did not answer on its control port")
            self.tells("onion.wiki", "is gone", "not published yet")
        self.work.comes_back(*self.onions)
        self.assertFalse(alive(before))

    def test_ended_in_the_middle_of_add_onion(self) -> None:
        pid = self.work.pid()
        with frozen(self.work, "onion"):
            creating, answers = self.creating("middle")
            os.kill(pid, signal.SIGKILL)
        creating.join()
        (view,) = answers
        self.assertTrue(view["ready"], view)
        self.work.comes_back(*self.onions, view["onion"])
        self.delete(view["id"])
        until(self.work.nothing_leaks, 10, "the deleted one being gone from tor")

    def test_the_control_connection_is_cut_in_the_middle_of_add_onion(self) -> None:
        """tor has read the command and done it; nobody was told. It is the same tor afterwards."""
        pid = self.work.pid()
        with frozen(self.work, "onion"):
            creating, answers = self.creating("cut")
            connections = self.control_connections()
            self.assertEqual(len(connections), 2)
            self.cut(connections[-1])
            self.tells("onion.wiki", "is gone", within_s=4)
        creating.join()
        (view,) = answers
        self.assertTrue(view["ready"], view)
        self.work.comes_back(*self.onions, view["onion"])
        self.assertEqual(self.work.pid(), pid)
        self.delete(view["id"])

    def test_the_cookie_changes_and_every_connection_is_cut(self) -> None:
        (self.work.tornet / "onion" / "control_auth_cookie").write_bytes(os.urandom(32))
        self.cut(*self.control_connections())
        self.tells("onion.wiki", "is gone")
        self.tells("tor.onion", "closed its control port")
        self.work.comes_back(*self.onions)


class DaemonFaults(Faults):
    """What happens to the runtime itself, and to its disk."""

    def test_killed_between_add_onion_and_the_answer(self) -> None:
        work = self.work
        body = work.creation("early", wait_s=60)
        with contextlib.closing(work.connection()) as connection, frozen(work, "onion"):
            connection.request("POST", "/v1/onions", json.dumps(body), work.headers())
            until(lambda: any(view["app"] == "early" for view in work.listed().values()), 5, "its being kept")
            (view,) = [view for view in work.listed().values() if view["app"] == "early"]
            self.assertFalse(view["ready"])
            pids = [tor["pid"] for tor in work.tors().values()]
            work.daemon.stop(signal.SIGKILL)
            with self.assertRaises((OSError, HTTPException)):
                connection.getresponse()
        (work.daemon.home / "onions.json").unlink()
        work.daemon.start()
        self.assertEqual([pid for pid in pids if alive(pid)], [], "tors of the one before")
        again = work.call("POST", "/v1/onions", body).json()
        self.assertEqual((again["id"], again["onion"]), (view["id"], view["onion"]))
        work.comes_back(*self.onions, view["onion"])
        self.assertEqual(len(work.listed()), 3)
        self.delete(view["id"])

    def test_the_disk_is_full(self) -> None:
        work = self.work
        filler = work.daemon.home / "onions" / "filler"
        self.addCleanup(filler.unlink, missing_ok=True)
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        refused = work.call("POST", "/v1/onions", work.creation("full"))
        self.assertEqual((refused.status, refused.json()["error"]["code"]), (503, "StoreUnavailable"))
        self.assertIn("no room on the disk", refused.json()["error"]["message"])
        self.tells("onions.store", "no room on the disk")
        self.assertTrue(work.readiness()["ready"], "what is there is served on")
        self.assertEqual(len(work.listed()), 2)
        # a tor that is lost meanwhile comes back with all of them, though nothing of it can be written down
        work.signal(signal.SIGKILL, "onion")
        self.tells("onion.wiki", "is gone", "not published yet")
        until(lambda: all(view["ready"] for view in work.listed().values()), 60, "being published without a disk")
        for onion in self.onions:
            until(lambda onion=onion: work.reachable(onion), 30, "being reachable without a disk")
        filler.unlink()
        work.comes_back(*self.onions)
        until(lambda: work.call("POST", "/v1/onions", work.creation("room")).status == 200, 10, "new ones being taken")
        work.comes_back()
        self.delete(*(view["id"] for view in work.listed().values() if view["app"] == "room"))

    if NOT_ROOT:
        test_the_disk_is_full.skip = NOT_ROOT  # type: ignore[attr-defined]


class BadInput(Faults):
    """What callers may send."""

    def refused(self, status: int, code: str, method: str, path: str, body: Any) -> None:
        reply = self.work.call(method, path, body)
        self.assertEqual((reply.status, reply.json()["error"]["code"]), (status, code), f"{path} {body!r:.200}")
        self.assertNotIn("ED25519-V3", reply.body.decode())

    def test_creations_that_are_none(self) -> None:
        good = self.work.creation("bad")
        key = "A" * 52
        cases = [
            {**good, "op_id": "1"},
            {**good, "op_id": "x" * 36},
            {**good, "app": "../../etc"},
            {**good, "app": "a" * 64},
            {**good, "ports": []},
            {**good, "ports": good["ports"] * 2},
            {**good, "ports": [{"onion_port": n, "local": "127.0.0.1:80"} for n in range(1, 18)]},
            *({**good, "ports": [{"onion_port": n, "local": "127.0.0.1:80"}]} for n in (0, -1, 65536, 1.5, "80", None)),
            *(
                {**good, "ports": [{"onion_port": 80, "local": local}]}
                for local in (
                    "127.0.0.1:0",
                    "127.0.0.1:65536",
                    "127.0.0.1:99999",
                    "10.0.0.1:80",
                    "127.0.0.1:80\r\nDEL_ONION x",
                    "127.0.0.1:80 Flags=DiscardPK",
                    "unix:/tmp/../etc/x",
                    "unix:relative",
                    "unix:/" + "x" * 200,
                )
            ),
            {**good, "private_key": "ED25519-V3:" + "A" * 86 + "=="},
            {**good, "client_auth": [{"name": "a", "public_key": "x" * 60_000}]},
            {**good, "client_auth": [{"name": "a", "public_key": key}, {"name": "a", "public_key": key}]},
            {**good, "client_auth": [{"name": f"a{n}", "public_key": key} for n in range(65)]},
            {**good, "persistence": "forever"},
            {**good, "wait_s": 61},
            {**good, "wait_s": -1},
            {**good, "pow": {"enabled": True, "queue_rate": 0}},
            {**good, "hints": {"regions": ["x"] * 9}},
            [good],
            b"{",
            b"\xff" * 100,
            b"[" * 10_000,
            b"",
        ]
        for body in cases:
            self.refused(400, "BadRequest", "POST", "/v1/onions", body)
        self.refused(413, "TooLarge", "POST", "/v1/onions", {**good, "app": "a" * 70_000})
        self.assertEqual(len(self.work.listed()), 2)
        self.assertTrue(self.work.nothing_leaks())

    def test_ids_that_are_nobodys(self) -> None:
        ports = {"ports": self.work.creation()["ports"]}
        for onion_id in ("0" * 36, "x", "%2e%2e%2f", "a" * 2000, op_id()):
            path = f"/v1/onions/{onion_id}"
            self.refused(404, "NotFound", "GET", path, None)
            self.refused(404, "NotFound", "DELETE", path, {"op_id": op_id()})
            for verb, more in (("bind", ports), ("rotate", {}), ("drain", {}), ("export", {})):
                self.refused(404, "NotFound", "POST", f"{path}/{verb}", {"op_id": op_id(), **more})

    def test_an_op_id_stands_for_one_act(self) -> None:
        body = self.work.creation("twice")
        first = self.work.call("POST", "/v1/onions", body).json()
        self.assertEqual(self.work.call("POST", "/v1/onions", {**body, "wait_s": 30}).json()["id"], first["id"])
        other = {**body, "ports": [{"onion_port": 81, "local": self.work.local}]}
        self.refused(409, "Conflict", "POST", "/v1/onions", other)
        self.refused(409, "Conflict", "POST", f"/v1/onions/{first['id']}/rotate", {"op_id": body["op_id"]})
        self.assertEqual(len([view for view in self.work.listed().values() if view["app"] == "twice"]), 1)
        self.delete(first["id"])
        self.refused(404, "NotFound", "POST", "/v1/onions", body)

    def test_ten_thousand_creations(self) -> None:
        cap, answers = self.work.daemon.admin_cap(), Counter[tuple[int, str]]()

        def flood() -> None:
            with contextlib.closing(self.work.connection()) as connection:
                for number in range(10_000 // 8):
                    body = self.work.creation(f"flood{number % 3}")
                    reply = ask(connection, "POST", "/v1/onions", cap, body)
                    answers[reply.status, reply.json().get("error", {}).get("code", "")] += 1

        threads = [threading.Thread(target=flood) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        made = [view for view in self.work.listed().values() if view["app"].startswith("flood")]
        self.assertEqual(Counter(view["app"] for view in made), {"flood0": 4, "flood1": 4, "flood2": 4})
        self.assertEqual((answers[200, ""], answers.total()), (12, 10_000))
        self.assertLessEqual(set(answers), {(200, ""), (409, "Conflict"), (429, "Backpressure")}, answers)
        self.work.comes_back(*self.onions)
        self.delete(*(view["id"] for view in made))
        until(self.work.nothing_leaks, 20, "tor having none of them any more")


class MacronodeFaults(SynchronousTestCase):
    """The runtime is a process of its own, the tors are not: what is killed is found again as it was."""

    skip = NO_TOR

    def setUp(self) -> None:
        end_shared()
        self.node = new_node(MACRONODE + SLO, onion="max_per_app = 16")
        self.addCleanup(self.node.destroy)
        self.node.start()
        self.work = OnionWork(self.node, local_app())

    def runtime_pid(self) -> int:
        units = http("GET", f"{self.node.facts()['gateway_url']}/v1/services", cap=self.node.admin_cap()).json()
        return int(next(unit["pid"] for unit in units if unit["name"] == "oniond"))

    def test_killed_under_creations(self) -> None:
        work, before, tor = self.work, self.work.create("before"), self.work.pid()
        asked, answered = list[dict[str, Any]](), dict[str, dict[str, Any]]()

        def create(app: str) -> None:
            for _ in range(6):
                body = work.creation(app)
                asked.append(body)
                with contextlib.suppress(OSError, HTTPException):
                    reply = work.call("POST", "/v1/onions", body)
                    if reply.status == 200:
                        answered[body["op_id"]] = reply.json()
                time.sleep(0.1)

        threads = [threading.Thread(target=create, args=(f"load{number}",)) for number in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        os.kill(self.runtime_pid(), signal.SIGKILL)
        for thread in threads:
            thread.join()
        until(work.answers, 30, "the runtime being back")
        listed = work.listed()
        self.assertGreater(len(answered), 0)
        for view in answered.values():
            self.assertEqual(listed[view["id"]]["onion"], view["onion"])
        for body in asked:
            again = work.call("POST", "/v1/onions", body).json()
            self.assertEqual(again["id"], answered.get(body["op_id"], again)["id"])
        self.assertEqual(len([view for view in work.listed().values() if view["app"].startswith("load")]), len(asked))
        last = next(reversed(answered.values()))
        self.assertEqual(work.pid(), tor, "the tor was not touched")
        until(lambda: all(view["ready"] for view in work.listed().values()), 90, "all of them being published")
        until(work.nothing_leaks, 10, "tor having what the API lists")
        for onion in (before["onion"], last["onion"]):
            until(lambda onion=onion: work.reachable(onion, "device-a"), 30, f"{onion} being reachable")
