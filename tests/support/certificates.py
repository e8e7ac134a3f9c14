"""Certificates for one test."""

from pathlib import Path

import trustme

__all__ = ["Certificates"]


class Certificates:
    """What an authority issued for a server on loopback and for a client."""

    def __init__(self, folder: Path, *names: str) -> None:
        folder.mkdir()
        self.ca = folder / "ca.pem"
        self._folder = folder
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(self.ca))
        self.server = self.another(*(names or ("127.0.0.1", "localhost")), file="server.pem")
        self.client = self.another("client.example", file="client.pem")

    def another(self, *names: str, file: str = "another.pem") -> Path:
        """A certificate for these names, with its key."""
        path = self._folder / file
        issued = self._authority.issue_cert(*names)
        issued.private_key_and_cert_chain_pem.write_to_path(str(path))
        return path

    def block(self, more: str = "") -> str:
        """A server's `tls` block."""
        return (
            f'tls {{ cert_file: "{self.server}", key_file: "{self.server}", '
            f'ca_file: "{self.ca}", {more} }}'
        )
