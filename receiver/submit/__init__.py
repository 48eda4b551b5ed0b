"""Accept a task: store it with its token, THEN call the upstream, then store the answer (the first law).

`ops` are what the writer runs; `queue` sends, and sends again what surely was not taken.
"""

from receiver.submit.ops import Adopt, Cancel, Terms, ambiguous
from receiver.submit.queue import Submitter, check

__all__ = ["Adopt", "Cancel", "Submitter", "Terms", "ambiguous", "check"]
