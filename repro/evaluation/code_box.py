"""The box of a program that a model wrote: run as a script, this file shuts itself in and judges the program.

It has the standard library alone. What it is asked comes as JSON on stdin: a problem's `prompt`, `answer`,
`test` and `entry_point`, the limits `seconds` and `memory_mb`, and an empty `folder`. A line of JSON on stdout
answers: `passed` with what went wrong, or `refused` with the reason why the machine cannot shut it in.

Three processes: this one waits for the second and ends it in time; the second is the first of a namespace of
processes and asks the questions (`code_judge`); the third runs the answer. When the second ends, so does all.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

if __package__:
    from . import code_judge
else:  # the script sees no package
    sys.path.insert(0, str(Path(__file__).parent))
    import code_judge

    sys.path.pop(0)

NOBODY = 65534
NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PROCESSES, NEW_NETWORK = (
    0x20000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
READ_ONLY, NO_SETUID, NO_DEVICES, NO_EXECUTION, NO_ATIME, NO_DIRECTORY_ATIME = 1, 2, 4, 8, 1024, 2048
REMOUNT, BIND, RECURSIVE, PRIVATE, RELATIVE_ATIME, STRICT_ATIME = (
    1 << 5,
    1 << 12,
    1 << 14,
    1 << 18,
    1 << 21,
    1 << 24,
)
DIE_WITH_PARENT, DUMPABLE, NO_NEW_PRIVILEGES = 1, 4, 38  # of prctl
CAPABILITIES_VERSION = 0x20080522
LARGEST_FILE, ALL_FILES, OPEN_FILES = 1 << 20, "size=8m,nr_inodes=512,mode=755", 32
GRACE = 2
"""Seconds of waiting beyond those of computing: a program that sleeps uses no processor time."""

_libc = ctypes.CDLL(None, use_errno=True)


class BoxError(Exception):
    """The machine does not let a process shut itself in."""


def main() -> None:
    """Judge the problem of stdin; ends by SIGALRM when its time is up."""
    asked = json.load(sys.stdin)
    _call("prctl", DIE_WITH_PARENT, signal.SIGKILL)
    signal.alarm(asked["seconds"] + GRACE)
    report = os.dup(1)
    try:
        user = enter_namespaces()
        judge = os.fork()
        if judge == 0:
            os.write(report, json.dumps(judged_inside(asked, user, report)).encode())
            os._exit(0)
    except (BoxError, OSError) as error:
        os.write(report, json.dumps({"refused": str(error)}).encode())
        return
    os.waitpid(judge, 0)


def enter_namespaces() -> int | None:
    """Enter new namespaces of mounts, network, IPC and processes, and of users where the machine allows it.

    Returns the user to become once mounts are made, None for the present one. Root becomes nobody: no limit on
    processes binds root. Raises BoxError where there is no right to such namespaces.
    """
    is_root = os.getuid() == 0
    user = NOBODY if is_root and _is_mapped(NOBODY) else None
    others = NEW_MOUNTS | NEW_IPC | NEW_PROCESSES | NEW_NETWORK
    begin, begun = os.pipe()
    # Only from outside can more than one user be mapped.
    mapper = os.fork()
    if mapper == 0:
        os.close(begun)
        os._exit(_map_users(os.getppid(), user) if os.read(begin, 1) else 0)
    os.close(begin)
    try:
        _call("unshare", NEW_USER | others)
        os.write(begun, b".")
    except BoxError as error:
        if not is_root:
            raise BoxError(f"{error}: no right to make user namespaces") from error
        _call("unshare", others)
    os.close(begun)
    if failed := os.waitstatus_to_exitcode(os.waitpid(mapper, 0)[1]):
        raise BoxError(f"users of a namespace cannot be mapped: {os.strerror(failed)}")
    return user


def _is_mapped(user: int) -> bool:
    rows = (map(int, line.split()) for line in Path("/proc/self/uid_map").read_text().splitlines())
    return any(first <= user < first + count for first, _, count in rows)


def _map_users(process: int, user: int | None) -> int:
    """Map the present user and another into a process's namespace, each to itself; 0, or the error's number."""
    try:
        if os.getuid() != 0:
            Path(f"/proc/{process}/setgroups").write_text("deny")
        for kind, own in (("uid", os.getuid()), ("gid", os.getgid())):
            mapped = {own} if user is None else {own, user}
            Path(f"/proc/{process}/{kind}_map").write_text(
                "".join(f"{one} {one} 1\n" for one in sorted(mapped))
            )
    except OSError as error:
        return error.errno or 1
    return 0


def judged_inside(asked: dict[str, Any], user: int | None, report: int) -> dict[str, Any]:
    """The verdict on the problem, reached inside; see `code_judge.judged`."""
    try:
        _call("prctl", DIE_WITH_PARENT, signal.SIGKILL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
        enter_root(Path(asked["folder"]))
        drop_rights(user)
        limits = {
            resource.RLIMIT_AS: asked["memory_mb"] << 20, resource.RLIMIT_CPU: asked["seconds"],
            resource.RLIMIT_FSIZE: LARGEST_FILE, resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: 0,
            resource.RLIMIT_NOFILE: OPEN_FILES,
        }  # fmt: skip
        return code_judge.judged(asked, lambda: _limit(limits), report)
    except (BoxError, OSError, code_judge.CannotJudgeError) as error:
        return {"refused": str(error)}


def enter_root(folder: Path) -> None:
    """Make an empty file system the root, with the interpreter's libraries to be read and a small /tmp.

    Nothing else of the machine is there: no file, socket, device but /dev/null, /proc or shared memory. It is a
    chroot without the right to leave it, rather than a pivoted root, since the kernel grants no namespace of
    users from within one, and so none of the rights that such a namespace would bring.
    """
    _mount("none", Path("/"), RECURSIVE | PRIVATE)
    _mount("tmpfs", folder, NO_SETUID | NO_DEVICES, "tmpfs", ALL_FILES)
    seen: list[Path] = []
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", f"{sys.base_prefix}/lib", *sys.path]
    for path in map(Path, [*libraries, "/etc/ld.so.cache", os.devnull]):
        if not path.exists() or any(path.is_relative_to(other) for other in seen):
            continue
        seen.append(path)
        inside = folder / path.relative_to("/")
        (inside if path.is_dir() else inside.parent).mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            inside.touch()
        _mount(str(path), inside, BIND | RECURSIVE)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]))
        if point != folder and point.is_relative_to(folder):
            _mount("none", point, REMOUNT | BIND | READ_ONLY | NO_SETUID | _mount_flags(point))
    work = folder / "tmp"
    work.mkdir(exist_ok=True)
    work.chmod(0o1777)
    os.chroot(folder)
    os.chdir("/tmp")


def _mount_flags(point: Path) -> int:
    """Flags of a mount that who mounts it again has to repeat."""
    found = os.statvfs(point).f_flag
    flags = found & (NO_DEVICES | NO_EXECUTION | NO_ATIME | NO_DIRECTORY_ATIME)
    if found & os.ST_NOATIME:
        return flags
    return flags | (RELATIVE_ATIME if found & os.ST_RELATIME else STRICT_ATIME)


def drop_rights(user: int | None) -> None:
    """Become the user and give up every capability for good; no other process can then look into this one."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    _call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _call("prctl", DUMPABLE, 0)
    _call("prctl", DIE_WITH_PARENT, signal.SIGKILL)  # a change of user had undone it


def _limit(limits: dict[int, int]) -> None:
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def _mount(source: str, target: Path, flags: int, kind: str = "", settings: str = "") -> None:
    _call("mount", source.encode(), bytes(target), kind.encode(), ctypes.c_ulong(flags), settings.encode())


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        shown = " ".join(part.decode() for part in arguments if isinstance(part, bytes) and part)
        raise BoxError(f"{f'{name} {shown}'.strip()}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
