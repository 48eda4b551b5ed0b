"""Hostile text, on every platform: it arrives, harmless, within the limits, and cut where a reader would cut it.

The judges are the platforms as they are played in `tests.platforms`, which refuse what the real ones refuse; each kind
of chat joins by its line in the registry.
"""

from __future__ import annotations

import json
import unicodedata
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver import app
from receiver.destinations import KINDS
from receiver.destinations.chat import ChatOptions
from receiver.ids import EventId, TaskId
from receiver.records import Event
from receiver.wire import HttpResponse
from tests.platforms.every import EVERY, driven, played

if TYPE_CHECKING:
    from tests.platforms import Platform, Shown

CHATS = sorted(name for name, kind in KINDS.items() if kind.summary is not None and name in EVERY)
HOME = "https://hooks.example.com/base"
VIDEO = "https://cdn.example.com/r/video.mp4?_jwt=abc.def_ghi&x=1~2"
POSTER = "https://cdn.example.com/r/poster_1.png?sig=a%2Fb+c&t=(1)"
TASK = TaskId("tsk_01KG9Q8Y0000000000000000ZZ")

WORDS = [
    "@everyone", "@here", "@channel", "@all", "@所有人", "<!channel>", "<!everyone|x>", "<@U123ABC>", "<#C1|general>",
    "<@&1234>", "<@1234>", "<at>Ann</at>", '<at user_id="all">all</at>', "<at id=all></at>", "<@all>", "<@userid>",
    "[x](javascript:alert(1))", "[free](https://evil.example/a)", "![p](https://evil.example/p.png)",
    "<https://evil.example/b|click>", "<a href='https://evil.example/c'>x</a>", "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>", "</b></i></pre>", "<b>", "&lt;b&gt;", "&amp;", "&#60;", "&", "<", ">", "\\", "\\\\[",
    "**", "__", "~~", "`", "```", "||", "# h", "> q", "- l", "1. l", "$$x$$", "{{ 7*7 }}", "{% raw %}", "%s{0}", "*_`[",
    "$", "\r\n.\r\n", "\r\nBcc: x@evil.example\r\n", "\n\n\n\n\n", "\x00\x07\x1b[31m", "\x7f\x85\x9b", "\t",
    "\u202eevil\u202c", "\u2066iso\u2069", "\u200f\u061c", "\u200b\u2060\ufeff", "\u2028\u2029", "שלום עולם", "مرحبا",
    "e\u0301" * 3, "Z" + "\u0300\u0301\u0302" * 30, "👩‍👩‍👧‍👦", "👍🏽", "🇨🇳🇩🇪",
    "❤️", "1️⃣", "\U0001d518\U0001d52b", "हिन्दी", "กำ", "각", "漢字",
    "\U000e0041\U000e0042", "\ufff9", "a" * 300, "https://example.org/x_y_z", ":tada:", "#tag", "~town", "\ud800",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=12)), max_size=30).map(" ".join)


def event(kind: str = "task.succeeded", **data: Any) -> Event:
    """An event as ingest records it."""
    at = "2026-01-31T12:00:00.000Z"
    base = {"task_id": TASK, "route": "runway/pro/video2video", "state": kind.removeprefix("task."), "msg": ""}
    times = {"created_at": at, "finished_at": "2026-01-31T12:01:35.000Z"}
    text = json.dumps({**base, **times, "video_url": VIDEO, "poster": POSTER, "metadata": {}, **data})
    return Event(EventId("evt_01KG9Q8Y0000000000000000ZZ"), TASK, kind, app.clock(), text)


def options(platform: Platform, **more: Any) -> ChatOptions:
    """The options of a destination there, as the configuration makes them."""
    made = KINDS[platform.kind].options.model_validate({**platform.keys(), **more})
    assert isinstance(made, ChatOptions)
    return made


