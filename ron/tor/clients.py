"""Client tors of a network that others run: the public one, or a private one over several hosts.

In: roles; for a private network the lines of its operator (`snippet.torrc` of a client bundle). Out: a `Fleet` of
clients and hosts of onions. On the public network every torrc is judged by `ron.tor.strict` before tor sees it, then
what tor makes of it, and each running tor whenever it comes up: never a relay, never an exit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ron.kernel.aio import within
from ron.proto.errors import RonError, bad_request
from ron.tor.control import ANSWER_TIMEOUT_S
from ron.tor.fleet import Fleet
from ron.tor.strict import check_public_torrc, check_running, check_with_tor
from ron.tor.torrc import render
from ron.tor.watchdog import WatchedTor

MAX_SNIPPET_BYTES = 64 * 1024
# What the operator's lines may say; whatever else a tor of ours is told, we tell it.
_SNIPPET = frozenset(
    {"testingtornetwork", "enforcedistinctsubnets", "clientrejectinternaladdresses", "usedefaultfallbackdirs"}
    | {"dirauthority", "vanguardsliteenabled", "clientuseipv6", "pathsneededtobuildcircuits"}
    | {"dirallowprivateaddresses", "extendallowprivateaddresses", "clientonly", "v3authvotinginterval"}
    | {"testingv3authinitialvotinginterval", "addressdisableipv6"}
)


class PublicClients(Fleet):
    """Clients of the public Tor network. Guards and the consensus are kept from run to run, as tor wants it."""

    network = "public"
    keeps_state = True
    # A first bootstrap over a slow line takes minutes.
    up_timeout_s = 300.0
    bring_up_timeout_s = 600.0

    def _torrc(self, name: str, values: dict[str, object]) -> str:
        text = render("public", values)
        check_public_torrc(text)
        return text

    def _check_torrc(self, path: Path) -> None:
        check_with_tor(self._tor, path)

    async def _came_up(self, tor: WatchedTor) -> None:
        if tor.control is not None:
            try:
                await within(self._reactor, ANSWER_TIMEOUT_S, check_running(self._reactor, tor.control))
            except RonError as error:
                self._health.missing(f"tor.{tor.name}", f"it does not run as a client only: {error.message}")
                tor.restart()
                return
        await super()._came_up(tor)


class JoinedClients(Fleet):
    """Clients of a private network whose authorities and relays are on other hosts."""

    network = "joined"
    keeps_state = True
    up_timeout_s = 120.0
    bring_up_timeout_s = 300.0

    def __init__(self, reactor: Any, *, snippet: Path, **settings: Any) -> None:
        super().__init__(reactor, **settings)
        self._snippet = snippet

    def _torrc(self, name: str, values: dict[str, object]) -> str:
        return render("joined", {**values, "snippet": read_snippet(self._snippet)})


def read_snippet(path: Path) -> str:
    """The operator's lines. Raises `RonError` (BadRequest) on what is none of them, or names no authority."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SNIPPET_BYTES + 1)
        text = raw.decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise bad_request(
            f"{path} cannot be read: {error}", hint="onion.client_torrc names snippet.torrc of a client bundle"
        ) from None
    if len(raw) > MAX_SNIPPET_BYTES:
        raise bad_request(f"{path} is longer than {MAX_SNIPPET_BYTES} bytes")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in lines:
        if line.split()[0].lower() not in _SNIPPET or not line.isprintable() or line.endswith("\\"):
            raise bad_request(f"{path}: {line.split()[0][:64]} is none of a client's lines")
    if not any(line.lower().startswith("dirauthority ") for line in lines):
        raise bad_request(f"{path} names no authority", hint="ronctl tornet init writes one in the client bundle")
    return "\n".join(lines)
