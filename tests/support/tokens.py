"""An identity provider on loopback that hands out access tokens, for OAUTHBEARER."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs

__all__ = ["TokenServer"]


class TokenServer:
    """Gives a token to a client that has the secret; `asked` has each request."""

    def __init__(self, client: str, secret: str) -> None:
        self.asked: list[dict[str, list[str]]] = []
        wanted = "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode()
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                asked.append(parse_qs(body))
                allowed = self.headers["Authorization"] == wanted
                answer = (
                    {"access_token": _token(client), "token_type": "Bearer", "expires_in": 300}
                    if allowed
                    else {"error": "invalid_client"}
                )
                data = json.dumps(answer).encode()
                self.send_response(200 if allowed else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """It has no log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _token(subject: str) -> str:
    """A token without a signature: Kafka's own check, when none is configured, asks for none."""
    now = int(time.time())
    parts = ({"alg": "none"}, {"sub": subject, "iat": now, "exp": now + 300, "scope": "kafka"})
    return (
        ".".join(
            base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
            for part in parts
        )
        + "."
    )
