"""OAP/1, the framed protocol between programs: frames, conversations, both ends of a connection (docs/oap.rst).

In: a handler, or calls. Out: answers, over any stream endpoint: TCP, TLS, Unix sockets, onions. `frames`, `streams`,
`hello` and `compression` are pure; `OapServer` and `OapClient` put them on a connection.
"""

from ron.oap.client import OapClient
from ron.oap.hello import HelloAnswer
from ron.oap.messages import Event, Handler, Request, Response
from ron.oap.server import ALPN, OapServer

__all__ = ["ALPN", "Event", "Handler", "HelloAnswer", "OapClient", "OapServer", "Request", "Response"]
