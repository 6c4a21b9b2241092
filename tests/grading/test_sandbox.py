"""Programs that attack the machine they run on: each only fails, and the one after it runs."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from nrt_cli.grading import sandbox

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(sandbox.missing()), reason=f"this platform cannot enforce: {'; '.join(sandbox.missing())}"),
]

FIRST_USER = 1 << 30


def survives(program: str, wall_seconds: float = 20.0) -> bool:
    """Whether a program passes; checks that nothing of it lives on and that the next one still runs."""
    passed, other = sandbox.run([program, "assert sum(range(4)) == 6"], wall_seconds=wall_seconds, workers=1)
    assert other
    left = [process.pid for process in psutil.process_iter(["cmdline"]) if _is_ours(process)]
    assert not left, "a program outlived its sandbox"
    return passed


def _is_ours(process: psutil.Process) -> bool:
    """Not those of tests that run beside these, in processes that have our parent."""
    command = process.info["cmdline"] or []
    if not any(part.endswith("sandboxed.py") for part in command):
        return False
    try:
        # Only xdist's workers have others beside them; else our parent may be that of all orphans.
        workers = psutil.Process(os.getppid()).children() if "PYTEST_XDIST_WORKER" in os.environ else []
        beside = {each.pid for each in workers} - {os.getpid()}
        theirs = beside & {each.pid for each in process.parents()}
        return not theirs and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_only_a_program_that_reaches_its_end_passes() -> None:
    programs = [
        "assert 1 + 1 == 2",
        "assert 1 + 1 == 3",
        "def broken(:",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "raise KeyboardInterrupt",
        "import sys; sys.stdout.write('x' * 10_000_000); print('passed')",
        "",
    ]
    assert sandbox.run(programs) == [True, False, False, False, False, False, True, True]


HARMLESS = {
    "the standard library is there": (
        "import math, re, heapq, hashlib, json, decimal, zlib\nassert hashlib.md5(b'').hexdigest()[:4] == 'd41d'"
    ),
    "nothing is forked": """
import os
try:
    os.fork()
except OSError:
    pass
else:
    raise SystemExit("forked")
""",
    "ten gigabytes are not allocated": (
        "try:\n    bytearray(10 * 2**30)\nexcept MemoryError:\n    pass\nelse:\n    raise SystemExit"
    ),
    "a full disk stays its own": """
written = 0
try:
    for number in range(1000):
        with open(f"file-{number}", "wb") as file:
            written += file.write(b"x" * (1 << 20))
except OSError:
    assert written <= 64 << 20
else:
    raise SystemExit("a gigabyte")
""",
    "memory is counted whatever it is asked from": """
import ctypes, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.shmget(0, 1 << 30, 0o1600) == -1
assert libc.semget(0, 32000, 0o1600) == -1
assert libc.msgget(0, 0o1600) == -1
assert libc.syscall(425, 4096, ctypes.create_string_buffer(120)) == -1  # io_uring_setup
attempts = (
    lambda: os.memfd_create("m"),
    lambda: open("/dev/shm/m", "w"),
    lambda: os.truncate(os.open("m", os.O_RDWR | os.O_CREAT), 1 << 30),
    lambda: mmap.mmap(-1, 760 << 20),
)
for attempt in attempts:
    try:
        attempt()
    except (OSError, MemoryError):
        continue
    raise SystemExit("a gigabyte")
""",
    "empty files are counted": """
made = 0
try:
    while True:
        open(f"{made}", "w").close()
        made += 1
except OSError:
    assert 100 < made < 5000
""",
    "privileges are gone for good": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
if os.getuid() == 0:
    raise SystemExit("root")
for attempt in (lambda: os.setuid(0), lambda: os.chroot("."), lambda: os.mknod("null", 0o20666, os.makedev(1, 3))):
    try:
        attempt()
    except OSError:
        continue
    raise SystemExit("a privilege was left")
for flags in (0x10000000, 0x20000, 0x40000000):
    assert libc.unshare(flags) == -1
assert libc.mount(b"none", b"/", None, 32, None) == -1
""",
    "limits cannot be raised": """
import resource
for name in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    try:
        resource.setrlimit(name, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        continue
    raise SystemExit("raised")
""",
}


