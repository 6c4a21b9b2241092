"""The recording in README and `nrt help view`: one held-out question from a run's first step to its last.

    python tests/bench/recording.py

Trains `quickstart` in `.bench/recording` (what is there is not made again), looks into its held-out traces with
`nrt analyze xray`, and takes the group view of one question at every score: the first that is wrong before the first
step and right after the last. `analysis/shown/view.webp` shows all of them, `view.png` the first above the last.
"""

import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from common import ROOT, WORK, say
from PIL import Image, ImageOps
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from nrt_cli.store import Run

PLACE, SHOWN = WORK / "recording", ROOT / "analysis" / "shown"
WIDTH, HEIGHT = 1000, 1100
NRT = [sys.executable, "-m", "nrt_cli"]
OFTEN = "train.validate_every=5", "train.checkpoint_every=5", "train.keep_checkpoints=20"


def question(run: Run) -> tuple[int, list[int]]:
    """Which one, and the steps that scored it."""
    steps = [record["step"] for record in run.metrics("held_out")]
    ends = [
        {row["example"]: row["thinking_score"] for row in run.held_out_rows(step)} for step in (steps[0], steps[-1])
    ]
    seen = {row["example"] for row in run.xray(f"held-out-{steps[-1]:06d}")}
    return next(one for one in ends[0] if one in seen and ends[0][one] == 0 and ends[1][one] == 1), steps


def frames(address: str, steps: list[int], example: int) -> list[Image.Image]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium") or shutil.which("google-chrome"))
    for flag in ("--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={tempfile.mkdtemp()}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    taken = []
    for step in steps:
        browser.get(f"{address}#/group?run=nrt&kind=held-out&example={example}&step={step}")
        end = time.monotonic() + 60
        while f"Step {step} " not in browser.find_element("tag name", "main").text and time.monotonic() < end:
            time.sleep(0.1)
        seen = browser.find_element("css selector", "section.group").screenshot_as_png
        taken.append(Image.open(io.BytesIO(seen)).convert("RGB"))
    browser.quit()
    # Longer traces make taller frames.
    size = max(one.width for one in taken), max(one.height for one in taken)
    corners: list[Any] = [one.getpixel((0, 0)) for one in taken]
    return [ImageOps.pad(one, size, color=c, centering=(0, 0)) for one, c in zip(taken, corners, strict=True)]


if __name__ == "__main__":
    folder = PLACE / "runs" / "nrt"
    if not (folder / "export").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        settings = [word for one in OFTEN for word in ("--set", one)]
        subprocess.run([*NRT, "train", "quickstart", "--run", str(folder), *settings], check=True, cwd=ROOT)
    if not (folder / "analysis" / "xray").is_dir():
        subprocess.run([*NRT, "analyze", "xray", str(folder)], check=True, cwd=ROOT, stdout=sys.stderr)
    example, steps = question(Run.open(folder))
    command = [*NRT, "view", str(folder.parent), "--no-open"]
    viewer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert viewer.stdout
    address = re.findall(r"http://\S+/", viewer.stdout.readline())[0]
    try:
        taken = frames(address, steps, example)
    finally:
        viewer.terminate()
    width, height = taken[0].size
    both = Image.new("RGB", (width, 2 * height))
    both.paste(taken[0], (0, 0))
    both.paste(taken[-1], (0, height))
    both.quantize(256).save(SHOWN / "view.png", optimize=True)
    durations = [1200] * (len(taken) - 1) + [4000]
    taken[0].save(SHOWN / "view.webp", save_all=True, append_images=taken[1:], duration=durations, loop=0, quality=80)
    say(f"{SHOWN / 'view.png'}, {SHOWN / 'view.webp'}: question {example} at steps {', '.join(map(str, steps))}")
