"""The transport of a response: when it may be sent, and how its connection ends."""

import asyncio
import select
from typing import Protocol

_HALF_CLOSED = getattr(select, "POLLRDHUP", 0)


class Receiver(Protocol):
    """The connection that a response belongs to."""

    transport: asyncio.Transport

    @property
    def receiving(self) -> str:
        """Part of a request that is being received."""

    def linger(self) -> None:
        """Close, but keep reading for a while."""


class ResponseTransport:
    """Sends a response unless its client has left, and closes after what the client is still sending."""

    def __init__(self, connection: Receiver) -> None:
        self.connection = connection
        self.is_closing = connection.transport.is_closing
        self._poll = select.poll()
        if socket := connection.transport.get_extra_info("socket"):
            self._poll.register(socket.fileno(), _HALF_CLOSED)

    def write(self, data: bytes) -> None:
        """Send, unless the client has closed its side since: an answer to that would depend on who is quicker.

        The event loop may not have noticed yet. Linux alone can be asked.
        """
        if self._poll.poll(0):
            self.connection.transport.abort()
        else:
            self.connection.transport.write(data)

    def close(self) -> None:
        """Close the connection; wait for a client that is still sending its body."""
        if self.connection.receiving == "body" and not self.is_closing():
            self.connection.linger()
        else:
            self.connection.transport.close()
