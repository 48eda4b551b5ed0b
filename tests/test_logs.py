"""logs: what a line looks like, what is never in one, and that writing one harms nobody."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import threading
import time
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import structlog
from hypothesis import assume, given
from hypothesis import strategies as st

from receiver import logs, signing
from receiver.ids import TaskId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from receiver.logs import Logger

TOKEN = f"{'0' * 26}.19a2b3c4d5e.{'A' * 43}"
DOOR = f"https://hooks.example.com/callbacks/{TOKEN}"


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logging is the process's; each test leaves it as it found it."""
    monkeypatch.setattr(logs, "_redactor", logs._Redactor())
    root, raises = logging.getLogger(), logging.raiseExceptions
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    logging.raiseExceptions = raises
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def written(write: Callable[[Logger], Any], *, level: logs.Level = "info") -> list[dict[str, Any]]:
    """The lines that `write` makes, each read as the JSON object it must be."""
    return [json.loads(line) for line in text_of(write, level=level).split("\n")[:-1]]


def text_of(write: Callable[[Logger], Any], *, fmt: logs.Format = "json", level: logs.Level = "info") -> str:
    """What `write` puts on the stream."""
    stream = io.BytesIO()
    logs.configure(fmt, level, stream)
    write(logs.get())
    return stream.getvalue().decode()


# -- the shape of a line ----------------------------------------------------------------------------------------------


def test_time_level_event_and_ids_come_first() -> None:
    """One JSON object a line, in the contract's order whatever the caller's."""
    fields = {
        "reason": "ok",
        "attempt": 1,
        "destination": "a",
        "delivery_id": "dlv_1",
        "event_id": "evt_1",
        "upstream_id": "u",
        "task_id": "tsk_1",
    }
    [line] = written(lambda log: log.info("delivery.attempted", **fields))
    assert list(line) == ["timestamp", "level", "event", *logs.IDS_FIRST, "reason"]
    assert line["level"] == "info"
    assert line["event"] == "delivery.attempted"


def test_the_time_is_utc_to_the_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    """`2026-01-31T12:00:00.000Z`, and the cached second is never stale."""
    times = iter([1769860800.0, 1769860800.9994, 1769860801.25, 1769860800.5])
    stand_in = SimpleNamespace(time=lambda: next(times), strftime=time.strftime, gmtime=time.gmtime)
    monkeypatch.setattr("receiver.logs.time", stand_in)
    lines = written(lambda log: [log.info("a.b") for _ in range(4)])
    assert [line["timestamp"] for line in lines] == [
        "2026-01-31T12:00:00.000Z",
        "2026-01-31T12:00:00.999Z",
        "2026-01-31T12:00:01.250Z",
        "2026-01-31T12:00:00.500Z",
    ]


def test_what_is_below_the_level_is_not_written() -> None:
    """At `warning`, info is silent."""

    def write(log: Logger) -> None:
        log.debug("a.b")
        log.info("a.b")
        log.warning("c.d")
        log.error("e.f")

    assert [line["event"] for line in written(write, level="warning")] == ["c.d", "e.f"]


def test_an_exception_is_one_string_and_redacted() -> None:
    """The traceback is a field of its line, and no secret in its message gets out with it."""

    def write(log: Logger) -> None:
        try:
            int("Bearer abcdef012345")
        except ValueError as error:
            log.exception("loop.failed", loop="poll")
            log.warning("loop.failed", exc_info=error)

    first, second = written(write)
    assert first["level"] == "error"
    for line in (first, second):
        assert line["exception"].startswith("Traceback (most recent call last)")
        assert line["exception"].endswith("invalid literal for int() with base 10: 'Bearer ***'")
        assert "exc_info" not in line


def test_a_console_is_written_to_only_where_there_is_a_terminal() -> None:
    """`auto` is JSON on anything but a TTY."""
    assert json.loads(text_of(lambda log: log.info("a.b"), fmt="auto"))["event"] == "a.b"


def test_the_console_is_redacted_and_obeys_nobody() -> None:
    """For people: no JSON, no secret, and no control character of a foreign text."""
    shown = text_of(lambda log: log.info("a.b", url=DOOR, said="\x1b[31mred\nsecond line"), fmt="console")
    assert TOKEN not in shown
    assert "\x1b" not in shown
    assert shown.count("\n") == 1
    assert "callbacks/***" in shown


