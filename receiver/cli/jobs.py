"""`jobs.jsonl`: what `receiver submit --from` reads. Every mistake is named with its line before anything is sent.

A line's idempotency key is made from all that the file says up to and with this line, and from its number. So the same
file submits nothing twice, as long as its tasks are kept (`retention.tasks`), and one that has grown submits only what
is new. A line that was changed makes itself and all lines after it new; `--batch NAME` makes all of them new.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from receiver.client import check_key, submission
from receiver.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import BinaryIO

    from receiver.client import Question

MEMBERS: Final[dict[str, type]] = {
    "route": str,
    "input": dict,
    "metadata": dict,
    "destinations": list,
    "callback_url": str,
    "idempotency_key": str,
}
_NAMES: Final[dict[type, str]] = {str: "a text", dict: "an object", list: "a list of texts"}
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Given:
    """What the command line says for lines that do not say it themselves; `metadata` is put under a line's own."""

    route: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    destinations: Sequence[str] | None = None
    callback_url: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One line: where it stands, and the key it is submitted under."""

    line: int
    offset: int
    size: int
    key: str


class JobFile:
    """An open file of jobs; the lines stay on the disk."""

    def __init__(self, name: str, file: BinaryIO, given: Given, batch: str = "") -> None:
        """Nothing is read yet. `name` is what mistakes are told under."""
        self.name, self.given = name, given
        self._file, self._batch = file, batch
        self.jobs: list[Job] = []

    def check(self) -> list[str]:
        """Read it through and keep where each job stands; every mistake, as `file:line: reason`."""
        digest = hashlib.sha256(self._batch.encode() + b"\n")
        mistakes: list[str] = []
        keys: dict[str, int] = {}
        offset = 0
        self._file.seek(0)
        for number, raw in enumerate(self._file, 1):
            text = _stripped(raw, number)
            # However its lines end, and whether the last one does, it is the same content.
            digest.update(text + b"\n")
            if text.strip():
                document, flaws = self._read(text)
                key = document.get("idempotency_key") or f"from-{digest.hexdigest()[:40]}-{number}"
                if not flaws and keys.setdefault(key, number) != number:
                    flaws = [f"idempotency_key: line {keys[key]} has the same"]
                mistakes += [f"{self.name}:{number}: {flaw}" for flaw in flaws]
                self.jobs.append(Job(number, offset, len(raw), key))
            offset += len(raw)
        if not self.jobs:
            mistakes.append(f"{self.name}: there is no job in it; one JSON object a line is wanted")
        return mistakes

    def document(self, job: Job) -> dict[str, Any]:
        """A line's document, completed by what the command line gave."""
        self._file.seek(job.offset)
        return self._completed(orjson.loads(_stripped(self._file.read(job.size), job.line)))

    def question(self, job: Job) -> Question:
        """What is asked of the service for a line."""
        body = self.document(job)
        return submission(
            body["route"],
            body["input"],
            metadata=body.get("metadata"),
            destinations=body.get("destinations"),
            callback_url=body.get("callback_url"),
            in_background=True,
            idempotency_key=job.key,
        )

    def _completed(self, line: dict[str, Any]) -> dict[str, Any]:
        given = self.given
        said = {"route": given.route, "destinations": given.destinations, "callback_url": given.callback_url}
        body = {name: value for name, value in said.items() if value is not None} | line
        if isinstance(body["route"], str):
            body["route"] = body["route"].strip("/")
        if given.metadata:
            body["metadata"] = {**given.metadata, **body.get("metadata", {})}
        return body

    def _read(self, text: bytes) -> tuple[dict[str, Any], list[str]]:
        """A line's document, as far as it is one, and what is wrong with it."""
        try:
            line = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return {}, [f"this is not JSON: {error}"]
        if not isinstance(line, dict):
            return {}, ["a JSON object is wanted"]
        flaws = list(_misshapen(line))
        if "route" not in line and self.given.route is None:
            flaws.append("route: it is missing; name it in the line, or for all lines after `receiver submit`")
        if "input" not in line:
            flaws.append("input: it is missing; the upstream's own body is wanted, without callback_url")
        return (line, flaws) if flaws else (line, _wrong(self._completed(line)))


def _stripped(raw: bytes, number: int) -> bytes:
    line = raw.rstrip(b"\r\n")
    return line.removeprefix(_BOM) if number == 1 else line


def _misshapen(line: dict[str, Any]) -> Iterator[str]:
    """Members that nobody knows, and members of a wrong kind."""
    for name, value in line.items():
        wanted = MEMBERS.get(name)
        if wanted is None:
            near = difflib.get_close_matches(name, MEMBERS, 1, 0.6)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(MEMBERS)}"
            yield f"{name[:60]}: there is no such member ({meant})"
        elif not isinstance(value, wanted) or (isinstance(value, list) and {type(one) for one in value} - {str}):
            yield f"{name}: {_NAMES[wanted]} is wanted"
    key = line.get("idempotency_key")
    if isinstance(key, str):
        try:
            check_key(key)
        except ValueError as error:
            yield f"idempotency_key: {error}"


def _wrong(body: dict[str, Any]) -> list[str]:
    """What the service would refuse of a line."""
    from receiver.submit.asked import check, check_callback_url
    from receiver.upstream import ROUTES

    route = ROUTES.get(body["route"])
    if route is None:
        near = difflib.get_close_matches(body["route"], ROUTES, 1, 0.5)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(ROUTES)}"
        return [f"route: there is no route {body['route'][:80]!r} ({meant})"]
    flaws = []
    if "callback_url" in body["input"]:
        flaws.append("input: callback_url does not belong in it; it stands beside input")
    try:
        check(route, body["input"])
    except InvalidInput as error:
        flaws.append(str(error))
    try:
        if "callback_url" in body:
            # Whether private addresses have leave is for the service to say.
            check_callback_url(body["callback_url"], allow_private=True)
    except InvalidInput as error:
        flaws.append(str(error))
    return flaws
