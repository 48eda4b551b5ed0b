"""The transition table of a task: what moves it, and what never does."""

from __future__ import annotations

from typing import get_args

import pytest

from receiver import lifecycle
from receiver.lifecycle import Seen, TaskState

# The whole table, written out a second time: rows are states, columns what is seen; a dot changes nothing.
COLUMNS: tuple[Seen, ...] = ("queued", "running", "succeeded", "failed", "cancelled", "missing", "unknown")
TABLE = """
pending     .       .        .          .       .          .  .
submitting  .       .        .          .       .          .  .
ambiguous   queued  running  succeeded  failed  cancelled  .  .
queued      .       running  succeeded  failed  cancelled  .  .
running     .       .        succeeded  failed  cancelled  .  .
succeeded   .       .        .          .       .          .  .
failed      .       .        .          .       .          .  .
cancelled   .       .        .          .       .          .  .
lost        .       .        succeeded  failed  cancelled  .  .
rejected    .       .        .          .       .          .  .
"""
ROWS = {line.split()[0]: line.split()[1:] for line in TABLE.strip().splitlines()}


@pytest.mark.parametrize("current", lifecycle.TASK_STATES)
def test_the_table(current: TaskState) -> None:
    """Every state meets every word, and moves as the table says."""
    moves = [lifecycle.advance(current, seen) or "." for seen in COLUMNS]
    assert moves == ROWS[current]


def test_the_table_is_whole() -> None:
    """No state and no word is missing from it."""
    assert set(ROWS) == set(get_args(TaskState)) == set(lifecycle.TASK_STATES)
    assert set(COLUMNS) == set(get_args(Seen))


def test_every_state_is_open_or_terminal() -> None:
    """The two sets share nothing and leave nothing out."""
    assert {"succeeded", "failed", "cancelled", "lost", "rejected"} == lifecycle.TERMINAL
    assert not lifecycle.OPEN & lifecycle.TERMINAL
    assert set(lifecycle.TASK_STATES) == lifecycle.OPEN | lifecycle.TERMINAL
    assert lifecycle.UNSENT < lifecycle.OPEN


def test_only_the_word_lost_is_ever_taken_back() -> None:
    """The upstream's own terminal words stand; ours may be replaced by them."""
    moved = {state for state in lifecycle.TERMINAL for seen in COLUMNS if lifecycle.advance(state, seen)}
    assert moved == {"lost"}


def test_an_unknown_word_is_never_terminal() -> None:
    """Nor is it anything else."""
    assert {lifecycle.advance(state, "unknown") for state in lifecycle.TASK_STATES} == {None}
