"""How many bytes written to a stream its peer has not taken: our buffers, and the kernel's."""

import asyncio
import fcntl
import sys
import termios
from typing import Any

__all__ = ["unsent_bytes"]

EMPTY = bytes(4)
SIOCOUTQNSD = 0x894B
"""Linux: bytes in the socket that were not sent at all. Source: <linux/sockios.h>."""


def unsent_bytes(
    stream: asyncio.WriteTransport, socket: asyncio.WriteTransport, *, on_the_way: bool = True
) -> int:
    """What waits in the write buffers of a connection and in the socket below them; 0 when it is
    closed.

    What waits in the socket is what the peer's kernel has not acknowledged (`SIOCOUTQ`). It counts
    as 0 where the system cannot tell, as on macOS. Of an encrypted connection it is the encrypted
    size, about a thousandth more.

    :arg stream: What is written to.
    :arg socket: The transport with the socket: the same, or with TLS the one below it.
    :arg on_the_way: Also what was sent, and only not acknowledged yet.
    """
    if stream.is_closing() or socket.is_closing():
        return 0
    waiting = stream.get_write_buffer_size()
    if socket is not stream:
        waiting += socket.get_write_buffer_size()
    # On Linux, TIOCOUTQ has the number of SIOCOUTQ, which Python does not name.
    request = termios.TIOCOUTQ if on_the_way else SIOCOUTQNSD
    return waiting + _in_socket(socket.get_extra_info("socket"), request)


def _in_socket(socket: Any, request: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(socket.fileno(), request, EMPTY), sys.byteorder)
    except (OSError, ValueError):  # closed in the meantime, or the system cannot tell
        return 0
