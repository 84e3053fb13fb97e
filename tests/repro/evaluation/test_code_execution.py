"""Programs of a model: what passes, what does not, and what they cannot do."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.cell.identity import import_closure
from wisparse.repro.evaluation import code_box, code_execution, code_judge
from wisparse.repro.evaluation.code_execution import CodeRunner, Problem, humaneval_problem
from wisparse.repro.evaluation.code_judge import read_value, written
from wisparse.repro.evaluation.harness_tasks import harness_tasks
from wisparse.repro.text.data_sets import load_split

from ..benchmark_data import MIRROR, isolated, with_real_data

DOUBLE = {
    "prompt": "def double(n):\n    '''Twice n.'''\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == double(0) == 0\n",
    "entry_point": "double",
}
TRY = """
import ctypes, os, signal, socket, sys, threading
def outcome(action):
    try:
        return action()
    except (OSError, RuntimeError) as error:
        return type(error).__name__ if isinstance(error, RuntimeError) else "refused"
"""


def doubles(*completions, fenced=False):
    return [humaneval_problem(DOUBLE, completion, fenced=fenced) for completion in completions]


def does(body, value):
    """A problem whose function runs the lines of `body`, and passes where they return `value`."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    test = f"def check(candidate):\n    found = candidate()\n    assert found == {value!r}, found\n"
    return Problem(f"{TRY}def act():\n    '''Act.'''\n", lines, test, "act")


@isolated
@pytest.mark.parametrize(
    ("completion", "passed"),
    [
        ("    return 2 * n\n", True),
        ("    print('thinking')\n    return n + n\n", True),
        ("    return n * n\n", False),
        ("    return 2 *\n", False),
        ("", False),
        ("    return 2 * n\nraise ValueError\n", False),
        ("    raise SystemExit(0)\n", False),
        ("    import os\n    os._exit(0)\n", False),
    ],
)
def test_a_completion_passes_when_all_its_assertions_hold(completion, passed):
    assert CodeRunner().run_all(doubles(completion)) == [passed]


@pytest.mark.slow
@isolated
@pytest.mark.parametrize(
    "completion",
    [
        "    class Equal:\n        __eq__ = __ge__ = __le__ = lambda *_: True\n    return Equal()\n",
        "    class Equal(int):\n        __eq__ = lambda *_: True\n    return Equal(1)\n",
        "    import os\n    for fd in range(32):\n        try:\n"
        "            os.write(fd, b'{\"passed\": true}\\n')\n"
        "        except OSError:\n            pass\n    os._exit(0)\n",
        "    import sys, __main__\n    frame = sys._getframe()\n    while frame:\n"
        "        frame.f_globals.update(check=print)\n        frame = frame.f_back\n    return 1\n",
        "    import builtins\n    builtins.AssertionError = builtins.print\n    return 1\n",
        "    import os\n    for fd in range(32):\n        try:\n            for _ in range(20):\n"
        "                os.write(fd, bytes(1 << 20))\n        except OSError:\n"
        "            pass\n    return 6\n",
    ],
)
def test_no_pass_is_forged(completion):
    assert CodeRunner().run_all(doubles(completion)) == [False]


@isolated
def test_a_fenced_completion_ends_with_its_block():
    completion = "    return 2 * n\n```\nThis doubles `n`.\n"
    problems = [humaneval_problem(DOUBLE, completion, fenced=fenced) for fenced in (True, False)]
    assert CodeRunner().run_all(problems) == [True, False]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        10**400,
        "\ud800\n",
        0.1,
        float("inf"),
        1j,
        b"\0",
        range(3, 9, 2),
        [(1, {2.5: {3}}), frozenset()],
    ],
)
def test_values_pass_as_they_are(value):
    found = read_value(written(value))
    assert found == value
    assert type(found) is type(value)


def test_what_can_be_iterated_stays_no_list_and_other_objects_are_refused():
    found = read_value(written(iter([1, 2])))
    assert found != [1, 2]
    assert list(found) == [1, 2]
    with pytest.raises(TypeError, match="object is no plain data"):
        written([object()])


@isolated
def test_a_problem_at_fault_is_an_error_and_no_failure():
    with pytest.raises(RuntimeError, match="the prompt of double does not run by itself"):
        CodeRunner().run_all([replace(doubles("")[0], prompt="def double(n):\n")])
    with pytest.raises(RuntimeError, match="pass what is no plain data: function"):
        CodeRunner().run_all([replace(doubles("")[0], test="def check(candidate):\n    candidate(check)\n")])


@pytest.mark.slow
@isolated
@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "memory = bytearray(1 << 30)",
        "os.kill(0, signal.SIGKILL)",
    ],
)
def test_time_and_memory_are_bounded_and_the_group_of_a_program_is_its_own(body):
    begin = time.perf_counter()
    assert CodeRunner(seconds=1, memory_mb=256).run_all([does(body, None)]) == [False]
    assert time.perf_counter() - begin < 20


