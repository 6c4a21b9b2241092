"""`nrt view`: a million traces in a browser, and what a viewer that follows a run costs its training.

    python tests/bench/view.py million      1,000,192 traces in 3,907 tables: first paint, filter, sort, search
    python tests/bench/view.py training     `nrt train` with --view and without, in turns: processor time of a step

Both run the real command; the first drives a headless Chromium, and measures in the page, from a change of its address
to the rows that it asks for. `--quick` takes a hundredth.
"""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import psutil
from common import ROOT, WORK, machine, say
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

sys.path.append(str(ROOT / "tests" / "viewer"))
from worlds import PER_TABLE, many_tables

TABLES, QUICK = 3907, 40
SEEN = """
const [to, old, done] = arguments, begin = performance.now();
const now = () => document.querySelector(".rows a")?.hash + document.querySelector("[role=status]")?.textContent;
if (to) location.hash = to;
const look = () => (document.querySelector(".rows a") && now() !== old && !now().includes("Reading")
  ? done([performance.now() - begin, now()]) : requestAnimationFrame(look));
look();
"""


def million(quick: bool) -> None:
    tables = QUICK if quick else TABLES
    root = WORK / "view" / f"runs-{tables}"
    if not root.is_dir():
        say(f"writing {tables} tables")
        draft = root.with_suffix(".tmp")
        shutil.rmtree(draft, ignore_errors=True)
        many_tables(draft, tables)
        draft.rename(root)
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium") or shutil.which("google-chrome"))
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tempfile.mkdtemp()}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    browser.set_script_timeout(120)
    log = WORK / "view" / "viewer.log"
    begin = time.perf_counter()
    with log.open("w") as out:
        command = [sys.executable, "-m", "nrt_cli", "view", str(root), "--no-open"]
        viewer = subprocess.Popen(command, stdout=out, cwd=ROOT)
    try:
        while not (found := re.findall(r"http://[\d.:]+/", log.read_text())):
            time.sleep(0.01)
        started = time.perf_counter() - begin
        browser.get("about:blank")
        early = paint(browser, f"{found[0]}#/list?run=million")
        while browser.execute_script(
            "return document.querySelector('[role=status]').textContent.includes('being read')"
        ):
            time.sleep(0.2)
        indexed = time.perf_counter() - begin
        browser.get("about:blank")
        figures = {
            "address printed after s": started,
            "first paint while it reads s": early,
            "all read after s": indexed,
        }
        figures["first paint s"] = paint(browser, f"{found[0]}#/list?run=million")
        moves = {
            "filter by gain": "#/list?run=million&gain=1..",
            "sort those by reward": "#/list?run=million&gain=1..&sort=-reward",
            "sort all by gain": "#/list?run=million&sort=gain",
            "sort all by length": "#/list?run=million&sort=-length",
        }
        taken: dict[str, list[float]] = {name: [] for name in moves}
        for _ in range(2 if quick else 7):
            for name, to in moves.items():
                old = browser.execute_async_script(SEEN, "", "")[1]
                taken[name].append(browser.execute_async_script(SEEN, to, old)[0] / 1000)
                time.sleep(0.2)
        figures |= {f"{name}, median s": statistics.median(values) for name, values in taken.items()}
        old = browser.execute_async_script(SEEN, "", "")[1]
        figures["first hit of a search s"] = (
            browser.execute_async_script(SEEN, "#/list?run=million&text=taken+added", old)[0] / 1000
        )
        figures["viewer GiB"] = psutil.Process(viewer.pid).memory_info().rss / 2**30
    finally:
        browser.quit()
        viewer.send_signal(signal.SIGINT)
        viewer.wait()
    say(f"{machine()}; load average {os.getloadavg()[0]:.1f}; {tables * PER_TABLE:,} traces in {tables:,} tables")
    for name, value in figures.items():
        print(f"{name:32} {value:8.3f}")


def paint(browser: webdriver.Chrome, address: str) -> float:
    """Seconds from asking for a page to its first row."""
    begin = time.perf_counter()
    browser.get(address)
    browser.execute_async_script(SEEN, "", "")
    return time.perf_counter() - begin


def training(quick: bool) -> None:
    """Rounds in turns, each a run of its own; the first is not counted. Seconds are the trainer's own on a processor,
    without the viewer's, of a step."""
    steps, rounds = (2, 1) if quick else (12, 5)
    taken: dict[str, list[float]] = {"train": [], "train --view": []}
    for turn in range(rounds + 1):
        for name, each in taken.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-c", MEASURED, "train", "quickstart", "--run", f"{folder}/runs/x"]
                command += ["--steps", str(steps), "--set", "train.validate_every=null", *name.split()[1:]]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                each.append(json.loads(done.stdout.splitlines()[-1]) / steps)
                say(f"round {turn}, {name}: {each[-1]:.3f} s of a processor for each step")
    pairs = [b / a - 1 for a, b in zip(taken["train"][1:], taken["train --view"][1:], strict=True)]
    error = 2.776 * statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("nan")
    say(f"{machine()}; load average {os.getloadavg()[0]:.1f}; {rounds} rounds of {steps} steps")
    for name, each in taken.items():
        print(f"{name:14} {statistics.median(each[1:]):.3f} s of a processor for each step (median)")
    mean = statistics.mean(pairs)
    print(
        f"with --view {100 * mean:+.1f} % [{100 * (mean - error):+.1f}, {100 * (mean + error):+.1f}] (paired, 95 %, t)"
    )


MEASURED = """
import resource, sys, time
from nrt_cli.training import trainer
spent, step = [0.0], trainer.Trainer.train_step
def timed(self, *of):
    begin = time.process_time()
    try:
        return step(self, *of)
    finally:
        spent[0] += time.process_time() - begin
trainer.Trainer.train_step = timed
from nrt_cli.cli import app
try:
    app(prog_name="nrt", standalone_mode=False)
finally:
    print(spent[0])
"""
"""The command, which at last prints the seconds that its steps took on a processor."""

if __name__ == "__main__":
    {"million": million, "training": training}[sys.argv[1]]("--quick" in sys.argv)
