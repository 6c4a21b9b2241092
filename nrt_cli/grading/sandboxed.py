"""The other side of `sandbox.py`: gives up every right it has, then runs a program and its tests.

Called as `python -s -P -S sandboxed.py FD FOLDER LIMITS`, it imports nothing of ours: it reads a word, the program, its
tests and two more texts as JSON from standard input and writes two lines to the descriptor: what could not be enforced,
as a JSON list, and once the tests have ended, the word. Both run below this process and die with it.

The tests' process alone decides. It starts the program's before it reads anything, so that nothing of the tests is in
the program's memory, and then asks it by a pipe: each message is a line of JSON, whose values are made anew of
built-in types. What is no value stays where it is, and the other side gets a `Remote` in its place.
"""

import builtins
import contextlib
import ctypes
import errno
import io
import json
import operator
import os
import signal
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from importlib import import_module
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
CAPABILITY_VERSION_3 = 0x20080522
FIRST_USER, USERS = 1 << 30, 1 << 22
"""Above every account; as many as there may be processes."""
MOST_FILES = 4096
"""Files of a folder in memory: each takes kernel memory, be it empty."""
LONGEST = 16 << 20
"""Bytes of a message."""

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""How the kernel names a machine, and the column of its numbers below."""
REFUSED: dict[str, tuple[int, ...]] = {
    # Memory that no limit of a process counts.
    **{"shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "bpf": (321, 280)},
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447), "io_uring_setup": (425, 425), "keyctl": (250, 219)},
    **{"add_key": (248, 217), "request_key": (249, 218), "userfaultfd": (323, 282), "perf_event_open": (298, 241)},
    # Other processes: new ones, and what is in them.
    **{"clone": (56, 220), "clone3": (435, 435), "execve": (59, 221), "execveat": (322, 281), "fork": (57,)},
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "vfork": (58,)},
    **{
        "pidfd_getfd": (438, 438),
        "unshare": (272, 97),
        "setns": (308, 268),
        "setsid": (112, 157),
        "setpgid": (109, 154),
    },
}
"""System calls that a program has no use for, with their numbers on each machine."""

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
    report, folder, limits = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    holes: list[str] = []
    # Users of their own for each program, whom no other program's limits count; None where we cannot become another.
    user = FIRST_USER + os.getpid() if os.geteuid() == 0 else None
    isolated = isolate(user is not None, holes)
    with contextlib.suppress(OSError):  # before there is anything to look at
        call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    child = os.fork()
    if child == 0:
        try:
            test(report, folder, limits, isolated, user, holes)
        except BaseException:  # whatever tests raise, SystemExit too, is a failure
            os._exit(1)
        os._exit(0)
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


def test(report: int, folder: str, limits: dict[str, int], isolated: bool, user: int | None, holes: list[str]) -> None:
    """In the tests' process, the first of its namespace, with which the program's ends. Returns where all passed."""
    with open(os.devnull, "r+b") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
        if isolated:
            os.setsid()  # else they must stay where we can kill them
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        confine(folder, limits["file_size"], isolated, user, holes)
        to_us, to_them = os.pipe(), os.pipe()
        share = limits["memory"] // 4
        if os.fork() == 0:
            try:
                os.dup2(null.fileno(), 0)
                for descriptor in (null.fileno(), report, to_us[0], to_them[1]):
                    os.close(descriptor)
                limit(limits | {"memory": limits["memory"] - share - limits["file_size"]}, holes)
                drop_privileges(user and user + USERS, holes)
                serve(Link(to_them[0], to_us[1]), holes)
            finally:
                os._exit(1)
    os.close(to_us[1])
    os.close(to_them[0])
    limit(limits | {"memory": share}, holes)
    drop_privileges(user, holes)
    link = Link(to_us[0], to_them[1])
    _, theirs_too = link.receive()
    os.write(report, (json.dumps(list(dict.fromkeys([*holes, *theirs_too]))) + "\n").encode())
    word, program, tests, entry_point, given = json.load(sys.stdin.buffer)
    os.environ.clear()
    find, execute = Remote(link, 0), Remote(link, 1)

    class Names(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            if hasattr(builtins, name):
                raise KeyError(name)
            return find(name)

    names = Names(__name__="__main__", __builtins__=builtins)
    seed(given + tests)
    for text in (given, f"{given}\n    pass\n"):  # which may end where the body is to begin
        with contextlib.suppress(SyntaxError):
            exec(compile(text, "given.py", "exec"), names)
            break
    kinds = {name for name, kind in names.items() if isinstance(kind, type) and kind.__module__ == "__main__"}
    link.methods = entry_point in kinds
    link.classes = {name: names[name] for name in kinds - {entry_point}}
    execute(program, list(link.classes))
    if entry_point:
        names[entry_point] = find(entry_point)
    exec(compile(tests, "tests.py", "exec"), names)
    os.write(report, word.encode())


def serve(link: "Link", holes: list[str]) -> NoReturn:
    """In the program's process: run what the tests' sends, then answer what it asks."""
    os.environ.clear()
    link.printed = io.BytesIO()
    sys.stdout = io.TextIOWrapper(link.printed, encoding="utf-8", errors="replace", write_through=True)
    names = {"__name__": "__main__", "__builtins__": builtins}  # a main module of its own

    def execute(program: str, classes: list[str]) -> None:
        seed(program)
        exec(compile(program, "program.py", "exec"), names)
        link.classes = {name: names[name] for name in classes if name in names}

    link.lent += [names.__getitem__, execute]
    link.verbs["getattr"] = getattr
    link.send(["ready", holes])
    while True:
        link.answer(*link.receive())


def seed(text: str) -> None:
    """What a program draws is the same in each run."""
    if "random" in text:
        import_module("random").seed(0)


async def awaited(value: Any) -> Any:
    """What has been awaited on the other side."""
    return value


TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}
MAKERS: dict[str, Callable[[list[Any]], Any]] = {
    **{kind.__name__: kind for kind in (list, tuple, dict, set, frozenset, bytes, bytearray, deque)},
    "int": lambda parts: int(parts[0], 16),
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    "dict_keys": lambda parts: dict.fromkeys(parts).keys(),
    "dict_values": lambda parts: dict(enumerate(parts)).values(),
    "dict_items": lambda parts: dict(parts).items(),
    "Decimal": lambda parts: import_module("decimal").Decimal(*parts),
    "Fraction": lambda parts: import_module("fractions").Fraction(*parts),
    "coroutine": lambda parts: awaited(*parts),
    "type": lambda parts: TYPES[parts[0]],
}
"""By the name of a type, its value of a list of what is in it."""
PARTS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda value: value.items(),
    "range": lambda value: (value.start, value.stop, value.step),
    "complex": lambda value: (value.real, value.imag),
    "Decimal": lambda value: [str(value)],
    "Fraction": lambda value: [str(value)],
    "coroutine": lambda value: [import_module("asyncio").run(value)],
    "type": lambda value: [value.__name__],
}
"""What is in a value, where that is not what iterating over it gives."""


class Link:
    """One end of the pipes between the two processes, each of which asks and answers.

    `lent` is what the other side has a `Remote` of, `verbs` what it may do with that; objects of `classes`, which both
    sides have, cross as what they are made of.
    """

    def __init__(self, said: int, say: int) -> None:
        self.said, self.say = os.fdopen(said, "rb"), os.fdopen(say, "wb")
        self.lent: list[Any] = []
        self.verbs: dict[str, Callable[..., Any]] = {"call": operator.call, "next": next}
        self.methods = False
        self.classes: dict[str, Any] = {}
        self.printed: io.BytesIO | None = None

    def send(self, message: list[Any]) -> None:
        if self.printed and self.printed.tell():
            text = self.printed.getvalue()[: LONGEST >> 4].decode(errors="replace")
            self.say.write(json.dumps(["printed", text]).encode() + b"\n")
            self.printed.seek(0)
            self.printed.truncate()
        self.say.write(json.dumps(message).encode() + b"\n")
        self.say.flush()

    def receive(self) -> list[Any]:
        message = None
        with contextlib.suppress(Exception):
            message = json.loads(self.said.readline(LONGEST))
        if not (isinstance(message, list) and message):
            os._exit(1)  # the other side is gone, or this was no message
        return message

    def ask(self, verb: str, number: int, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """What the other side returns, or raises. Where it returned nothing, what it changed in place changes here."""
        self.send([verb, number, self.encode(args), self.encode(kwargs or {})])
        while True:
            kind, *said = self.receive()
            if kind == "returned":
                result, changed = map(self.decode, said)
                # Beside a result, an argument could become what the result is compared with.
                for old, new in zip(args, changed if result is None else (), strict=False):
                    if type(old) is type(new) and isinstance(old, list | bytearray):
                        old[:] = new
                    elif type(old) is type(new) and isinstance(old, dict | set):
                        old.clear()
                        old.update(new)
                return result
            if kind == "raised":
                error = self.exception(*map(self.decode, said))
                # Else it would end the loop that asks, as if all had been well.
                raise RuntimeError("StopIteration") if verb != "next" and isinstance(error, StopIteration) else error
            if kind == "printed":
                sys.stdout.write(said[0])
            else:
                self.answer(kind, *said)

    def answer(self, verb: str, number: int, args: Any, kwargs: Any) -> None:
        try:
            given = self.decode(args)
            result = self.verbs[verb](self.lent[number], *given, **self.decode(kwargs))
            said = ["returned", self.encode(result), self.encode(given if verb == "call" and result is None else ())]
        except BaseException as error:
            try:
                parts = self.encode(error.args)
            except Exception:
                parts = self.encode(())
            said = ["raised", self.encode([kind.__name__ for kind in type(error).__mro__]), parts]
        self.send(said)

    def exception(self, kinds: list[str], parts: tuple[Any, ...]) -> Exception:
        """An exception of the first of these types that this side has too."""
        for name in kinds:
            kind = self.classes.get(name, getattr(builtins, name, None))
            if isinstance(kind, type) and issubclass(kind, Exception):
                with contextlib.suppress(Exception):
                    return kind(*parts)
        return RuntimeError(*parts)

    def encode(self, value: Any) -> Any:
        """A value as JSON, in which a list begins with the name of the type that it is of."""
        kind = type(value)
        if isinstance(value, Enum | tuple) and kind.__name__ in self.classes:
            return ["made", kind.__name__, *map(self.encode, [value.name] if isinstance(value, Enum) else value)]
        if value is None or isinstance(value, bool | int | float | str):
            return ["int", hex(value)] if isinstance(value, int) and value.bit_length() > 9999 else value
        if isinstance(value, Remote):
            return ["yours", value._number]
        for each in kind.__mro__:
            name = each.__name__ if each.__module__ != "__main__" else ""
            if name in MAKERS and (each is not type or TYPES.get(value.__name__) is value):
                return [name, *map(self.encode, PARTS.get(name, iter)(value))]
        if kind.__name__ in self.classes:
            names = getattr(kind, "__slots__", None) or vars(value)
            return ["object", kind.__name__, self.encode({name: getattr(value, name) for name in names})]
        if not (callable(value) or hasattr(value, "__next__") or "getattr" in self.verbs):
            raise TypeError(f"{kind.__name__} does not cross")
        self.lent.append(value)
        return ["mine", len(self.lent) - 1]

    def decode(self, said: Any) -> Any:
        """A value of built-in types alone, whatever was said."""
        if not isinstance(said, list):
            return None if isinstance(said, dict) else said
        name, *parts = said
        if name == "mine":
            return Remote(self, parts[0])
        if name == "yours":
            return self.lent[parts[0]]
        if name == "made":
            kind, inside = self.classes[parts[0]], [self.decode(part) for part in parts[1:]]
            if not issubclass(kind, Enum | tuple):
                raise TypeError("what would be made by its own rules")
            return kind[inside[0]] if issubclass(kind, Enum) else kind(*inside)
        if name == "object":
            value = object.__new__(self.classes[parts[0]])
            for name, part in self.decode(parts[1]).items():
                if callable(part) or name.startswith("__"):
                    raise TypeError("what could take a method's place")
                object.__setattr__(value, name, part)
            return value
        return MAKERS[name]([self.decode(part) for part in parts])


class Remote:
    """A function, iterator or object of the other side: to be called, iterated over and handed back, no more.

    Methods and attributes are only those of objects of the class that the tests are about: another object could say yes
    to whatever it is asked.
    """

    def __init__(self, link: Link, number: int) -> None:
        self._link, self._number = link, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.ask("call", self._number, args, kwargs)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._link.ask("next", self._number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not self._link.methods:
            raise AttributeError(name)
        return self._link.ask("getattr", self._number, (name,))


def confine(folder: str, size: int, isolated: bool, user: int | None, holes: list[str]) -> None:
    """See nothing but Python's own files, and those read-only; write nowhere but in memory."""
    try:
        if not isolated:
            raise OSError("no mounts of our own")
        call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        options = f"size={size},nr_inodes={MOST_FILES},mode=".encode()
        call("mount", b"tmpfs", folder.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options + b"755")
        # What a program of the standard library reads, read-only: Python's folders, the system's shared libraries.
        own = [path for path in sys.path if os.path.isdir(path)] + [sys.base_prefix + "/lib"]
        system = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
        found = dict.fromkeys(os.path.realpath(path) for path in (*own, *system) if os.path.isdir(path))
        for path in found:
            if not any(path.startswith(other + "/") for other in found):
                target = folder + path
                os.makedirs(target, exist_ok=True)
                call("mount", path.encode(), target.encode(), None, MS_BIND | MS_REC, None)
        work = folder + "/work"
        os.mkdir(work)
        flags = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
        call("syscall", MOUNT_SETATTR, AT_FDCWD, folder.encode(), AT_RECURSIVE, flags, ctypes.sizeof(flags))
        call("mount", b"tmpfs", work.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options + b"777")
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
    """Become that user where we may, and give up every capability and needless system call for good."""
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
    try:
        refuse()
    except OSError:
        holes.append("a limit on shared memory")


def refuse() -> None:
    """Have the kernel refuse the calls in `REFUSED`, and those of other machines' kinds."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"no numbers of {machine}'s calls")
    kind, column = MACHINES[machine]
    numbers = [number for pair in REFUSED.values() for number in pair[column : column + 1]]
    # Instructions: load a word of the call, jump if equal, jump if not less, return. Jumps count what they skip; the
    # last two allow and refuse.
    load, equal, not_less, back = 0x20, 0x15, 0x35, 0x06
    last = len(numbers) + 5
    lines = [(load, 0, 0, 4), (equal, 0, last - 2, kind), (load, 0, 0, 0), (not_less, last - 4, 0, 0x40000000)]
    lines += [(equal, last - at - 1, 0, number) for at, number in enumerate(numbers, 4)]
    lines += [(back, 0, 0, 0x7FFF0000), (back, 0, 0, 0x00050000 | errno.EPERM)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("HP", len(lines), ctypes.addressof(code)))
    call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)


if __name__ == "__main__":
    main()