@pytest.mark.parametrize("program", HARMLESS.values(), ids=HARMLESS)
def test_what_a_program_finds_within(program: str) -> None:
    assert survives(program)


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True:\n    os.fork()",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)",
        "import threading; threading.Thread(target=print).start()",
        "while True: pass",
        "data = bytearray(10 * 2**30)",
        *(f"open({path!r}, 'rb').read()" for path in ("/etc/passwd", "/proc/self/status", "/proc/1/cmdline", __file__)),
        "import socket; socket.getaddrinfo('example.org', 443)",
    ],
)
def test_what_a_program_cannot_do(program: str) -> None:
    assert not survives(program, wall_seconds=4 if program.startswith("while") else 20)


def test_chance_is_the_same_in_each_run() -> None:
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    order = subprocess.run(
        [sys.executable, "-c", "print(hash('a'))"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert survives(f"import random\nassert hash('a') == {order}\nassert random.random() == 0.8444218515250481")


def test_a_program_that_ignores_signals_and_sleeps_ends() -> None:
    program = """
import signal, time
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
time.sleep(600)
"""
    assert not survives(program, wall_seconds=2)


def test_nothing_is_written_outside_its_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    outside = tmp_path / "written"
    places = [str(outside), "/tmp/nrt-escape", "/etc/nrt-escape", "/dev/shm/nrt-escape", "../nrt-escape", "/nrt-escape"]
    program = f"""
for place in {places!r}:
    try:
        open(place, "w").write("x")
    except OSError:
        continue
    raise SystemExit(place)
open("mine", "w").write("x")
assert open("mine").read() == "x"
"""
    assert survives(program)
    assert not any(Path(place).exists() for place in places if place.startswith("/"))


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    program = """
import os
assert not os.environ, dict(os.environ)
found = []
for process in ("self", "1", str(os.getppid()), str(os.getpid())):
    try:
        found.append(open(f"/proc/{process}/environ", "rb").read())
    except OSError:
        pass
assert not any(b"hf_secret" in text for text in found)
"""
    assert survives(program)


def test_no_socket_reaches_anyone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0)
        program = f"""
import socket
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=2)
except OSError:
    pass
else:
    raise SystemExit("connected")
"""
        assert survives(program)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_socket_file_of_ours_is_out_of_reach(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0o777)
        assert not survives(f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})")


def test_the_parent_lives() -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("SIGTERM"))
    try:
        targets = [os.getpid(), os.getppid(), 0, -1]
        program = f"""
import os, signal
for target in [os.getppid(), *{targets!r}]:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(target, number)
        except OSError:
            pass
"""
        survives(program)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == []
    assert threading.main_thread().is_alive()


def test_what_a_program_prints_is_no_verdict() -> None:
    program = """
import os
for descriptor in range(3, 64):
    try:
        os.write(descriptor, b"[]\\npassed\\ntrue\\n")
    except OSError:
        pass
raise SystemExit
"""
    assert not survives(program)


@pytest.mark.parametrize(
    ("crippled", "missing"),
    [
        (
            ('call("unshare"', 'call("no_such_function"'),
            ("no network", "no access to other processes", "no access to files outside the temporary folder"),
        ),
        (("PR_SET_SECCOMP, 2", "PR_SET_SECCOMP, 9"), ("a limit on shared memory",)),
    ],
)
def test_a_platform_that_lacks_something_says_so(
    crippled: tuple[str, str], missing: tuple[str, ...], tmp_path: Path
) -> None:
    """The launcher told that it cannot: the holes are named, and what can be limited still is."""
    launcher = Path(sandbox.__file__).with_name("sandboxed.py").read_text(encoding="utf-8")
    assert crippled[0] in launcher
    (tmp_path / "sandboxed.py").write_text(launcher.replace(*crippled), encoding="utf-8")
    (tmp_path / "sandbox.py").write_text(Path(sandbox.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("crippled_sandbox", tmp_path / "sandbox.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.missing() == missing
    ends = module.run(["import time; time.sleep(600)", "bytearray(10 * 2**30)", "pass"], wall_seconds=3)
    assert ends == [False, False, True]


def test_the_tests_have_their_own_share_of_memory() -> None:
    assert sandbox.run([""], "bytearray(100 << 20)") == [True]
    assert sandbox.run([""], "bytearray(256 << 20)") == [False]