def told(platform: Platform, events: list[Event], home: str | None = HOME, **more: Any) -> Shown:
    """What people see of an event, or of the summary of many; the flow ended well and nothing was refused."""
    kind, chosen = KINDS[platform.kind], options(platform, **more)
    flow, what = (kind.flow, events[0]) if len(events) == 1 else (kind.summary, events)
    assert flow is not None
    result = driven(platform, flow(what, chosen, now=app.clock(), home=home))
    assert (result.kind, platform.refused) == ("ok", []), (result, platform.refused)
    return platform.shown[-1]


def harmless(shown: Shown) -> None:
    """Nobody is called, nothing leads elsewhere, and nothing is shown that a screen obeys."""
    ours = ("https://cdn.example.com/r/", HOME)
    assert shown.pings == ()
    assert [link for link in (*shown.links, *shown.pictures) if not link.startswith(ours)] == []
    obeyed = {char for char in shown.text if unicodedata.category(char) in {"Cc", "Cs"} and char not in "\r\n\t"}
    assert obeyed == set()
    assert not set(shown.text) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u2028")


@pytest.mark.parametrize("kind", CHATS)
@settings(max_examples=25, deadline=None)
@given(prompt=TEXTS, failure=TEXTS, name=TEXTS)
def test_whatever_is_typed_arrives_and_harms_nobody(kind: str, prompt: str, failure: str, name: str) -> None:
    """As a prompt, a reason, a code or a value of metadata, in a message of its own and in a summary."""
    platform = played(kind)
    whole = event(prompt=f"begin {prompt}", metadata={"name": name}, failure_code=name)
    failed = event("task.failed", prompt=prompt, failure=f"because {failure}", video_url=None, poster=None)
    first = told(platform, [whole])
    harmless(first)
    assert "begin" in first.text
    assert "Video ready" in first.text
    second = told(platform, [failed])
    harmless(second)
    assert "because" in second.text
    many = told(platform, [whole, failed] * 40)
    harmless(many)
    assert "80 events" in many.text
    own = told(platform, [whole], title="T {{ metadata.name }}", text="first {{ prompt }} {{ metadata.name }} last")
    harmless(own)
    assert "first begin" in own.text


