"""A private Tor network by itself: what `ronctl tornet up` runs in the background.

In: a folder. Out: the network with one client tor, watched until SIGTERM; `tornet.json` tells how it stands.
"""

from __future__ import annotations

from pathlib import Path

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.usage import Options as TwistedOptions

from ron.kernel import HealthState, Metrics
from ron.nodes.daemon import complain
from ron.proto.errors import RonError
from ron.tor.binary import find_tor
from ron.tor.privnet import PrivateNetwork

NAME = "ron-tornet"
_log = Logger(namespace="ron.tornet")


class Options(TwistedOptions):
    """Options of `twistd ron-tornet`."""

    synopsis = "Usage: twistd [twistd options] ron-tornet --dir DIR"
    longdesc = "Runs a private Tor network on loopback. Usually started by: ronctl tornet up"
    optParameters = [  # noqa: RUF012 - Twisted's own form
        ["dir", "d", "var/tornet", "Where its keys and state live."],
        ["tor", None, "tor", "The tor program."],
    ]


def makeService(options: Options) -> Service:
    """The service for twistd."""
    from twisted.internet import reactor

    try:
        tor = find_tor(options["tor"])
    except RonError as error:
        complain(NAME, error)
    network = PrivateNetwork(
        reactor,
        directory=Path(options["dir"]).absolute(),
        tor=tor,
        clients=("client",),
        health=HealthState(),
        metrics=Metrics(),
    )
    return TornetService(network)


class TornetService(Service):
    """Brings the network up; a failure stands in `tornet.json` for whoever waits."""

    def __init__(self, network: PrivateNetwork) -> None:
        self._network = network
        self._begun: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin."""
        super().startService()
        self._begun = Deferred.fromCoroutine(self._network.bring_up())
        self._begun.addErrback(self._failed)

    def stopService(self) -> Deferred[None]:
        """Take it down; fires when no tor is left."""
        super().stopService()
        if self._begun is not None:
            self._begun.cancel()
        return Deferred.fromCoroutine(self._network.take_down())

    def _failed(self, failure: object) -> None:
        value = getattr(failure, "value", None)
        if isinstance(value, CancelledError):
            return
        _log.error("the network did not come up: {reason}", event="tornet_failed", reason=str(value))
        self._network.fail(str(value))
        from twisted.internet import reactor

        reactor.stop()
