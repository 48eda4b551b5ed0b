"""Own words: what a template can say, what it cannot, and that it cannot run away."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError

from receiver.destinations.card import card
from receiver.destinations.sample import sample_event
from receiver.destinations.templates import LONGEST, VARIABLES, check, fill
from receiver.destinations.text import PLAIN, PLAIN_UTF8, Markup, backslashed
from receiver.ids import EventId
from tests.kind_room import HOME, POSTER, VIDEO, event
from tests.test_chat_card import NOW

STARS = Markup(escape=backslashed("*["), url=lambda url: f"<{url}>")
METADATA = {"team": "v*x", "tags": ["a", "b"], "n": 3, "items": "mine", "_x": "low", "deep": {"er": 1}, "on": True}


def filled(source: str, most: int = 2000, markup: Markup = STARS, **data: Any) -> str:
    """A checked template with an event's values."""
    values = card(event(metadata=METADATA, failure_code=None, **data), home=HOME).values
    return fill(check(source), values, markup, most)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ icon }} *{{ headline }}*", "✅ *Video ready*"),
        ("{{ prompt }}", "a paper boat"),
        ("{{ metadata.team }} {{ metadata['team'] | upper }}", "v\\*x V\\*X"),
        ("{{ '*bold*' }}", "\\*bold\\*"),
        ("[watch]({{ video_url }}) {{ poster }}", f"[watch](<{VIDEO}>) <{POSTER}>"),
        ("{{ failure }}|{{ failure_code }}|{{ metadata.nope.at.all }}|{{ metadata.team.x }}", "|||"),
        ("{{ metadata.items }} {{ metadata._x }} {{ metadata.deep }} {{ metadata.on }}", 'mine low {"er":1} true'),
        ("{% for t in metadata.tags %}{{ loop.index }}{{ t }}{% if not loop.last %}-{% endif %}{% endfor %}", "1a-2b"),
        ("{{ loop }}{% for t in metadata.tags %}{{ loop.cycle }}{{ loop._x }}{% endfor %}x", None),
        ("{{ metadata.tags | join('*') }} {{ metadata.tags[1] }} {{ metadata.tags[9] }}", "a\\*b b"),
        ("{{ metadata.tags | first }}{{ metadata.tags | last }}{{ prompt | length }}", "ab12"),
        ("{{ prompt | replace('a', 'o') | capitalize }} {{ prompt | truncate(5) }}", "O poper boot a pa…"),
        ("{{ seconds / 2 }} {{ (seconds / 7) | round(2) }} {{ 1.5 | round }} {{ seconds // 60 }}", "47.5 13.57 2 1"),
        ("{{ metadata.nope | default('none') }} {{ metadata.nope | d('n') }}", "none n"),
        ("{% if state == 'succeeded' and metadata.n in [3, 4] %}yes{% else %}no{% endif %}", "yes"),
        ("{{ 'big' if metadata.n > 2 else 'small' }} {{ prompt[:3] }} {{ prompt is defined }}", "big a p true"),
        ("a   \n\n  b\n", "a\n\n  b"),
        ("{{ metadata.deep['er'] + 1 - -1 }} {{ 'a' ~ 'b' + 'c' }}", "3 abc"),
    ],
)
def test_what_a_template_says(source: str, text: str | None) -> None:
    """Values are escaped, links are links, what is not there is nothing; only the operator's words are markup."""
    if text is None:
        with pytest.raises(ValueError, match="loop"):
            check(source)
    else:
        assert filled(source) == text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ promt }}", "names 'promt', which is nothing here (did you mean prompt?)"),
        ("{{ zzz }}", "which is nothing here; there are icon, headline"),
        ("{{ _longest }}", "which is nothing here"),
        ("{{ prompt", "cannot be read"),
        ("a\n{% if %}", "cannot be read (its line 2)"),
        ("{% endfor %}", "cannot be read"),
        ("{{ prompt | safe }}", "No filter named 'safe'"),
        ("{{ prompt | format }}", "No filter named"),
        ("{{ prompt is divisibleby 0 }}", "No test named"),
        ("{{ 'a' * 10**9 }}", "is not available in templates (line 1)"),
        ("{{ 'a' * 1000000000 }}", "* is not available"),
        ("{{ 2 ** 9 }}", "** is not available"),
        ("{{ '%0999999d' % 1 }}", "% is not available"),
        ("{% for i in range(1000000000) %}x{% endfor %}", "calling is not available"),
        ("{{ prompt.upper() }}", "calling is not available"),
        ("{{ ''.__class__.__mro__() }}", "calling is not available"),
        ("{% set x = prompt ~ prompt %}{{ x }}", "set is not available"),
        ("{% set x %}a{% endset %}", "set is not available"),
        ("{% macro a() %}{% endmacro %}", "macro is not available"),
        ("{% include 'x' %}", "include is not available"),
        ("{% for a in metadata %}{% for b in metadata %}{% endfor %}{% endfor %}", "a loop within a loop"),
        ("{% for a in metadata recursive %}{% endfor %}", "a loop within a loop"),
        ("x" * (LONGEST + 1), "has 8192 characters at most"),
        ("{{ " + "(" * 4000 + "1" + ")" * 4000 + " }}", "nested too deep"),
        ("{{ " + "-" * 4000 + "1 }}", "nested too deep"),
    ],
)
def test_what_is_no_template_here(source: str, words: str) -> None:
    """Said when the configuration is read, with its line and what was meant."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the words are looked at
        check(source)
    assert words in str(caught.value)


def test_no_attribute_of_any_object_is_reachable() -> None:
    """Only members of data are."""
    for source in ("{{ prompt.__class__ }}", "{{ prompt.upper }}", "{{ metadata.keys }}", "{{ metadata.tags.append }}"):
        assert filled(source) == ""
    assert filled("{% for x in metadata.tags %}{{ loop.__init__ }}{{ loop['_recurse'] }}{% endfor %}") == ""
    assert filled("{{ metadata[3] }}{{ seconds[0] }}{{ prompt['x'] }}{{ prompt[metadata] }}") == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ metadata.long | replace('a', metadata.long) }}",
        "{% for c in metadata.long %}{{ metadata.long }}{% endfor %}",
        "{{ metadata.many | join(metadata.long) }}",
        "{% for x in metadata.many %}{% endfor %}" * 100,
        "{{ metadata.long | replace('', metadata.long) | replace('', metadata.long) }}",
        "{{ " + " ~ ".join(["metadata.long"] * 500) + " }}",
        "{{ 1.0 | round(999999999) }}{{ 123456789 | round(-999999999) }}",
    ],
)
def test_what_it_costs_is_bounded(source: str) -> None:
    """By the template's length and the event's: nothing grows out of nothing."""
    values = {**card(event(), home=HOME).values, "metadata": {"long": "a" * 100_000, "many": ["b"] * 100_000}}
    began = time.monotonic()
    with suppress(SecurityError):
        assert len(fill(check(source), values, PLAIN, 3000)) <= 3000
    assert time.monotonic() - began < 20


@given(st.text(max_size=60), st.integers(0, 40))
def test_whatever_a_template_is_it_is_told_or_it_fits(source: str, most: int) -> None:
    """Nothing but a ValueError comes out of the check, and what goes out is within its limit."""
    try:
        check(source)
    except ValueError:
        return
    assert len(fill(source, card(event(), home=HOME).values, PLAIN_UTF8, most).encode()) <= most


def test_values_give_way_before_the_operators_markup_does() -> None:
    """What was written around them stays whole as long as there is any other way."""
    source = "<b>{{ prompt }}</b> and {{ metadata.team }}!"
    for most in range(20, 80):
        text = filled(source, most, PLAIN, prompt="x" * 10_000)
        assert len(text) <= most
        assert text.startswith("<b>")
        assert "</b> and" in text
        assert len(text) > most - 4
    assert filled("literal words that are longer", 10, PLAIN) == "literal w…"


def test_every_variable_is_one() -> None:
    """What is documented is there, and what is there is documented; the sample has most of it."""
    values = card(sample_event(event_id=EventId("evt_01KG9Q8Y0000000000000000ZZ"), now=NOW), home=HOME).values
    assert set(values) == set(VARIABLES)
    assert all(fill(check(f"{{{{ {name} }}}}"), values, PLAIN, 5000) is not None for name in VARIABLES)
