"""The server: who is answered, and how; against the real one on a real port."""

import json
import os
import re
import signal
import socket
import time

import httpx
import pytest
from worlds import HOSTILE, add_step, small_world

from nrt_cli.store import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def world(folder):
    return small_world(folder / "runs")


@pytest.fixture(scope="module")
def served(world, folder, nrt_in):
    """`nrt view runs/` as a process; its address."""
    process = nrt_in(folder).start("view", "runs/", "--no-open")
    end = time.monotonic() + 60
    while not (found := process.out.is_file() and re.findall(r"http://[\d.:]+/", process.out.read_text())):
        assert time.monotonic() < end
        time.sleep(0.1)
    yield found[0]
    os.kill(process.pid, signal.SIGINT)
    process.wait()


def test_only_its_own_address_is_answered_and_only_to_read(served):
    port = served.split(":")[2].strip("/")
    get = lambda **headers: httpx.get(served + "api/runs", headers=headers).status_code  # noqa: E731
    assert get() == 200
    assert get(host=f"localhost:{port}") == 200
    for host in (
        "evil.example",
        "127.0.0.1",
        f"127.0.0.1:{int(port) + 1}",
        f"evil.example:{port}",
        f"127.0.0.1.evil:{port}",
        "",
    ):
        assert get(host=host) == 421, host
    assert get(origin=served.strip("/")) == 200
    for origin in ("null", "http://evil.example", f"https://127.0.0.1:{port}", f"http://localhost:{port}"):
        assert get(origin=origin) == 403, origin
    for site in ("cross-site", "same-site"):
        assert get(**{"sec-fetch-site": site}) == 403
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert httpx.request(method, served + "api/runs").status_code == 405
    with socket.create_connection(("127.0.0.1", int(port))) as raw:  # two hosts
        raw.sendall(f"GET /api/runs HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil\r\n\r\n".encode())
        assert raw.recv(99).split()[1] in (b"400", b"421")


@pytest.mark.parametrize("path", ["", "assets/common.js", "api/runs", "api/nothing", "assets/nothing", "events/x"])
def test_every_answer_is_under_the_strict_policy(served, path):
    headers = httpx.get(served + path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path", ["../pyproject.toml", "%2e%2e/screens.py", "..%2f..%2fcli.py", "vendor/../../server.py", "/etc/passwd"]
)
def test_no_path_leads_out_of_the_assets(served, path):
    port = int(served.split(":")[2].strip("/"))
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(f"GET /assets/{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        assert raw.recv(99).split()[1] == b"404"


def test_it_listens_on_loopback_alone(served):
    port = served.split(":")[2].strip("/")
    host = socket.gethostbyname(socket.gethostname())
    if host.startswith("127."):
        pytest.skip("this machine has no other address")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((host, int(port)), timeout=5)


def test_what_cannot_be_read_is_a_sentence(served):
    for query in ("list?gain=x", "group?run=..%2F..%2Fetc", "evals?run=a&benchmark=x", "compare?run=a"):
        reply = httpx.get(f"{served}api/{query}")
        assert (reply.status_code, bool(reply.json()["error"])) == (404, True)


def test_hits_come_line_by_line(served):
    lines = [json.loads(line) for line in httpx.get(f"{served}api/search?run=a&text=TWO").text.splitlines()]
    assert [line["said"] for line in lines] == ["two 2", "two 2", "two 1", "two 1"]
    assert "error" in json.loads(httpx.get(f"{served}api/search?sort=x").text)


def test_a_stored_step_is_told_within_two_seconds(served, world):
    with httpx.stream("GET", f"{served}events", timeout=10) as told:
        lines = told.iter_lines()
        next(lines)
        add_step(Run.open(world / "a"), 3)
        begin = time.monotonic()
        for line in lines:
            if line.startswith("data") and httpx.get(f"{served}api/list?run=a&step=3").json()["found"]:
                break
    assert time.monotonic() - begin < 4  # 2 where nothing else is computed


def test_hostile_runs_are_json(nrt, hostile, tmp_path):
    done = nrt("view", "runs/", "--json", "/group?kind=step")
    assert json.loads(done.out)["traces"][0]["tokens"] == [f"{HOSTILE} 1"]


@pytest.mark.slow
def test_training_and_its_viewer_begin_and_end_together(nrt, tiny_yaml, tmp_path, until):
    process = nrt.start("train", str(tiny_yaml), "--run", "runs/x", "--steps", "100000", "--view", "--json")
    (address,) = until(lambda: process.err.is_file() and re.findall(r"http://[\d.:]+/", process.err.read_text()))
    until(lambda: httpx.get(f"{address}api/list?kind=step").json().get("found"))
    assert httpx.get(f"{address}api/runs").json()["runs"][0]["run"] == "x"
    os.kill(process.pid, signal.SIGINT)
    done = process.wait()
    assert {json.loads(line)["kind"] for line in done.out.splitlines()} <= {"train", "held_out", "summary"}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}api/runs")


def test_a_folder_is_written_and_its_size_said(nrt, world, folder, nrt_in):
    done = nrt_in(folder)("view", "runs/", "--export", "out")
    assert done.code == 0
    assert re.search(r"out/index.html, \d+ files, [\d.]+ MB", done.out)
    assert (folder / "out" / "assets" / "vendor" / "LICENSES.txt").is_file()
    for unfit in (["--port", "80"], ["--json", "/runs"]):
        assert nrt_in(folder)("view", "runs/", "--export", "out", *unfit).code != 0
    assert "no such folder" in nrt("view", "nowhere").err
