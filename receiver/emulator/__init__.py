"""The fake upstream: an ASGI app that behaves as CometAPI's Runway routes are documented to, and misbehaves as told.

For the demo, this project's tests, and users' own. It validates like the real one, takes notes of what a real one
would refuse or dislike, calls back, and plays any documented shape and any fault, repeatably for a seed. It asks
nothing of the receiver's own rooms: it plays the outside world, and has to judge independently.

    serve(EmulatorOptions(seed=7), port=9000)         a process of its own
    async with running(EmulatorOptions()) as it: …    in this loop: it.base_url, it.emulator

The same words script it everywhere: as `EmulatorOptions(callback="missing")` for every task, as
`chances={"callback=missing": 0.1}` for some, and in a prompt for that one task, from any client:

    a cat in the rain [emulator: fail; callback=missing; render=0.2; lookup_shape=3b; submit=reset-after]

| word | values | meaning |
|---|---|---|
| `succeed` `fail` `cancel` `never` | | how the render ends (also `outcome=…`) |
| `reason` | text without `;` `[` `]` | why it failed |
| `render` | seconds | from submission to the end |
| `callback` | see below | what is called back |
| `callback_delay` | seconds | from the end (for `late`: from the lookup that showed it) to the callback |
| `callback_shape` | flat enveloped generic 3b 3c 4.4b form bom text gzip integers kie random cycle | 5.1a is flat |
| `callback_retries` `callback_retry_gap` | number, seconds | repeats of a callback that was not answered 2xx |
| `submit_shape` | 2a 2b 2c random cycle | the pro route's answer |
| `submit` | ok, a fault | instead of the answer |
| `submit_times` | number | the fault hits only the first so many submissions of this route and prompt |
| `submit_delay` `lookup_delay` | seconds | before the answer |
| `lookup_shape` | newest 3a 3b 3b-historic 3b-new 3c id-only 4.4a 4.4b blog random cycle | both lookups |
| `feed_shape` `tasks_shape` | the same | one of them |
| `lookup` | ok, a fault | instead of the answer |
| `lookup_times` | number | the fault hits only the task's first so many lookups |
| `missing` `missing_for` | number, seconds | the first lookups, or the first seconds, say `task_not_exist` |
| `urlless` | number | the first so many lookups of a success show no URL |
| `hang` | seconds | how long a hang lasts |
| `retry_after` | 2, date:2 | of a status fault: seconds, or as an HTTP date |

Faults: a status with the error shape it comes in, `429 429-e2 429-e4 429-empty 500-invalid 503-html 301` (`e1` unless
told; `invalid` is E1 with code invalid_request); `unreadable` (HTML in a 200), `empty`, `scalar`, `hang`, `reset`,
`cut` (half an answer, then reset); for submissions also `code` (a business code that is not 200) and `no-id`; for
lookups also `null` (`data` is null) and `disagreeing`. With `-after` a submission's fault strikes when the task has
been made.
`hang` ends in a 504; `hang-after` and a lookup's hang end in the proper answer.

Callbacks, joined by `+` where there are several: `ok` (the truth, at the end), `missing` (none), `doubled` (= ok+ok),
`reordered` (= ok+progress), `queued` and `progress` (during the render if they come first, as they are if later),
`early` (before the submission is answered; the render is over by then), `late` (after a lookup has shown the end),
`tampered-id` (another task's), `tampered-token` (one letter of the URL's last segment), `malformed`, `disagreeing`
(status against state), `no-url`, `no-id`, `opposite` (another end than the true one), `probe` (a GET), `appended`
(something behind the URL).
"""

from receiver.emulator.app import Emulator
from receiver.emulator.ledger import Ledger
from receiver.emulator.model import Sent, Task
from receiver.emulator.script import EmulatorOptions, Script, directive
from receiver.emulator.server import RunningEmulator, running, serve

__all__ = [
    "Emulator",
    "EmulatorOptions",
    "Ledger",
    "RunningEmulator",
    "Script",
    "Sent",
    "Task",
    "directive",
    "running",
    "serve",
]
