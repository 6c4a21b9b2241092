"""The viewer in a real headless browser: every screen by keyboard, in both colours, on a phone, while a run trains."""

import re
import shutil
import threading
import time

import pytest
from browser import CONTRAST, OVER, brightness, find, focus, look, press, wait
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from worlds import PER_TABLE, add_held_out, add_step, hostile_world, make_run, many_tables, opened, small_world

from nrt_cli.store import Run
from nrt_cli.store.files import write_report
from nrt_cli.viewer.screens import answer
from nrt_cli.viewer.server import serve
from nrt_cli.viewer.static import exported

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path):
    small_world(tmp_path / "runs")
    return hostile_world(tmp_path / "runs")


@pytest.fixture
def view(root, driver, monkeypatch):
    """Opens an address of a viewer of `root`, in light colours on a desk; the server is real and in a thread."""
    import uvicorn

    servers, ready = [], threading.Event()
    made = uvicorn.Server.__init__
    monkeypatch.setattr(uvicorn.Server, "__init__", lambda self, config: (servers.append(self), made(self, config))[1])
    monkeypatch.setattr(uvicorn.Server, "install_signal_handlers", lambda _: None, raising=False)
    at = []
    # A key leads nowhere while its neighbour's table is still to be read.
    run = threading.Thread(target=serve, args=(opened(root), 0, lambda a: (at.append(a), ready.set())))
    run.start()
    assert ready.wait(30)
    look(driver, 1300, "light")

    def at_address(address):
        driver.get("about:blank")
        driver.get(at[0] + address)
        wait(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "main section, main .reason"))
        return driver

    yield at_address
    driver.get("about:blank")
    servers[0].should_exit = True
    run.join()


SCREENS = (
    "#/runs", "#/list?run=a", "#/group?run=a&kind=step", "#/group?run=a&example=7", "#/curves?run=a&run=b",
    "#/compare?run=a&run=b", "#/evals?benchmark=sums", "#/group?run=h&kind=step", "#/list?run=h", "#/curves?run=h",
)  # fmt: skip


def test_every_screen_fits_every_window_in_both_colours(view):
    for address in SCREENS:
        page = view(address)
        wait(page, lambda page=page: page.find_elements(By.CSS_SELECTOR, "main section"))
        assert page.get_log("browser") == [], address
        for width in (390, 768, 1280, 1920):
            look(page, width, "light")
            assert page.execute_script(OVER) == [], (address, width)
            assert page.execute_script("return document.documentElement.scrollWidth") <= width, (address, width)
        look(page, 1280, "light")
        assert brightness(page) > 200
        look(page, 1280, "dark")
        wait(page, lambda page=page: brightness(page) < 60)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(view, scheme):
    for address in (*SCREENS[:7], "#/group?run=a&kind=step&by=chance&shade=chance"):
        page = view(address)
        look(page, 1280, scheme)
        wait(page, lambda page=page: page.find_elements(By.CSS_SELECTOR, "main section"))
        wait(page, lambda page=page: (brightness(page) < 60) == (scheme == "dark"))
        assert page.execute_script(CONTRAST) == [], address


def test_hostile_text_is_inert_on_every_screen(view):
    for address in ("#/runs", "#/list?run=h", "#/group?run=h&kind=step", "#/group?run=h", "#/curves?run=h"):
        page = view(address)
        wait(page, lambda page=page: page.find_elements(By.CSS_SELECTOR, "main section"))
        assert page.execute_script("return window.pwned") is None
        assert page.execute_script("return document.images.length") == 0
        if address not in ("#/runs",):
            wait(
                page, lambda page=page: "</script><script>window.pwned=1</script><img src=x" in find(page, "main").text
            )
    page = view("#/group?run=h&kind=step")
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, ".trace"))
    assert {"U+202E", "U+001B", "U+0000"} <= set(re.findall(r"U\+\w{4}", find(page, ".trace").text))
    assert len(page.find_elements(By.CSS_SELECTOR, ".trace")) == 3  # one of a million letters among them


def test_scripts_that_are_not_the_viewers_own_are_refused(view):
    page = view("#/runs")
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 3'; document.body.append(s);"
        "const d = document.createElement('div'); document.body.append(d);"
        "d.innerHTML = '<img src=x onerror=\"window.pwned = 4\">';"
    )
    time.sleep(0.2)
    assert page.execute_script("return window.pwned") is None
    assert "Content Security Policy" in str(page.get_log("browser"))


