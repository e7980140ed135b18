"""What a cluster must outlive: wrong clocks, twins, tors that die or hang, periods that change under a killed leader,
restarts of everybody, shares that are renewed or lost, power that goes everywhere.

Needs tor. Run by `scripts/run-tests --long`.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ron.tor.onionkeys import new_key
from tests.live.cluster import SERVICE, Cluster, Node
from tests.live.clusterwork import ClusterCase, also, end_shared, once
from tests.live.support import NO_TOR, Daemon, free_port, until
from tests.live.visits import gap_s

VAULT = "vault"
GAP_S = 5.0
# Both nodes' restart, mesh, a share anew and a descriptor with its head.
BACK_S = 90.0
# On our private network: a vote each 20 s, 24 votes a period, which begins 12 votes late.
PERIOD_S, LATE_S = 480, 240
AHEAD_S = 600
# Certificates are dated five minutes back: a clock further behind than that is refused at the start.
LATE_START_S = 120
# The clock of a Python program, as much ahead as a file says.
_CLOCK = """import time
_true = time.time
def _false():
    with open({file!r}) as ahead:
        return _true() + float(ahead.read() or 0)
time.time = _false
time.time_ns = lambda: int(_false() * 1e9)
"""


class Clocked(Cluster):
    """Its daemons' clocks can be set; their tors' are right."""

    def make(self, name: str) -> Node:
        node = super().make(name)
        folder = self.folder / f"{name}.clock"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_CLOCK.format(file=str(folder / "ahead")))
        environment = node.daemon.environment
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        node.daemon.environment = lambda: {**environment(), "PYTHONPATH": path}  # type: ignore[method-assign]
        self.set_clock(name, 0)
        return node

    def set_clock(self, name: str, ahead_s: int) -> None:
        """So far ahead of the true time from now on."""
        new = self.folder / f"{name}.clock" / "new"
        new.write_text(f"{ahead_s:+d}\n")
        new.replace(new.with_name("ahead"))


def started(cluster: Cluster) -> Cluster:
    """It runs."""
    try:
        return cluster.start()
    except BaseException:
        cluster.stop()
        raise


class LongCase(ClusterCase):
    """Killing, and what is to be seen of it."""

    skip = NO_TOR

    def led_by_another(self, than: str, service: str = SERVICE) -> bool:
        """Does somebody else lead, and has it published?"""
        leader = self.cluster.leader()
        if leader is None or leader.name == than:
            return False
        return any(each["by"] == leader.name for each in self.publications(leader.name, service))

    def pids(self, node: Node) -> dict[str, int]:
        """Its tors, by role."""
        facts: dict[str, int] = {}
        for pid in node.tors():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended meanwhile
            for word in words:
                if word.endswith(b".torrc"):
                    facts[Path(word.decode()).stem] = pid
        return facts


class Three(LongCase):
    """The key on every node, everybody with the token may have it."""

    def setUp(self) -> None:
        self.cluster = cluster = once("long-three", self.make)
        assert isinstance(cluster, Clocked)
        self.clocks = cluster
        self.wait_one(BACK_S)

    @staticmethod
    def make() -> Cluster:
        cluster = started(Clocked(nodes=3))
        cluster.add_service()
        return cluster

    def test_a_leader_with_a_wrong_clock(self) -> None:
        """Ten minutes ahead, behind, and right again: it does not lead meanwhile, the address is there throughout."""
        visitor = self.visitors()
        for ahead_s in (AHEAD_S, -AHEAD_S):
            wrong = self.cluster.wait_leader().name
            self.clocks.set_clock(wrong, ahead_s)
            self.addCleanup(self.clocks.set_clock, wrong, 0)
            began_s = time.monotonic()
            try:
                until(lambda wrong=wrong: self.led_by_another(wrong), 60, f"another than {wrong} leading")
            except AssertionError as error:
                raise AssertionError(f"{error}, {ahead_s:+d} s: {self.views()}") from None
            self.say(f"{ahead_s:+d} s: replaced after {time.monotonic() - began_s:.1f} s")
            time.sleep(20)
            self.assertTrue(self.led_by_another(wrong), self.leaders())
            self.clocks.set_clock(wrong, 0)
            self.wait_one(60)
        self.fine(visitor.stop(), gap=GAP_S, least=0.98)

    def test_started_with_a_wrong_clock(self) -> None:
        """Born in the past by its own clock, it would be the eldest."""
        late = next(node for node in self.cluster.alive() if node.name != self.cluster.wait_leader().name)
        late.stop()
        self.clocks.set_clock(late.name, -LATE_START_S)
        self.addCleanup(self.clocks.set_clock, late.name, 0)
        late.start()
        self.cluster.wait_whole()
        time.sleep(15)
        self.assertTrue(self.led_by_another(late.name), self.leaders())
        self.clocks.set_clock(late.name, 0)
        time.sleep(15)
        self.assertTrue(self.led_by_another(late.name), self.leaders())

    def test_a_twin(self) -> None:
        """The copied home of a running node: the copy ends and says why, the node goes on, visitors do not notice."""
        visitor = self.visitors()
        for original in (self.cluster.wait_leader(), self.other_than_leader()):
            with Twin(original) as twin:
                twin.start(wait=False)
                self.assertNotEqual(twin.wait_s(90), 0)
                self.assertIn("another node runs with the name", twin.output.read_text())
            self.assertTrue(original.running)
            self.wait_one(30)
        self.fine(visitor.stop(), gap=GAP_S, least=0.98)

    def other_than_leader(self) -> Node:
        """The last by name of those who follow."""
        leader = self.cluster.wait_leader().name
        return [node for name, node in self.cluster.nodes.items() if name != leader][-1]

    def test_tors_that_die_or_hang(self) -> None:
        """Each of the leader's and of a follower's: it is started again, and visitors get in all the time."""
        visitor = self.visitors()
        for node in (self.cluster.wait_leader(), self.other_than_leader()):
            for role in ("head", "outside"):
                for how in (signal.SIGKILL, signal.SIGSTOP):
                    before = self.pids(node)
                    os.kill(before[role], how)
                    began_s = time.monotonic()
                    until(
                        lambda node=node, role=role, before=before: (
                            self.pids(node).get(role, before[role]) != before[role]
                        ),
                        60,
                        f"the {role} tor of {node.name} being started again after {how.name}",
                    )
                    self.wait_one(BACK_S)
                    self.say(f"{node.name} {role} {how.name}: whole after {time.monotonic() - began_s:.1f} s")
        # whoever is with a head at that moment has to come again
        self.fine(visitor.stop(), gap=2 * GAP_S, least=0.93)

    def test_a_period_begins_under_a_failover(self) -> None:
        """From there on clients ask for the descriptor of another blinded key."""
        self.straddles(LATE_S)

    def test_a_shared_value_appears_under_a_failover(self) -> None:
        """From there on another pair of descriptors is due, and places on the ring are others."""
        self.straddles(0)

    def straddles(self, late_s: int) -> None:
        """The leader is killed 2 s before the next multiple of a period and `late_s`; watched until all clients have
        a consensus from after it."""
        wait_s = (late_s - time.time()) % PERIOD_S
        if wait_s < 10:
            wait_s += PERIOD_S
        time.sleep(wait_s - 10)
        visitor = self.visitors()
        time.sleep(8)
        former = self.cluster.wait_leader()
        former.kill(tors=True)
        until(lambda: self.led_by_another(former.name), 30, "a failover")
        time.sleep(60)
        former.start()
        self.wait_one(BACK_S)
        self.fine(visitor.stop(), gap=2 * GAP_S, least=0.95)

    def test_zz_power_goes_everywhere(self) -> None:
        """All at once: nobody has the key any more and says so; the file of an imported key brings the address back."""
        end_shared()
        self.cluster = once("long-power", lambda: started(Cluster(nodes=3)))
        key = new_key()
        onion, path = self.imports(SERVICE, key)
        self.cluster.wait_whole()
        until(lambda: self.cluster.reachable(onion), 60, "a visitor getting in")
        until(lambda: len(self.holders()) == 3, 60, "all having the key")
        for node in self.cluster.alive():
            node.kill(tors=True)
        for node in self.cluster.nodes.values():
            node.start(wait=False)
        for node in self.cluster.nodes.values():
            node.wait_up()
        self.cluster.wait_meshed()
        time.sleep(5)
        for view in self.views().values():
            self.assertIn("0 of the 1 nodes", " ".join(view["warnings"]))
        self.cluster.node("beta").ok("balance", "service", "import", SERVICE, "--key", str(path), "--yes")
        self.wait_one(BACK_S)
        until(lambda: len(self.holders()) == 3, 60, "all having the key again")
        until(lambda: self.cluster.reachable(onion), 60, "a visitor getting in again")

    def tearDown(self) -> None:
        if self._testMethodName == "test_zz_power_goes_everywhere":
            end_shared()


class Twin:
    """A copy of a node's home, to be run beside it; gone after `with`."""

    def __init__(self, node: Node) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="ron-twin-"))
        home = self._place / "home"
        keep = shutil.ignore_patterns("run", "tornet*", "balance-head", "*.json", "log", ".lock")
        home.mkdir(0o700)
        shutil.copytree(node.home / "balance", home / "balance")
        shutil.copytree(node.home, home, ignore=keep, dirs_exist_ok=True)
        config = node.daemon.config.read_text().splitlines()
        moved = {"listen": f"127.0.0.1:{free_port()}", "bind": f"127.0.0.1:{free_port()}"}
        lines = [
            f'{line.split(" ")[0]} = "{moved[line.split(" ")[0]]}"' if line.split(" ")[0] in moved else line
            for line in config
        ]
        self.daemon = Daemon("ron-balance", "\n".join(lines), "balance.json", home)
        self.output = self.daemon.output

    def start(self, *, wait: bool) -> None:
        self.daemon.start(wait=wait)

    def wait_s(self, timeout_s: float) -> int:
        """Its exit status."""
        assert self.daemon._process is not None
        return self.daemon._process.wait(timeout=timeout_s)

    def __enter__(self) -> Twin:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.daemon.destroy()
        shutil.rmtree(self._place, ignore_errors=True)


