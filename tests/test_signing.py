"""Callback tokens open one door each; outgoing signatures verify with two independent libraries."""

from __future__ import annotations

import base64
import re
import string
from datetime import UTC, datetime, timedelta, timezone

import pytest
import standardwebhooks
import svix.webhooks
from hypothesis import assume, given
from hypothesis import strategies as st

from receiver import ids, signing
from receiver.errors import SecretError, TokenError
from receiver.ids import EventId, TaskId

OLD, NEW = "an-older-signing-key-of-32-characters", "a-newer-signing-key-of-32-characters"
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=48)
TASK = ids.task_id(1_769_860_800_000, bytes(range(16)))
EVENT = ids.event_id(1_769_860_800_000, bytes(range(16)))
SECRETS = ("whsec_" + base64.b64encode(b"o" * 24).decode(), "whsec_" + base64.b64encode(b"n" * 32).decode())

TASKS = st.builds(ids.task_id, st.integers(0, (1 << 48) - 1), st.binary(min_size=16, max_size=16))
MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(2500, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
URL_SAFE = string.ascii_letters + string.digits + "-_."


def flaw(token: str, *, keys: tuple[str, ...] = (NEW,), now: datetime = NOW) -> str:
    """Why a token is refused."""
    with pytest.raises(TokenError) as caught:
        signing.read(keys, token, now=now)
    return caught.value.flaw


@given(TASKS, MOMENTS)
def test_a_token_reads_as_its_task_until_it_expires(task: TaskId, expires_at: datetime) -> None:
    """It is short, safe in a URL's path, and good up to its very moment."""
    token = signing.mint([NEW], task, expires_at)
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,119}", token)
    assert signing.read([NEW], token, now=expires_at - timedelta(milliseconds=1)) == task
    assert flaw(token, now=expires_at) == "expired"


def test_the_moment_counts_in_any_zone() -> None:
    """An hour is an hour later in Shanghai too."""
    east = timezone(timedelta(hours=8))
    token = signing.mint([NEW], TASK, LATER.astimezone(east))
    assert token == signing.mint([NEW], TASK, LATER)
    assert signing.read([NEW], token, now=(LATER - timedelta(seconds=1)).astimezone(east)) == TASK


@given(st.data())
def test_no_single_change_of_a_token_is_accepted(data: st.DataObject) -> None:
    """Any character replaced, dropped or added, base64's spare bits and the case included, closes the door."""
    token = signing.mint([NEW], TASK, LATER)
    at = data.draw(st.integers(0, len(token)))
    character = data.draw(st.sampled_from(URL_SAFE) | st.characters())
    tail = data.draw(st.sampled_from([token[at:], token[at + 1 :]]))
    altered = token[:at] + data.draw(st.sampled_from(["", character])) + tail
    assume(altered != token)
    assert flaw(altered) in {"malformed", "forged"}


def test_every_other_last_character_is_forged() -> None:
    """The last one carries two spare bits: a lenient decoder would take four of them for the same signature."""
    token = signing.mint([NEW], TASK, LATER)
    others = set(URL_SAFE) - {".", token[-1]}
    assert len(others) == 63
    assert {flaw(token[:-1] + other) for other in others} == {"forged"}


@given(st.text() | st.from_regex(r"[0-9a-z]{26}\.[0-9a-f]{11}\.[A-Za-z0-9_-]{43}"))
def test_no_text_raises_anything_else(text: str) -> None:
    """Whatever the path holds, the only error is TokenError."""
    assert flaw(text) in {"malformed", "forged"}


def test_an_expired_forgery_is_forged() -> None:
    """The expiry is not even looked at before the signature is good."""
    assert flaw(signing.mint([OLD], TASK, NOW - timedelta(days=1))) == "forged"


def test_the_parts_of_two_tokens_do_not_mix() -> None:
    """A signature is good for its own task and expiry alone."""
    one, other = signing.mint([NEW], TASK, LATER), signing.mint([NEW], ids.task_id(1, b"x" * 16), LATER)
    assert flaw(other.rpartition(".")[0] + "." + one.rpartition(".")[2]) == "forged"


def test_keys_rotate_without_a_gap() -> None:
    """The last key signs, every key verifies, and a dropped one opens nothing any more."""
    before = signing.mint([OLD], TASK, LATER)
    during = signing.mint([OLD, NEW], TASK, LATER)
    assert during == signing.mint([NEW], TASK, LATER) != before
    assert signing.read([OLD, NEW], before, now=NOW) == signing.read([OLD, NEW], during, now=NOW) == TASK
    assert flaw(before, keys=(NEW,)) == "forged"
    assert flaw(during, keys=()) == "forged"


