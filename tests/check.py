"""Every check of this project, in the order in which they are quick to fail: lint, types, import contracts, tests."""

from __future__ import annotations

import subprocess
import sys

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

CHECKS = (
    ("lint", ["ruff", "check", "."]),
    ("format", ["ruff", "format", "--check", "."]),
    ("types", ["mypy"]),
    ("import contracts", ["lint-imports", "--no-cache", "--no-logo"]),
    ("tests", ["pytest", "--cov=receiver", "--cov-branch", "--cov-report="]),
    ("coverage of the pure rooms", ["coverage", "report", f"--include={','.join(PURE)}", "--fail-under=100", "-m"]),
)


def main() -> int:
    """Run them; stop at the first that fails."""
    for name, command in CHECKS:
        sys.stdout.write(f"== {name}: {' '.join(command)}\n")
        sys.stdout.flush()
        if subprocess.run(command, check=False).returncode:
            sys.stderr.write(f"{name} failed\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
