"""The configuration of chats: their keys, mistakes in them, and their secrets, which are shown nowhere."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from receiver import config, logs
from receiver.destinations import KINDS
from receiver.errors import ConfigError
from tests.config_text import HOOK, SEKRIT, mistakes
from tests.platforms.every import EVERY, played

if TYPE_CHECKING:
    from pathlib import Path

CHATS = sorted(EVERY)
SLACK = f'[[destinations]]\nname = "a"\nkind = "slack"\nurl = "https://hooks.slack.com/services/T/B/{SEKRIT}"\n'
ROBOT = f'[[destinations]]\nname = "a"\nkind = "{{}}"\nurl = "https://{{}}&secret={SEKRIT}"\n'
WECOM = "qyapi.weixin.qq.com/cgi-bin/webhook/send"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test's config stands."""
    return tmp_path / "config.toml"


def given(*tables: dict[str, Any]) -> tuple[config.Config, list[tuple[str, Any, str]]]:
    """A configuration of these destinations, and how it is shown."""
    environ = {"RECEIVER_DESTINATIONS": json.dumps(tables)}
    loaded, raw = config.load_with_sources(None, environ)
    return loaded, config.effective(loaded, raw)


@pytest.mark.parametrize("kind", CHATS)
def test_no_secret_is_shown(kind: str) -> None:
    """Neither by `config show`, nor by anything that is logged once the configuration's secrets are known."""
    table = played(kind).destination()
    loaded, shown = given(table)
    assert "secret" in json.dumps(table)
    assert [(name, value) for name, value, _ in shown if "secret" in str(value)] == []
    redactor = logs._Redactor()
    redactor.hide(config.secrets_of(loaded))
    for key in KINDS[kind].secrets:
        assert "secret" not in redactor.text(f"it came to {table.get(key)} and broke")


def test_a_mistake_in_a_template_names_the_word_and_not_the_whole(file: Path) -> None:
    """The line ends with what is wrong; the template, which may be long, is not repeated behind it."""
    (told,) = mistakes(file, SLACK + 'title = "{{ prompt * 3 }}"')
    assert told.endswith("* is not available in templates (line 1)")
    (told,) = mistakes(file, SLACK + 'title = "{{ prompt | foo }}"')
    assert told.endswith("(its line 1): No filter named 'foo'")
    (told,) = mistakes(file, SLACK + "title = 5")
    assert told.endswith("text in quotes is wanted, not 5")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SLACK + "limits = { texts = 5 }", 'destinations[0].limits: there is no limit "texts" (did you mean text?)'),
        (SLACK + "limits = { text = 0 }", "destinations[0].limits.text: 1 or more is wanted, not 0"),
        (SLACK + 'limits = { text = "5" }', "destinations[0].limits.text: a whole number is wanted"),
        (SLACK + "limits = 5", "destinations[0].limits: a table is wanted"),
        (
            SLACK + 'title = "{{ promt }}"',
            "destinations[0].title: the template names 'promt', which is nothing",
        ),
        (SLACK + 'text = "{{ prompt"', "destinations[0].text: the template cannot be read (its line 1)"),
        (SLACK + "text = 5", "destinations[0].text: text in quotes is wanted"),
        (SLACK + 'coalesce = "often"', 'destinations[0].coalesce: a rate such as "10/s"'),
        (SLACK + 'secrets = ["x"]', "destinations[0].secrets: there is no such key"),
        (SLACK + 'titel = "x"', "destinations[0].titel: there is no such key (did you mean title?)"),
        (SLACK + 'url_file = "x"', "destinations[0].url_file: url is given too"),
        (SLACK.replace("https", "ftp"), "destinations[0].url: an absolute URL is wanted here"),
        (SLACK.replace("hooks", f"{SEKRIT}@hooks"), "destinations[0].url: user and password do not belong"),
        (
            ROBOT.format("wecom", f"{WECOM}?debug=1"),
            "destinations[0].url: the URL has no key: copy all of the robot's URL",
        ),
        (ROBOT.format("wecom", f"{WECOM}?key=&x=1"), "destinations[0].url: the URL has no key"),
        (ROBOT.format("dingtalk", "own.example/robot/send/?key=1"), "destinations[0].url: the URL has no access_token"),
        (ROBOT.format("dingtalk", "oapi.dingtalk.com/?x=1"), "destinations[0].url: the URL has no access_token: copy"),
        (HOOK + 'coalesce = "20/m"', "destinations[0].coalesce: there is no such key"),
    ],
)
def test_mistakes_are_told_without_the_url(file: Path, text: str, problem: str) -> None:
    """Where they stand and what was meant, in the house's words."""
    told = mistakes(file, text)
    assert any(problem in one for one in told), told
    assert SEKRIT not in str(told)


def test_a_chats_keys_are_read(file: Path) -> None:
    """Its URL from a file of its own, a rate past which events are folded, its limits."""
    (file.parent / "slack").write_text(f"https://hooks.slack.com/services/T/B/{SEKRIT}\n")
    lines = (
        '[[destinations]]\nname = "a"\nkind = "slack"\nurl_file = "slack"\ncoalesce = "20/m"\nlimits = { text = 7 }\n'
    )
    file.write_text(lines)
    [one] = config.load(file, {}).destinations
    assert one.options.url.endswith(SEKRIT)
    assert one.coalesce is not None
    assert (one.coalesce.count, one.coalesce.per) == (20, timedelta(minutes=1))
    assert (one.options.limit("text"), one.options.limit("title")) == (7, 150)


def test_a_webhook_keeps_showing_where_it_leads(file: Path) -> None:
    """Its URL is no secret, and is masked only where one is in it; `coalesce` is not among its keys."""
    table = {"name": "a", "kind": "webhook", "url": "https://x.example/hook?k=SEKRIT"}
    _, shown = given(table)
    values = {name: value for name, value, _ in shown}
    assert values["destinations[0].url"] == "https://x.example/hook?k=***"
    assert "destinations[0].coalesce" not in values
    with pytest.raises(ConfigError):
        given({**table, "coalesce": "1/s"})