def test_a_token_is_never_minted_from_nonsense() -> None:
    """No key, a foreign id, a naive or impossible moment are mistakes of the caller."""
    with pytest.raises(ValueError, match="no signing key"):
        signing.mint([], TASK, LATER)
    with pytest.raises(ValueError, match="no task id"):
        signing.mint([NEW], TaskId("evt_" + TASK[4:]), LATER)
    with pytest.raises(ValueError, match="no time zone"):
        signing.mint([NEW], TASK, LATER.replace(tzinfo=None))
    with pytest.raises(ValueError, match="1970"):
        signing.mint([NEW], TASK, datetime(1969, 1, 1, tzinfo=UTC))
    with pytest.raises(ValueError, match="no time zone"):
        signing.read([NEW], signing.mint([NEW], TASK, LATER), now=NOW.replace(tzinfo=None))


@given(st.text(max_size=200), st.sampled_from([UTC, timezone(timedelta(hours=8)), timezone(timedelta(hours=-3))]))
def test_both_libraries_verify_every_secret(text: str, zone: timezone) -> None:
    """A consumer with either secret, with either library, accepts what is signed at a moment of any zone."""
    at = datetime.now(zone)  # noqa: TID251 -- the libraries compare with the wall clock
    signature = signing.sign(SECRETS, EVENT, at, text.encode())
    headers = {"webhook-id": EVENT, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}
    for secret in SECRETS:
        standardwebhooks.Webhook(secret).verify(text.encode(), headers, json_parse=False)
        svix.webhooks.Webhook(secret).verify(text.encode(), headers)


def test_signatures_stand_oldest_first() -> None:
    """One for each secret, each what that secret alone would have signed."""
    alone = [signing.sign([secret], EVENT, NOW, b"{}") for secret in SECRETS]
    assert signing.sign(SECRETS, EVENT, NOW, b"{}") == " ".join(alone)
    assert all(one.startswith("v1,") for one in alone)
    assert signing.sign([], EVENT, NOW, b"{}") == ""


def test_the_signature_covers_id_moment_and_body() -> None:
    """Change one of the three and it is another; the fraction of a second is not signed."""
    base = signing.sign(SECRETS, EVENT, NOW, b"{}")
    assert signing.sign(SECRETS, EVENT, NOW + timedelta(milliseconds=999), b"{}") == base
    assert signing.sign(SECRETS, EVENT, NOW + timedelta(seconds=1), b"{}") != base
    assert signing.sign(SECRETS, EventId("evt_other"), NOW, b"{}") != base
    assert signing.sign(SECRETS, EVENT, NOW, b"{ }") != base


def test_a_naive_moment_is_not_signed() -> None:
    """The library would take it for UTC and sign a moment hours away."""
    with pytest.raises(ValueError, match="no time zone"):
        signing.sign(SECRETS, EVENT, NOW.replace(tzinfo=None), b"{}")


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("", "begins with whsec_"),
        ("AAAA", "begins with whsec_"),
        ("whsec_", "holds 0"),
        ("whsec_" + base64.b64encode(b"x" * 23).decode(), "holds 23"),
        ("whsec_" + base64.b64encode(b"x" * 65).decode(), "holds 65"),
        ("whsec_" + "A" * 33, "not base64"),
        ("whsec_" + "A" * 30 + "é!", "not base64"),
        ("whsec_" + "A" * 30 + " A", "not base64"),
        ("whsec_" + "A" * 30 + "-_", "URL-safe"),
    ],
)
def test_a_secret_that_cannot_sign_is_named(secret: str, words: str) -> None:
    """The message says what is wrong, and never repeats the secret."""
    with pytest.raises(SecretError, match=words) as caught:
        signing.check_secret(secret)
    assert len(secret) < 10 or secret[6:] not in str(caught.value)
    with pytest.raises(SecretError, match=words):
        signing.sign([secret], EVENT, NOW, b"{}")


@given(st.binary(min_size=24, max_size=64))
def test_every_secret_of_the_standards_length_can_sign(key: bytes) -> None:
    """With its padding or without."""
    text = base64.b64encode(key).decode()
    signing.check_secret("whsec_" + text)
    signing.check_secret("whsec_" + text.rstrip("="))
    padded = signing.sign(["whsec_" + text], EVENT, NOW, b"{}")
    assert signing.sign(["whsec_" + text.rstrip("=")], EVENT, NOW, b"{}") == padded
