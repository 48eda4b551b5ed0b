"""Every check of this project, in the order in which they are quick to fail: lint, types, import contracts, tests.

The tests run in several processes: most of their time is waiting. What is about single rooms comes first and is
measured for coverage; journeys, commands and kills come after, unmeasured: measuring makes them half as long again.

These are real sockets, processes and databases, so what fails (a few tests at most) is run once more, alone, and what
passes then is named at the end. It is a fault all the same, of the test or, as often as not, of the program in a rare
moment: whoever sees the name looks for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PURE = (
    "receiver/envelope.py",
    "receiver/health.py",
    "receiver/ids.py",
    "receiver/lifecycle.py",
    "receiver/metrics.py",
    "receiver/pace.py",
    "receiver/records.py",
    "receiver/retry.py",
    "receiver/routing.py",
    "receiver/signing.py",
    "receiver/wire.py",
    "receiver/errors.py",
    "receiver/ingest/judge.py",
    "receiver/config/lines.py",
    "receiver/config/values.py",
    "receiver/upstream/*",
    "receiver/destinations/*",
)
"""Rooms whose every branch is covered."""

JOURNEYS = (
    "test_database_away.py",
    "test_instances*.py",
    "test_database_commit.py",
    "test_database_gone.py",
    "test_cli_service.py",
    "test_journeys_sdk.py",
    "test_cli*.py",
    "test_instances*.py",
    "test_database_*.py",
    "test_kill.py",
    "test_queue*.py",
    "test_replay.py",
    "test_journeys_*.py",
    "test_openapi.py",
    "test_demo.py",
    "test_fault*.py",
    "test_model.py",
    "test_copying.py",
    "test_migrations_*.py",
    "test_speed.py",
    "test_hostile_urls.py",
    "test_rotation.py",
    "test_egress.py",
    "test_deliver_hostile.py",
    "test_api*.py",
    "test_door.py",
    "test_client*.py",
    "test_emulator*.py",
)
"""Test files that no pure room's coverage rests on; what takes long comes first, so that nobody waits for it alone."""

NOTES = ".pytest_cache/check"
ACROSS = ["pytest", "--numprocesses=3", "--dist=loadfile", "--no-loadscope-reorder", "--durations=15"]
"""A file stays in one process: its tests share a service."""
FRESH = ["-o", f"cache_dir={NOTES}", "--cache-clear"]
"""What is noted of failures is of this run."""
FEW = 5
TESTS_FAILED = 1
"""What pytest ends with then; any other number means that it could not run them."""


def journeys() -> list[str]:
    """The files of `JOURNEYS`, in that order."""
    found = [path for pattern in JOURNEYS for path in sorted((ROOT / "tests").glob(pattern))]
    return [str(path.relative_to(ROOT)) for path in dict.fromkeys(found)]


def checks() -> list[tuple[str, list[str]]]:
    """Every check: its name, and its command."""
    others = [f"--ignore-glob=tests/{pattern}" for pattern in JOURNEYS]
    pure = f"--include={','.join(PURE)}"
    return [
        ("lint", ["ruff", "check", "."]),
        ("format", ["ruff", "format", "--check", "."]),
        ("types", ["mypy"]),
        ("import contracts", ["lint-imports", "--no-cache", "--no-logo"]),
        ("tests of the rooms", [*ACROSS, *FRESH, *others, "--cov=receiver", "--cov-branch", "--cov-report="]),
        ("coverage of the pure rooms", ["coverage", "report", pure, "--fail-under=100", "-m", "--skip-covered"]),
        ("journeys", [*ACROSS, *FRESH, *journeys()]),
    ]


def ended(name: str, command: list[str]) -> int:
    """Run a command; what it ended with."""
    # Tests start many processes: each would compile what it imports, where nobody keeps what was compiled.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(ROOT / ".pytest_cache" / "pycache")}
    sys.stdout.write(f"== {name}: {' '.join(command)}\n")
    sys.stdout.flush()
    return subprocess.run(command, check=False, cwd=ROOT, env=os.environ | compiled).returncode


def unsteady(command: list[str]) -> list[str]:
    """The few tests that failed under `command` and pass alone; none where one fails again, or many did."""
    noted = ROOT / NOTES / "v" / "cache" / "lastfailed"
    failed = list(json.loads(noted.read_text())) if noted.exists() else []
    if not 0 < len(failed) <= FEW:
        return []
    covered = [option for option in command if option.startswith("--cov")]
    again = ["pytest", *covered, *(["--cov-append"] if covered else []), *failed]
    return [] if ended("once more, alone", again) else failed


def main() -> int:
    """Run them; stop at the first that fails."""
    passed_alone: list[str] = []
    for name, command in checks():
        code = ended(name, command)
        again = unsteady(command) if code == TESTS_FAILED and command[0] == "pytest" else []
        if code and not again:
            sys.stderr.write(f"{name} failed\n")
            return 1
        passed_alone += again
    for test in passed_alone:
        sys.stdout.write(f"failed, and then passed alone; a fault to be found: {test}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
