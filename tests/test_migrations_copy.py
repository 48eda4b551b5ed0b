"""Before a schema changes, an SQLite file is copied: whole, private, and never over another copy."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from receiver.errors import StoreUnavailable
from receiver.store import migrations
from tests import databases
from tests.cli_world import environment

OLD = "0003"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database of an older release, with a megabyte in it, most of which is in its WAL alone."""
    path = tmp_path / "receiver.db"
    databases.older(f"sqlite:///{path}", OLD, "INSERT INTO payloads VALUES ('tsk_kept', zeroblob(1000000))")
    return path


def contents(path: Path) -> tuple[str, list[tuple[str]]]:
    """The revision of a file, and the tasks in `payloads`."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        [revision] = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return revision, connection.execute("SELECT task_id FROM payloads").fetchall()


def beside(file: Path) -> list[str]:
    """What is in the folder but the database itself."""
    return sorted(path.name for path in file.parent.iterdir() if not path.name.endswith((".db", "-wal", "-shm")))


def test_a_file_is_copied_before_it_is_migrated(file: Path) -> None:
    """The copy is the old database, readable by its owner alone, and named for what came after it."""
    done = migrations.upgrade(f"sqlite:///{file}")
    head = migrations.head()
    assert (done.before, done.schema.at, done.copy) == (OLD, head, Path(f"{file}.before-{head}"))
    assert contents(file) == (head, [("tsk_kept",)])
    assert done.copy is not None
    assert contents(done.copy) == (OLD, [("tsk_kept",)])
    assert done.copy.stat().st_mode & 0o777 == 0o600
    assert migrations.upgrade(f"sqlite:///{file}").copy is None
    assert len([name for name in beside(file) if "before" in name]) == 1


def test_a_new_file_needs_no_copy(tmp_path: Path) -> None:
    """There is nothing in it."""
    assert migrations.upgrade(f"sqlite:///{tmp_path / 'receiver.db'}").copy is None
    assert [path.name for path in tmp_path.iterdir() if "before" in path.name] == []


def test_a_copy_is_never_written_over(file: Path) -> None:
    """One that is there already keeps its name and its bytes."""
    older = Path(f"{file}.before-{migrations.head()}")
    older.write_text("an older copy")
    done = migrations.upgrade(f"sqlite:///{file}")
    assert older.read_text() == "an older copy"
    assert done.copy == Path(f"{older}-2")
    assert contents(done.copy) == (OLD, [("tsk_kept",)])


def test_a_migration_that_fails_leaves_the_file_and_no_copy(file: Path) -> None:
    """So one that is tried again and again does not fill the disk."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE writers (x)")
        connection.commit()
    with pytest.raises(StoreUnavailable, match=r"cannot migrate the database .*writers already exists"):
        migrations.upgrade(f"sqlite:///{file}")
    assert beside(file) == []
    assert contents(file)[0] == OLD


def test_a_full_disk_is_told_and_nothing_is_migrated(file: Path) -> None:
    """The copy does not fit (no file may grow past half of it): the words say so, and nothing is left of it."""
    url = f"sqlite:///{file}"
    code = f"from receiver.store import migrations\nmigrations.upgrade({url!r})"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
    )
    assert "StoreUnavailable: nothing was migrated:" in ended.stderr
    assert "cannot be copied to" in ended.stderr
    assert beside(file) == []
    assert contents(file) == (OLD, [("tsk_kept",)])
