"""Data URIs are shown as what they are, how long, and their digest; all else is left as it is, object for object."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.upstream.data_uri import LONG_ENOUGH, MAX_DEPTH, abridge

VIDEO = bytes(range(256)) * 4
DIGEST = hashlib.sha256(VIDEO).hexdigest()


def encoded(head: str = "data:video/mp4;base64") -> str:
    """A data URI of the video."""
    return f"{head},{base64.b64encode(VIDEO).decode()}"


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        (encoded(), "video/mp4"),
        (encoded("DATA:video/mp4;BASE64"), "video/mp4"),
        (encoded("data:video/mp4;codecs=avc1;base64"), "video/mp4"),
        (encoded("data:;base64"), ""),
        (f"data:video/mp4,{quote_from_bytes(VIDEO)}", "video/mp4"),
    ],
)
def test_a_data_uri_is_named_by_its_content(uri: str, kind: str) -> None:
    """The bytes that it holds, not its text: as the contract writes it."""
    assert abridge(uri) == f"data:{kind};… ({len(VIDEO)} bytes, sha256 {DIGEST})"


@pytest.mark.parametrize("tail", ["A", "!" * 300, "é" * 300, "=" * 300, "%zz" * 100])
def test_one_that_cannot_be_decoded_is_still_abridged(tail: str) -> None:
    """By the bytes of its text."""
    shown = abridge("data:video/mp4;base64," + "A" * 300 + tail)
    assert shown.startswith("data:video/mp4;… (")
    assert len(shown) < 150


def test_a_long_kind_is_cut() -> None:
    """It is a stranger's word."""
    assert len(abridge(f"data:{'x' * 5000};base64,{'A' * 400}")) < 250


@pytest.mark.parametrize(
    "value",
    [
        "",
        "data:",
        "data:,x",
        "https://x.example/" + "a" * 999,
        "d" * 999,
        1,
        1.5,
        True,
        None,
        [],
        {},
        "x data:" + "a" * 999,
    ],
)
def test_what_is_none_stays(value: Any) -> None:
    """The very same object, so that nothing is written twice."""
    assert abridge(value) is value


def test_they_are_found_wherever_they_stand() -> None:
    """In members and in lists; what has none beside it is not copied, and the argument is not changed."""
    plain = {"keep": ["me"]}
    given_ = {"a": [{"uri": encoded()}, "x"], "b": plain, "references": [{"type": "image", "uri": encoded()}]}
    before = json.dumps(given_)
    shown = abridge(given_)
    assert encoded() not in json.dumps(shown)
    assert shown["b"] is plain
    assert (shown["a"][1], shown["references"][0]["type"]) == ("x", "image")
    assert json.dumps(given_) == before


def test_depth_is_bounded() -> None:
    """Nothing nested could make it fail."""
    value: Any = encoded()
    for _ in range(MAX_DEPTH + 5):
        value = [value]
    assert abridge(value) is value


texts = st.one_of(st.text(max_size=40), st.text(max_size=40).map(lambda text: "data:" + text * LONG_ENOUGH))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=10,
)


@given(values)
def test_it_is_total_and_once_is_enough(value: Any) -> None:
    """It never raises, leaves nothing long that begins with `data:`, and a second time changes nothing."""
    shown = abridge(value)
    assert abridge(shown) is shown
