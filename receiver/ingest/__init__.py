"""One observation, one transaction: the inbox row, the task's state, the event and its deliveries commit together.

Only this room turns an observation into an event (the second law). `judge` decides, purely; `record` stages; `ops` are
what the writer runs; `after` tells the other rooms once it is committed.
"""

from receiver.ingest.after import After
from receiver.ingest.judge import Confirm, Polling
from receiver.ingest.ops import Callback, Lookup, Wake
from receiver.ingest.record import Born, Lane, Recorded, Rulebook, event_data, record, record_operator, settle, stamp

__all__ = [
    "After",
    "Born",
    "Callback",
    "Confirm",
    "Lane",
    "Lookup",
    "Polling",
    "Recorded",
    "Rulebook",
    "Wake",
    "event_data",
    "record",
    "record_operator",
    "settle",
    "stamp",
]
