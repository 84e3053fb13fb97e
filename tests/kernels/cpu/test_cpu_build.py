import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from wisparse.kernels.cpu import build as cpu_build
from wisparse.kernels.cpu import gemv as cpu_gemv
from wisparse.kernels.cpu.gemv import choose_backend, gather_gemv, keep_all
from wisparse.kernels.errors import KernelError

THREADS = """
import os, torch
from wisparse.kernels.cpu import build as cpu_build, gemv as cpu_gemv
torch.set_num_threads(1)
weight = torch.ones(512, 512)
kept = cpu_gemv.keep_all(weight[:1])
torch.set_num_threads(3)
counts = [len(os.listdir("/proc/self/task"))]
cpu_gemv.gather_gemv(kept, weight)
counts.append(len(os.listdir("/proc/self/task")))
torch.ones(1 << 20).add_(1)
counts.append(len(os.listdir("/proc/self/task")))
maps = open("/proc/self/maps").read().splitlines()
print(cpu_gemv.backend(), counts[1] - counts[0], counts[2] - counts[1])
print(cpu_build.openmp_runtime(cpu_build.library_path()) == cpu_build.openmp_runtime())
print(len({line.split()[-1] for line in maps if "libgomp" in line}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import sklearn.cluster"])  # which brings an OpenMP runtime of its own
def test_the_threads_are_those_of_torch(compiled, first):
    ran = subprocess.run([sys.executable, "-c", first + THREADS], capture_output=True, text=True, check=True)
    *shared, runtimes = ran.stdout.split()
    # The kernels start two helpers beside the calling thread, and torch then needs no others.
    assert shared == ["c++", "2", "0", "True"]
    assert first or runtimes == "1"


def test_without_a_compiler_torch_computes_and_says_so_once(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cpu_gemv._Chosen, "kernels", None)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            gather_gemv(keep_all(torch.ones(1, 8)), torch.ones(8, 4))
    assert cpu_gemv.backend() == "torch"
    assert [record.message for record in caplog.records if "no g++" in record.message] == caplog.messages
    assert len(caplog.messages) == 1
    with pytest.raises(cpu_build.NoCompilerError, match="apt-get install"):
        choose_backend("c++")
    cpu_build.main()


@pytest.mark.slow
def test_compiled_once_for_all_processes(compiled, monkeypatch, tmp_path):
    monkeypatch.setenv("WISPARSE_CACHE", str(tmp_path / "cache"))
    quick = tmp_path / "g++"  # what is compiled does not matter here, and optimising it takes long
    quick.write_text(f'#!/bin/sh\nexec {shutil.which("g++")} "$@" -O0\n')
    quick.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    environment = dict(os.environ)
    command = [sys.executable, "-m", "wisparse.kernels.cpu.build"]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    printed = {process.communicate()[0].strip() for process in processes}
    library = cpu_build.library_path()
    assert printed == {f"CPU kernels: {library}"}
    assert [path.name for path in library.parent.iterdir()] == ["kernels.so"]
    written = library.stat().st_mtime_ns
    assert cpu_build.build() == library
    assert library.stat().st_mtime_ns == written
    monkeypatch.setattr(cpu_build, "cpu_facts", lambda: {"model name": "another"})
    assert cpu_build.library_path() != library


def test_each_instruction_set_has_a_library_of_its_own(compiled, monkeypatch, capsys):
    monkeypatch.delenv(cpu_build.MARCH_VARIABLE, raising=False)
    libraries = [cpu_build.library_path()]
    for march in filter(cpu_build.runs, cpu_build.MARCHES):
        monkeypatch.setenv(cpu_build.MARCH_VARIABLE, march)
        libraries.append(cpu_build.library_path())
    assert libraries[0] == libraries[1]  # "native" is the default
    assert len(set(libraries)) == len(libraries) - 1


@pytest.mark.parametrize(
    ("march", "message"),
    [("x86-64-v9", "is one of native, x86-64-v2, .*, not 'x86-64-v9'"), ("x86-64-v3", "that this CPU lacks")],
)
def test_an_instruction_set_that_cannot_run_is_refused_in_one_line(monkeypatch, capsys, march, message):
    monkeypatch.setattr(cpu_build, "cpu_facts", lambda: {"flags": "sse4_2 avx"})
    monkeypatch.setenv(cpu_build.MARCH_VARIABLE, march)
    monkeypatch.setattr(cpu_gemv._Chosen, "kernels", None)
    with pytest.raises(KernelError, match=message):  # nor does plain torch take its place
        cpu_gemv.backend()
    with pytest.raises(SystemExit) as ended:
        cpu_build.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_stops_a_build_is_said_in_one_line(compiled, monkeypatch, tmp_path):
    monkeypatch.setenv("WISPARSE_CACHE", str(tmp_path))
    monkeypatch.setattr(cpu_build, "FLAGS", (*cpu_build.FLAGS, "-include", "missing.h"))
    with pytest.raises(cpu_build.BuildError, match=r"g\+\+ could not compile.*missing\.h"):
        cpu_build.build()
    monkeypatch.setenv("WISPARSE_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    with pytest.raises(cpu_build.BuildError, match="set WISPARSE_CACHE"):
        cpu_build.build()
