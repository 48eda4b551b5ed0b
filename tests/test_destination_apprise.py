"""The kind `apprise`: the library itself, and a server that it posts to."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from receiver.destinations import KINDS, apprise
from receiver.egress import notify
from receiver.errors import EgressError
from receiver.wire import HttpResponse
from tests.kind_room import PAGE, VIDEO, canned, delivered, event, failure, options_of, steps_of, way_out
from tests.platforms import Said, served
from tests.platforms.apprise import SECRET, AppriseTarget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

KEYS = {"url": f"json://localhost/{SECRET}"}


@pytest.fixture
async def there() -> AsyncIterator[AppriseTarget]:
    """What the URL leads to."""
    async with served(AppriseTarget()) as target:
        yield target


async def test_a_render_is_a_notification(there: AppriseTarget) -> None:
    """A title and a text that ends in the links; its type is the state's."""
    assert (await delivered("apprise", there.keys(), [event()], allow_private=False)).kind == "ok"
    [shown] = await there.seen()
    assert shown.text.startswith("✅ Video ready")
    assert f"Watch: {VIDEO}\nOpen task: {PAGE}" in shown.text
    assert json.loads(there.asked[0].body)["type"] == "success"
    assert (await delivered("apprise", there.keys(), [failure()])).kind == "ok"
    assert json.loads(there.asked[1].body)["type"] == "failure"
    assert "the input is too long" in there.shown[1].text


async def test_a_no_is_tried_again(there: AppriseTarget, caplog: pytest.LogCaptureFixture) -> None:
    """Apprise says nothing else, whatever the other side said; and nothing of it is logged, since it logs URLs."""
    there.script = [there.throttled(60), Said(404), Said(500)]
    for _ in range(3):
        result = await delivered("apprise", there.keys(), [event()])
        assert (result.kind, result.retry_after) == ("transient", None)
    assert SECRET not in caplog.text


async def test_it_does_not_hold_the_loop_nor_the_attempt() -> None:
    """A server that hangs costs a thread and no more than the time of the attempt."""
    over, ended = asyncio.Event(), asyncio.Event()

    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()
        await writer.wait_closed()
        ended.set()

    listener = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener:
        with pytest.raises(EgressError, match=r"longer than 0\.2 s") as caught:
            await delivered("apprise", {"url": f"json://127.0.0.1:{port}/{SECRET}"}, [event()], within=0.2)
        over.set()
        async with asyncio.timeout(5):
            await ended.wait()
    assert (caught.value.stage, caught.value.sent) == ("timeout", True)


async def test_threads_that_hang_are_few(there: AppriseTarget) -> None:
    """A service that never answers would otherwise cost a thread with every attempt."""
    for _ in range(notify._MOST):
        notify._threads.acquire()
    try:
        with pytest.raises(EgressError, match="hang in apprise already"):
            await delivered("apprise", there.keys(), [event()])
    finally:
        notify._threads.release(notify._MOST)
    assert (await delivered("apprise", there.keys(), [event()])).kind == "ok"


def test_a_summary_and_an_empty_text() -> None:
    """There is always something to say."""
    request = next(steps_of("apprise", options_of("apprise", KEYS), event(), failure()))
    assert request.headers["title"] == "🗂️ 2 events"
    bare = event(prompt=None, route=None, created_at=None, task_id=None, video_url=None)
    body = next(steps_of("apprise", options_of("apprise", KEYS, limits={"facts": 1}), bare, home=None)).body
    assert body


def test_what_may_be_live_anywhere_is_taken_apart() -> None:
    """Apprise passes text on as it is to services that read Markdown or call people."""
    request = next(steps_of("apprise", options_of("apprise", KEYS), event(prompt="@all [x](y) <@1> <!here> <b>")))
    text = request.body.decode()
    assert not [one for one in ("@all", "](", "<@", "<!", "<b") if one in text]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("tgram://x", "something is missing"),
        ("nosuch://host", "no such service"),
        ("localhost", "apprise URL"),
        ("", "URL"),
    ],
)
def test_a_url_that_will_not_do(wrong: str, words: str) -> None:
    """It is said at start."""
    with pytest.raises(ValidationError, match=words):
        options_of("apprise", {"url": wrong})


async def test_without_the_extra_an_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the configuration is read; should it go missing later, the attempt says so."""
    steps = steps_of("apprise", options_of("apprise", KEYS), event())
    monkeypatch.setitem(sys.modules, "apprise", None)  # where Python finds it no more
    with pytest.raises(ValidationError, match="needs its extra") as caught:
        options_of("apprise", KEYS)
    assert apprise.MISSING in str(caught.value)
    async with way_out() as egress:
        with pytest.raises(EgressError, match="not installed"):
            await egress.deliver(next(steps), timeout=5, allow_private=False)


def test_the_library_is_loaded_by_those_alone_who_use_it() -> None:
    """It brings a hundred plugins along."""
    code = "import receiver.egress, receiver.destinations, sys; sys.exit('apprise' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_how_it_is_judged() -> None:
    """Yes or no."""
    for status, kind in ((200, "ok"), (500, "transient")):
        steps = steps_of("apprise", options_of("apprise", KEYS), event())
        assert canned(steps, HttpResponse(status))[0].kind == kind


def test_what_is_shown_of_a_request_hides_all_of_the_url() -> None:
    """Any part of it can be a secret."""
    request = next(steps_of("apprise", options_of("apprise", KEYS), event()))
    assert KINDS["apprise"].masked(request).url == "json://***"
