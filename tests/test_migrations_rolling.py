"""Migrations beside others: many at once, and releases of two ages on one database, on both engines."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import inspect

import receiver as package
from receiver.errors import StoreUnavailable
from receiver.store import migrations
from receiver.store.dialect import open_dialect
from tests import databases
from tests.cli_world import environment, receiver, up, wait_until_ready, write_config
from tests.ports import free_port

pytestmark = pytest.mark.engines

NEXT = '''"""What a newer release changes: a column, of which an older one knows nothing."""

import sqlalchemy as sa
from alembic import op

revision = "9000"
down_revision = "{head}"
branch_labels = None
depends_on = None
{serves_from}


def upgrade() -> None:
    """What changes."""
    op.add_column("tasks", sa.Column("colour", sa.Text(), nullable=True))
'''


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database with nothing in it."""
    return databases.empty(tmp_path)


def test_events_get_another_key_and_keep_their_places(url: str) -> None:
    """0007: what is there stays as it is, an event's key is (task_id, id), and the feed's order has its index."""
    columns = "id, task_id, type, created_at, data_json, skips_json, seq"
    rows = [
        ("evt_2", "tsk_1", "task.succeeded", 7, '{"a": "ö"}', "[]", 2),
        ("evt_1", "tsk_1", "task.running", 5, "{}", '[["x", "y"]]', 1),
        ("evt_3", "evt_3", "destination.paused", 9, "{}", "[]", 3),
    ]
    databases.older(url, "0006", *(f"INSERT INTO events ({columns}) VALUES {row}" for row in rows))
    migrations.upgrade(url)
    assert databases.ask(url, f"SELECT {columns} FROM events ORDER BY seq") == sorted(rows, key=lambda row: row[-1])
    engine = open_dialect(url).engine()
    found = inspect(engine)
    assert found.get_pk_constraint("events")["constrained_columns"] == ["task_id", "id"]
    assert {one["name"] for one in found.get_indexes("events")} == {"events_in_order", "events_of_no_task"}
    assert [name for name in found.get_table_names() if name.startswith("events")] == ["events"]
    engine.dispose()


def newer_release(folder: Path, serves_from: str) -> Path:
    """A copy of this one with one migration more; the folder to run it in."""
    shutil.copytree(Path(package.__file__).parent, folder / "receiver", ignore=shutil.ignore_patterns("__pycache__"))
    text = NEXT.format(head=migrations.head(), serves_from=serves_from)
    (folder / "receiver/store/migrations/versions/9000_the_next.py").write_text(text)
    return folder


