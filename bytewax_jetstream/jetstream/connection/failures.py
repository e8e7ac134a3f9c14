"""`JetStreamApiError`: an error reply of the API; connection errors in words, and what to do."""

import ssl
from typing import Self

from nats.errors import Error as NatsError

from ...errors import JetStreamPipelineError

__all__ = ["JetStreamApiError", "remedy", "words"]


class JetStreamApiError(JetStreamPipelineError):
    """The server refused a JetStream API request, and changed nothing.

    :ivar code: The server's own error code.
    :ivar description: The server's own words.

    Users meet it as a `StreamError` or a `SourceError` with the same code.
    """

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code
        self.description = description

    def __reduce__(self) -> tuple[type[Self], tuple[int, str]]:
        return type(self), (self.code, self.description)


def words(error: BaseException) -> str:
    """An error's text, or its type if it has no text."""
    return str(error) or type(error).__name__


def remedy(error: Exception) -> str | None:
    """What to do if a new attempt with the same settings must fail too; None if it may succeed."""
    text = words(error).lower()
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return "correct the path in the settings"
    if isinstance(error, ssl.SSLError) or "does not offer tls" in text:
        return (
            "check that the server speaks TLS as the settings say, and that the certificates match"
        )
    if "authorization" in text or "authentication" in text:
        return "correct the credentials in the settings"
    if not isinstance(error, OSError | NatsError):
        # nats-py or ssl could not even read them.
        return "correct the credentials or certificates in the settings"
    return None
