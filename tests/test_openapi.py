"""The document and its pages: from one source, whole, and true of the app: a fuzzer that knows it finds nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import tomli_w
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from receiver.web import doorway, dress, problems, shapes
from tests.world import API_KEY, PATIENCE, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pydantic import BaseModel

    from tests.world import World

pytestmark = pytest.mark.anyio

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
SEED = 20260131


@pytest.fixture(scope="module")
async def it(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all."""
    async with world(tmp_path_factory.mktemp("openapi")) as one:
        yield one


def root(it: World) -> str:
    """Where the service is."""
    return f"http://127.0.0.1:{it.settings['server']['port']}"


@pytest.fixture
async def document(it: World) -> dict[str, Any]:
    """The document, as a stranger gets it."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as stranger:
        answer = await stranger.get(f"{root(it)}/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    return dict(answer.json())


async def test_the_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    """So says a validator that is none of ours."""
    validate(document, cls=OpenAPIV31SpecValidator)
    assert document["openapi"] == "3.1.0"


# -- one source --------------------------------------------------------------------------------------------------------


async def test_what_is_served_is_documented_and_nothing_else(it: World, document: dict[str, Any]) -> None:
    """Every route of the application, and the callback door."""
    assert it.service is not None
    front = it.service.front
    served = {
        (method.lower(), route.path)
        for route in front._rest.app.routes  # type: ignore[attr-defined]
        for method in route.methods - {"HEAD"}
    }
    written = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert written - served == {(row.method.lower(), row.path) for row in doorway.table()}
    assert served - written == set()


async def test_every_problem_is_known_to_some_operation(document: dict[str, Any]) -> None:
    """Its code stands at the status that it is answered with; those of no operation are named here."""
    said = {
        (code, status)
        for methods in document["paths"].values()
        for one in methods.values()
        for status, answer in one["responses"].items()
        for code in problems.KINDS
        if f"/docs/problems/{code})" in answer["description"]
    }
    of_no_operation = {"method-not-allowed", "internal"}
    assert {code for code, _ in said} == set(problems.KINDS) - of_no_operation
    assert all(str(problems.KINDS[code].status) == status for code, status in said)


async def test_what_goes_out_has_the_members_of_its_shape(it: World) -> None:
    """A webhook as the sink got it, of a success and of a failure."""
    received = await it.whole(await it.created())
    sent = json.loads(received.body)
    read = shapes.Webhook.model_validate(sent, strict=True, extra="forbid")
    assert isinstance(read.data, shapes.TaskData)
    assert read.model_dump() == sent
    failed = await it.whole(await it.created(outcome="fail"), "task.failed")
    assert shapes.Webhook.model_validate_json(failed.body, extra="forbid").type == "task.failed"


async def test_answers_have_the_members_of_their_shapes(it: World, document: dict[str, Any]) -> None:
    """All of them, no others, of the right types: also where the fuzzer did not come by."""
    task_id = await it.created()
    await it.ended(task_id)
    await it.eventually(lambda: it.all_delivered(task_id))
    replay = (await it.api.post("/replays")).json()["id"]
    tested = await it.api.post("/destinations/sink/test")
    seen: dict[type[BaseModel], Any] = {
        shapes.Task: (await it.api.get(f"/tasks/{task_id}")).json(),
        shapes.TaskPage: (await it.api.get("/tasks")).json(),
        shapes.Timeline: (await it.api.get(f"/tasks/{task_id}/timeline")).json(),
        shapes.DeliveryPage: (await it.api.get("/deliveries")).json(),
        shapes.EventPage: (await it.api.get("/events")).json(),
        shapes.ReplayPage: (await it.api.get("/replays")).json(),
        shapes.Replay: (await it.api.get(f"/replays/{replay}")).json(),
        shapes.DestinationPage: (await it.api.get("/destinations")).json(),
        shapes.Destination: (await it.api.get("/destinations/sink")).json(),
        shapes.Attempt: tested.json(),
    }
    for shape, answer in seen.items():
        read = shape.model_validate(answer, strict=True, extra="forbid")
        assert read.model_dump() == answer, shape
    kinds = {item["kind"] for item in seen[shapes.Timeline]["data"]}
    assert kinds >= {"submission", "observation", "event", "delivery", "attempt"}
    assert {shape.__name__ for shape in seen} <= set(document["components"]["schemas"])


async def test_a_key_is_wanted_where_one_is_configured(document: dict[str, Any], tmp_path: Path) -> None:
    """By every operation that is not open; without configured keys the document says that none is needed."""

    def wanted(document: dict[str, Any], path: str) -> Any:
        return [one["security"] for one in document["paths"][path].values()]

    assert wanted(document, "/api/v1/replays") == [[{"key": []}]] * 2
    assert wanted(document, "/runway/feed") == wanted(document, "/metrics") == [[{"key": []}]]
    opened = {path for path in document["paths"] if [] in wanted(document, path)}
    assert opened == {
        *("/callbacks/{token}", "/docs", "/docs/problems/{code}", "/openapi.json"),
        *("/livez", "/readyz"),
    }

    def change(given: dict[str, Any]) -> None:
        del given["security"]["api_keys"]

    async with world(tmp_path, change=change) as keyless:
        theirs = (await keyless.api.get(f"{root(keyless)}/openapi.json")).json()
    assert wanted(theirs, "/metrics") == [[{"key": []}, {}]]
    assert wanted(theirs, "/docs") == [[]]


# -- the fuzzer --------------------------------------------------------------------------------------------------------


def configuration(token: str) -> dict[str, Any]:
    """What the fuzzer is told, and why."""
    # What is answered for the right form, and yet refused: by the upstream, in its own words; an Idempotency-Key that
    # was used before; names that only the configuration knows.
    refused = {
        "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "400", "401", "404", "409", "422"]}}
    }
    may_refuse = ["/runway/pro/video2video", "/runwayml/v1/video_to_video", "/runwayml/v1/image_to_video"]
    may_refuse += ["/runway/feed", "/runwayml/v1/tasks/{id}", "/api/v1/tasks", "/api/v1/replays"]
    return {
        "parameters": {"wait": "1ms"},  # else it waits for what does not come
        "operations": [
            *({"include-path": path, **refused} for path in may_refuse),
            {"include-path": "/callbacks/{token}", "parameters": {"token": token}},
        ],
    }


@pytest.mark.timeout(180)
async def test_a_fuzzer_finds_nothing(it: World, tmp_path: Path) -> None:
    """Schemathesis on the real app: all its checks, examples, coverage, fuzzing, and links followed, seeded."""
    task_id = await it.created(render=60)
    token = it.callback_url(task_id).rpartition("/")[2]
    config = tmp_path / "schemathesis.toml"
    config.write_text(tomli_w.dumps(configuration(token)))
    command = [
        *(str(SCHEMATHESIS), "--config-file", str(config), "run", f"{root(it)}/openapi.json"),
        *("--header", f"Authorization: Bearer {API_KEY}", "--checks", "all", "--seed", str(SEED)),
        *("--max-examples", "8", "--continue-on-failure", "--no-color", "--suppress-health-check", "all"),
    ]
    fuzzer = await asyncio.create_subprocess_exec(
        *command,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told = (await fuzzer.communicate())[0].decode()
    assert fuzzer.returncode == 0, told
    assert "API Links" in told


# -- the pages ---------------------------------------------------------------------------------------------------------

VOID = {"meta", "br", "link", "img", "hr", "input"}
LOADING = {"src", "srcset", "style", "action", "data"}


class Reader(HTMLParser):
    """What a browser would see of a page: its ids, where it links to, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag begins."""
        self.tags.add(tag)
        self.ids += [one for name, one in attrs if name == "id" and one]
        self.links += [one for name, one in attrs if name == "href" and one]
        self.loads += [name for name, _ in attrs if name in LOADING or name.startswith("on")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """A tag ends."""
        assert self._open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        """Text."""
        self.text += data

    def is_closed(self) -> bool:
        """Every tag was closed."""
        return self._open == []


def read(page: str) -> Reader:
    """A page, read."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.is_closed()
    return reader