class Approved(LongCase):
    """An operator lets each run of each node in. One address with the key on every node, one with shares, 2 of 3."""

    def setUp(self) -> None:
        self.cluster = once("long-approved", self.make)
        self.wait_one(BACK_S)
        self.wait_one(BACK_S, VAULT)

    def make(self) -> Cluster:
        self.cluster = cluster = started(Cluster(nodes=3, approval="operator", extra=also(VAULT, 81)))
        try:
            # who has the key is who can let others have it
            first = cluster.wait_leader()
            cluster.add_service(wait=False)
            for name in sorted({*cluster.nodes} - {first.name}):
                first.ok("balance", "approve", name)
            until(lambda: len(self.holders()) == 3, 60, "all having the key")
            cluster.add_service(VAULT, threshold="2-of-3")
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def test_everybody_is_restarted(self) -> None:
        """One after the other, each approved again by the two others: both addresses are there all the time."""
        both = [self.visitors(), self.visitors(self.cluster.onions[VAULT])]
        for name in list(self.cluster.nodes):
            node, others = self.cluster.node(name), [one for one in self.cluster.nodes if one != name]
            node.stop()
            until(lambda name=name: self.led_by_another(name), 30, "the others going on")
            node.start()
            self.cluster.wait_meshed()
            until(lambda others=others, name=name: self.is_waiting(others[0], name), 30, f"{name} asking to be let in")
            self.assertNotIn(name, self.holders())
            for other in others:
                self.cluster.node(other).ok("balance", "approve", name)
            for service in (SERVICE, VAULT):
                until(lambda service=service: len(self.holders(service)) == 3, BACK_S, f"{name} holding {service}")
            self.wait_one(BACK_S)
        for visitor in both:
            self.fine(visitor.stop(), gap=GAP_S, least=0.95)

    def is_waiting(self, by: str, name: str) -> bool:
        """Does that node say that this one waits to be approved?"""
        members = self.cluster.node(by).seen().get("members", ())
        return any(one["name"] == name and one["waiting"] for one in members)

    def test_new_shares_under_visitors(self) -> None:
        """A refresh, a resharing to 3 of 3 and back: the same address, another epoch each time."""
        onion = self.cluster.onions[VAULT]
        visitor = self.visitors(onion)
        for words in (["refresh", VAULT], ["reshare", VAULT, "--threshold", "3"], ["refresh", VAULT]):
            before = self.epoch()
            said = self.cluster.wait_leader().ok("balance", *words)
            self.assertIn(onion.removesuffix(".onion"), said)
            until(lambda before=before: self.epoch() > before, 20, "another epoch")
            revision = max(each["revision"] for each in self.vault_publications())
            self.cluster.wait_leader().ok("balance", "publish", VAULT)
            until(
                lambda revision=revision: max(each["revision"] for each in self.vault_publications()) > revision,
                30,
                "a descriptor signed with the new shares",
            )
        self.fine(visitor.stop(), gap=GAP_S, least=0.98)

    def epoch(self) -> int:
        """As the leader knows it."""
        return int(self.service(self.cluster.wait_leader().name, VAULT)["epoch"])

    def vault_publications(self) -> list[dict[str, Any]]:
        """As the leader knows them."""
        return self.publications(self.cluster.wait_leader().name, VAULT)

    def test_zz_power_goes_everywhere(self) -> None:
        """With shares there is no way back, and every node says so, as long as it runs."""
        self.power_goes([*self.cluster.nodes.values()])
        time.sleep(10)
        for name, view in self.views().items():
            self.assertIn(f"{VAULT}: 0 of the", " ".join(view["warnings"]), name)
        refused = self.cluster.node("alpha").ronctl("balance", "refresh", VAULT)
        self.assertNotEqual(refused.returncode, 0)

    def power_goes(self, nodes: Sequence[Node]) -> None:
        """Of these, in the same instant; and comes back."""
        for node in nodes:
            node.kill(tors=True)
        for node in nodes:
            node.start(wait=False)
        for node in nodes:
            node.wait_up()
        self.cluster.wait_meshed()

    def tearDown(self) -> None:
        if self._testMethodName == "test_zz_power_goes_everywhere":
            end_shared()


