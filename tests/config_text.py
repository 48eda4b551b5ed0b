"""What the config's tests share: texts of a config, and what is said of them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from receiver import config
from receiver.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = "k" * 32
NO_URL = "an absolute URL is wanted, beginning with https:// (or http://)"
HOOK = '[[destinations]]\nname = "a"\nkind = "webhook"\nurl = "https://x.example/h"\n'
SEKRIT = "SEKRIT-value-that-must-not-show"


def loaded(file: Path, text: str | bytes, environ: Mapping[str, str] | None = None, **overrides: Any) -> config.Config:
    """The config of a text."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return config.load(file, environ or {}, overrides=overrides)


def mistakes(file: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
    """What is wrong with a text, the folder left out."""
    with pytest.raises(ConfigError) as caught:
        loaded(file, text, environ)
    return [problem.replace(f"{file.parent}/", "") for problem in caught.value.problems]


def uncommented(text: str) -> dict[str, Any]:
    """The example with its commented keys switched on."""
    return tomllib.loads(re.sub(r"^# (?=[a-z_]+ = |\[\[)", "", text, flags=re.MULTILINE))


def without_none(value: Any) -> Any:
    """A document as TOML can hold it."""
    if isinstance(value, dict):
        return {key: without_none(member) for key, member in value.items() if member is not None}
    return [without_none(member) for member in value if member is not None] if isinstance(value, list) else value
