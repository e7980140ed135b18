"""mailbox hosted: the service and its HTTP listener."""

from __future__ import annotations

from collections.abc import Mapping

from ron.kernel.commands import Handlers
from ron.nodes.parts import Host, Part
from ron.services.mailbox import api
from ron.services.mailbox.service import MailboxService
from ron.web.site import RonSite


class MailboxPart(Part):
    """`MailboxService` in this process; in amnesia its database is this process's memory."""

    service: MailboxService

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        runtime = host.runtime
        self.service = MailboxService(
            host.config.mailbox,
            path=None if runtime.amnesia else runtime.home / "mailbox" / "mailbox.sqlite3",
            reactor=runtime.reactor,
            health=runtime.health,
            metrics=runtime.metrics,
        )

    async def ready(self) -> None:
        """The store is open."""
        await self.service.opened()

    def handlers(self) -> Handlers:
        """stats: what is queued."""
        return {"stats": lambda _command: self.service.stats()}

    def sites(self) -> Mapping[str, RonSite]:
        """send, recv, ack."""
        site = self.host.runtime.site(
            api.endpoints(self.service), body_limit=api.BODY_LIMIT_BYTES, view=self.host.view, name="mailbox"
        )
        return {"mailbox": site}
