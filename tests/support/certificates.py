"""An authority, and the certificates that it issued for one test."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives import serialization

__all__ = ["Certificates"]


class Certificates:
    """What an authority issued for a server on loopback and for a client."""

    def __init__(self, folder: Path, *names: str, **dates: Any) -> None:
        folder.mkdir()
        self.ca = folder / "ca.pem"
        self._folder = folder
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(self.ca))
        self.server = self.another(
            *(names or ("127.0.0.1", "localhost")), file="server.pem", **dates
        )
        self.client = self.another("client.example", file="client.pem")

    def another(
        self, *names: str, file: str = "another.pem", expired: bool = False, **dates: Any
    ) -> Path:
        """A certificate for these names, with its key.

        The dates are `not_before` and `not_after`.
        """
        path = self._folder / file
        if expired:
            now, day = datetime.now(UTC), timedelta(days=1)
            dates = {"not_before": now - 2 * day, "not_after": now - day}
        issued = self._authority.issue_cert(*names, **dates)
        key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
        # Java reads a key in this form only.
        written = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.write_bytes(written + b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        return path

    def block(self, more: str = "") -> str:
        """A nats-server's `tls` block."""
        return (
            f'tls {{ cert_file: "{self.server}", key_file: "{self.server}", '
            f'ca_file: "{self.ca}", {more} }}'
        )

    def listener(self, client_auth: str = "none") -> list[str]:
        """A Kafka broker's properties for clients that speak TLS."""
        name = "listener.name.client"
        return [
            f"{name}.ssl.keystore.type=PEM",
            f"{name}.ssl.keystore.location={self.server}",
            f"{name}.ssl.truststore.type=PEM",
            f"{name}.ssl.truststore.location={self.ca}",
            f"{name}.ssl.client.auth={client_auth}",
        ]
