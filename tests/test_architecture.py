"""The house: the direction of imports, the tables where a new member is entered, and what is not in the tree."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from receiver.destinations import KINDS
from receiver.upstream import ROUTES

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted((ROOT / "receiver").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A command in the root of the repository."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_imports_go_one_way() -> None:
    """The contracts of pyproject.toml hold."""
    done = run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_has_its_place() -> None:
    """The layers are exhaustive, and the pure rooms are listed as pure."""
    layers, pure = PYPROJECT["tool"]["importlinter"]["contracts"][:2]
    assert layers["exhaustive"] is True
    named = {name.strip() for layer in layers["layers"] for name in re.split(r"[|:]", layer)}
    here = {
        path.stem for path in (ROOT / "receiver").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert here - {"__init__"} == named
    assert set(pure["forbidden_modules"]) >= {"asyncio", "httpx", "os", "random", "secrets", "socket", "time", "uuid"}


def test_the_coverage_of_the_pure_rooms_is_that_of_the_contract() -> None:
    """What must be pure must be covered, and the other way round."""
    from tests.check import PURE

    pure = PYPROJECT["tool"]["importlinter"]["contracts"][1]["source_modules"]
    covered = {name.removesuffix("/*").removesuffix(".py").replace("/", ".") for name in PURE}
    assert covered == set(pure)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_destination_kind_is_entered_everywhere(kind: str) -> None:
    """A module of that name, a test, a block in config.example.toml, and for a chat a row in the README's table."""
    assert KINDS[kind].name == kind
    assert (ROOT / "receiver" / "destinations" / f"{kind}.py").is_file()
    assert list((ROOT / "tests").glob(f"test_*{kind}.py"))
    assert f'kind = "{kind}"' in (ROOT / "config.example.toml").read_text()
    if KINDS[kind].summary is not None:
        assert re.search(rf"^\| `{kind}`", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_nothing_but_the_registry_knows_a_chat_kind_by_name() -> None:
    """Adding one touches what architecture.md says, and no more: everybody else asks the registry."""
    chats = {name for name, kind in KINDS.items() if kind.summary is not None}
    home = ROOT / "receiver" / "destinations"
    knowing = {path: chats & set(re.findall(r'"([a-z]+)"', path.read_text())) for path in SOURCES}
    del knowing[home / "__init__.py"]
    del knowing[ROOT / "receiver" / "egress" / "notify.py"]  # the library apprise, which the kind is called after
    strange = {path.name: names - ({path.stem} if path.parent == home else set()) for path, names in knowing.items()}
    assert {name: names for name, names in strange.items() if names} == {}


def test_destination_kinds_do_not_know_one_another() -> None:
    """What they share is in rooms that are no kind; so adding one touches no other, and no list but the registry."""
    imports = re.compile(r"^\s*(?:from|import) receiver\.destinations(?:\.(\w+)| import (.+))", re.MULTILINE)
    for kind in KINDS:
        text = (ROOT / "receiver" / "destinations" / f"{kind}.py").read_text()
        known = {name for match in imports.finditer(text) for name in re.findall(r"\w+", match[1] or match[2])}
        assert known & KINDS.keys() == set(), kind


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_every_upstream_route_is_entered_everywhere(route: str) -> None:
    """Its name, and a folder of recorded bodies with what is to be read in each."""
    assert ROUTES[route].name == route
    name = route.replace("runwayml/v1/", "runway/").replace("/", "_")
    assert (ROOT / "receiver" / "upstream" / f"{name}.py").is_file()
    folder = ROOT / "tests" / "fixtures" / "upstream" / name
    bodies = [path for path in folder.rglob("*") if path.is_file() and ".expected" not in path.name]
    assert bodies
    assert all(path.with_name(f"{path.stem}.expected.json").is_file() for path in bodies), bodies


def test_rooms_are_small() -> None:
    """A room that passes 400 lines becomes a package."""
    long = {str(path.relative_to(ROOT)): n for path in SOURCES if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}


def test_no_test_sleeps_for_a_fixed_time() -> None:
    """They wait for what they want to see."""
    sleep = re.compile(r"\btime\.sleep\(|from time import sleep")
    here = Path(__file__)
    assert [path.name for path in TESTS if path != here and sleep.search(path.read_text())] == []


def test_time_comes_in_as_an_argument() -> None:
    """Ruff bans the clock outside of app and cli, and nobody lifts the ban elsewhere."""
    lint = PYPROJECT["tool"]["ruff"]["lint"]
    banned = lint["flake8-tidy-imports"]["banned-api"]
    assert {"datetime.datetime.now", "datetime.datetime.utcnow"} <= set(banned)
    assert lint["select"] == ["ALL"]
    assert not {"TID251", "TID"} & set(lint["ignore"])
    lifted = [str(path.relative_to(ROOT)) for path in SOURCES if "noqa: TID251" in path.read_text()]
    assert [path for path in lifted if path != "receiver/app/chance.py" and not path.startswith("receiver/cli")] == []


def test_no_lock_file_is_committed() -> None:
    """They record download addresses."""
    listed = run("git", "ls-files")
    if listed.returncode != 0:
        pytest.skip("this is no git repository")
    files = listed.stdout.splitlines()
    assert [name for name in files if Path(name).name in {"uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock"}] == []
    assert "uv.lock" in (ROOT / ".gitignore").read_text().split()


def test_every_test_says_what_it_claims() -> None:
    """A docstring each."""
    silent = []
    for path in TESTS:
        lines = path.read_text().splitlines()
        for n, line in enumerate(lines):
            if re.match(r"(async )?def test_", line):
                end = next(i for i in range(n, len(lines)) if lines[i].rstrip().endswith(":"))
                if '"""' not in lines[end + 1]:
                    silent.append(f"{path.name}:{n + 1}")
    assert silent == []
