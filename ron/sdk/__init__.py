"""One client for all services: deadlines, retries with full-jitter back-off, idempotency keys, typed errors.

In: a transport (plain loopback, TLS, or through a tor's SOCKS port), a base URL and a capability.
Out: the services' calls.
"""

from ron.sdk.client import Api
from ron.sdk.mailbox import Mailbox, Message
from ron.sdk.transport import direct_http, onion_http, tls_http

__all__ = ["Api", "Mailbox", "Message", "direct_http", "onion_http", "tls_http"]
