"""The seam between the pool and a broker: all that a broker may import of the publishing side.

The pool hands a `Publisher` what goes `Outgoing`; the publisher reports to `PublisherEvents` with
a `Receipt` or a `Refusal`.
"""

from .answers import Receipt, Refusal, Verdict
from .outgoing import Alone, Append, Ask, Groups, Outgoing, Singles, Wire, indices_by_aggregate
from .preparing import AskFirst, header_items, prepare_each, refuse_conflicts, utc
from .publisher import Policy, Publisher, PublisherEvents, Route

__all__ = [
    "Alone",
    "Append",
    "Ask",
    "AskFirst",
    "Groups",
    "Outgoing",
    "Policy",
    "Publisher",
    "PublisherEvents",
    "Receipt",
    "Refusal",
    "Route",
    "Singles",
    "Verdict",
    "Wire",
    "header_items",
    "indices_by_aggregate",
    "prepare_each",
    "refuse_conflicts",
    "utc",
]
