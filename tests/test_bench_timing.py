"""How ``normalform bench`` takes time, and what the limit is. No test waits for a real clock."""

import gc
import math
import platform
import subprocess
import sys

import pytest
import torch

from normalform.lab.bench import floors, load, measure, timing
from normalform.lab.bench.floors import FORWARD, INFERENCE, STEP
from normalform.lab.bench.measure import How


class Clock:
    """Time that passes only where a competitor lets it."""

    def __init__(self):
        self.now = 0.0
        self.done = []

    def __call__(self):
        return self.now

    def work(self, name, *seconds):
        """A competitor whose calls take these times, the last one from then on."""
        left = list(seconds)

        def call():
            self.done.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


WARM = 4  # calls before a competitor is timed


def test_every_round_has_each_competitor_once_in_an_order_of_its_own():
    clock = Clock()
    works = {name: clock.work(name, 1e-3) for name in "abc"}
    timings = timing.interleaved(works, seconds=0, least=20, clock=clock)
    timed = clock.done[WARM * 3 :]
    rounds = [tuple(timed[i : i + 3]) for i in range(0, len(timed), 3)]
    assert len(rounds) == 20
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 3
    assert {each[0] for each in rounds} == {"a", "b", "c"}
    assert all(len(each.turns) == 20 for each in timings.values())


def test_a_turn_repeats_short_calls():
    clock = Clock()
    works = {"short": clock.work("short", 30e-6), "long": clock.work("long", 3e-3)}
    timings = timing.interleaved(works, seconds=0, least=5, clock=clock)
    assert len(timings["short"].calls) == 5 * math.ceil(timing.TURN / 30e-6)
    assert len(timings["long"].calls) == 5
    timed = "".join(name[0] for name in clock.done[2 * WARM :])
    assert "s" * 7 in timed
    assert "lls" in timed or "ssl" in timed


def test_rounds_go_on_until_the_time_is_over():
    clock = Clock()
    works = {"a": clock.work("a", 1e-3), "b": clock.work("b", 4e-3)}
    timings = timing.interleaved(works, seconds=0.1, least=3, clock=clock)
    assert len(timings["a"].turns) == 20


def test_what_happens_at_the_first_call_is_not_timed():
    clock = Clock()
    found = timing.interleaved({"a": clock.work("a", 9.0, 1e-3)}, seconds=0, least=4, clock=clock)
    assert found["a"].calls.tolist() == pytest.approx([1e-3] * 4)


def test_time_is_the_least_turn_and_ratios_are_of_the_same_round():
    clock = Clock()
    a = clock.work("a", *[1e-3] * WARM, 2e-3, 1e-3, 8e-3)
    b = clock.work("b", *[1e-3] * WARM, 4e-3, 6e-3, 8e-3)
    found = timing.interleaved({"a": a, "b": b}, seconds=0, least=3, clock=clock)
    assert found["a"].best == pytest.approx(1e-3)
    assert found["b"].best == pytest.approx(4e-3)
    assert found["b"].over(found["a"]) == pytest.approx(2.0)  # of 2, 6 and 1
    assert found["a"].p50 == pytest.approx(2e-3)


def test_percentiles_are_of_single_calls_and_need_a_hundred():
    clock = Clock()
    calls = [1e-3] * WARM + [i * 1e-3 for i in range(1, 101)]
    found = timing.interleaved({"a": clock.work("a", *calls)}, seconds=0, least=100, clock=clock)
    assert found["a"].p50 == pytest.approx(50.5e-3)
    assert found["a"].p99 == pytest.approx(99.01e-3)
    clock = Clock()
    few = timing.interleaved({"a": clock.work("a", 1e-3)}, seconds=0, least=99, clock=clock)
    assert few["a"].p99 is None


def test_no_garbage_is_collected_while_the_clock_runs():
    during = []
    timing.interleaved({"a": lambda: during.append(gc.isenabled())}, seconds=0, least=1)
    assert during[WARM:]
    assert not any(during[WARM:])
    assert gc.isenabled()

    def failing():
        if not gc.isenabled():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        timing.interleaved({"a": failing}, seconds=0, least=1)
    assert gc.isenabled()


