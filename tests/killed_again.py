"""A program that runs experiments in a process, kills it at a random moment, and again until done.

::

    python killed_again.py OUT LOG SEEDS

Prints how often it killed. Fails where a finished run is touched, lost, or measured again.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import planted_experiments as planted
from normalform.lab.environment import environment
from normalform.lab.experiments import command
from normalform.lab.experiments.plan import Options


def main(out, log, seeds):
    """Kill until nothing is left to kill."""
    command.work_all = planted.in_this_process
    table = planted.table(planted.other(), planted.sound(log=str(log)))
    options = Options(["all"], seeds=seeds, out=out, workers=1, quiet=True, report=False)
    environment()  # asked once, for all the children
    dice, kills, kept = random.Random(0), 0, {}
    while not killed(options, table, log, dice):
        kills += 1
        now = finished(out / "experiments")
        assert {path: now.get(path) for path in kept} == kept, "a finished run was touched or lost"
        kept = now
    print(kills)


def killed(options, table, log, dice):
    """Start; kill while one of the next runs is measured or written; whether it ended before."""
    before = started(log)
    done = {"_".join(path.stem.split("_")[1:3]) for path in finished(options.out / "experiments")}
    child = os.fork()
    if not child:
        command.run(options, table)
        os._exit(0)
    enough = len(before) + dice.randint(0, 4)
    while len(started(log)) < enough and not ended(child):
        time.sleep(0.0005)
    time.sleep(dice.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    again = done.intersection(started(log)[len(before) :])
    assert not again, f"measured again: {again}"
    assert status in (0, signal.SIGKILL), f"the process failed: {status}"
    return status == 0


def started(log):
    return log.read_text().splitlines() if log.exists() else []


def finished(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "details").glob("*.json")}


def ended(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
