"""Whether a user may make or change a stream, asked without making or changing one."""

from ..errors import ConnectError
from .connection import Connection, JetStreamApiError

__all__ = ["denial_of"]

ANOTHER_NAME = "-"
"""In the body of the request. It is not the name in the subject, so every server refuses it."""


async def denial_of(connection: Connection, verb: str, stream: str) -> str | None:
    """Why this user may not create or update a stream; None if it may.

    :arg verb: `CREATE` or `UPDATE`.
    :raises ConnectError: when the server does not answer.
    """
    try:
        await connection.request(f"STREAM.{verb}.{stream}", {"name": ANOTHER_NAME})
    except JetStreamApiError:
        return None  # the request was allowed, and refused for its body
    except ConnectError as error:
        if error.seconds is not None or error.reason is None:
            raise
        return (
            f"{error.reason}: allow this user to publish there, or have someone make the stream "
            "who may"
        )
    return None