def test_a_question_is_walked_through_with_the_arrow_keys_and_the_address_says_where(view):
    page = view("#/group?run=a&example=7")
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, ".trace"))
    where = lambda: page.execute_script("return location.hash")  # noqa: E731
    body = find(page, "body")
    body.send_keys(Keys.ARROW_LEFT)
    wait(page, lambda: "step=0" in where() and "wrong" in find(page, ".trace").text)
    body.send_keys(Keys.ARROW_RIGHT)
    wait(page, lambda: "step=2" in where())
    body.send_keys(Keys.PAGE_DOWN)
    wait(page, lambda: "example=8" in where() and "question 8" in find(page, ".turn h2").text)
    kept = where()
    page = view("#/runs")
    page = view(kept)
    wait(page, lambda: "question 8" in find(page, ".turn h2").text)


def test_the_slider_shows_the_question_learning(view):
    page = view("#/group?run=b&example=7")
    wait(page, lambda: "right" in find(page, ".trace").text)
    focus(page, ".steps input")
    press(page, Keys.ARROW_LEFT)
    wait(page, lambda: "wrong" in find(page, ".trace").text and "gain\n0 nats" in find(page, ".trace").text)


def test_a_phone_says_what_was_won_and_lost_and_has_the_screens_own_link_in_sight(view):
    page = view("#/evals?benchmark=sums")
    look(page, 390, "light")
    page = view("#/evals?benchmark=sums")
    wait(
        page, lambda: "has 1 right that" in find(page, "main").text and "1 wrong that it has right" in page.page_source
    )
    box = "return document.querySelector('nav [aria-current]').getBoundingClientRect()."
    assert 0 <= page.execute_script(box + "left") < page.execute_script(box + "right") <= 390


def test_steps_are_shaded_by_necessity_and_say_it(view):
    page = view("#/group?run=a&example=7&step=2")
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, '[aria-label="Trace, step by step"]'))
    spans = "return [...document.querySelectorAll('[aria-label=\"Trace, step by step\"] > span')].map((s) => "
    assert page.execute_script(spans + "[s.className, s.style.getPropertyValue('--share')])") == [
        ["gain", "1.000"],
        ["loss", "0.333"],
    ]
    focus(page, '[aria-label="Trace, step by step"]')
    press(page, Keys.END)
    assert (
        "word 2 of 2: without it the answer loses −1 nats; log P(y*) with the first 2: −7"
        in find(page, ".readout").text
    )
    assert "decided after 1 of 2 words; 25 % of what it gained was smuggled" in find(page, ".decided").text


def test_a_list_is_filtered_sorted_searched_and_opened_by_keyboard(view):
    page = view("#/list?run=a&kind=step&step=2")
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, ".rows tr")) == 6)
    find(page, "input[name=gain]").send_keys("..-0.4", Keys.ENTER)
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, ".rows tr")) == 2)
    find(page, "input[type=search]").send_keys("THREE")
    wait(
        page, lambda: "2 found" in find(page, "[role=status]").text and "so far" not in find(page, "[role=status]").text
    )
    focus(page, ".rows a")
    press(page, Keys.ARROW_DOWN, Keys.ENTER)
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, ".trace.chosen"))
    assert "k=2" in page.execute_script("return location.hash")


def test_a_click_on_a_curve_opens_the_traces_of_its_step(view):
    page = view("#/curves?run=a")
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, ".chart svg"))
    (gain,) = [c for c in page.find_elements(By.CSS_SELECTOR, ".chart") if c.text.startswith("training gain")]
    page.execute_script("arguments[0].focus()", gain.find_element(By.CSS_SELECTOR, "svg"))
    press(page, Keys.HOME, Keys.ENTER)
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, ".rows tr")) == 6)
    assert page.execute_script("return location.hash") == "#/list?run=a&kind=step&step=1"