# -- no token, key, secret or chat URL in any line, ever --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (DOOR, "https://hooks.example.com/callbacks/***"),
        (f"{DOOR}/more?x=1", "https://hooks.example.com/callbacks/***/more?x=1"),
        (f"POST /callbacks/{TOKEN} HTTP/1.1", "POST /callbacks/*** HTTP/1.1"),
        (json.dumps({"u": DOOR}).replace("/", "\\/"), '{"u": "https:\\/\\/hooks.example.com\\/callbacks\\/***"}'),
        (f"to={quote(DOOR, safe='')}", "to=https%3A%2F%2Fhooks.example.com%2Fcallbacks%2F***"),
        (f"token {TOKEN} end", "token *** end"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("authorization: BEARER abc, bearer\txyz", "authorization: BEARER ***, bearer\t***"),
        ("signed with whsec_MfKQ9r8GKY/+w== now", "signed with whsec_*** now"),
        ("postgres://me:pass@host/db", "postgres://***@host/db"),
        ("postgres://me:p@ss@host/db", "postgres://***@host/db"),
        ("postgres://me:pa/ss@host/db", "postgres://***@host/db"),
        ("postgres:\\/\\/me:pass@host\\/db", "postgres:\\/\\/***@host\\/db"),
        ("https://token@api.example.com", "https://***@api.example.com"),
        ("nothing to hide: https://example.com/a?b=c", "nothing to hide: https://example.com/a?b=c"),
    ],
)
def test_what_has_the_shape_of_a_secret_is_masked(text: str, left: str) -> None:
    """Anywhere in a string, in nested values and in keys; the rest of the text stays."""
    [line] = written(lambda log: log.info("a.b", text=text, deep={"in": [text], text: 1}))
    assert line["text"] == left
    assert line["deep"] == {"in": [left], left: 1}
    assert logs.redact(text) == left


def test_a_minted_token_is_masked_however_it_stands() -> None:
    """The shape that is searched for is the one that signing makes."""
    from datetime import UTC, datetime

    token = signing.mint(["k" * 32], TaskId("tsk_" + "0" * 26), datetime(2026, 1, 31, tzinfo=UTC))
    assert token not in text_of(
        lambda log: log.info("a.b", path=f"/callbacks/{token}", bare=token, inside=f"x{token}y")
    )


SECRETS = st.text(st.characters(exclude_categories=["Cs"]), min_size=logs.LEAST_HIDDEN, max_size=40)
AROUND = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WRITINGS: list[Callable[[str], Any]] = [
    lambda text: text,
    lambda text: {"a": [text]},
    lambda text: {text: 1},
    ValueError,
    lambda text: json.dumps({"a": text}),
    lambda text: json.dumps({"a": text}, ensure_ascii=False),
    repr,
    lambda text: quote(text, safe=""),
    lambda text: text.encode(),
    lambda text: {text},
]


@given(SECRETS, AROUND, AROUND, st.sampled_from(WRITINGS))
def test_a_hidden_value_never_survives(secret: str, before: str, after: str, writing: Callable[[str], Any]) -> None:
    """Wherever it stands and however it is spelled: raw, nested, JSON within a string, a repr, a URL, bytes."""
    # A secret made of what stands around it (or of the mask) would be there without having been logged.
    assume(not any(secret in shown for shown in ("timestamplevelinfoeventa.bfield", logs.MASK * 20, "ValueError()")))
    vars(logs)["_redactor"] = logs._Redactor()
    logs.hide(secret)
    text = text_of(lambda log: log.info("a.b", field=writing(before + secret + after)))
    line = json.loads(text)
    field = json.dumps(line["field"], ensure_ascii=False)
    for spelled in {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe="")}:
        assert spelled not in _strings(line["field"]), field


def _strings(value: Any) -> str:
    """All text in a JSON value, one after another."""
    if isinstance(value, dict):
        return "\n".join([str(key) + "\n" + _strings(one) for key, one in value.items()])
    return "\n".join(map(_strings, value)) if isinstance(value, list) else str(value)


@given(AROUND, AROUND, st.sampled_from([DOOR, "Bearer s3cr3t-key", "whsec_MfKQ9r8GKYqrTwjU", "https://u:s3cr3t@h/x"]))
def test_a_shape_never_survives(before: str, after: str, secret: str) -> None:
    """Whatever text is around it (a letter right before `Bearer` makes another word of it)."""
    text = text_of(lambda log: log.info("a.b", field=f"{before} {secret} {after}"))
    assert not re.search(r"AAAA|s3cr3t|MfKQ", text)


