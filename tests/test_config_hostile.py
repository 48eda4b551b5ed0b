"""config: no file and no environment, however odd, raises anything but a mistake."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from receiver import config
from receiver.config.models import SECRET_KEYS, SECTIONS
from receiver.errors import ConfigError
from tests.config_text import mistakes, without_none

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test's config stands."""
    return tmp_path / "config.toml"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[server]\nport = \n", "config.toml:2: it is not TOML"),
        (b"[server]\nport = 1\nport = 2", "config.toml:3: it is not TOML"),
        (b"# ok\n# caf\xe9\n", "config.toml:2: it is not UTF-8"),
        ("[server]".encode("utf-16"), "config.toml:1: it is not UTF-8"),
        (b"x = " + b"[" * 5000, "config.toml: it is not TOML"),
        (b"x = " + b"9" * 5000, "config.toml: it is not TOML"),
    ],
)
def test_a_file_that_is_no_toml_is_said_to_be_none(file: Path, data: bytes, problem: str) -> None:
    """With the line where it can be known; nothing else escapes."""
    [said] = mistakes(file, data)
    assert said.startswith(problem)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, or a folder."""
    for path, why in ((tmp_path / "nope.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: it cannot be read: {why}"):
            config.load(path, {})


@given(st.binary(max_size=200) | st.text(st.sampled_from("[]{}=\"'.# \n\tab1,$:-"), max_size=60).map(str.encode))
def test_no_file_makes_anything_but_a_config_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever bytes stand in it."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    with suppress(ConfigError):
        config.load(path, {})


@pytest.mark.parametrize("name", ["/dev/zero", "big"])
def test_a_file_without_an_end_is_no_config(tmp_path: Path, name: str) -> None:
    """Nor is one of megabytes; neither is read to its end, as a config or as a secret."""
    (tmp_path / "big").write_bytes(b"#" * 5_000_000)
    (tmp_path / "config.toml").write_text(f'[upstream]\napi_key_file = "{name}"')
    for path in (tmp_path / name, tmp_path / "config.toml"):
        with pytest.raises(ConfigError, match=r"cannot be read: it has more than \d+ bytes"):
            config.load(path, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_named(file: Path) -> None:
    """With the system's word for it."""
    file.touch(mode=0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        config.load(file, {})


_WORDS = st.sampled_from(
    [
        "server",
        "destinations",
        "name",
        "kind",
        "webhook",
        "url",
        "port",
        "secrets",
        "${A}",
        "${B:-7}",
        "match",
        "*",
        "timeout",
    ]
)
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | _WORDS | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
_NAMES = st.sampled_from(
    [
        *(f"RECEIVER_{section}__{key}".upper() for section, model in SECTIONS.items() for key in model.model_fields),
        *(f"RECEIVER_{name}_FILE".replace(".", "__").upper() for name in SECRET_KEYS),
        *("RECEIVER_DESTINATIONS", "PORT", "DATABASE_URL", "COMETAPI_KEY", "COMETAPI_API_KEY", "A", "RECEIVER_X__Y"),
    ]
)
_TEXTS = st.text(max_size=12).filter(lambda text: "\0" not in text) | _ANY.map(
    lambda value: json.dumps(value, default=str)
)


@given(
    st.dictionaries(st.sampled_from([*SECTIONS, "destinations", "x"]), _ANY, max_size=4),
    st.dictionaries(_NAMES, _TEXTS),
)
def test_no_tree_and_no_environment_makes_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any], environ: dict[str, str]
) -> None:
    """Any values under any keys, in the file and in variables; each mistake is one line that nothing obeys."""
    path = tmp_path_factory.getbasetemp() / "tree.toml"
    path.write_text(tomli_w.dumps(without_none(tree)), encoding="utf-8")
    problems: list[str] = []
    try:
        read, raw = config.load_with_sources(path, environ)
        config.effective(read, raw)
        config.secrets_of(read)
    except ConfigError as error:
        problems = error.problems or [""]
    assert all(re.match(r"(?:environment|.*tree\.toml:\d+): \S", problem) for problem in problems)
    assert all(problem.isprintable() for problem in problems)
