"""What stands behind a head: a web page with the node's name, and an echo. Both go on when the node is killed."""

from __future__ import annotations

import http.server
import socketserver
import threading
from typing import Any

HTTP_PORT, ECHO_PORT = 80, 7


class Site:
    """What stands behind a head: a web page with the node's name, and an echo. Goes on when the node is killed."""

    def __init__(self, name: str) -> None:
        body = f"node {name}".encode()

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_words: object) -> None:
                """Quiet."""

        self.body = body
        self._echo = _EchoServer(("127.0.0.1", 0), _Echo)
        self._servers = [_Server(("127.0.0.1", 0), Page), self._echo]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    @property
    def ports(self) -> list[str]:
        """As `--port` takes them."""
        there = [server.server_address[1] for server in self._servers]
        return [f"{HTTP_PORT}:127.0.0.1:{there[0]}", f"{ECHO_PORT}:127.0.0.1:{there[1]}"]

    @property
    def sessions(self) -> int:
        """Visitors of the echo who are there now."""
        return self._echo.open

    def close(self) -> None:
        """Serve no more."""
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, _request: Any, _address: Any) -> None:
        """A visitor whose head was killed."""


class _EchoServer(_Server):
    open = 0


class _Echo(socketserver.BaseRequestHandler):
    server: _EchoServer

    def handle(self) -> None:
        self.server.open += 1
        try:
            while found := self.request.recv(65536):
                self.request.sendall(found)
        finally:
            self.server.open -= 1
