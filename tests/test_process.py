"""What the process does with its connections and its memory."""

from __future__ import annotations

import _sqlite3
import asyncio
import os
import platform
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, cast

import pytest

from receiver.app import process
from receiver.app.protocol import Joined
from receiver.store.dialect import SQLite

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Wire:
    """What was written, a piece a call."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        """One piece."""
        assert not self.is_closed
        self.pieces.append(data)

    def is_closing(self) -> bool:
        """As asyncio's."""
        return self.is_closed

    def close(self) -> None:
        """Nothing may be written from here on."""
        self.is_closed = True


def _told(say: Callable[[Joined], None]) -> list[bytes]:
    """What is on the wire when the loop has turned once after `say`."""
    wire = Wire()

    async def turn() -> None:
        say(Joined(cast("asyncio.Transport", wire), asyncio.get_running_loop()))
        await asyncio.sleep(0)

    asyncio.run(turn())
    return wire.pieces


def test_an_answer_leaves_in_one_piece() -> None:
    """Head and body share a write; the next answer has one of its own."""

    def say(joined: Joined) -> None:
        for _ in range(2):
            joined.write(HEAD)
            joined.write(b"ok")

    assert _told(say) == [HEAD + b"ok"] * 2


def test_a_head_waits_for_one_turn_only() -> None:
    """A stream that has nothing to say yet has begun all the same."""
    assert _told(lambda joined: joined.write(HEAD)) == [HEAD]


def test_what_follows_keeps_its_order() -> None:
    """Pieces of a stream go out as they come; one that looks like a head is no exception."""

    def say(joined: Joined) -> None:
        for piece in (HEAD, b"a", b"b", HEAD, HEAD, b"c"):
            joined.write(piece)

    assert b"".join(_told(say)) == HEAD + b"ab" + HEAD + HEAD + b"c"


def test_an_interim_answer_is_not_kept() -> None:
    """`100 Continue` is what the other side waits for."""
    wire = Wire()

    async def turn() -> None:
        Joined(cast("asyncio.Transport", wire), asyncio.get_running_loop()).write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert wire.pieces == [b"HTTP/1.1 100 Continue\r\n\r\n"]

    asyncio.run(turn())


def test_a_close_loses_nothing() -> None:
    """An answer without a body is on its way before the connection is closed, and nothing is written after."""
    wire = Wire()

    async def turn() -> None:
        joined = Joined(cast("asyncio.Transport", wire), asyncio.get_running_loop())
        joined.write(HEAD)
        joined.close()
        assert joined.is_closing()
        await asyncio.sleep(0)

    asyncio.run(turn())
    assert wire.pieces == [HEAD]


ARENAS = """
import ctypes, runpy, sys, threading
if sys.argv[1] == "kept":
    runpy.run_path(sys.argv[2])["keep_what_is_freed"]()
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
meet = threading.Barrier(5)
def work():
    malloc(1000)
    meet.wait()  # all live at once, or one would take over another's arena
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
meet.wait()
for thread in threads:
    thread.join()
# an arena is a part that is used and a reserve that may not be touched, 64 MB together and aligned so
lines = [line.split() for line in open("/proc/self/maps")]
ends = [[int(end, 16) for end in line[0].split("-")] + [line[1]] for line in lines]
print(sum(end % (1 << 26) == 0 and mode == "---p" for _, end, mode in ends))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_threads_share_one_heap() -> None:
    """No thread makes an arena of its own, as each does where nobody tells glibc otherwise."""

    def arenas(how: str) -> int:
        command = [sys.executable, "-c", ARENAS, how, process.__file__]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)

    assert arenas("kept") == 0
    assert arenas("left") > 0


TURNS = """
import os, threading
from receiver.app import process
other = threading.Thread(target=threading.Event().wait, daemon=True)
other.start()
process.give_way()
print(os.sched_getscheduler(0) == os.SCHED_BATCH, os.sched_getscheduler(other.native_id) == os.SCHED_OTHER)
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="it is Linux's")
def test_only_the_thread_that_asks_gives_way() -> None:
    """A writer that was started before does not."""
    assert subprocess.run([sys.executable, "-c", TURNS], check=True, capture_output=True).stdout == b"True True\n"


SQLITE = """
import ctypes, sqlite3, sys, _sqlite3
from receiver.store.dialect.sqlite import take_fewer_locks
if sys.argv[1] == "fewer":
    take_fewer_locks()
connection = sqlite3.connect(":memory:")
connection.execute("CREATE TABLE some (thing)")
library = ctypes.CDLL(_sqlite3.__file__)
used, lock_of = library.sqlite3_memory_used, library.sqlite3_db_mutex
used.restype, lock_of.restype, lock_of.argtypes = ctypes.c_int64, ctypes.c_void_p, [ctypes.c_void_p]
# The driver's object begins with its type and count, then with the library's own.
handle = ctypes.c_void_p.from_address(id(connection) + object.__basicsize__)
print(used() > 0, lock_of(handle) is not None)
"""


@pytest.mark.skipif(not hasattr(_sqlite3, "__file__"), reason="SQLite is part of this interpreter, and left as it is")
def test_sqlite_takes_no_lock_for_a_cell_or_a_piece_of_memory() -> None:
    """It does where nobody tells it otherwise."""

    def told(how: str) -> str:
        return subprocess.run([sys.executable, "-c", SQLITE, how], check=True, capture_output=True, text=True).stdout

    assert told("all") == "True True\n"
    assert told("fewer") == "False False\n"


@pytest.mark.parametrize("cell", [None, b"", b"\x00\xff", "text", 5, 0.5, True])
def test_a_cell_is_stored_as_it_is(tmp_path: Path, cell: object) -> None:
    """What the driver is told of nothing and of bytes changes neither."""
    with closing(SQLite(tmp_path / "some.db").connect()) as connection:
        (stored,) = connection.execute("SELECT ?", (cell,)).fetchone()
    assert stored == cell
    assert type(stored) is (int if cell is True else type(cell))