def test_memory_once_taken_stays():
    """Pages the system clears whenever a block of 96 MiB is made, before and after."""
    program = (
        "import resource, torch\n"
        "from normalform.lab.bench.timing import keep_memory\n"
        "x = torch.zeros(24 * 2**20)\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    x.clone()\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "def usual(): return sorted(faults() for _ in range(9))[4]\n"
        "print(usual(), int(keep_memory()), usual())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    before, kept, after = map(int, run.stdout.split())
    assert kept == (platform.libc_ver()[0] == "glibc")
    assert after < 100 < before or not kept, (before, after)


STAT = """cpu  9 9 9 9 9 9 9 9 9 9
cpu0 {0} 20 30 900 900 40 50 60 7 7
cpu1 0 0 0 900 900 0 0 0 0 0
cpu7 900 900 900 900 900 900 900 900 900 900
intr 12
"""


def test_time_that_the_cores_of_this_process_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(load, "cores", lambda: 2)
    path = tmp_path / "stat"
    path.write_text(STAT.format(10))
    assert load._busy(path) == pytest.approx(210 / load.os.sysconf("SC_CLK_TCK"))
    path.write_text(STAT.format("?"))
    assert load._busy(path) is None
    path.write_text("cpu0 1 1 1 1 1 1 1 1\n")
    assert load._busy(path) is None
    assert load._busy(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("end", "cores"),
    [((13.0, 2.0, 10.0), 0.1), ((12.0, 2.0, 10.0), 0.0), ((12.04, 2.0, 0.1), 0.0), (None, None)],
)
def test_cores_of_others_are_those_that_are_not_ours(end, cores, monkeypatch):
    clocks = iter([(10.0, 0.0, 0.0), end])
    monkeypatch.setattr(load, "_clocks", lambda: next(clocks))
    assert load.Others().cores() == pytest.approx(cores)


def test_what_others_disturb_is_measured_again(monkeypatch):
    def tries(*busy, most=3):
        left = iter(busy)
        monkeypatch.setattr(measure.Others, "cores", lambda _: next(left))
        clock = Clock()
        work = clock.work("a", *[1e-3] * WARM, 3e-3, *[1e-3] * WARM, 2e-3, *[1e-3] * WARM, 5e-3)
        how = How(seconds=0.0, tries=most, clock=clock)
        timings, found = measure.undisturbed({"a": work}, how, least=1)
        assert found.together is None
        return timings["a"].best, found.others, len(clock.done) // (WARM + 1)

    assert tries(0.02) == (pytest.approx(3e-3), 0.02, 1)
    assert tries(None) == (pytest.approx(3e-3), None, 1)
    assert tries(0.5, 0.0) == (pytest.approx(2e-3), 0.0, 2)
    assert tries(0.5, 0.3, 0.9) == (pytest.approx(2e-3), 0.3, 3)
    assert tries(0.5, 0.0, most=1) == (pytest.approx(3e-3), 0.5, 1)


def test_what_ran_on_shared_cores_is_measured_again(monkeypatch):
    """A look before each try, until the cores are apart or patience is over, and one after it."""

    def tries(*together, patience=0.5, busy=(0.0, 0.0, 0.0)):
        looks, others, slept = list(together), iter(busy), []
        monkeypatch.setattr(measure.Others, "cores", lambda _: next(others))
        monkeypatch.setattr(measure.torch, "get_num_threads", lambda: 2)
        waiting = load.Patience(patience, lambda threads: looks.pop(0) * threads, slept.append)
        clock = Clock()
        work = clock.work("a", *[1e-3] * WARM, 3e-3, *[1e-3] * WARM, 2e-3, *[1e-3] * WARM, 5e-3)
        how = How(seconds=0.0, patience=waiting, clock=clock)
        timings, found = measure.undisturbed({"a": work}, how, least=1)
        assert not looks
        return round(1e3 * timings["a"].best), found.together, sum(slept)

    assert tries(0.9, 0.7) == (3, 1.4, 0.0)
    assert tries(0.5, 0.9, 0.8) == (3, 1.6, 0.25)
    assert tries(0.9, 0.5, 0.8, 0.9) == (2, 1.6, 0.0)
    assert tries(0.4, 0.4, 0.4, 0.5, 0.4, 0.4, 0.9, 0.7) == (5, 1.4, 0.5)
    assert tries(*[0.5] * 6, patience=0, busy=(0.05, 0.0, 0.03)) == (2, 1.0, 0.0)
    assert tries(0.9, 0.9, 0.9, 0.4, 0.9, 0.9, busy=(0.8, 0.0, 0.4)) == (5, 1.8, 0.0)


def test_threads_together_are_compared_with_one(monkeypatch):
    """By the least of some times."""
    clock, before = Clock(), torch.get_num_threads()
    seconds = {1: [9.0, 4.0, 5.0], 3: [7.0, 3.0, 2.0]}

    def exp(values, out):
        assert values.shape == out.shape
        left = seconds[torch.get_num_threads()]
        clock.now += left.pop(0) if len(left) > 1 else left[0] + 1

    monkeypatch.setattr(load.time, "perf_counter", clock)
    monkeypatch.setattr(load.torch, "exp", exp)
    assert load.together(1) is None
    assert load.together(3) == 4.0 / 3.0
    assert torch.get_num_threads() == before


def test_threads_that_share_cores():
    assert not load.Load(together=1.21).shares_cores(2)
    assert load.Load(together=1.19).shares_cores(2)
    assert load.Load(together=4.0).shares_cores(8)
    assert not load.Load().disturbs(2)
    assert load.Load(others=0.2).disturbs(2)


@pytest.mark.parametrize(
    ("norm", "shape", "forward", "step"),
    [
        ("batch", (2, 8, 4, 4), 1.5, 4.0),
        ("switch", (2, 8, 4, 4), 1.5, 4.0),
        ("ghost", (2, 8, 4, 4), 1.5, 4.0),
        ("instance", (2, 8, 512, 512), 1.0, 2.5),
        ("instance", (2, 8, 512, 513), 1.5, 4.0),
        ("group", (2, 8, 512, 256), 1.0, 2.5),
        ("group", (2, 8, 512, 257), 1.5, 4.0),
        ("layer", (2, 64, 64, 64), 1.0, 2.5),
        ("layer", (2, 65, 64, 64), 1.5, 4.0),
        ("token", (2, 9, 2**18), 1.0, 2.5),
        ("rms", (2, 9, 2**18 + 1), 1.5, 4.0),
    ],
)
def test_floor_is_higher_where_a_cell_is_read_twice(norm, shape, forward, step):
    assert floors.floor(norm, shape, FORWARD, 4, 2**20) == forward
    assert floors.floor(norm, shape, STEP, 4, 2**20) == step


def test_floor_of_inference():
    large, small = (1, 65, 64, 64), (1, 64, 64, 64)
    assert floors.floor("batch", large, INFERENCE, 4, 2**20) == 1.0
    assert floors.floor("switch", small, INFERENCE, 4, 2**20) == 1.0
    assert floors.floor("switch", large, INFERENCE, 4, 2**20) == 1.5
    assert floors.floor("switch", large, INFERENCE, 2, 2**20) == 1.0


def test_size_of_the_second_level_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(floors, "Path", lambda _: tmp_path)
    assert floors.l2_bytes.__wrapped__() == 2**20
    for index, level, size in (("index0", "1", "48K"), ("index2", "2", "1280K")):
        (tmp_path / index).mkdir()
        (tmp_path / index / "level").write_text(f"{level}\n")
        (tmp_path / index / "size").write_text(f"{size}\n")
    assert floors.l2_bytes.__wrapped__() == 1280 * 1024
