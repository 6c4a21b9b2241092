"""The HTML page in a real headless browser: by keyboard, in the dark, on a phone, and with hostile traces in it."""

import base64
import itertools
import json
from dataclasses import replace

import pytest
from browser import OVER, brightness, find, focus, look, press, texts, wait
from nrt_analysis.document import Cell, Column, Document, Made, Row, Table
from nrt_analysis.formats import write
from nrt_analysis.report.run_cards import find_cards
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.slow

HOSTILE = (
    "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=2'> \u202egnp.exe \x1b[31m \x00 {{7*7}}"
)


def letters(folder):
    """A tokenizer whose tokens are characters: the fixture's ids are code points."""
    return lambda ids: [chr(i) for i in ids]


@pytest.fixture(scope="module")
def address(tmp_path_factory, make_run_in, row):
    """A page on two runs, the second of which is hostile wherever a run can be; its traces gain 1.5 - 1.5 k nats."""
    root = tmp_path_factory.mktemp("page")
    make = make_run_in(root)
    for name, method, trace in (("a", "am", "1 + 1"), ("b", "ws-neg-log-p", HOSTILE)):
        traces = {
            "step-000001": [_row(row, k, trace) for k in (0, 1, 2)],
            "held-out-000000": [row(0, 7, 0, "before", question=HOSTILE)],
            "held-out-000002": [row(2, e, 0, trace, question=HOSTILE) for e in (7, 8)],
        }
        run = make(name, method, [{"gain": float(i)} for i in range(3)], traces)
        run.update_manifest(command=HOSTILE, versions={HOSTILE: HOSTILE})
    found = find_cards([root])
    found = [found[0], replace(found[1], label=HOSTILE, title=HOSTILE, settings={f"a.{HOSTILE}": HOSTILE})]
    document = Document("A title", Made("0", "-"), tuple(found), (_table(),), (), (HOSTILE,))
    path = write(document, root / "report", ["html"], letters)[0]
    return f"file://{path}"


def _row(row, k, trace):
    about = {"answer_ids": [ord(c) for c in "xy"], "null_logprobs": [-2.0, -2.0], "token_signals": [0.5, 0.25]}
    about |= {"answer_logprobs": [-0.5 - k, -2.0 - k / 2], "gain": 1.5 - 1.5 * k, "advantage": 1.0 - k}
    about |= {"dead_group": False}
    about |= {"trace_entropies": [0.5] * (len(trace) + 2), "reward": 0.6, "reward_base": 0.5, "question": HOSTILE}
    return row(1, 3, k, f"{k}{trace}", **about)


def _table():
    names, values = ("SFT", "RLPR", "NRT-GM", HOSTILE), (20.0, 9.5, 100.0)
    rows = [Row((Cell(name), Cell(f"{v:.1f}", v, v - 1, v + 1)), "M") for name, v in zip(names, values, strict=False)]
    rows.append(Row((Cell(HOSTILE), Cell("", reason=HOSTILE)), "M"))
    return Table("table-3-own", "Ours", HOSTILE, (Column("Method"), Column("Sums", kind="number")), tuple(rows))


@pytest.fixture
def page(driver, address):
    """The page, freshly opened in light colours on a desk."""
    look(driver, 1300, "light")
    driver.get(address)
    driver.execute_script("localStorage.clear()")
    driver.get_log("browser")
    driver.get(address)
    return driver


def opened(page):
    """The first trace of the list, opened by keyboard: its question's group."""
    focus(page, "#browser .rows a")
    press(page, Keys.ENTER)
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#browser .trace"))


def test_hostile_text_is_shown_and_nothing_of_it_runs_or_is_fetched(page):
    assert "</script><script>window.pwned=1</script><img src=x" in find(page, "#browser .lines").text
    opened(page)
    assert page.execute_script("return window.pwned") is None
    assert page.execute_script("return [document.scripts.length, document.images.length]") == [2, 0]
    assert page.get_log("browser") == []
    for selector in ("#browser .trace", "#compare .case", "#table-3-own", "#setup", "#rerun", ".mind", ".keys"):
        assert "</script><script>window.pwned=1</script><img src=x" in find(page, selector).text
    assert "U+202E" in find(page, "#browser .trace").text
    assert "U+001B" in find(page, "#browser .trace").text
    fetched = "return performance.getEntriesByType('resource').map((one) => one.name)"
    assert page.execute_script(fetched) == []


def test_scripts_that_are_not_the_pages_own_are_refused(page):
    """The policy is a second wall: even markup that got in would not run."""
    page.execute_async_script(
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 3'; document.body.append(s);"
        "const d = document.createElement('div'); document.body.append(d);"
        "d.innerHTML = '<img src=x onerror=\"window.pwned = 4\">';"
        "const [done] = arguments; const i = new Image(); i.onerror = () => done();"
        "i.src = 'https://example.invalid/x.png'"
    )
    assert page.execute_script("return window.pwned") is None
    assert "Content Security Policy" in json.dumps(page.get_log("browser"))


