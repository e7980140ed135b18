"""Our own Tor network on loopback: 3 authorities, 2 relays, and one client tor per role (DESIGN §4 Tor, §5).

In: a folder and the client roles wanted. Out: a running `Fleet` whose clients see a whole network of our own. They
start only when the consensus is whole: earlier ones latch a view of two relays and stay useless. When the host's clock
is set back, the network is made anew.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure
from txtorcon import TorControlProtocol

from ron.kernel.aio import within
from ron.kernel.files import write_private
from ron.tor.authkeys import authority_identity, relay_fingerprint
from ron.tor.control import ANSWER_TIMEOUT_S, ask, count_hsdirs
from ron.tor.fleet import Fleet, Stage
from ron.tor.torrc import fill, render

AUTHORITIES = ("auth1", "auth2", "auth3")
RELAYS = ("relay1", "relay2")
INFRASTRUCTURE = (*AUTHORITIES, *RELAYS)
SNIPPET_FILE = "snippet.torrc"
# tor/authority.torrc: TestingV3AuthInitialVotingInterval; votes for a boundary close 2 s before it.
FIRST_INTERVAL_S = 6
BOUNDARY_AHEAD_S = 2
NUDGE_EVERY_S = 1.5
# Set back by more than this, authorities would not vote until their clock is again where it was, and the directories,
# which know newer descriptors of our onions, would take none that is made meanwhile.
SET_BACK_S = 60.0
CLOCK_EVERY_S = 5.0
# Several times between two votes.
CENSUS_EVERY_S = 5.0
# Every relay is ours, and we know whether it runs. An authority that tests them calls those dead that it has not
# reached for 45 minutes: set the clock an hour forward, and the next consensus lists none until the tests have got
# round, twenty minutes later. And a relay that was started anew a few times would be neither Stable nor Fast: onions
# use only those that are, which would be the authorities, too few when one of them is dead.
_TRUST = (
    *("--AuthDirTestReachability", "0"),
    *("--AuthDirVoteStableGuaranteeMinUptime", "0"),
    *("--AuthDirVoteStableGuaranteeMTBF", "0"),
    *("--AuthDirFastGuarantee", "1 bytes"),
)
# A relay's or authority's control port answers below any percentage; their bootstrap is the consensus itself.
_RELAY_TARGET = 0
_log = Logger(namespace="ron.tor")


class PrivateNetwork(Fleet):
    """The smallest network there can be, all of it on this host. now: Unix seconds."""

    infrastructure = INFRASTRUCTURE

    def __init__(self, reactor: Any, *, now: Callable[[], float] = time.time, **settings: Any) -> None:
        super().__init__(reactor, **settings)
        self._now = now
        self._clock = LoopingCall(self._look_at_the_clock)
        self._census = LoopingCall(self._count_the_dead)
        self._clock.clock = self._census.clock = reactor
        self._left_out: frozenset[str] = frozenset()
        self._ahead_s = now() - reactor.seconds()
        self._remaking: Deferred[None] | None = None
        self._next_nudge = 0.0
        self._authority_lines = ""

    def role(self, name: str) -> str:
        """authority, relay or client."""
        if name in AUTHORITIES:
            return "authority"
        return "relay" if name in RELAYS else "client"

    def _extra_ports(self) -> list[str]:
        return [f"{n}.or" for n in INFRASTRUCTURE] + [f"{n}.dir" for n in AUTHORITIES]

    def _prepare_network(self) -> None:
        self._authority_lines = "\n".join(self._authority_line(name) for name in AUTHORITIES)
        # for daemons on this host that are to be on the same network: `onion.client_torrc`
        write_private(
            self.directory / SNIPPET_FILE, fill("snippet", {"dir_authorities": self._authority_lines}).encode()
        )

    def _authority_line(self, name: str) -> str:
        folder = self.directory / name
        fingerprint = relay_fingerprint(self._tor, folder, name)
        identity = authority_identity(self._tor, folder)
        or_port, dir_port = self._ports[f"{name}.or"], self._ports[f"{name}.dir"]
        return f"DirAuthority {name} orport={or_port} v3ident={identity} 127.0.0.1:{dir_port} {fingerprint}"

    def _torrc(self, name: str, values: dict[str, object]) -> str:
        return render(self.role(name), {**values, "dir_authorities": self._authority_lines})

    def _stop_order(self) -> Sequence[Sequence[str]]:
        return (self.clients, RELAYS, AUTHORITIES)

    async def _bring_up_network(self, deadline_s: float) -> None:
        offset = voting_offset_s(self._now())
        for name in INFRASTRUCTURE:
            voting = ["--TestingV3AuthVotingStartOffset", str(offset), *_TRUST] if name in AUTHORITIES else []
            self._start(name, _RELAY_TARGET, *voting)
        await self._until(deadline_s, "consensus", self._consensus_progress)

    async def bring_up(self) -> None:
        """As `Fleet.bring_up`; from then on it is made anew whenever the host's clock is set back."""
        await super().bring_up()
        self._ahead_s = self._now() - self._reactor.seconds()
        self._clock.start(CLOCK_EVERY_S, now=False)
        self._census.start(CENSUS_EVERY_S, now=False)

    async def take_down(self) -> None:
        """As `Fleet.take_down`."""
        for loop in (self._clock, self._census):
            if loop.running:
                loop.stop()
        remaking, self._remaking = self._remaking, None
        if remaking is not None:
            remaking.cancel()
        await super().take_down()

    async def _leave_out_the_dead(self) -> None:
        """Authorities vote for none that is quarantined; they know it for when it returns, which is seen here too."""
        dead = frozenset(name for name in INFRASTRUCTURE if name in self.tors and self.tors[name].quarantined)
        fingerprints = sorted(relay_fingerprint(self._tor, self.directory / name, name) for name in dead)
        changed, self._left_out = dead != self._left_out, dead
        for name in AUTHORITIES:
            if changed:
                unlisted = "".join(f"!invalid {fingerprint}\n" for fingerprint in fingerprints)
                write_private(self.directory / name / "approved-routers", unlisted.encode())
            control = self.tors[name].control
            # tor takes one for valid again with every consensus that lists it: it has to be told before the next vote
            if (
                control is not None
                and self.tors[name].up
                and (changed or await self._any_listed(control, fingerprints))
            ):
                await within(self._reactor, ANSWER_TIMEOUT_S, control.signal("RELOAD"))

    async def _any_listed(self, control: TorControlProtocol, fingerprints: Sequence[str]) -> bool:
        listed = await ask(self._reactor, control, "ns/all") if fingerprints else ""
        names = {line.split()[2] for line in listed.splitlines() if line.startswith("r ")}
        return any(b64encode(bytes.fromhex(one)).decode().rstrip("=") in names for one in fingerprints)

    def _count_the_dead(self) -> Deferred[None]:
        counting = Deferred.fromCoroutine(self._leave_out_the_dead())
        # an authority that goes meanwhile is counted the next time
        return counting.addErrback(lambda failure: _log.debug("not counted: {why}", why=failure.getErrorMessage()))

    def _look_at_the_clock(self) -> None:
        ahead_s = self._now() - self._reactor.seconds()
        back_s, self._ahead_s = self._ahead_s - ahead_s, ahead_s
        if back_s < SET_BACK_S or self._remaking is not None:
            return
        _log.warn("the clock was set back by {seconds} s", event="clock_set_back", seconds=round(back_s))
        self._remaking = Deferred.fromCoroutine(self._make_anew())
        self._remaking.addErrback(self._not_made)
        self._remaking.addBoth(self._remade)

    def _remade(self, _none: None) -> None:
        self._remaking = None

    def _not_made(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        _log.failure("the network was not made anew; trying again", failure, event="tornet_failed")
        self._ahead_s += 2 * SET_BACK_S  # at the next look it has been set back again

    async def _make_anew(self) -> None:
        """Every tor ends and begins without memories, under its own key."""
        await self._changing.acquire()
        try:
            self._set_state("starting")
            self._health.missing("tor.net", "the host's clock was set back, and the network is made anew")
            for group in self._stop_order():
                stops = [Deferred.fromCoroutine(self.tors[name].stop()) for name in group if name in self.tors]
                await gatherResults(stops, consumeErrors=True)
            await deferToThread(self._forget)
            deadline_s = self._reactor.seconds() + self.bring_up_timeout_s
            await self._bring_up_network(deadline_s)
            await self._start_clients(deadline_s)
        finally:
            self._changing.release()

    async def _consensus_progress(self) -> Stage:
        """Done when every infrastructure tor has a consensus that lists all of them, and their descriptors.

        A relay that asked before there was a consensus has backed off by now; RELOAD makes it ask again. One that lags
        would send the first clients that choose it as a directory into a back-off of their own.
        """
        voted = [await self._is_whole(name) for name in AUTHORITIES]
        if not all(voted):
            running = sum(self.tors[name].up for name in INFRASTRUCTURE)
            detail = "authorities vote" if running == len(INFRASTRUCTURE) else f"{running} tors running"
            return Stage("consensus", sum(voted), len(INFRASTRUCTURE), detail)
        cached = [await self._is_whole(name) for name in RELAYS]
        for name, whole in zip(RELAYS, cached, strict=True):
            control = self.tors[name].control
            if not whole and control is not None and self._reactor.seconds() >= self._next_nudge:
                await within(self._reactor, ANSWER_TIMEOUT_S, control.signal("RELOAD"))
        if self._reactor.seconds() >= self._next_nudge:
            self._next_nudge = self._reactor.seconds() + NUDGE_EVERY_S
        return Stage("consensus", len(AUTHORITIES) + sum(cached), len(INFRASTRUCTURE), "relays fetch it")

    async def _is_whole(self, name: str) -> bool:
        control = self.tors[name].control
        if control is None or not self.tors[name].up:
            return False
        if await count_hsdirs(self._reactor, control) < len(INFRASTRUCTURE):
            return False
        return await ask(self._reactor, control, "status/enough-dir-info") == "1"


def voting_offset_s(now_s: float) -> int:
    """The shift of the authorities' voting clock that gives a whole first consensus 8 s after a start at `now_s`.

    An authority that starts votes at once for the boundary ahead, with the relays it knows by then; such a partial
    consensus would stand for 20 s. So the boundary ahead is put so close that its vote is already closed, and the vote
    for the next one (6 s later, cast 4 s before it) falls 4 s after the start, when every relay is known.
    """
    return round(now_s + BOUNDARY_AHEAD_S) % FIRST_INTERVAL_S
