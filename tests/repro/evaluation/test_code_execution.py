"""Programs of a model: what passes, what does not, and what they cannot do."""

from __future__ import annotations

import shutil
import time

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.evaluation.code_execution import CodeRunner, humaneval_program
from wisparse.repro.evaluation.harness_tasks import harness_tasks
from wisparse.repro.text.data_sets import load_split

from ..benchmark_data import MIRROR, isolated, with_real_data

PROBLEM = {
    "prompt": "def double(n):\n    '''Twice n.'''\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n",
    "entry_point": "double",
}


@isolated
@pytest.mark.parametrize(
    ("completion", "passed"),
    [
        ("    return 2 * n\n", True),
        ("    print('thinking')\n    return n + n\n", True),
        ("    return n * n\n", False),
        ("    return 2 *\n", False),
        ("", False),
        ("    raise SystemExit(0)\n", False),
        ("    import os\n    os._exit(0)\n", False),
    ],
)
def test_a_completion_passes_when_all_its_assertions_hold(completion, passed):
    assert CodeRunner().run_all([humaneval_program(PROBLEM, completion, fenced=False)]) == [passed]


@isolated
def test_a_fenced_completion_ends_with_its_block():
    completion = "    return 2 * n\n```\nThis doubles `n`.\n"
    programs = [humaneval_program(PROBLEM, completion, fenced=fenced) for fenced in (True, False)]
    assert CodeRunner().run_all(programs) == [True, False]


@pytest.mark.slow
@isolated
@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "memory = bytearray(1 << 30)",
        "import socket; socket.create_connection(('127.0.0.1', 1), timeout=1)",
        "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\n"
        "socket.create_connection(s.getsockname(), timeout=1)",
        "open('large', 'wb').write(bytes(2 << 20))",
    ],
)
def test_time_memory_network_and_disk_are_bounded(program):
    begin = time.perf_counter()
    assert CodeRunner(seconds=1, memory_mb=256).run_all([program]) == [False]
    assert time.perf_counter() - begin < 20


@isolated
def test_a_process_left_behind_does_not_outlive_its_program(tmp_path):
    left = tmp_path / "left"
    program = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    time.sleep(3)\n"
        f"    open({str(left)!r}, 'w').close()\n"
        "    os._exit(0)\n"
    )
    CodeRunner(seconds=2).run_all([program])
    time.sleep(4)
    assert not left.exists()


@isolated
def test_outcomes_keep_their_order():
    programs = ["assert True", "assert False"] * 6
    assert CodeRunner(workers=3).run_all(programs) == [True, False] * 6


@isolated
@with_real_data
def test_the_reference_solutions_of_humaneval_pass_and_empty_ones_do_not():
    rows = load_split(harness_tasks()["humaneval"].source, "test", str(MIRROR)).select(range(20))
    right = [humaneval_program(row, row["canonical_solution"], fenced=False) for row in rows]
    wrong = [humaneval_program(row, "    pass\n", fenced=False) for row in rows]
    assert CodeRunner().run_all(right) == [True] * 20
    assert sum(CodeRunner().run_all(wrong)) == 0


def test_without_isolation_nothing_is_run(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(UserError, match=r"suite\.execute_code=true needs `unshare`") as caught:
        CodeRunner().run_all(["assert True"])
    assert "\n" not in str(caught.value)
