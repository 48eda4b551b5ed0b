"""Accept a task: store it with its token, THEN call the upstream, then store the answer (the first law).

`asked` is what can be refused before that, `ops` are what the writer runs; `queue` sends, and sends again what surely
was not taken.
"""

from receiver.submit.asked import check
from receiver.submit.ops import Adopt, Cancel, Terms, ambiguous
from receiver.submit.queue import Submitter

__all__ = ["Adopt", "Cancel", "Submitter", "Terms", "ambiguous", "check"]
