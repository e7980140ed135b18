"""Who visits an onion that is deleted is hung up on, and tor is asked no more than it must be."""

from __future__ import annotations

from ron.proto.onions import DeleteRequest
from ron.services.oniond import telemetry
from tests.services.oniond.fakes import OnionTor, create, op_id
from tests.web.wire import until


class HangingUp(OnionTor):
    """The config's own onion, and one that a program made."""

    async def setUp(self) -> None:
        super().setUp()
        await self.up()
        self.view = await self.service.create(create(1, wait_s=5))

    async def test_visitors_of_a_deleted_one_are_hung_up_on_once_nobody_new_comes(self) -> None:
        """Without tor being asked for all circuits that it has: of many onions that takes long, and each time."""
        service_id = self.view.onion.removesuffix(".onion")
        others = self.service.onion("wiki") or ""
        for number, visited in ((5, service_id), (6, others.removesuffix(".onion")), (7, service_id)):
            self.tell_of("onion", f"CIRC {number} BUILT PURPOSE=HS_SERVICE_REND REND_QUERY={visited}")
        await until(lambda: self.service.view(self.service.find(self.view.id)).circuits == 2)
        self.commands.clear()
        await self.service.delete(self.view.id, DeleteRequest(op_id=op_id(2)))
        told = [one for one in self.commands if one.split()[0] in {"DEL_ONION", "CLOSECIRCUIT"}]
        self.assertEqual(told, [f"DEL_ONION {service_id}", "CLOSECIRCUIT 5", "CLOSECIRCUIT 7"])
        self.assertNotIn("GETINFO circuit-status", self.commands)

    async def test_where_not_all_circuits_are_known_tor_is_asked(self) -> None:
        self.patch(telemetry, "MAX_CIRCUITS", 0)
        self.commands.clear()
        await self.service.delete(self.view.id, DeleteRequest(op_id=op_id(2)))
        self.assertIn("GETINFO circuit-status", self.commands)
