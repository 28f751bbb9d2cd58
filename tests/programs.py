"""Programs in processes of their own, which must end in time: no hang, no abort, the same bits."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

TESTS, SOURCE = Path(__file__).parent, Path(__file__).parents[1] / "src"
TYPES = ("layer", "layer, float64")  # of the same kernels


def run(
    program: str, *, source: Path = SOURCE, timeout: float = 300, **environment: str
) -> dict[str, str]:
    """Run a program that prints a dict as JSON; names in capitals are for its environment."""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{TESTS}", **environment},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@cache
def serial() -> dict[str, str]:
    """The bits of every case in an ordinary process, on one thread."""
    return run("import json, bits; print(json.dumps(bits.all_bits()))")


def of(expected: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: expected[name] for name in names}