@pytest.mark.parametrize(
    "text",
    ["://a:" * 3300 + " @", "://" * 5500 + " @", "://" * 5500 + "@x", ":\\/\\/a:" * 2000 + " @", "bearer " * 2400],
)
def test_no_text_from_elsewhere_holds_up_the_process(text: str) -> None:
    """Crafted text of 16 KiB, as long as what is kept of an answer, took 400 ms once; it takes 2."""

    def cost() -> float:
        started = time.thread_time()
        logs.redact(text)
        return time.thread_time() - started

    assert min(cost() for _ in range(5)) < 0.05


def test_a_longer_secret_goes_whole() -> None:
    """Where one secret begins like another, no tail of the longer one stays."""
    logs.hide("secret-one", "secret-one-and-more", None)
    [line] = written(lambda log: log.info("a.b", field="secret-one-and-more, secret-one"))
    assert line["field"] == "***, ***"


def test_a_secret_of_digits_breaks_no_number() -> None:
    """What is masked is text; the line stays JSON."""
    logs.hide("12345678")
    [line] = written(lambda log: log.info("a.b", count=12345678, key="12345678"))
    assert line["count"] == 12345678
    assert line["key"] == "***"


def test_a_short_value_is_no_secret() -> None:
    """Hiding `key` would hide the log."""
    logs.hide("key", "")
    [line] = written(lambda log: log.info("key.used", key="the key"))
    assert line["event"] == "key.used"
    assert line["key"] == "the key"


# -- writing a line harms nobody --------------------------------------------------------------------------------------


