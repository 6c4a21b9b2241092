"""The other side of `sandbox.py`: gives up every right it has, then runs one program. Imports nothing of ours.

Called as `python -s -P -S sandboxed.py FD`: reads the program and its limits as JSON from standard input and writes two
lines to the descriptor: what could not be enforced, as a JSON list, and once the program has ended, the word it was
given. The program runs in a child of this process, which waits for it and dies with it.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITY_VERSION_3 = 0x20080522
FIRST_USER = 1 << 30
"""Above every account."""

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """A C function that returns -1 on failure; raises OSError then, and where the platform has no such function."""
    try:
        function = getattr(libc, name)
    except AttributeError:
        raise OSError(f"no {name} here") from None
    if function(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def main() -> None:
    report = int(sys.argv[1])
    asked = json.load(sys.stdin.buffer)
    holes: list[str] = []
    # A user of its own for each program, whom no other program's limits count; None where we cannot become another.
    user = FIRST_USER + os.getpid() if os.geteuid() == 0 else None
    isolated = isolate(user is not None, holes)
    child = os.fork()
    if child == 0:
        run(asked, report, isolated, user, holes)
    os.close(report)
    os.waitpid(child, 0)


def isolate(was_root: bool, holes: list[str]) -> bool:
    """New namespaces: no network, no processes but our own, mounts of our own. Says whether there are."""
    user, group = os.geteuid(), os.getegid()
    try:
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        spaces = CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS
        call("unshare", spaces if was_root else spaces | CLONE_NEWUSER)
        if not was_root:
            maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
            for file, line in maps.items():
                with open(f"/proc/self/{file}", "w") as mapping:
                    mapping.write(line)
    except OSError:
        holes += ["no network", "no access to other processes"]
        return False
    return True


def run(asked: dict[str, Any], report: int, isolated: bool, user: int | None, holes: list[str]) -> None:
    """In the child: the rest of what can be given up, then the program. Never returns."""
    try:
        with open(os.devnull, "r+b") as null:
            for descriptor in (0, 1, 2):
                os.dup2(null.fileno(), descriptor)
        if isolated:
            os.setsid()  # else the program must stay where we can kill it
        confine(asked["folder"], asked["limits"]["file_size"], isolated, user, holes)
        limit(asked["limits"], holes)
        drop_privileges(user, holes)
        os.write(report, (json.dumps(holes) + "\n").encode())
        os.environ.clear()
        space = {"__name__": "__main__", "__builtins__": __builtins__}  # a main module of its own
        if "random" in asked["program"]:  # what it draws is the same in each run
            __import__("random").seed(0)
        exec(compile(asked["program"], "program.py", "exec"), space)
        os.write(report, asked["word"].encode())
    except BaseException:  # whatever the program raises, SystemExit too, is its failure
        os._exit(1)
    os._exit(0)


def confine(folder: str, size: int, isolated: bool, user: int | None, holes: list[str]) -> None:
    """See nothing but Python's own files, and those read-only; write nowhere but in memory."""
    try:
        if not isolated:
            raise OSError("no mounts of our own")
        call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        call("mount", b"tmpfs", folder.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, f"size={size},mode=755".encode())
        # What a program of the standard library reads, read-only: Python's folders, the system's shared libraries.
        own = [path for path in sys.path if os.path.isdir(path)] + [sys.base_prefix + "/lib"]
        system = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
        found = dict.fromkeys(os.path.realpath(path) for path in (*own, *system) if os.path.isdir(path))
        for path in found:
            if not any(path.startswith(other + "/") for other in found):
                target = folder + path
                os.makedirs(target, exist_ok=True)
                call("mount", path.encode(), target.encode(), None, MS_BIND | MS_REC, None)
                flags = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
                call("syscall", MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, flags, ctypes.sizeof(flags))
        work = folder + "/work"
        os.mkdir(work)
        os.chmod(work, 0o777)
        os.chroot(folder)
        os.chdir("/work")
    except OSError:
        holes.append("no access to files outside the temporary folder")
        os.chdir(folder)
        if user is not None:
            os.chmod(folder, 0o777)


def limit(limits: dict[str, int], holes: list[str]) -> None:
    """Limits that no process can raise again."""
    import resource

    for name, value, what in (
        ("RLIMIT_CPU", limits["cpu"], "a limit on CPU time"),
        ("RLIMIT_AS", limits["memory"], "a limit on memory"),
        ("RLIMIT_FSIZE", limits["file_size"], "a limit on the size of files"),
        ("RLIMIT_NPROC", 1, "no new processes"),
        ("RLIMIT_NOFILE", 64, "a limit on open files"),
        ("RLIMIT_CORE", 0, "no core dumps"),
    ):
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (OSError, ValueError, AttributeError):
            holes.append(what)


def drop_privileges(user: int | None, holes: list[str]) -> None:
    """Become that user where we may, and give up every capability for good."""
    if user is not None:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except (OSError, AttributeError):
            holes.append("an unprivileged user")
    try:
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        call("capset", header, (ctypes.c_uint32 * 6)())
        call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user forgets it
    except OSError:
        if "no access to other processes" not in holes:
            holes.append("an end of the program with ours")


if __name__ == "__main__":
    main()