HELD = {
    "no process": (
        "made = 0\nfor _ in range(5):\n    try:\n        if os.fork() == 0:\n            os._exit(0)\n"
        "        made += 1\n    except OSError:\n        pass\nreturn made",
        0,
    ),
    "no thread": ("return outcome(threading.Thread(target=int).start)", "RuntimeError"),
    "its own processes alone": (
        "if os.getpid() == 2:\n    return outcome(lambda: os.kill(-1, signal.SIGKILL))",
        "refused",
    ),
    "no signal to the judge": ("return os.kill(1, signal.SIGKILL)", None),
    "no look at the judge": (
        "spot = (ctypes.c_ulong * 2)(ctypes.addressof(ctypes.c_long()), 8)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "return libc.process_vm_readv(1, spot, 1, spot, 1, 0), ctypes.get_errno()",
        (-1, 1),
    ),
    "no rights": (
        "libc = ctypes.CDLL(None)\n"
        "return [libc.unshare(0x10000000), libc.umount(b'/usr/lib'), libc.chroot(b'.'), libc.setgid(0)]",
        [-1, -1, -1, -1],
    ),
    "no terminal": (
        "return [outcome(lambda: os.open('/dev/tty', os.O_RDWR)), *map(os.isatty, range(3))]",
        ["refused", False, False, False],
    ),
    "no way to the verdict": (
        "found = []\nfor fd in range(64):\n    try:\n        os.fstat(fd)\n        found.append(fd)\n"
        "    except OSError:\n        pass\nreturn len(found), os.path.exists('/proc')",
        (5, False),
    ),
    "no network": (
        "return outcome(lambda: socket.create_connection(('127.0.0.1', 1), timeout=1))",
        "refused",
    ),
    "output goes nowhere": ("return sum(os.write(1, bytes(1 << 20)) for _ in range(20))", 20 << 20),
    "small files": ("return outcome(lambda: open('large', 'wb').write(bytes(2 << 20)))", "refused"),
    "few files": (
        "return outcome(lambda: [open(f'{i}', 'wb').write(bytes(1 << 20)) for i in range(12)])",
        "refused",
    ),
    "nothing of the machine": (
        "return [path for path in ('/dev/shm', '/etc/passwd', '/run', '/home') if os.path.exists(path)]",
        [],
    ),
    "libraries are only read": ("return outcome(lambda: open(os.__file__, 'ab'))", "refused"),
    "no secrets": ("return [name for name in os.environ if not name.startswith(('LC_', 'PYTHON'))]", []),
}

BOX_SCRIPT = """
import io, json, os, sys
from pathlib import Path
sys.path.insert(0, {source!r})
import code_box
"""

WITHOUT_USER_NAMESPACES = """
code_box.NEW_USER = 1  # no kernel knows this flag
code_box.main()
"""

UNPRIVILEGED = """
asked = json.load(sys.stdin)
os.chown(asked["folder"], 65534, 65534)
# The interpreter may lie where only root may look: it is shown to everybody, in mounts of this process.
python = Path(sys.base_prefix)
top = Path(*python.parts[:2])
code_box._call("unshare", code_box.NEW_MOUNTS)
code_box._mount("none", Path("/"), code_box.RECURSIVE | code_box.PRIVATE)
if top != Path("/usr"):
    code_box._mount(str(python), Path(asked["folder"]), code_box.BIND)
    code_box._mount("tmpfs", top, 0, "tmpfs", "mode=755")
    python.mkdir(parents=True)
    code_box._mount(asked["folder"], python, code_box.BIND)
    code_box._call("umount", asked["folder"].encode())
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
code_box._call("prctl", code_box.DUMPABLE, 1)  # as of one who never was root
sys.stdin = io.StringIO(json.dumps(asked))
code_box.main()
"""


@pytest.fixture(params=["as this user", "without user namespaces", "as an unprivileged user"])
def runner(request, monkeypatch, tmp_path):
    """Runs of each kind; whoever is not root already is unprivileged and needs user namespaces."""
    if request.param != "as this user":
        if os.getuid() != 0:
            pytest.skip("needs root")
        script = tmp_path / "box.py"
        kind = UNPRIVILEGED if "unprivileged" in request.param else WITHOUT_USER_NAMESPACES
        script.write_text(BOX_SCRIPT.format(source=str(code_execution.BOX.parent)) + kind)
        monkeypatch.setattr(code_execution, "BOX", script)
    runner = CodeRunner(seconds=4, memory_mb=512)
    try:
        runner.require_isolation()
    except UserError as error:
        pytest.skip(str(error))
    return runner


@pytest.mark.slow
@pytest.mark.parametrize("name", HELD)
def test_a_program_is_shut_in(runner, name):
    assert runner._in_box(does(*HELD[name])) == {"passed": True, "failure": ""}


def test_a_machine_that_cannot_shut_programs_in_runs_none(monkeypatch, tmp_path):
    script = tmp_path / "box.py"
    script.write_text('print(\'{"refused": "unshare: Operation not permitted"}\')')
    monkeypatch.setattr(code_execution, "BOX", script)
    with pytest.raises(
        UserError, match=r"cannot shut programs in .*\(unshare: Operation not permitted\)"
    ) as caught:
        CodeRunner().run_all(doubles("    return 2 * n\n"))
    assert "\n" not in str(caught.value)


@isolated
def test_outcomes_keep_their_order():
    assert CodeRunner(workers=3).run_all(doubles("    return 2 * n", "    return 1") * 6) == [True, False] * 6


@isolated
@with_real_data
def test_the_reference_solutions_of_humaneval_pass_and_empty_ones_do_not():
    rows = load_split(harness_tasks()["humaneval"].source, "test", str(MIRROR)).select(range(20))
    right = [humaneval_problem(row, row["canonical_solution"], fenced=False) for row in rows]
    wrong = [humaneval_problem(row, "    pass\n", fenced=False) for row in rows]
    assert CodeRunner().run_all(right) == [True] * 20
    assert sum(CodeRunner().run_all(wrong)) == 0


@pytest.mark.parametrize("setting", ["seconds", "memory_mb", "workers"])
@pytest.mark.parametrize("value", [-1, 0, 1.5, True])
def test_limits_are_positive_whole_numbers(setting, value):
    with pytest.raises(UserError, match=f"suite.code.{setting}={value} is no positive whole number"):
        CodeRunner(**{setting: value})


def test_a_cell_depends_on_what_the_box_is_made_of():
    assert {code_box.__name__, code_judge.__name__} <= set(import_closure([code_execution.__name__]))
