"""An answer goes out at once, as far as the socket takes it; and what is done at once is given no deadline."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import Deferred, succeed

from ron.kernel.deadlines import Deadlines
from ron.web import Call, Endpoint, Raw
from tests.web.wire import OnTheWire, request, until

# More than a socket takes at a time, and no round number.
LARGE = os.urandom(3_000_001)


class Sending(OnTheWire):
    def setUp(self) -> None:
        super().setUp()
        self.waiting: list[Deferred[Any]] = []
        handlers = {"/large": self.large, "/soon": self.soon, "/fired": self.fired, "/later": self.later}
        self.site = self.serve(
            Endpoint(method="GET", path=path, handler=handler, scope=None, hot=True)
            for path, handler in handlers.items()
        )

    def large(self, _call: Call) -> Raw:
        return Raw(LARGE, "application/octet-stream")

    async def soon(self, _call: Call) -> dict[str, str]:
        return {}

    def fired(self, _call: Call) -> Deferred[dict[str, str]]:
        return succeed({})

    async def later(self, _call: Call) -> dict[str, str]:
        self.waiting.append(Deferred())
        answer: dict[str, str] = await self.waiting[-1]
        return answer

    def deadlines(self) -> int:
        """How many calls under way have one. The connections' own timers cancel nothing."""
        timers: Any = self.clock.getDelayedCalls()
        return sum(isinstance(getattr(one.func, "__self__", None), Deadlines) for one in timers)

    async def test_what_the_socket_does_not_take_comes_after_it(self) -> None:
        wire = await self.wire()
        wire.send(request("GET", "/large") + request("GET", "/soon"))
        self.assertEqual((await wire.response()).body, LARGE)
        self.assertEqual((await wire.response()).body, b"{}")

    async def test_a_deadline_for_what_is_waited_for_alone(self) -> None:
        begun: list[float] = []
        call_later = self.clock.callLater

        def spy(delay_s: float, call: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(getattr(call, "__self__", None), Deadlines):
                begun.append(delay_s)
            return call_later(delay_s, call, *args, **kwargs)

        self.patch(self.clock, "callLater", spy)
        for path in ("/soon", "/fired"):
            self.assertEqual((path, (await self.ask(request("GET", path))).status), (path, 200))
        self.assertEqual(begun, [])
        wire = await self.wire()
        wire.send(request("GET", "/later"))
        await until(lambda: self.waiting)
        self.assertEqual((begun, self.deadlines()), ([30.0], 1))
        self.waiting[0].callback({"at": "last"})
        self.assertEqual((await wire.response()).json, {"at": "last"})
        self.assertEqual(self.deadlines(), 0)
