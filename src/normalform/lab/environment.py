"""Where a run happened: versions, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def environment() -> dict[str, str | int]:
    """Versions, machine and commit, under the names they have in results.csv."""
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "normalform": version("normalform"),
        "machine": _processor(),
        "cores": cores(),
        "platform": platform.platform(),
        "commit": _commit(Path(__file__).parent),
    }


def version(package: str) -> str:
    """The installed version of a package, "unknown" where it runs without being installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    """The model of the processor; Linux alone says it in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _commit(folder: Path) -> str:
    """The commit of the checkout these sources are tracked in, "" where there is none.

    Asked of git by a file of ours: a virtual environment inside somebody else's checkout is not
    ours.
    """
    git = ["git", "-C", str(folder)]
    describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        for arguments in (["ls-files", "--error-unmatch", "__init__.py"], describe):
            answer = subprocess.run(
                [*git, *arguments], capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