def is_self_contained(answer: httpx.Response) -> Reader:
    """The page loads nothing from anywhere, and a browser would not let it; its one style is let by its hash."""
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = read(answer.text)
    assert page.loads == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "form", "base"}
    policy = dict(one.strip().partition(" ")[::2] for one in answer.headers["content-security-policy"].split(";"))
    [style] = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.pop("style-src") == f"'sha256-{digest}'"
    assert set(policy.values()) == {"'none'"}
    assert set(policy) == {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert "url(" not in style
    assert "@import" not in style
    assert answer.headers["x-content-type-options"] == "nosniff"
    return page


async def test_the_page_says_what_the_document_says(it: World, document: dict[str, Any]) -> None:
    """Every operation, parameter and shape has its place, and every link leads to one."""
    page = is_self_contained(await it.api.get(f"{root(it)}/docs"))
    assert len(set(page.ids)) == len(page.ids)
    for path, methods in document["paths"].items():
        assert path in page.text
        for one in methods.values():
            assert one["operationId"] in page.ids
            assert one["summary"] in page.text
            assert all(parameter["name"] in page.text for parameter in one.get("parameters", []))
    assert set(document["components"]["schemas"]) <= set(page.ids)
    within = {link[1:] for link in page.links if link.startswith("#")}
    assert within <= set(page.ids)
    for link in {link for link in page.links if not link.startswith("#")}:
        assert (await it.api.get(f"{root(it)}{link}")).status_code == 200, link
    for mark in ("`", "](/", "{'", "None"):  # what a page looks like that was not rendered
        assert mark not in page.text, mark


@pytest.mark.parametrize("code", sorted(problems.KINDS))
async def test_every_problem_has_a_page_in_the_same_dress(it: World, code: str) -> None:
    """It says the kind, the status, and what to do."""
    page = is_self_contained(await it.api.get(f"{root(it)}/docs/problems/{code}"))
    kind = problems.KINDS[code]
    assert all(word in page.text for word in (code, kind.title, str(kind.status), *kind.headers))


async def test_words_are_escaped() -> None:
    """Whatever stands in a docstring stays text; only names and links to our own pages are more."""
    assert dress.words("<b> & `a<b`") == "&lt;b&gt; &amp; <code>a&lt;b</code>"
    assert dress.words("[`x`](/docs/problems/x): y") == '<a href="/docs/problems/x"><code>x</code></a>: y'
    assert dress.words("[x](https://example.com) [y](javascript:z)") == "[x](https://example.com) [y](javascript:z)"
    assert dress.prose("One\ntwo.\n\n* a\n  b\n* c") == "<p>One two.</p><ul><li>a b</li><li>c</li></ul>"
