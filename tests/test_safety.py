"""The compiled kernels where programs are rough: many threads, forks, interrupts.

Each in a process of its own, which must end in time: no hang, no abort, the same bits.
"""

import pytest

from programs import TYPES, of, run, serial

PLAIN = "team.openmp = lambda: None"


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    return serial()


# Threads


CONCURRENT = """
import json, sys, threading
import bits
names, found, errors = {names!r}, [], []
start = threading.Barrier(8)

def work(turn):
    try:
        start.wait()
        for k in range(len(names)):
            name = names[(turn + k) % len(names)]
            found.append((name, bits.bits(name, {threads})))
    except BaseException as error:
        errors.append(repr(error))

workers = [threading.Thread(target=work, args=(turn,)) for turn in range(8)]
for worker in workers: worker.start()
for worker in workers: worker.join()
if errors or len(found) != 8 * len(names) or len(set(found)) != len(names):
    sys.exit(f"{{errors}} {{sorted(set(found))}}")
print(json.dumps(dict(found)))
"""


def test_many_threads_at_once_have_the_bits_of_one(expected):
    assert run(CONCURRENT.format(names=tuple(expected), threads=2)) == expected


def test_many_threads_that_compile_first(expected, tmp_path):
    found = run(CONCURRENT.format(names=TYPES, threads=1), NUMBA_CACHE_DIR=str(tmp_path))
    assert found == of(expected, *TYPES)
    assert any(tmp_path.iterdir())


def test_any_number_of_threads_up_and_down(expected):
    program = """
import json
import bits
ways, found = bits.ways(), {}
for threads in (1, 2, 4, 8, 1):
    before = dict(ways)
    found[f"{threads} after {len(found)}"] = bits.all_bits(threads)
    used = {way for way in ways if ways[way] > before[way]}
    assert used == {"alone" if threads == 1 else "openmp"}, (threads, used)
print(json.dumps(found))
"""
    assert list(run(program).values()) == [expected] * 5


@pytest.mark.parametrize(
    "absent",
    [
        "torch.__config__.parallel_info = lambda: 'ATen parallel backend: native thread pool'",
        "ctypes.CDLL = lambda *_: (_ for _ in ()).throw(OSError('libgomp.so.1: cannot open'))",
        "ctypes.CDLL = lambda *_: object()",
    ],
    ids=["torch without it", "no library", "another library"],
)
def test_without_openmp_plain_threads_do_it(expected, absent):
    program = f"""
import json, ctypes, torch
import bits
ways = bits.ways()
{absent}
for threads in (2, 3, 8):
    found = bits.all_bits(threads)
    if threads == 2: first = found
    assert found == first, threads
assert ways["plain"] and not ways["openmp"], ways
print(json.dumps(found))
"""
    assert run(program) == expected


def test_numbas_own_threads_are_not_used(expected):
    assert run(
        "import json, sys, bits; print(json.dumps(bits.all_bits(2)));"
        "assert not any('workqueue' in m or 'omppool' in m for m in sys.modules)",
        NUMBA_THREADING_LAYER="workqueue",
        NUMBA_NUM_THREADS="1",
    ) == (expected)


# Children


USED_BEFORE = """
import json, multiprocessing, os, sys
import torch
import bits
torch.set_num_threads(2)
torch.ones(1 << 20).exp().sum()
serial, ways = bits.all_bits(2), bits.ways()
assert bits.all_bits(2) == serial and ways["openmp"] and not ways["plain"], ways
"""

FORKED = """
ways.update(alone=0, openmp=0, plain=0)
child = os.fork()
if not child:
    try:
        same = bits.all_bits({threads}) == serial
        used = [way for way in ways if ways[way]]
        print(f"child: {{same}} {{used}}", file=sys.stderr, flush=True)
        os._exit(0 if same and used == ["{way}"] else 1)
    finally:
        os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
found = bits.all_bits(2)
assert ways["openmp"] and not ways["plain"], ways
print(json.dumps(found))
"""

PROCESS = """
with multiprocessing.get_context("{method}").Pool(2) as pool:
    found = dict(zip(serial, pool.starmap(bits.bits, [(name, {threads}) for name in serial])))
print(json.dumps(found))
"""

