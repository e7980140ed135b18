"""What this node does about descriptors: publish while it leads, look after what it published, be ready to lead.

In: each standing of the cluster, the consensus. Out: publications, told to the others as soon as one directory has one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.logger import Logger

from ron.proto.balance import NodeName, ServiceName
from ron.proto.errors import RonError
from ron.services.balance.cluster import Cluster, Plan, Reason, Standing
from ron.services.balance.ports import Vault
from ron.services.balance.publishing.publisher import Master, Publication
from ron.services.balance.publishing.room import Publishing
from ron.services.balance.records import Records
from ron.tor.descriptor.hashring import Ring

_log = Logger(namespace="ron.balance")


class Conductor:
    """Of one node, for one run of it. told: called when there is something new to tell the others: "I published".

    leads: as of the last `act`.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        cluster: Cluster,
        vault: Vault,
        records: Records,
        room: Publishing,
        told: Callable[[], None],
    ) -> None:
        self.leads = False
        self._reactor = reactor
        self._cluster = cluster
        self._vault = vault
        self._records = records
        self._room = room
        self._told = told
        self._turn = 0
        self._stopped = False
        self._working: set[Deferred[None]] = set()
        self._lacking: frozenset[NodeName] = frozenset()

    def act(self, standing: Standing) -> None:
        """Do what `standing` says is this node's to do."""
        was, self.leads = self.leads, standing.duties.lead
        if was and not self.leads:
            # two that look after one descriptor undo each other's work
            for name in self._records.all():
                self._let_go(name)
        if standing.duties.publish is not Reason.NONE and not self._stopped:
            self._begin(standing)

    def ring_changed(self, ring: Ring) -> None:
        """Another consensus: other periods are due, perhaps."""
        self._cluster.periods([due.period.number for due in ring.time.due()])

    def shelf_changed(self, name: NodeName) -> None:
        """There is a descriptor of that head. It was wanted, and what was published is without it: publish anew."""
        if self.leads and name in self._lacking:
            self._lacking -= {name}
            self._cluster.ask()

    def stop(self) -> None:
        """Publish no more. What directories have lives on."""
        self._stopped, self.leads = True, False
        for work in list(self._working):
            work.cancel()
        for name in self._records.all():
            self._room.release(name)

    def _let_go(self, service: ServiceName) -> None:
        """Another looks after it. Where the key is nobody's, who leads no more keeps nothing to publish with either."""
        record = self._records.all().get(service)
        if record is None or record.mode == "threshold":
            self._room.give_up(service)
        else:
            self._room.release(service)

    def _begin(self, standing: Standing) -> None:
        number = self._cluster.begin(self._reactor.seconds())
        held = self._vault.holds()
        masters = [master for name, master in self._records.masters().items() if name in held]
        self._turn += 1
        # others tell that they have a descriptor before it is here, and read
        self._lacking = frozenset(standing.plan.listed) - self._room.usable().heads.keys()
        _log.info(
            "publishing: {why}; heads: {heads}",
            event="balance_publishing",
            why=str(standing.duties.publish),
            heads=", ".join(standing.plan.listed),
        )
        work = Deferred.fromCoroutine(self._publish_all(number, masters, standing.plan, self._turn))
        self._working.add(work)
        work.addErrback(lambda failure: failure.trap(CancelledError))
        work.addErrback(lambda failure: _log.failure("publishing broke", failure, event="balance_publishing_broke"))
        work.addBoth(lambda _: self._working.discard(work))

    async def _publish_all(self, number: int, masters: list[Master], plan: Plan, turn: int) -> None:
        every = [Deferred.fromCoroutine(self._publish(master, plan.heads(master.name), turn)) for master in masters]
        well = await gatherResults(every, consumeErrors=True)
        if not self._stopped:
            self._cluster.ended(number, ok=bool(well) and all(well))
            self._told()

    async def _publish(self, master: Master, listed: Collection[str], turn: int) -> bool:
        """False when no directory has what clients ask for. One service's trouble is not the others'."""
        try:
            publication = await self._room.publish(master, listed, turn, self._note)
        except CancelledError:
            return False
        except RonError as error:
            _log.warn(
                "{service} was not published: {why}",
                event="balance_not_published",
                service=master.name,
                why=error.one_line(),
            )
            return False
        except Exception:  # noqa: BLE001 - a defect is as good as a refusal: the cluster has to know that it did not work
            _log.failure("{service} was not published", event="balance_publishing_broke", service=master.name)
            return False
        self._note(publication)
        if not self.leads:
            self._let_go(master.name)
        return publication.first_s is not None

    def _note(self, publication: Publication) -> None:
        """A directory has it, or all have: the first is what the others wait for."""
        if self._stopped:
            return
        now_s = self._reactor.seconds()
        self._cluster.published([told for told in publication.told(now_s) if told.taken], now_s)
        self._told()


def to_prepare(vault: Vault, records: Records, *, leads: bool) -> Collection[ServiceName]:
    """Services for which this node may have a descriptor-signing key before it needs one.

    Where the key is nobody's, only whoever leads has one: a seized node could publish with it until its end.
    """
    held = vault.holds()
    return [name for name, record in records.served().items() if name in held and (leads or record.mode == "shared")]