class Sour:
    """A value that cannot even be named."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize(
    "value", [Sour(), _circle(), 1 << 80, "\ud800", b"\xff", {1: 2}, {"a": "\udfff"}, float("nan")]
)
def test_a_value_that_is_no_json_costs_only_itself(value: Any) -> None:
    """The line is written, with every other field in it."""
    [line] = written(lambda log: log.info("a.b", task_id="tsk_1", odd=value, last=1))
    assert line["task_id"] == "tsk_1"
    assert line["last"] == 1
    assert "odd" in line


def test_a_stream_that_is_gone_stops_nobody() -> None:
    """A closed pipe or a full disk loses the line, not the work that logged it."""

    class Gone(io.BytesIO):
        def write(self, _data: Any) -> int:
            raise BrokenPipeError

    logs.configure("json", "info", Gone())
    logs.get().info("a.b")
    closed = io.BytesIO()
    logs.configure("json", "info", closed)
    closed.close()
    logs.get().error("a.b")


class Counting(io.BytesIO):
    """A stream that says how often it was written to, and may be a terminal."""

    writes = 0
    terminal = False

    def write(self, data: Any) -> int:
        """Count it."""
        self.writes += 1
        return super().write(data)

    def isatty(self) -> bool:
        """As the test wants it."""
        return self.terminal

    def events(self) -> list[str]:
        """The events of its lines."""
        return [json.loads(line)["event"] for line in self.getvalue().splitlines()]


def test_the_lines_of_one_turn_are_written_at_once_and_in_order() -> None:
    """Whoever says them: several loggers, and other libraries."""
    stream = Counting()
    logs.configure("json", "info", stream)

    async def turn() -> None:
        logs.get().info("a.a")
        logging.getLogger("z").warning("between")
        logs.get().info("b.b")
        assert stream.writes == 0
        await asyncio.sleep(0)
        assert stream.writes == 1
        logs.get().info("c.c")
        await asyncio.sleep(0)

    asyncio.run(turn())
    assert stream.events() == ["a.a", "library.logged", "b.b", "c.c"]


def test_a_secret_among_the_lines_of_one_turn_is_masked_and_the_others_stay() -> None:
    """They are searched together, but each is cleaned by itself; what is hidden only afterwards is hidden, too."""
    stream = Counting()
    logs.configure("json", "info", stream)

    async def turn() -> None:
        logs.get().info("a.a", left="callback", url=DOOR)
        logs.get().info("b.b", left="user", right="@ <callbacks>")
        logs.get().info("c.c", key="a hidden value")
        logs.hide("a hidden value")
        await asyncio.sleep(0)

    asyncio.run(turn())
    first, second, third = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert first["url"] == f"https://hooks.example.com/callbacks/{logs.MASK}"
    assert (second["left"], second["right"]) == ("user", "@ <callbacks>")
    assert third["key"] == logs.MASK


def test_a_loop_that_ended_holds_back_no_line() -> None:
    """What was said in its last turn comes out with the next line, in whatever loop that is said."""
    stream = Counting()
    logs.configure("json", "info", stream)
    log = logs.get()
    ended = asyncio.new_event_loop()
    try:
        ended.call_soon(lambda: (ended.stop(), log.info("a.a")))
        ended.run_forever()
    finally:
        ended.close()

    async def turn() -> None:
        log.info("b.b")
        await asyncio.sleep(0)
        assert stream.events() == ["a.a", "b.b"]

    asyncio.run(turn())


def test_no_thread_loses_a_line() -> None:
    """Each of many, said by several threads at once, comes out once and whole."""
    stream = Counting()
    logs.configure("json", "info", stream)

    def say(name: int) -> None:
        log = logs.get()
        for number in range(300):
            log.info("a.b", name=name, number=number)

    threads = [threading.Thread(target=say, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sorted((line["name"], line["number"]) for line in lines) == [(n, m) for n in range(4) for m in range(300)]


@pytest.mark.parametrize(
    ("fmt", "terminal", "no_color", "console", "coloured"),
    [
        ("auto", True, "", True, True),
        ("auto", True, "1", True, False),
        ("auto", False, "", False, False),
        ("console", False, "", True, False),
        ("json", True, "", False, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, fmt: logs.Format, terminal: bool, no_color: str, console: bool, coloured: bool
) -> None:
    """NO_COLOR is honoured where it is not empty; a file or a pipe gets none."""
    monkeypatch.setenv("NO_COLOR", no_color)
    stream = Counting()
    stream.terminal = terminal
    logs.configure(fmt, "info", stream)
    logs.get().warning("a.b", task_id="tsk_1")
    text = stream.getvalue()
    assert text.startswith(b"{") is not console
    assert (b"\x1b[" in text) is coloured
    assert b"tsk_1" in text


def test_a_field_cannot_pose_as_the_lines_own() -> None:
    """`timestamp` and `level` are ours, also where a caller says them."""
    [line] = written(lambda log: log.info("a.b", level="error", timestamp="soon", task_id="tsk_1"))
    assert line["level"] == "info"
    assert line["timestamp"].endswith("Z")
    assert list(line) == ["timestamp", "level", "event", "task_id"]


def test_unconfigured_it_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """Before `configure`, only warnings are said, on stderr and redacted."""
    structlog.reset_defaults()
    log = logs.get()
    log.info("a.b")
    log.warning("c.d", key="Bearer abcdef")
    said = capsys.readouterr()
    assert said.out == ""
    assert json.loads(said.err)["key"] == "Bearer ***"


# -- other libraries --------------------------------------------------------------------------------------------------


def test_other_libraries_come_out_the_same_way() -> None:
    """From WARNING on, as our JSON, redacted, with their traceback."""

    def write(_log: Logger) -> None:
        logging.getLogger("uvicorn.error").error("it %s", "Bearer abcdef")
        try:
            {"y": 1}["x"]
        except KeyError:
            logging.getLogger("sqlalchemy.pool").exception("fell over")
        warnings.warn_explicit("whsec_abcdef", UserWarning, "a.py", 1, registry={}, module="a", source=None)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        first, second, third = written(write)
    assert (first["level"], first["logger"], first["message"]) == ("error", "uvicorn.error", "it Bearer ***")
    assert second["exception"].endswith("KeyError: 'x'")
    assert "whsec_***" in third["message"]


def test_their_access_lines_are_silent() -> None:
    """httpx, httpcore and aiohttp say whole URLs at INFO, even where the level is debug."""

    def write(_log: Logger) -> None:
        for name in ("httpx", "httpcore.http11", "aiohttp.access", "uvicorn.access", "alembic.runtime.migration"):
            logging.getLogger(name).info("GET %s", DOOR)

    assert written(write, level="debug") == []


def test_a_message_that_does_not_fit_its_arguments_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    """It is written as it is, and nothing is printed beside."""
    [line] = written(lambda _log: logging.getLogger("z").warning("%d pieces", "many"))
    assert line["message"] == "%d pieces ('many',)"
    assert capfd.readouterr().err == ""


def test_others_obey_the_level_too() -> None:
    """At `error`, their warnings are silent."""
    assert written(lambda _log: logging.getLogger("z").warning("w"), level="error") == []