def order(page):
    return texts(page, "#table-3-own tbody tr:not(.section) th")[:4]


def test_tables_sort_by_keyboard_and_say_so(page):
    names = order(page)
    assert names[:3] == ["SFT", "RLPR", "NRT-GM"]
    head = find(page, "#table-3-own th.number")
    focus(page, "#table-3-own th.number button")
    press(page, Keys.ENTER)
    assert (head.get_attribute("aria-sort"), order(page)) == ("descending", ["NRT-GM", "SFT", "RLPR", names[3]])
    press(page, Keys.SPACE)
    assert (head.get_attribute("aria-sort"), order(page)) == ("ascending", ["RLPR", "SFT", "NRT-GM", names[3]])
    press(page, Keys.ENTER)
    assert (head.get_attribute("aria-sort"), order(page)) == ("none", names)
    assert texts(page, "#table-3-own tbody .section") == ["M"]


def test_the_whole_page_can_be_walked_with_tab_and_focus_is_seen(page):
    opened(page)
    page.refresh()  # the address keeps what is shown
    seen = []
    for _ in range(80):
        press(page, Keys.TAB)
        active = page.switch_to.active_element
        if active.tag_name == "body":
            break
        outline = "const s = getComputedStyle(arguments[0]); return s.outlineStyle + s.outlineWidth"
        style = page.execute_script(outline, active)
        assert style == "solid3px", active.get_attribute("outerHTML")[:100]
        seen.append(active.get_dom_attribute("class") or active.tag_name)
    assert seen[0] == "skip"
    assert {"a", "button", "scroll", "svg", "verbatim tokens", "select", "input"} <= set(seen)


def test_traces_are_chosen_with_the_arrow_keys(page):
    """Along the list, and in a group from trace to trace; the address says which."""
    focus(page, ".rows a")
    press(page, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ENTER)
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, ".trace.chosen"))
    seen = [find(page, ".trace.chosen dd").text]
    for key in (Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ARROW_UP):
        press(page, key)
        seen.append(find(page, ".trace.chosen dd").text)
    assert seen == [f"{gain} nats" for gain in ("0", "−1.5", "−1.5", "0", "+1.5")]
    assert page.execute_script("return location.hash").endswith("&k=0")
    page.back()
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, ".rows a"))


def test_tokens_are_read_with_the_arrow_keys(page):
    opened(page)
    focus(page, '[aria-label="Reference answer, token by token"]')
    press(page, Keys.HOME)
    readout = page.find_elements(By.CSS_SELECTOR, ".readout")[1]
    assert readout.text.startswith("“x” P after the trace 0.607, after the null trace 0.135: gain +1.5 nats")
    press(page, Keys.ARROW_RIGHT)
    assert "“y” P after the trace 0.135, after the null trace 0.135: gain 0 nats" in readout.text
    focus(page, '[aria-label="Trace, token by token"]')
    press(page, Keys.END)
    assert "the end of the trace, entropy 0.5 nats" in page.find_elements(By.CSS_SELECTOR, ".readout")[0].text


def test_shades_are_those_of_gain_and_loss(page):
    """A gain of 1.5 nats has half of the full shade of 3; the last trace loses 0.5 and 1 nats."""
    opened(page)
    spans = "return [...document.querySelectorAll('[aria-label=\"%s\"] [aria-label^=Reference] > span')].map((s) => "
    shades = f"{spans}[s.className, s.style.getPropertyValue('--share')])"
    assert page.execute_script(shades % "Trace 1") == [["gain", "0.500"], ["loss", "0.000"]]
    assert page.execute_script(shades % "Trace 3") == [["loss", "0.167"], ["loss", "0.333"]]
    assert len(set(page.execute_script(f"{spans}getComputedStyle(s).backgroundColor)" % "Trace 3"))) == 2


def test_search_and_order_choose_what_is_listed(page):
    assert texts(page, ".rows b") == ["+1.5", "0", "−1.5"]
    focus(page, "th.of-gain button")
    press(page, Keys.ENTER, Keys.ENTER)
    wait(page, lambda: texts(page, ".rows b") == ["−1.5", "0", "+1.5"])
    assert find(page, "th.of-gain").get_attribute("aria-sort") == "ascending"
    gain = find(page, "input[name=gain]")
    gain.send_keys("0..", Keys.ENTER)
    wait(page, lambda: texts(page, ".rows b") == ["0", "+1.5"])
    find(page, 'input[type="search"]').send_keys("no such words")
    wait(page, lambda: "No trace is like that" in find(page, "#browser").text)
    assert "text=no+such+words" in page.execute_script("return location.hash")


