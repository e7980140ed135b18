"""Looks at the nodes of a network over several hosts: tries their ports, asks authorities what they publish.

In: the manifest. Out: a `Seen` per node for `check.judge`. Blocks, all nodes at once, some seconds at most.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from ron.proto.errors import RonError
from ron.tor.hostnet.check import Consensus, Seen, read_consensus
from ron.tor.hostnet.plan import Manifest, Node
from ron.tor.hostnet.vault import read_certificate

TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 4 * 1024 * 1024
_AT_ONCE = 16


def look(manifest: Manifest, timeout_s: float = TIMEOUT_S) -> dict[str, Seen]:
    """What is found out about every node, by name. Raises nothing: what does not answer is not there."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        found = pool.map(lambda node: _look_at(node, timeout_s), manifest.nodes)
        return {node.name: seen for node, seen in zip(manifest.nodes, found, strict=True)}


def shakes_hands(address: str, port: int, timeout_s: float) -> bool:
    """Whether a TLS handshake comes about there. A frozen tor still accepts connections, and so do some firewalls."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # whether it is the relay it says is for tor to find out; here only whether somebody is there
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((address, port), timeout=timeout_s) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False


def _look_at(node: Node, timeout_s: float) -> Seen:
    or_port = shakes_hands(node.address, node.or_port, timeout_s)
    if node.dir_port is None:
        return Seen(or_port)
    certificate = _get(node, "/tor/keys/authority", timeout_s)
    if certificate is None:
        return Seen(or_port, dir_port=False)
    return Seen(or_port, True, _certificate(node, certificate), _consensus(node, timeout_s))


def _certificate(node: Node, content: bytes) -> datetime | None:
    """The end of the certificate the authority uses now, unless it is another authority's."""
    with contextlib.suppress(RonError):
        v3ident, expires = read_certificate(content)
        return expires if v3ident == node.v3ident else None
    return None


def _consensus(node: Node, timeout_s: float) -> Consensus | None:
    content = _get(node, "/tor/status-vote/current/consensus", timeout_s) or b""
    with contextlib.suppress(RonError, ValueError):
        return read_consensus(content.decode("utf-8", "replace"))
    return None


def _get(node: Node, path: str, timeout_s: float) -> bytes | None:
    """What the authority's DirPort answers; empty for anything but a success, None when there is no answer."""
    connection = http.client.HTTPConnection(node.address, node.dir_port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read(MAX_ANSWER_BYTES) if answer.status == http.HTTPStatus.OK else b""
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