def test_a_run_that_trains_is_followed_and_one_that_is_deleted_is_gone(view, root):
    page = view("#/list?run=live")
    run = make_run(root / "live")
    add_held_out(run, 0, 0.0)
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, ".rows tr")) == 2)
    begin = time.monotonic()
    add_step(run, 1)
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, ".rows tr")) == 8)
    assert time.monotonic() - begin < 6  # 2 where nothing else is computed
    page = view("#/group?run=live&kind=step")
    wait(page, lambda: "Step 1" in find(page, ".steps").text)
    (root / "live" / "traces" / "step-000009.parquet.tmp").write_bytes(b"half")
    add_step(Run.open(root / "live"), 2)
    wait(page, lambda: "Step 2" in find(page, ".steps").text)  # the newest, where the address names none
    shutil.rmtree(root / "live")
    wait(page, lambda: "no such run" in find(page, "main").text)


def test_the_whole_viewer_can_be_walked_with_tab_and_focus_is_seen(view):
    for address in SCREENS[:7]:
        page = view(address)
        wait(page, lambda page=page: page.find_elements(By.CSS_SELECTOR, "main section"))
        stops = 0
        for _ in range(60):
            press(page, Keys.TAB)
            active = page.switch_to.active_element
            if active.tag_name == "body":
                break
            stops += 1
            style = "const s = getComputedStyle(arguments[0]); return s.outlineStyle + s.outlineWidth"
            assert page.execute_script(style, active) == "solid3px", active.get_attribute("outerHTML")[:100]
        assert stops > 5


QUERIES = (
    "/list?run=a", "/list?run=a&kind=step&sort=-reward", "/list?run=a&gain=0..&sort=gain", "/list?run=b&right=1",
    "/list?run=a&forced=1&sort=length", "/list?run=a&gain=..-0.4&dead=0", "/list?run=a&leaked=0&sort=-advantage",
    "/list?run=a&step=1..1&clipped=1", "/list?run=a&kind=held-out&sort=-step", "/list?run=h&sort=-length",
    "/list?run=a&length=6..7&sort=example", "/list?run=a&baseline=1.5&k=0..1",
)  # fmt: skip
SAME = ("run", "kind", "step", "example", "k", "gain", "reward", "baseline", "advantage", "length", "forced", "dead",
        "clipped", "right", "leaked")  # fmt: skip


def test_a_folder_without_a_server_shows_the_same_under_the_same_policy(driver, root, tmp_path):
    """Filters and orders that the page computes are those of the server, on the same runs."""
    library = opened(root)
    write_report(tmp_path / "out", exported(library))
    look(driver, 1300, "light")
    driver.get("about:blank")
    driver.get_log("browser")
    for address in (*SCREENS, "#/compare?run=b&run=a&example=8"):
        driver.get("about:blank")
        driver.get(f"file://{tmp_path}/out/index.html{address}")
        wait(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "main section"))
        assert driver.get_log("browser") == [], address
        assert not driver.find_elements(By.CSS_SELECTOR, "main section .reason"), address
    assert driver.execute_script("return window.pwned") is None
    ask = "const done = arguments[1]; held(HELD).query(arguments[0]).then(done, (e) => done(String(e)))"
    for query in QUERIES:
        here, there = answer(library, query), driver.execute_async_script(ask, query)
        assert here["found"] == there["found"] > 0, query
        for mine, other in zip(here["traces"], there["traces"], strict=True):
            assert {key: mine[key] for key in SAME} == {key: other.get(key) for key in SAME}, query
            if mine["run"] != "h":  # where they do not agree on what is a blank
                assert (mine["question"], mine["said"]) == (other["question"], other["said"])
    driver.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 3'; document.body.append(s)"
    )
    assert driver.execute_script("return window.pwned") is None


@pytest.mark.full
def test_a_million_traces(view, root):
    """The bounds are wide: `python tests/bench/view.py million` measures on a machine that does nothing else."""
    many_tables(root, 3907)
    page = view("#/list?run=million")
    left = "return document.querySelector('[role=status]').textContent"
    end = time.monotonic() + 600
    while "being read" in page.execute_script(left) or "1,000,192 of" not in page.execute_script(left):
        assert time.monotonic() < end
        time.sleep(0.5)
    begin = time.monotonic()
    find(page, "input[name=gain]").send_keys("2..", Keys.ENTER)
    wait(page, lambda: not find(page, "[role=status]").text.startswith("1,000,192"))
    assert time.monotonic() - begin < 5
    assert len(page.find_elements(By.CSS_SELECTOR, ".rows tr")) == 60
    assert PER_TABLE * 3907 == 1_000_192
