"""A real headless browser, and what its tests ask of it."""

import pytest

pytest.importorskip("selenium.webdriver", reason="the browser's driver is the package selenium")
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


def look(driver, width, scheme):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wanted.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def find(page, selector):
    return WebDriverWait(page, 30).until(lambda page: page.find_elements(By.CSS_SELECTOR, selector))[0]


def texts(page, selector):
    return [element.text for element in page.find_elements(By.CSS_SELECTOR, selector)]


def press(page, *keys):
    for key in keys:
        page.switch_to.active_element.send_keys(key)


def focus(page, selector):
    page.execute_script("arguments[0].focus()", find(page, selector))


def wait(page, condition):
    """The first true value of a condition, looked at again and again for half a minute."""
    return WebDriverWait(page, 30).until(lambda _: condition())


def brightness(page):
    colour = page.execute_script(
        "const c = document.createElement('canvas').getContext('2d');"
        "c.fillStyle = getComputedStyle(document.body).backgroundColor;"
        "c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]"
    )
    return sum(colour[:3]) / 3


OVER = """
const width = document.documentElement.clientWidth;
document.querySelectorAll("details").forEach((one) => { one.open = true; });
return [...document.querySelectorAll("body *")].filter((one) => {
  const box = one.getBoundingClientRect();
  const over = box.width && (box.right > width + 1 || box.left < -1);
  return over && !one.closest(".scroll, .paper, .list, nav, .skip, .only-read");
}).map((one) => one.outerHTML.slice(0, 120));
"""

CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].map((x) => x / 255);
};
const over = ([r, g, b, a], below) => [r, g, b].map((x, i) => x * a + below[i] * (1 - a));
const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const above = (one) => (one ? [...above(one.parentElement), one] : []);
const ground = (one) => above(one).reduce((c, x) => over(rgba(getComputedStyle(x).backgroundColor), c), [1, 1, 1]);
const said = (one) => [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && one.checkVisibility();
return [...document.querySelectorAll("main *, nav a, header *")].filter(said).map((one) => {
  if (one.closest("svg, [disabled], .only-read, option")) return [21];
  const below = ground(one), ink = rgba(getComputedStyle(one).color);
  const seen = above(one).reduce((all, x) => all * Number(getComputedStyle(x).opacity), ink[3]);
  const [a, b] = [light(over([...ink.slice(0, 3), seen], below)), light(below)];
  return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.outerHTML.slice(0, 90)];
}).filter(([ratio]) => ratio < 4.5);
"""
"""Texts whose contrast is below that of WCAG's AA."""
