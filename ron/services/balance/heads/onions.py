"""A head's onions on its tor: what the generations call for is done here, and what tor has made of it is looked up.

In: a control connection while there is one; whether visitors are wanted, for which masters. Out: the descriptor that
others should use, sessions, circuits closed. Folders are made below ours, each with a key of its own, and are removed
with their onion.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from txtorcon import TorControlProtocol

from ron.kernel.files import private_dir
from ron.proto.balance import HeadDescriptor
from ron.services.balance.heads.generations import Generation, Generations, Wanted
from ron.services.balance.heads.visits import Visits
from ron.tor import circuits
from ron.tor.backendonion import (
    BackendOnion,
    address_in,
    count_points,
    edition,
    folders_set,
    own_descriptor,
    prepare,
    read_circuit,
    set_onions,
)
from ron.tor.control import answered, ask

_PREFIX = "onion-"
_KEPT = "kept"
_log = Logger(namespace="ron.balance")


class HeadOnions:
    """folder: 0700, in memory where nothing may last. ports: lines as HiddenServicePort has them. keep_key: the first
    onion of each run is the same one."""

    def __init__(self, reactor: Any, *, folder: Path, ports: Sequence[str], visits: Visits, keep_key: bool) -> None:
        self._reactor = reactor
        self._folder = folder
        self._ports = tuple(ports)
        self._visits = visits
        self._keep_key = keep_key
        self._generations = Generations()
        self._descriptors: dict[str, HeadDescriptor] = {}
        self._control: TorControlProtocol | None = None
        self._first = True

    # Life

    async def open(self) -> None:
        """Remove what an earlier run left."""
        await deferToThread(self._clean)

    async def attach(self, control: TorControlProtocol) -> None:
        """A tor is there: ours from before, or one that knows nothing. Raises `TorSilent`, `RonError`."""
        there = await folders_set(self._reactor, control)
        if not {one.folder for one in self._generations.all} <= there:
            await self._removed(self._generations.restarted())
        text = await ask(self._reactor, control, "circuit-status")
        unwanted = self._visits.begin(read_circuit(line) for line in text.splitlines())
        self._control = control
        await self._set([])
        for circuit in unwanted:
            self.close_circuit(circuit)

    def detach(self) -> None:
        """It has gone."""
        self._control = None

    async def close(self) -> None:
        """Take all onions down, keys and all."""
        gone, self._generations.all = self._generations.all, []
        if self._control is not None:
            await set_onions(self._reactor, self._control, [])
        await self._removed(gone)

    # What is asked

    @property
    def shown(self) -> Generation | None:
        """The onion that others should use."""
        return self._generations.shown

    @property
    def addresses(self) -> frozenset[str]:
        """Of all onions that tor has of us."""
        return frozenset(one.onion for one in self._generations.all if one.onion)

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self._generations.all)

    def descriptor(self) -> HeadDescriptor | None:
        """Of the one to be shown; None while it has none, or is shut."""
        shown = self.shown
        return self._descriptors.get(shown.onion) if shown is not None and shown.ready else None

    def sessions(self) -> int:
        """Visitors' circuits that are up, of all onions."""
        return self._visits.sessions().total()

    # What is to be done, by one at a time

    async def step(self, now_s: float, wanted: Wanted) -> None:
        """Bring tor to where it should be. Raises `TorSilent`, and `RonError` when tor refuses: try again later."""
        if self._control is None:
            return
        points = {onion: self._visits.points(onion) for onion in self.addresses}
        step = self._generations.step(now_s, wanted, points, self._visits.sessions())
        for one in step.shut:
            _log.info("the head's onion {onion} takes nobody new", event="balance_head_shut", onion=one.onion)
            for circuit in self._visits.shut(one.onion):
                self.close_circuit(circuit)
        if step.make or step.drop:
            self._generations.all = [one for one in self._generations.all if one not in step.drop]
            await self._set([await self._new(wanted.masters)] if step.make else [])
            await self._removed(step.drop)

    async def look(self) -> None:
        """Read what tor says of the onions that are open. Raises `TorSilent`."""
        for one in list(self._generations.all):
            if self._control is None or one.shut or not one.onion:
                continue
            text = await own_descriptor(self._reactor, self._control, one.onion)
            if text is None and one.ready:  # tor was reloaded, and with it all is lost that no torrc names
                await self.attach(self._control)
                return
            known = self._descriptors.get(one.onion)
            if text is None or (one.ready and known is not None and edition(known.text) == edition(text)):
                continue
            if await deferToThread(count_points, text, one.onion) and not one.shut:
                self._descriptors[one.onion] = HeadDescriptor(onion=one.onion, text=text)
                one.ready = True

    def close_circuit(self, circuit: str) -> None:
        """Without waiting."""
        if self._control is not None:
            closing = Deferred.fromCoroutine(circuits.close(self._reactor, self._control, circuit))
            closing.addErrback(lambda failure: _log.debug("{error}", error=failure.getErrorMessage()))

    # Inside

    async def _new(self, masters: tuple[str, ...]) -> Generation:
        name = _KEPT if self._keep_key and self._first else f"{_PREFIX}{secrets.token_hex(8)}"
        self._first = False
        one = Generation(folder=self._folder / name, masters=masters)
        await deferToThread(prepare, one.folder, masters)
        return one

    async def _set(self, made: Sequence[Generation]) -> None:
        """tor has all of ours, and those just made, or it has what it had."""
        if self._control is None:
            return
        onions = [*self._generations.all, *made]
        try:
            await set_onions(
                self._reactor, self._control, [BackendOnion(folder=one.folder, ports=self._ports) for one in onions]
            )
            for one in made:
                one.onion = await deferToThread(address_in, one.folder)
        except BaseException:
            await self._removed(made)
            raise
        self._generations.all = onions

    async def _removed(self, gone: Sequence[Generation]) -> None:
        for one in gone:
            self._visits.forget(one.onion)
            self._descriptors.pop(one.onion, None)
            if not (self._keep_key and one.folder.name == _KEPT):
                await deferToThread(shutil.rmtree, one.folder, ignore_errors=True)

    def _clean(self) -> None:
        for entry in private_dir(self._folder).iterdir():
            if entry.name.startswith(_PREFIX) or (entry.name == _KEPT and not self._keep_key):
                shutil.rmtree(entry, ignore_errors=True)


async def listen(reactor: Any, control: TorControlProtocol, handlers: dict[str, Any]) -> None:
    """Hear tor's events. Raises `TorSilent`."""
    for event, handler in handlers.items():
        await answered(reactor, control.add_event_listener(event, handler))


def digest(descriptor: HeadDescriptor | None) -> str:
    """BLAKE3, hex; empty for none."""
    return blake3(descriptor.text.encode()).hexdigest() if descriptor is not None else ""
