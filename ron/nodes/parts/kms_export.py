"""Where audit records are sent: an HTTP POST of each batch to `audit.export_url`.

In: the address, the variable with a token for it. Out: a sender for `ron.services.kms.audit.export`.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.error import ConnectError
from twisted.web.client import HTTPConnectionPool, ResponseFailed, readBody
from twisted.web.http_headers import Headers

from ron.kernel.config import ConfigError
from ron.proto.errors import unavailable
from ron.sdk.transport import direct_http
from ron.services.kms.audit.export import Send
from ron.services.kms.config import KmsAudit

_OK = range(200, 300)


def sender(reactor: Any, pool: HTTPConnectionPool, wanted: KmsAudit, section: str) -> Send:
    """Posts to `wanted.export_url`. Raises `ConfigError` where the variable that holds the token is empty."""
    http = direct_http(reactor, pool)
    headers = Headers({"Content-Type": ["application/json"], "User-Agent": ["ron-kms"]})
    if wanted.export_token_env:
        token = os.environ.get(wanted.export_token_env, "")
        if not token:
            raise ConfigError(
                f"the variable {wanted.export_token_env} is empty or not set",
                key=f"{section}audit.export_token_env",
                hint="set it for the service",
            )
        headers.addRawHeader("Authorization", f"Bearer {token}")

    async def send(batch: bytes) -> None:
        try:
            answer = await http.request("POST", wanted.export_url, headers=headers, data=batch)
            # to its end, so that the connection can be used again
            await readBody(answer)
        except (ConnectError, ResponseFailed) as error:
            raise unavailable(f"the audit service cannot be reached: {type(error).__name__}") from None
        if answer.code not in _OK:
            raise unavailable(f"the audit service answered {answer.code}")

    return send
