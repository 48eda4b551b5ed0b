"""Random bytes for ids: nobody else gets the same, whichever thread asks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from receiver.app.chance import Entropy


def test_no_two_askers_get_the_same_bytes() -> None:
    """Four threads that draw more than a page each never share a piece."""
    entropy = Entropy()
    with ThreadPoolExecutor(4) as threads:
        drawn = [
            piece for part in threads.map(lambda _: [entropy(16) for _ in range(1000)], range(4)) for piece in part
        ]
    assert {len(piece) for piece in drawn} == {16}
    assert len(set(drawn)) == 4000


def test_other_sizes_are_given_too() -> None:
    """A seed wants four bytes."""
    assert [len(Entropy()(count)) for count in (0, 4, 16, 10_000)] == [0, 4, 16, 10_000]