def test_cases_turn(page):
    assert "held-out example 7" in find(page, "#compare h3").text
    assert texts(page, "#compare .side h5") == ["trace before training", "trace after step 2"] * 2
    page.find_elements(By.CSS_SELECTOR, "#compare .turn button")[1].click()
    assert "held-out example 8" in find(page, "#compare h3").text


def test_charts_are_read_with_the_arrow_keys_and_methods_can_be_hidden(page):
    focus(page, ".chart svg")
    press(page, Keys.HOME)
    assert find(page, ".chart output").text.startswith("step 1: RLPR (paper's version) 0")
    press(page, Keys.ARROW_RIGHT)
    assert find(page, ".chart output").text.startswith("step 2: RLPR (paper's version) 0.5")
    lines = len(page.find_elements(By.CSS_SELECTOR, ".chart:first-child path:not(.raw)"))
    find(page, ".keys input").click()
    assert (lines, len(page.find_elements(By.CSS_SELECTOR, ".chart:first-child path:not(.raw)"))) == (2, 1)


def test_dark_and_light_follow_the_system_and_the_button(page, address):
    assert brightness(page) > 200
    look(page, 1300, "dark")
    # The system tells a page of its colours with the next frame.
    wait(page, lambda: find(page, "#theme").get_attribute("aria-pressed") == "true")
    assert brightness(page) < 50
    find(page, "#theme").click()
    assert brightness(page) > 200
    page.get(address)
    assert brightness(page) > 200  # remembered
    assert find(page, "#theme").get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("width", [375, 390, 1280, 1920])
def test_nothing_reaches_beyond_the_window_at_any_width(page, width):
    look(page, width, "light")
    assert page.execute_script(OVER) == []
    assert page.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [width, width]
    # A legend's entries and the lines of a chart are seen whole.
    inside = """
    return [...document.querySelectorAll(".keys label, .chart figcaption, .chart g path, .drawn img")].filter((one) => {
      const [box, around] = [one, one.closest(".keys, .chart, .drawn")].map((it) => it.getBoundingClientRect());
      return box.left < around.left - 2 || box.top < around.top - 2 || box.bottom > around.bottom + 2;
    }).map((one) => one.outerHTML.slice(0, 120));
    """
    assert page.execute_script(inside) == []
    # The headline's numbers stand on one line.
    lines = "return [...document.querySelectorAll('.dots .number')].map((o) => o.clientHeight / parseFloat(%s))"
    numbers = page.execute_script(lines % "getComputedStyle(o).lineHeight")
    assert numbers
    assert max(numbers) < 2
    if width >= 1280:
        cut = "return [...document.querySelectorAll('.scroll')].filter((o) => o.scrollWidth > o.clientWidth + 1)"
        assert page.execute_script(f"{cut}.map((one) => one.getAttribute('aria-label'))") == []


def test_one_run_far_off_does_not_flatten_the_others(driver, tmp_path, make_run_in):
    """Of four runs with gains up to 3, one goes to 1000: it leaves the chart, which says so."""
    make = make_run_in(tmp_path)
    for i in range(4):
        make(f"r{i}", ("am", "gm", "p", "logp")[i], [{"gain": (1000.0 if i == 3 else 1.0 + i / 2) * t} for t in (0, 1)])
    document = Document("A title", Made("0", "-"), tuple(find_cards([tmp_path])), (), (), ())
    path = write(document, tmp_path / "report", ["html"], letters)[0]
    driver.get(f"file://{path}")
    (gain,) = [c for c in driver.find_elements(By.CSS_SELECTOR, ".chart") if c.text.startswith("gain over")]
    assert "JLB, seed 0 goes to 1e+03" in gain.text
    marks = [t.text for t in gain.find_elements(By.CSS_SELECTOR, "text[text-anchor=end]")]
    assert max(float(mark.replace("−", "-")) for mark in marks) < 5


def test_it_prints(page):
    pdf = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 3


def test_landmarks_and_headings(page):
    for landmark in ("header", "nav[aria-label]", "main", "footer"):
        assert len(page.find_elements(By.CSS_SELECTOR, landmark)) == 1
    headings = "return [...document.querySelectorAll('h1,h2,h3,h4,h5')].map((h) => Number(h.tagName[1]))"
    levels = page.execute_script(headings)
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = page.execute_script("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    links = "[...document.querySelectorAll('a')].filter((a) => !a.hash.startsWith('#/'))"
    assert page.execute_script(f"return {links}.filter((a) => !document.querySelector(a.hash)).length") == 0
