"""`Mesh` of `ports.py`: joins the rooms of this folder, and is the life of a node's place in the mesh.

In: `NodeFiles`, where to listen, seeds. Out: links to all members, the book, messages and calls for the other rooms.
Readiness key `balance.mesh`: missing until this node is a member, and for good once it may not be one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, cast

import msgspec
from twisted.application.service import Service
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.kernel.files import DirectoryLock
from ron.kernel.health import HealthState
from ron.kernel.metrics import Metrics
from ron.kernel.tls_listen import listen_tls
from ron.proto.addresses import HostPort
from ron.proto.balance import NodeName
from ron.proto.errors import RonError, unavailable
from ron.services.balance.mesh import sync
from ron.services.balance.mesh.book import LocalBook
from ron.services.balance.mesh.calls import packed_body
from ron.services.balance.mesh.clocks import middle
from ron.services.balance.mesh.dialling import Dialler, LinkFactory
from ron.services.balance.mesh.entries import MEMBER, REMOVED, STRIKE, TOKEN
from ron.services.balance.mesh.files import NodeFiles
from ron.services.balance.mesh.handlers import Handlers, for_rooms
from ron.services.balance.mesh.link import Link
from ron.services.balance.mesh.meters import Meters
from ron.services.balance.mesh.node import TWIN, AskTwin, Node
from ron.services.balance.mesh.outbox import Item
from ron.services.balance.mesh.peers import PeerStates
from ron.services.balance.mesh.removals import Removals
from ron.services.balance.mesh.roster import Roster, member_of
from ron.services.balance.mesh.standing import Reporter, not_wanted, standing
from ron.services.balance.mesh.tls import dialler_tls, listener_tls
from ron.services.balance.mesh.tokens import notice_of
from ron.services.balance.mesh.voice import Voice
from ron.services.balance.mesh.vouching import Vouching
from ron.services.balance.ports import Book, Member, Peer

Body = TypeVar("Body", bound=msgspec.Struct)
Answer = TypeVar("Answer", bound=msgspec.Struct)
PING_S, SILENCE_S = 1.0, 3.0
# A node that leaves tells the others first.
PARTING_S = 1.0
TLS_HANDSHAKE_S = 5.0
MAX_HANDSHAKES = 64
_log = Logger(namespace="ron.balance.mesh")


class MeshService(Service):
    """`Mesh`. Handlers and changes of the book may be asked for before it is started.

    files: of this node; held locked while it runs. listen: port 0 lets the system choose. advertise: where others
    reach it, `host:port`; none: where it listens. seeds: beside those of the files. socks: tor's port, for peers that
    are onions. remove_by: so many members have to ask for a removal. seal_key: this run's public X-Wing key. now: Unix
    seconds. on_end: called once if this node may not go on (it was removed, or is a copy of another that runs); the
    error says what to do.
    Raises `RonError`: Conflict for a book that is damaged, BadRequest for a certificate that cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        files: NodeFiles,
        listen: HostPort,
        health: HealthState,
        metrics: Metrics,
        advertise: tuple[str, ...] = (),
        seeds: tuple[str, ...] = (),
        socks: HostPort | None = None,
        seal_key: bytes = b"",
        on_end: Callable[[RonError], None] = lambda error: None,
        now: Callable[[], float] = time.time,
        ping_s: float = PING_S,
        silence_s: float = SILENCE_S,
        remove_by: int = 1,
        rng: random.Random | None = None,
    ) -> None:
        self.name: NodeName = files.name
        self.me: Member = member_of(files.name, bytes(files.signing.verify_key), advertise)
        self.ended: RonError | None = None
        self.port = listen.port
        self._reactor = reactor
        self._files = files
        self._listen = listen
        self._advertise = advertise
        self._reporter = Reporter(health)
        self._seeds = (*seeds, *files.seeds)
        self._socks = socks
        self._seal_key = seal_key
        self._on_end = on_end
        self._now = now
        self._silence_s = silence_s
        self._rng = rng
        # for a `CertificateWatch`: renewed files are used for new links
        self.listener_tls = listener_tls(files, now)
        self.dialler_tls = dialler_tls(files, now)
        self._handlers = Handlers()
        self._meters = Meters(reactor, metrics, self._handlers)
        self._metrics = metrics
        vouching = Vouching(files)
        self._local = LocalBook(
            files.cluster, files.name, files.signing, files.read_book(), needed=remove_by, vouches=vouching
        )
        self.book: Book = self._local
        self._roster = Roster(self._local)
        self._removals = Removals(self._local, self._roster, files, vouching, self.me.key)
        self._sync = sync.Sync(
            reactor, self, self._local, files, self._meters, is_vouched=lambda name: name not in self._roster.members()
        )
        self._saver = sync.Saver(reactor, files, self._local)
        self._peers = PeerStates()
        self._node: Node | None = None
        self._dialler: Dialler | None = None
        self._port: IListeningPort | None = None
        self._lock: DirectoryLock | None = None
        self._parting: IDelayedCall | None = None
        self._closing: Deferred[Any] | None = None
        self._loop = LoopingCall(self._tick)
        self._loop.clock = reactor
        self._ping_s = ping_s
        self._sync.serve(self._handlers)
        self._local.on_change(self._changed)

    # -- life -------------------------------------------------------------------------------------------------------

    def startService(self) -> None:
        """Lock the files, listen, dial. Raises `RonError` when files, certificate or address cannot be used."""
        self._lock = DirectoryLock(self._files.directory)
        try:
            self._start()
        except BaseException:
            self._lock.release()
            raise
        super().startService()

    def _start(self) -> None:
        run = self._files.next_run(int(self._now() * 1000))
        self._port = listen_tls(
            self._reactor,
            self._listen,
            LinkFactory(self._accept),
            self.listener_tls,
            metrics=self._metrics,
            handshake_s=TLS_HANDSHAKE_S,
            max_handshakes=MAX_HANDSHAKES,
        )
        self.port = int(cast(IPv4Address, self._port.getHost()).port)
        addresses = self._advertise or (str(HostPort(self._listen.host, self.port)),)
        self.me = member_of(self.name, self.me.key, addresses)
        voice = Voice(
            cluster=self._files.cluster,
            name=self.name,
            signing=self._files.signing,
            run=run,
            now=self._now,
            seal_key=self._seal_key,
            addresses=addresses,
        )
        node = self._node = Node(
            self._reactor,
            voice=voice,
            book=self._local,
            roster=self._roster,
            peers=self._peers,
            handlers=self._handlers,
            meters=self._meters,
            present_token=self._sync.present_token,
            compare=self._sync.compare,
            give_up=self._give_up,
        )
        self._handlers.serve(TWIN, AskTwin, node.twin_asked)
        self._local.tell = node.spread
        self._dialler = Dialler(
            self._reactor,
            tls=self.dialler_tls,
            make_link=lambda expected: Link(self._reactor, node, dialled=True, expected=expected),
            is_linked=self._peers.is_linked,
            socks=self._socks,
            rng=self._rng,
        )
        self._found()
        self._look_at_roster()
        if self.ended is None:
            self._dialler.seeds(self._seeds)
            self._dial_members()
            self._loop.start(self._ping_s)

    def _found(self) -> None:
        """The first node of all writes the first page."""
        if self._files.founder and not self._local.keys(MEMBER):
            self._local.put(MEMBER + self.name, self.me)
            self._local.put(TOKEN, notice_of(self._files.token))
            self._files.keep_book(tuple(self._local.entries))
            self._local.fresh = False
        self._files.founded()

    async def _stop(self) -> None:
        self._disconnect()
        if self._closing is not None:
            await self._closing
        await self._saver.end()
        if self._lock is not None:
            self._lock.release()

    def stopService(self) -> Deferred[None]:
        """End all links and save the book."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    # -- the port (`ports.Mesh`) ------------------------------------------------------------------------------------

    def members(self) -> Mapping[NodeName, Member]:
        """`Mesh.members`."""
        known = self._roster.members()
        if self.name in known or self._roster.is_removed(self.name, self.me.key):
            return known
        return {**known, self.name: self.me}

    def peers(self) -> Mapping[NodeName, Peer]:
        """`Mesh.peers`."""
        return {name: self._peers.peer(member) for name, member in self._roster.members().items() if name != self.name}

    def broadcast(self, kind: str, body: msgspec.Struct) -> None:
        """`Mesh.broadcast`. Raises `RonError` (TooLarge)."""
        item = Item(kind, 0, packed_body(body))
        for name in self._roster.members():
            self._send(name, item)

    def send(self, to: NodeName, kind: str, body: msgspec.Struct) -> None:
        """`Mesh.send`. Raises `RonError` (TooLarge)."""
        self._send(to, Item(kind, 0, packed_body(body)))

    def _send(self, to: NodeName, item: Item) -> None:
        if self._node is not None and self._node.send(to, item) is None and to != self.name:
            self._meters.dropped(to)

    async def call(
        self, to: NodeName, kind: str, body: msgspec.Struct, answer: type[Answer], *, deadline_s: float
    ) -> Answer:
        """`Mesh.call`. Raises `RonError`."""
        if self._node is None:
            raise unavailable("the mesh is not started")
        return await self._node.calls.call(to, kind, body, answer, deadline_s)

    def listen(self, kind: str, shape: type[Body], handler: Callable[[NodeName, Body], None]) -> None:
        """`Mesh.listen`. Raises `RonError`: BadRequest for a kind of the mesh's own, Conflict for one that is heard."""
        self._handlers.listen(for_rooms(kind), shape, handler)

    def serve(
        self, kind: str, shape: type[Body], handler: Callable[[NodeName, Body], Awaitable[msgspec.Struct]]
    ) -> None:
        """`Mesh.serve`. Raises as `listen`."""
        self._handlers.serve(for_rooms(kind), shape, handler)

    # -- for operators ----------------------------------------------------------------------------------------------

    @property
    def refused(self) -> str:
        """Why the cluster does not take this node, which runs alone then; empty: it does, or nobody has said."""
        return self._reporter.refused

    @property
    def turned(self) -> str:
        """Who has turned this node away though it has its place; empty: nobody."""
        node = self._node
        turned = node.turned if node is not None and not self.refused else None
        return (
            f"{node.turned_by} has turned this node away: {turned}" if node is not None and turned is not None else ""
        )

    @property
    def drift_s(self) -> float | None:
        """How far the others' clocks are ahead of ours, their median; None while unknown."""
        return middle(peer.drift_s for peer in self.peers().values())

    async def remove(self, name: NodeName) -> frozenset[NodeName]:
        """Strike `name` off the roster: its links end on every node, and the token is another. Itself: leave. Who has
        asked for it by now; while they are fewer than `remove_by` that is all that happens.

        Raises `RonError`: NotFound for no member, Conflict when this node is none itself.
        """
        return await self._removals.remove(name)

    async def rotate_token(self) -> int:
        """A new token; the old one is void for joins from now on. Its version. Raises `RonError` (Conflict)."""
        return await self._removals.rotate_token()

    # -- within -----------------------------------------------------------------------------------------------------

    def _accept(self) -> Link | None:
        """A link that another node dials; None while there is nothing to link to."""
        if self._node is None or self.ended is not None:
            return None
        return Link(self._reactor, self._node, dialled=False)

    def _changed(self, key: str) -> None:
        """The book did."""
        self._saver.changed()
        if key == TOKEN and self._node is not None:
            self._sync.fetch_token()
        if key.startswith((MEMBER, REMOVED)):
            self._look_at_roster()
        if key.startswith(STRIKE) and self.running:
            self._removals.complete()

    def _look_at_roster(self) -> None:
        """Links for the members, none for others; and is this node one still?"""
        if self._node is None or self.ended is not None:
            return
        self._node.close_removed()
        entry = self._local.get(MEMBER + self.name, Member)
        if self._roster.is_removed(self.name, self.me.key):
            self._part(not_wanted("removed", self.name))
        elif entry is not None and entry.key != self.me.key and self.name in self._roster.members():
            self._give_up(not_wanted("name_taken", self.name))
        elif self.running:
            self._dial_members()
        self._report()

    def _part(self, error: RonError) -> None:
        """Give up; in a while if we run, for it may be by our own word, which has to get out first."""
        if not self.running:
            self._give_up(error)
        elif self._parting is None:
            self._parting = self._reactor.callLater(PARTING_S, self._give_up, error)

    def _dial_members(self) -> None:
        if self._dialler is not None:
            members = self._roster.members()
            self._dialler.members({name: m.addresses for name, m in members.items() if name != self.name})

    def _tick(self) -> None:
        try:
            self._look_around()
        except Exception:  # noqa: BLE001 - or the loop would end, and no silent link be noticed any more
            _log.failure("the mesh's round failed", event="mesh_tick_failed")

    def _look_around(self) -> None:
        if self._node is None or self.ended is not None:
            return
        self._node.tick(self._silence_s)
        self._sync.fetch_token()
        ours = self._roster.members().get(self.name)
        if ours is not None and ours != self.me and ours.key == self.me.key:
            self._write_address()
        self._report()

    def _write_address(self) -> None:
        try:
            self._local.put(MEMBER + self.name, self.me)
        except RonError as error:
            _log.warn("our address cannot be told: {problem}", event="mesh_address", problem=error.one_line())

    def _give_up(self, error: RonError) -> None:
        """This node may not go on."""
        if self.ended is not None or self._node is None:
            return
        self.ended = error
        _log.error("the mesh has ended here: {problem}", event="mesh_ended", problem=error.one_line())
        self._disconnect()
        self._report()
        self._on_end(error)

    def _disconnect(self) -> None:
        if self._parting is not None and self._parting.active():
            self._parting.cancel()
        if self._loop.running:
            self._loop.stop()
        if self._dialler is not None:
            self._dialler.stop()
        if self._node is not None:
            self._node.close_all()
        if self._port is not None:
            self._closing = maybeDeferred(self._port.stopListening)
            self._port = None

    def _report(self) -> None:
        node, members = self._node, self._roster.members()
        self._reporter.report(
            standing(
                ended=self.ended,
                is_member=self._roster.is_member(self.name, self.me.key),
                turned=node.turned if node is not None else None,
                others=len(members) - (self.name in members),
                connected=self._peers.is_linked(None),
            )
        )
