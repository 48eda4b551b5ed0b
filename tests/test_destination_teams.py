"""The kind `teams` against a workflow that takes Adaptive Cards by their rules, 28 KB of them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from receiver.destinations import KINDS
from receiver.ids import TaskId
from receiver.wire import HttpResponse
from tests.kind_room import PAGE, POSTER, VIDEO, canned, delivered, event, failure, options_of, steps_of
from tests.platforms import Said, served
from tests.platforms.teams import MOST, Teams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

KEYS = {
    "url": "https://e1.environment.api.powerplatform.com:443/powerautomate/automations/direct/workflows/"
    "0123456789abcdef0123456789abcdef/triggers/manual/paths/invoke?api-version=1&sp=%2Frun&sv=1.0&sig=the-secret"
}


@pytest.fixture
async def there() -> AsyncIterator[Teams]:
    """The platform."""
    async with served(Teams()) as platform:
        yield platform


async def test_a_render_has_its_picture_and_buttons(there: Teams) -> None:
    """The picture leads to the video too."""
    assert (await delivered("teams", there.keys(), [event()])).kind == "ok"
    [shown] = await there.seen()
    assert (shown.links, shown.pictures) == ((VIDEO, VIDEO, PAGE), (POSTER,))
    for words in ("✅ Video ready", "a paper boat", "1 min 35 s", "runway/pro/video2video", "Watch", "Open task"):
        assert words in shown.text


async def test_a_failure_says_why(there: Teams) -> None:
    """In the upstream's words; a line is a line, which Markdown would not make it."""
    assert (await delivered("teams", there.keys(), [failure("one\ntwo [x](https://evil.example)")])).kind == "ok"
    [shown] = await there.seen()
    assert (shown.links, shown.pictures) == ((PAGE,), ())
    assert "one\n\ntwo [x](https://evil.example)" in shown.text


async def test_a_picture_alone_leads_nowhere(there: Teams) -> None:
    """Without a video and a page of ours."""
    assert (await delivered("teams", there.keys(), [event(video_url=None)], home=None)).kind == "ok"
    bare = replace(event(), data_json="{}", task_id=TaskId(event().id))
    assert (await delivered("teams", there.keys(), [bare], home=None)).kind == "ok"
    shown, empty = await there.seen(2)
    assert (shown.links, shown.pictures) == ((), (POSTER,))
    assert empty.text == "✅ Video ready"


@pytest.mark.parametrize("sign", ["x", "漢", '"', "\\", "👩‍👩‍👧‍👦", "line\n"])
async def test_the_whole_stays_under_28_kilobytes(there: Teams, sign: str) -> None:
    """Bytes of the body as they are sent, escapes and all; it is nearly used up where the text would be longer."""
    more: dict[str, Any] = {"limits": {"text": 100_000}}
    given = [event(prompt=sign * 40_000)]
    assert (await delivered("teams", there.keys(), given, **more)).kind == "ok"
    assert MOST * 0.8 < len(there.asked[-1].body) <= MOST
    assert (await delivered("teams", there.keys(), given)).kind == "ok"
    assert len(await there.seen(2)) == 2


def test_what_cannot_be_made_to_fit_is_sent_all_the_same() -> None:
    """And refused by Teams, in its words."""
    chosen = options_of("teams", KEYS, limits={"message": 10})
    assert json.loads(next(steps_of("teams", chosen, event())).body)["type"] == "message"


@pytest.mark.parametrize(
    ("status", "document", "kind", "pause"),
    [
        (202, b"", "ok", False),
        (200, b"1", "ok", False),
        (400, {"error": {"code": "TriggerInputSchemaMismatch", "message": "…"}}, "permanent", False),
        (400, {"error": "text"}, "permanent", False),
        (401, {"error": {"code": "DirectApiAuthorizationRequired"}}, "permanent", True),
        (404, {"error": {"code": "WorkflowNotFound"}}, "permanent", True),
        (413, b"", "permanent", False),
        (502, {"error": {"code": "NoResponse"}}, "transient", False),
    ],
)
def test_each_answer_means_what_the_workflow_says(status: int, document: Any, kind: str, pause: bool) -> None:
    """Its code is in the reason."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    result, _ = canned(steps_of("teams", options_of("teams", KEYS), event()), HttpResponse(status, {}, body))
    assert (result.kind, result.pause) == (kind, pause)
    if body.startswith(b'{"error": {'):
        assert document["error"]["code"] in result.reason


async def test_a_throttled_one_waits(there: Teams) -> None:
    """As long as the workflow says."""
    there.script = [there.throttled(8), Said(429, b"")]
    assert (await delivered("teams", there.keys(), [event()])).retry_after == timedelta(seconds=8)
    assert (await delivered("teams", there.keys(), [event()])).retry_after is None


def test_the_secret_is_the_query() -> None:
    """And whatever of the path is long enough to be a key."""
    request = next(steps_of("teams", options_of("teams", KEYS), event()))
    shown = KINDS["teams"].masked(request).url
    assert shown.endswith("/workflows/***/triggers/manual/paths/invoke?api-version=***&sp=***&sv=***&sig=***")