WIDE = {0xFF00 + code: 0x20 + code for code in range(1, 0x5F)}
"""DingTalk has no escapes: a sign's full-width twin stands for it."""
MEMBERS = [
    *("ok", "code", "errcode", "errmsg", "error_code", "error", "message", "id", "msg", "description", "http"),
    *("parameters", "retry_after", "migrate_to_chat_id", "global", "StatusCode", "data"),
]
"""Members that some platform's answer has."""
CLUSTERS = [
    "👩‍👩‍👧‍👦", "👍🏽", "🇨🇳", "❤️", "1️⃣", "e\u0301\u0302", "\U0001d518", "नि", "กำ", "각", "漢", "a",
    "&", "<", "*", "\\", '"',
]  # fmt: skip


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_hundred_kilobytes_are_cut_between_characters(kind: str, cluster: str) -> None:
    """Nothing but whole characters is left, an ellipsis says that there was more, and enough of it is there."""
    platform = played(kind)
    prompt = cluster * (100_000 // len(cluster.encode()) + 1)
    shown = told(platform, [event(prompt=prompt)])
    harmless(shown)
    assert "…" in shown.text
    longest = max(shown.text.translate(WIDE).replace("…", " ").split(), key=len)
    assert longest == cluster * (len(longest) // len(cluster)), ascii(longest[-20:])
    assert len(longest) >= 10 * len(cluster)


@pytest.mark.parametrize("kind", CHATS)
@settings(max_examples=15, deadline=None)
@given(begin=st.integers(0, 40), clusters=st.lists(st.sampled_from(CLUSTERS), min_size=1, max_size=5), most=st.data())
def test_limits_of_the_operator_hold_too(kind: str, begin: int, clusters: list[str], most: st.DataObject) -> None:
    """Whatever a limit is set to, down to one, what goes out stays under it and is cut between characters."""
    platform = played(kind)
    limits = KINDS[kind].options.LIMITS  # type: ignore[attr-defined]
    name = most.draw(st.sampled_from(sorted(limits)))
    value = most.draw(st.integers(1, min(limits[name], 700)))
    prompt = "x" * begin + "".join(clusters) * 700
    shown = told(platform, [event(prompt=prompt)], limits={name: value}, text="{{ prompt }}")
    harmless(shown)
    typed = set(prompt)
    seen = {one for one in regex.findall(r"\X", shown.text) if not one.isascii() and set(one) <= typed}
    assert seen <= set(regex.findall(r"\X", prompt)), ascii(seen)


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize(
    "url",
    [
        "https://cdn.example.com/r/" + "a" * 6000,
        "javascript:alert(1)",
        "https://cdn.example.com/r/x y",
        "https://cdn.example.com/r/|<b>\"'`)](https://evil.example)",
        "https://user:pw@evil.example/x",
        "https://cdn.example.com/r/\u202egpj.exe",
        "//evil.example/x",
        "https://",
        "https://[::1",
        7,
        {"url": "x"},
    ],
)
def test_a_link_that_is_none_is_left_out(kind: str, url: object) -> None:
    """A hostile or broken URL of a render never breaks a message, nor leads anywhere else."""
    platform = played(kind)
    harmless(told(platform, [event(prompt="p", video_url=url, poster=url)]))
    harmless(told(platform, [event(prompt="p", video_url=url, poster=url)], home=None, text="see {{ video_url }}"))


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("data", ["{}", "[]", "null", '{"prompt": 5, "artifacts": [1], "metadata": 3}', "[" * 9000])
def test_an_event_with_next_to_nothing_in_it_is_told(kind: str, data: str) -> None:
    """Every type there is, an unknown one too."""
    platform = played(kind)
    for number, name in enumerate(("task.succeeded", "task.progress", "task.lost", "delivery.dead", "task.new")):
        bare = Event(EventId("evt_1"), TaskId("evt_1" if number % 2 else TASK), name, app.clock(), data)
        harmless(told(platform, [bare]))
        harmless(told(platform, [bare, bare], home=None))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", CHATS)
@settings(max_examples=100, deadline=None)
@given(status=st.integers(200, 599), document=JSON, wait=st.text(max_size=9) | st.integers().map(str))
def test_whatever_is_answered_is_judged(kind: str, status: int, document: Any, wait: str) -> None:
    """No answer makes a flow fail, and the reason is short and on one line."""
    headers = dict.fromkeys(("retry-after", "x-ratelimit-reset-after"), wait) | {"x-ratelimit-remaining": "0"}
    response = HttpResponse(status, headers, json.dumps(document).encode())
    steps = KINDS[kind].flow(event(prompt="p"), options(played(kind)), now=app.clock(), home=HOME)
    next(steps)
    for _ in range(KINDS[kind].steps):
        try:
            steps.send(response)
        except StopIteration as done:
            result = done.value
            break
    assert result.reason.isprintable()
    assert len(result.reason) < 600
    waits = [wait for wait in (result.retry_after, result.hold) if wait is not None]
    assert all(timedelta(0) <= wait <= timedelta(hours=24) for wait in waits)


@pytest.mark.parametrize("kind", CHATS)
def test_who_names_a_wait_is_given_it(kind: str) -> None:
    """A platform that throttles says for how long, in its own way, and that is what the attempt's result says."""
    platform = played(kind)
    platform.script = [platform.throttled(7.0)]
    result = driven(platform, KINDS[kind].flow(event(prompt="p"), options(platform), now=app.clock(), home=HOME))
    assert result.kind == "throttled"
    assert result.retry_after is not None
    assert result.retry_after >= timedelta(seconds=7)


@pytest.mark.parametrize("kind", CHATS)
def test_what_is_stored_of_a_request_keeps_the_secret(kind: str) -> None:
    """The masked URL shows the host; no secret of the destination is in it, nor in the headers."""
    platform = played(kind)
    chosen = options(platform)
    request = next(KINDS[kind].flow(event(prompt="p"), chosen, now=app.clock(), home=HOME))
    shown = KINDS[kind].masked(request)
    text = f"{shown.url} {dict(shown.headers)}"
    assert "secret" in json.dumps(platform.keys())
    assert "127.0.0.1" in shown.url
    assert "secret" not in text