WORKER = """
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return len(serial)

    def __getitem__(self, i):
        name = [*serial][i]
        return name, bits.bits(name, {threads})

loader = torch.utils.data.DataLoader(
    Data(), batch_size=None, num_workers=2, multiprocessing_context="fork"
)
print(json.dumps(dict(loader)))
"""


@pytest.mark.parametrize(("threads", "way"), [(1, "alone"), (2, "plain"), (4, "plain")])
def test_a_child_after_fork(expected, threads, way):
    assert run(USED_BEFORE + FORKED.format(threads=threads, way=way)) == expected


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_a_pool(expected, method, threads):
    assert run(USED_BEFORE + PROCESS.format(method=method, threads=threads)) == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_workers_of_a_data_loader(expected, threads):
    assert run(USED_BEFORE + WORKER.format(threads=threads)) == expected


def test_a_fork_while_another_thread_compiles(expected, tmp_path):
    """A child must not wait for locks of a thread that it does not have."""
    program = f"""
import json, os, threading, time
import torch
import bits
import normalform as nf
x = torch.ones(2, 4, 4, 4, requires_grad=True)  # what PyTorch imports late is imported
torch.autograd.grad(nf.functional.instance_norm(x, kernel="eager"), x, torch.ones_like(x))
nf.norm(torch.ones(2, 4), "n [c]")
names, stop = {TYPES!r}, threading.Event()

def work():
    for name in names:
        bits.bits(name)
    while not stop.is_set():
        for size in range(1, 1000):
            nf.norm(torch.ones(2, 4, 3, size), "n [c s]")

worker = threading.Thread(target=work)
worker.start()
ends = []
for turn in range(30):
    time.sleep(0.05 if turn < 15 else 0.002)
    child = os.fork()
    if not child:
        nf.norm(torch.ones(2, 4, 3, 1000 + turn), "n [c s]")
        bits.bits(names[turn % len(names)])
        os._exit(0)
    ends.append(child)
ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ends]
stop.set()
worker.join()
assert ends == [0] * 30, ends
print(json.dumps({{name: bits.bits(name) for name in names}}))
"""
    found = run(program, timeout=120, NUMBA_CACHE_DIR=str(tmp_path))
    assert found == of(expected, *TYPES)


# Interrupts


def test_an_interrupt_waits_for_threads_that_still_write(expected):
    """The second thread cannot be started: what the first writes to must outlive it."""
    program = f"""
import json, time
import bits
from normalform.kernels.cpu import team
real, ended, submitted = team._pool(), [], []

class Interrupted:
    def submit(self, function, *args):
        if submitted:
            raise KeyboardInterrupt
        submitted.append(args)
        def slow():
            time.sleep(0.3)
            function(*args)
            ended.append(args)
        return real.submit(slow)

{PLAIN}
team._pool = Interrupted
try:
    bits.bits("batch", 3)
except KeyboardInterrupt:
    assert len(submitted) == len(ended) == 1, (submitted, ended)
else:
    raise AssertionError("no interrupt")
team._pool = lambda: real
print(json.dumps(bits.all_bits(3)))
"""
    assert run(program) == expected


def test_interrupts_at_any_moment(expected):
    program = f"""
import json, _thread, threading, time
import bits
from normalform.kernels.cpu import team
{PLAIN}
bits.all_bits(2)
real, inside, stop = team._in_threads, threading.Event(), threading.Event()

def in_threads(*args):
    inside.set()
    try:
        real(*args)
    finally:
        inside.clear()

team._in_threads = in_threads

def interrupt():
    sent, turn, end = 0, 0, time.monotonic() + 120
    while sent < 12 and time.monotonic() < end:  # where others compute, most turns come too late
        inside.wait(1)
        time.sleep(1e-5 * (turn % 40))
        if inside.is_set():
            _thread.interrupt_main()
            sent += 1
        time.sleep(0.01)
        turn += 1
    stop.set()

interrupts, ended = 0, False
worker = threading.Thread(target=interrupt)
worker.start()
while not ended:
    try:
        while not stop.is_set():
            bits.all_bits(2)
        worker.join()
        ended = True
    except KeyboardInterrupt:
        interrupts += 1
assert interrupts > 3, interrupts
print(json.dumps(bits.all_bits(2)))
"""
    assert run(program) == expected