def of_its_own(release: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command of that release's code, in a process that knows no other."""
    return subprocess.run(
        [sys.executable, "-m", "receiver", *arguments],
        cwd=release, env=environment(**env), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def upgraded_by(release: Path, url: str) -> str:
    """What `db upgrade` of this release says."""
    ended = of_its_own(release, "db", "upgrade", RECEIVER_DATABASE__URL=url)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_ten_upgrades_at_once_make_one_schema(url: str, tmp_path: Path) -> None:
    """Ten processes: each ends well, and the schema is made once."""
    code = f"from receiver.store import migrations\nprint(migrations.upgrade({url!r}).before)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        for _ in range(10)
    ]
    ended = [(one.communicate(timeout=90), one.returncode) for one in processes]
    assert [code for _, code in ended] == [0] * 10, [err for (_, err), _ in ended if err][:1]
    assert sorted(out.strip() for (out, _), _ in ended) == sorted(["None"] + [migrations.head()] * 9)


def test_a_newer_schema_that_lets_older_releases_in_is_served(url: str, tmp_path: Path) -> None:
    """`serves_from` of the newer migration: this release upgrades nothing, checks and serves it, and says so."""
    migrations.upgrade(url)
    release = newer_release(tmp_path / "newer", f'serves_from = "{migrations.head()}"')
    assert "9000" in upgraded_by(release, url)
    assert migrations.look(url) == migrations.Schema("9000", migrations.head(), is_newer=True, fits=True)
    assert migrations.upgrade(url).schema.at == "9000"
    port, env = free_port(), {"RECEIVER_DATABASE__URL": url}
    write_config(tmp_path, port=port, upstream="http://127.0.0.1:1", more='[logging]\nformat = "json"')
    for command in ("check", "upgrade"):
        ended = receiver("db", command, cwd=tmp_path, env=env)
        assert (ended.returncode, "newer release, and this one" in ended.stdout) == (0, True), ended.stderr
    for migrate in ("true", "false"):
        with up("serve", cwd=tmp_path, env=env | {"RECEIVER_DATABASE__MIGRATE": migrate}) as service:
            wait_until_ready(service, f"http://127.0.0.1:{port}")
            service.line(r'"schema.overtaken".*"9000"')
            assert service.end() == 0


@pytest.mark.parametrize("serves_from", ["", 'serves_from = "9000"'])
def test_a_newer_schema_that_lets_nobody_in_is_refused(url: str, tmp_path: Path, serves_from: str) -> None:
    """A migration that says nothing, or says no: this release names it and touches nothing."""
    migrations.upgrade(url)
    upgraded_by(newer_release(tmp_path / "newer", serves_from), url)
    with pytest.raises(StoreUnavailable, match=r"9000.*newer"):
        migrations.upgrade(url)
    assert migrations.look(url) == migrations.Schema("9000", migrations.head(), is_newer=True, fits=False)
    config, env = (
        write_config(tmp_path, port=free_port(), upstream="http://127.0.0.1:1"),
        {"RECEIVER_DATABASE__URL": url},
    )
    checked = receiver("db", "check", "--config", config, cwd=tmp_path, env=env)
    assert (checked.returncode, "made by a newer one: run that release" in checked.stderr) == (1, True)
    for migrate, code in (("true", 3), ("false", 2)):
        served = receiver("serve", "--config", config, cwd=tmp_path, env=env | {"RECEIVER_DATABASE__MIGRATE": migrate})
        assert (served.returncode, "9000" in served.stderr) == (code, True), served.stderr


@pytest.mark.engine("sqlite")
def test_a_migration_that_closes_the_door_again_takes_the_word_back(tmp_path: Path) -> None:
    """The last migration's word counts, not an earlier one's."""
    url = f"sqlite:///{tmp_path / 'receiver.db'}"
    migrations.upgrade(url)
    connection = open_dialect(url).connect()
    connection.execute("INSERT INTO counters VALUES (?, 1)", (migrations.FLOOR,))
    connection.close()
    upgraded_by(newer_release(tmp_path / "newer", ""), url)
    assert databases.ask(url, f"SELECT value FROM counters WHERE name = '{migrations.FLOOR}'") == []


def test_serve_without_leave_to_migrate_says_what_to_run(url: str, tmp_path: Path) -> None:
    """2, and nothing is made."""
    env = {"RECEIVER_DATABASE__URL": url, "RECEIVER_DATABASE__MIGRATE": "false"}
    config = write_config(tmp_path, port=free_port(), upstream="http://127.0.0.1:1")
    ended = receiver("serve", "--config", config, cwd=tmp_path, env=env)
    assert ended.returncode == 2
    assert "has no schema yet: run `receiver db upgrade`" in ended.stderr
    assert migrations.look(url).at is None


@pytest.mark.engine("sqlite")
def test_revisions_are_numbers_in_order() -> None:
    """`schema_floor` compares them, so that is what they must be."""
    names = sorted(path.name for path in Path(migrations.__file__).parent.glob("versions/0*.py"))
    numbers = [int(name.partition("_")[0]) for name in names]
    assert numbers == list(range(1, len(names) + 1))
    assert all(re.fullmatch(r"\d{4}_\w+\.py", name) for name in names)