class Five(LongCase):
    """Shares, 3 of 5."""

    def test_two_dead_then_three(self) -> None:
        """Two of five dead, the leader among them: three sign a new descriptor. Three dead: they say so, and what is
        published goes on being good."""
        end_shared()
        self.addCleanup(end_shared)
        self.cluster = once("long-five", lambda: started(Cluster(nodes=5, threshold="3-of-5")))
        onion = self.cluster.add_service()
        self.wait_one(BACK_S)
        visitor = self.visitors()
        leader = self.cluster.wait_leader()
        second = next(node for node in self.cluster.alive() if node is not leader)
        began_s = time.monotonic()
        for node in (leader, second):
            node.kill(tors=True)
        rest = {node.name for node in self.cluster.alive()}
        until(lambda: self.cluster.heads() == rest and self.led_by_another(leader.name), 30, "three signing")
        self.say(f"two of five dead: the three have published after {time.monotonic() - began_s:.1f} s")
        third = next(node for node in self.cluster.alive() if node is not self.cluster.wait_leader())
        third.kill(tors=True)
        for node in self.cluster.alive():
            until(lambda node=node: "2 of the 3 nodes" in " ".join(node.seen().get("warnings", ())), 30, "saying so")
        until(lambda: self.cluster.leader() is not None, 60, "somebody leading who tries")
        time.sleep(30)
        visits = visitor.stop()
        self.say(f"gap {gap_s(visits):.1f} s")
        self.fine(visits, gap=2 * GAP_S, least=0.9)
        self.assertTrue(self.cluster.reachable(onion), "the last descriptor does not answer")
