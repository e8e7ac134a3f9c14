"""What `bytewax-jetstream doctor` does: one step after the other, from the name of a server to the
streams and topics; each step that fails says what to do. No message is stored and nothing changed.
"""

from .examine import examine
from .report import Report, Status, Step

__all__ = ["Report", "Status", "Step", "examine"]
