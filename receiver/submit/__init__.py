"""Accept a task: store it with its token, THEN call the upstream, then store the answer (the first law).

`asked` is what can be refused before that, `repeats` knows Idempotency-Keys, `ops` are what the writer runs; `gates`
say who may send, `sending` sends, `queue` accepts, and sends again what surely was not taken; `through` is for callers
who speak the upstream's own language.
"""

from receiver.submit.asked import check
from receiver.submit.gates import Gates
from receiver.submit.ops import Adopt, Cancel, Terms, ambiguous
from receiver.submit.queue import Submitter
from receiver.submit.repeats import Asked, asked_under, forget, holding, keep_answer
from receiver.submit.sending import Sender
from receiver.submit.through import Given, Passed, Through

__all__ = [
    "Adopt", "Asked", "Cancel", "Gates", "Given", "Passed", "Sender", "Submitter", "Terms", "Through",
    "ambiguous", "asked_under", "check", "forget", "holding", "keep_answer",
]  # fmt: skip
