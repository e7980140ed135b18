"""`ronctl` as a process against a node that asks for certificates."""

from __future__ import annotations

from pathlib import Path

from twisted.internet import reactor

from ron.kernel import Metrics
from ron.kernel.tls import ServerTls
from ron.kernel.tls_listen import listen_tls
from ron.proto.addresses import HostPort
from tests.ctl.with_node import Ronctl, WithNode
from tests.kernel.certificates import Folder

SERVICES = [{"name": "edge", "state": "up"}]


class AnotherHost(WithNode):
    """The node alpha behind mutual TLS; beta is the operator's machine."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Folder(Path(self.mktemp()).absolute())
        self.beta = self.folder.node("beta")
        tls = ServerTls(*self.folder.node("alpha"), self.folder.ca)
        port = listen_tls(reactor, HostPort("127.0.0.1", 0), self.site, tls, metrics=Metrics())
        self.addCleanup(port.stopListening)
        self.https = f"https://127.0.0.1:{port.getHost().port}"
        self.bus.serve("node", {"services": lambda _command: SERVICES})

    async def over_tls(self, *command: str, before: tuple[str, ...] = (), cap: str = "*") -> Ronctl:
        certificate, key = map(str, self.beta)
        ours = ("--ca", str(self.folder.ca), "--cert", certificate, "--key", key, *before)
        given = ("--cap", self.capability(cap)) if cap else ()
        return await self.done(*ours, *command, "--node", self.https, *given)

    async def test_a_node_that_is_not_the_one_meant(self) -> None:
        wrong = await self.over_tls("service", "list", before=("--identity", "ron://node/gamma"))
        self.assertEqual((wrong.code, wrong.out), (4, b""))
        self.assertIn(b"verify failed; fix: it must be ron://node/gamma", wrong.err)

    async def test_the_admin_capability_of_this_host_stays_here(self) -> None:
        refused = await self.over_tls("service", "list", cap="")
        self.assertEqual((refused.code, refused.out), (5, b""))

    async def test_what_does_not_go_together(self) -> None:
        for arguments, word in (
            (("service", "list", "--node", self.https), b"--ca"),
            (("--ca", str(self.folder.ca), "service", "list"), b"https"),
            (("--identity", "ron://node/alpha", "service", "list", "--node", self.url), b"https"),
            (("--ca", "nowhere.pem", "service", "list", "--node", self.https), b"nowhere.pem"),
            (
                ("--ca", str(self.folder.ca), "--cert", str(self.beta[0]), "service", "list", "--node", self.https),
                b"key",
            ),
            (("--ca", str(self.folder.ca), "service", "list", "--node", "https://[::1"), b"no URL"),
        ):
            wrong = await self.done(*arguments)
            self.assertEqual((wrong.code, wrong.out), (3, b""), wrong.err)
            self.assertIn(word, wrong.err)

    async def test_the_right_one(self) -> None:
        listed = await self.over_tls("service", "list", before=("--identity", "ron://node/alpha"))
        self.assertEqual(listed.code, 0, listed.err)
        self.assertTrue(listed.lines[1].startswith("edge"), listed.out)

    async def test_by_the_name_in_its_url_and_with_calls_that_are_held_back(self) -> None:
        self.bus.publish("said before", topic="a")
        tailed = await self.over_tls("tail", "--no-follow")
        self.assertEqual(tailed.code, 0, tailed.err)
        self.assertIn("said before", tailed.lines[0])
