"""The server's page in a real browser: what it shows is what the endpoints answer."""

import math

import chromium_made
import pytest
import serving_made
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

pytestmark = pytest.mark.slow
QUESTION = "The next film:"
KEY = "a key that is long enough"
MARKUP = "<img src=x onerror=window.broken=1>"
QUIET = "return !document.querySelector('[aria-busy=true]') && Boolean(model)"
SEEN = """
window.seen = [];
const watch = where => new MutationObserver(() => seen.push([where.id, where.textContent]));
for (const where of document.querySelectorAll(".answer"))
  watch(where).observe(where, { childList: true, characterData: true, subtree: true });
"""


class Page:
    """The page as it is open in a browser, and the endpoints behind it."""

    def __init__(self, browser, http):
        self.browser, self.http = browser, http

    def load(self):
        self.browser.get(str(self.http.base_url))
        self.settle()

    def settle(self):
        """Waits until nothing is under way."""
        WebDriverWait(self.browser, 60, 0.05).until(lambda on: on.execute_script(QUIET))

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def text(self, selector):
        return self.one(selector).get_property("textContent")

    def texts(self, selector):
        return [one.get_property("textContent") for one in self.all(selector)]

    def enter(self, selector, text, end=Keys.ENTER):
        """Types a text in the place of what is there, and Enter."""
        self.one(selector).send_keys(Keys.CONTROL, "a")
        self.one(selector).send_keys(text, end)
        self.script("return new Promise(setTimeout)")  # what Enter begins has begun
        self.settle()

    def script(self, text, *args):
        return self.browser.execute_script(text, *args)

    def tell(self, user, *items):
        """Events of a user, before the page is open."""
        events = [{"item": item, "timestamp": 86400 * n} for n, item in enumerate(items)]
        assert self.http.put(f"/v1/users/{user}/events", json={"events": events}).is_success

    def answer(self, user=None, text=QUESTION):
        """What the endpoint says."""
        asked = {"messages": [{"role": "user", "content": text}], "temperature": 0}
        body = {"model": "tiny", "max_tokens": 48, **asked, **({"user": user} if user else {})}
        found = self.http.post("/v1/chat/completions", json=body).json()
        return found["choices"][0]["message"]["content"]

    def check_recommendations(self, user):
        """They are those of the endpoint, with bars as long as they are probable."""
        found = self.http.post("/v1/recommendations", json={"user": user, "k": 8}).json()["data"]
        shares = [math.exp(one["score"]) for one in found]
        assert self.texts("#items .what") == [one["title"] for one in found]
        told = [float(text.removesuffix(" %")) for text in self.texts("#items .number")]
        assert told == pytest.approx([100 * share for share in shares], abs=0.0501)
        styles = [bar.get_attribute("style") for bar in self.all("#items .bar")]  # width: 100%;
        widths = [float(style.split()[1][:-2]) for style in styles]
        assert widths == pytest.approx([100 * share / shares[0] for share in shares], rel=1e-3)

    def check_answers(self, user, text=QUESTION):
        assert self.text("#plain") == self.answer(text=text)
        assert self.text("#own") == self.answer(user, text)

    def complaints(self):
        """What the browser's console has said since it was last asked."""
        return [one["message"] for one in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    with chromium_made.opened(chromium, tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.fixture
def page(served, browser):
    with served.client() as http:
        yield Page(browser, http)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get("about:blank")
    browser.get_log("browser")


@pytest.fixture(scope="module")
def items(served):
    """Items with their titles, each of which is one item's alone."""
    with served.client() as http:
        found = http.get("/v1/items?limit=1000").json()["items"]
    titles = [one["title"].lower() for one in found]
    return [one for one in found if titles.count(one["title"].lower()) == 1]


def test_a_question_is_answered_without_and_with_the_memory(page, items):
    page.tell("ann", *(one["item"] for one in items[:5]))
    page.load()
    assert page.browser.title == "tiny · user-llm"
    assert page.one("#prompt").get_property("value")
    page.one("#recent button[title=ann]").click()
    page.settle()
    assert page.texts("#timeline .what") == [one["title"] for one in items[:5]]
    assert page.texts("#timeline time")[1] == "1970-01-02"
    assert page.text("#told") == "5 events" and page.text("#whose") == "ann"
    page.check_recommendations("ann")
    page.script(SEEN)
    page.enter("#prompt", QUESTION)
    page.check_answers("ann")
    for where in ("plain", "own"):
        seen = [text for name, text in page.script("return seen") if name == where]
        assert len(set(seen)) > 1  # it came in parts; a busy browser shows some together
        assert all(page.text(f"#{where}").startswith(text) for text in seen)
    assert page.text("#said") == "" and page.complaints() == []


def test_an_event_is_known_to_the_next_answer(page, items):
    page.tell("bob", *(one["item"] for one in items[:2]))
    page.load()
    page.enter("#user", "bob")
    page.enter("#prompt", QUESTION)
    assert page.all("#timeline .new") == []
    for count, new in enumerate(items[2:5], 3):
        before, listed = page.text("#own"), page.texts("#items .what")
        page.enter("#item", new["title"].upper())
        assert page.texts("#timeline .what") == [one["title"] for one in items[:count]]
        assert page.texts("#timeline .new .what") == [new["title"]]
        assert page.one("#item").get_property("value") == ""
        page.check_answers("bob")
        changed = page.text("#own") != before
        assert bool(page.all(".own.changed")) == changed
        assert page.text("#was") == (f"changed; before: {before}" if changed else "")
        page.check_recommendations("bob")
        fresh = [one for one in page.texts("#items .what") if one not in listed]
        assert page.texts("#items .new .what") == fresh
    assert page.http.get("/v1/users/bob").json()["events"][-1]["item"] == items[4]["item"]
    page.enter("#prompt", "The favorite genre:")
    assert page.text("#was") == "" and page.all(".changed") == []  # it is another question
    assert page.complaints() == []


def test_titles_are_found_while_they_are_typed(page, items):
    page.load()
    page.enter("#user", "typist")
    typed = items[7]["title"][:6]
    page.one("#item").send_keys(typed)
    found = page.http.get("/v1/items", params={"query": typed, "limit": 12}).json()["items"]
    WebDriverWait(page.browser, 10, 0.05).until(
        lambda _: len(page.all("#found option")) == len(found)
    )
    offered = [one.get_property("value") for one in page.all("#found option")]
    assert len({*offered}) == len(found)
    page.enter("#item", offered[0])
    assert page.http.get("/v1/users/typist").json()["events"][0]["item"] == found[0]["item"]


def test_who_is_not_known_begins_and_is_forgotten(page, items):
    page.load()
    assert not page.one("#item").is_enabled() and not page.one("#forget").is_enabled()
    page.enter("#prompt", QUESTION)
    assert page.text("#plain") == page.answer() and page.text("#own") == ""
    page.enter("#user", "carl")
    empty = page.script("return getComputedStyle($('timeline'), '::before').content")
    assert "carl is not known yet" in empty
    assert page.text("#known") == "for nobody in particular"
    page.check_recommendations("carl")
    page.check_answers("carl")
    page.enter("#item", items[0]["title"])
    assert page.text("#told") == "1 event" and "carl" in page.texts("#recent button")
    page.one("#forget").click()
    page.browser.switch_to.alert.dismiss()
    assert page.http.get("/v1/users/carl").is_success
    page.one("#forget").click()
    page.browser.switch_to.alert.accept()
    WebDriverWait(page.browser, 60, 0.05).until(lambda _: not page.all("#timeline li"))
    page.settle()
    assert page.http.get("/v1/users/carl").status_code == 404
    assert "carl" not in page.texts("#recent button")
    page.check_answers("carl")
    assert all("404" in one for one in page.complaints())  # as the browser tells of any


def test_the_user_opened_last_is_shown(page, items):
    for n in range(4):
        page.tell(f"many-{n}", *(one["item"] for one in items[n : n + 3]))
    page.load()
    page.enter("#prompt", QUESTION)
    names = [f"many-{n}" for n in (1, 0, 3, 2)]
    page.script("for (const name of arguments[0]) pick(name)", names)
    page.settle()
    assert page.text("#whose") == "many-2"
    assert page.texts("#timeline .what") == [one["title"] for one in items[2:5]]
    page.check_recommendations("many-2")
    page.check_answers("many-2")
    assert page.text("#said") == "" and page.complaints() == []


def test_what_is_shown_is_text_and_never_markup(page):
    name = "<script>window.broken=1;alert(1)<script>"
    page.tell(name, MARKUP, "&amp;")
    page.load()
    page.enter("#user", name)
    assert page.text("#whose") == name and name in page.texts("#recent button")
    assert page.texts("#timeline .what") == [MARKUP, "&amp;"]
    page.enter("#item", f"{MARKUP} again")
    assert page.texts("#timeline .what")[-1] == f"{MARKUP} again"
    assert page.texts("#timeline small") == ["not known to the model"] * 3
    assert page.all("img, main script") == [] and page.complaints() == []
    # Nor would markup that came in do anything.
    page.script("$('own').innerHTML = arguments[0]", MARKUP)
    page.script("document.body.append(Object.assign(made('script', 'window.broken = 1')))")
    page.script("const it = made('p'); it.innerHTML = '<b style=color:red>x'; $('own').append(it)")
    page.script("return new Promise(done => setTimeout(done, 300))")
    assert page.script("return window.broken") is None
    assert sum("Content Security Policy" in one for one in page.complaints()) >= 3


def test_headers_leave_the_page_nothing_from_elsewhere(page):
    headers = page.http.get("/").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert policy["script-src"].startswith("'sha256-") and policy["connect-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_what_goes_wrong_is_an_alert(page):
    page.tell("dora", MARKUP)
    page.load()
    page.enter("#user", "dora")
    page.enter("#prompt", "many words " * 300)
    alert = page.one("[role=alert]")
    assert "positions" in alert.text and alert.is_displayed()
    page.enter("#prompt", QUESTION)
    assert alert.text == ""
    page.check_answers("dora")
    page.enter("#item", " ")
    assert "item" in alert.text
    alert.click()
    assert alert.text == ""
    page.browser.set_network_conditions(offline=True, latency=0, throughput=0)
    try:
        page.enter("#prompt", QUESTION)
        assert alert.text
    finally:
        page.browser.delete_network_conditions()
    page.enter("#user", "no spaces")
    assert page.text("#whose") == "dora"  # the form says why


def test_all_is_reached_by_the_keyboard(page, items):
    page.load()
    reached, keys = [], page.browser.switch_to.active_element.send_keys
    for _ in range(20):
        keys(Keys.TAB)
        focused = page.browser.switch_to.active_element
        keys = focused.send_keys
        reached.append(focused.get_attribute("id") or focused.text)
        if reached[-1] == "user":
            keys("erna", Keys.ENTER)
            page.settle()
        if reached[-1] == "item":
            keys(items[0]["title"], Keys.ENTER)
            WebDriverWait(page.browser, 60, 0.05).until(lambda _: page.all("#timeline li"))
            page.settle()
        if reached[-1] == "prompt":
            keys(Keys.CONTROL, "a")
            keys(QUESTION, Keys.ENTER)
            page.settle()
            break
    own = ["user", "Open", "timeline", "item", "Add", "forget", "prompt"]
    assert [one for one in reached if one in own] == own
    page.check_answers("erna")
    page.one("#prompt").send_keys(Keys.SHIFT, Keys.ENTER)
    assert page.one("#prompt").get_property("value") == f"{QUESTION}\n"


def test_it_fits_a_narrow_window(page):
    page.tell("x" * 128, "i" * 256, MARKUP)
    for width in (400, 320, 700, 1280):
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        page.load()
        page.enter("#user", "x" * 128)
        page.enter("#prompt", "long" * 60)
        taken, given = page.script("return [document.documentElement.scrollWidth, innerWidth]")
        assert taken <= given == width


def test_it_is_dark_where_that_is_wanted_and_legible(page):
    page.tell("finn", "1")
    for scheme, dark in (("light", False), ("dark", True)):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        page.load()
        page.enter("#user", "finn")
        page.enter("#prompt", QUESTION)
        ground = page.script("return getComputedStyle(document.body).backgroundColor")
        assert (light(ground) < 0.2) == dark
        card = light(
            page.script("return getComputedStyle($('plain').parentElement).backgroundColor")
        )
        for selector in ("#own", ".own h2", "#told", "time", "#forget"):
            ink = light(page.one(selector).value_of_css_property("color"))
            brighter, darker = sorted((ink, card), reverse=True)
            assert (brighter + 0.05) / (darker + 0.05) > 4.5, selector  # WCAG's AA


def light(color: str) -> float:
    """WCAG's relative luminance of rgb(...)."""
    parts = [float(x) / 255 for x in color[color.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_key_is_asked_for_where_one_is_needed(exported, browser, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    with (
        serving_made.served(exported, tmp_path, "--api-keys", str(keys)) as server,
        server.client(headers={"Authorization": f"Bearer {KEY}"}) as http,
    ):
        page = Page(browser, http)
        page.tell("gina", "1", "2")
        browser.get(server.url)
        WebDriverWait(browser, 60, 0.05).until(lambda _: page.one("#key").is_displayed())
        assert "wants a key" in page.one("[role=alert]").text
        assert browser.switch_to.active_element.get_attribute("id") == "key"
        page.one("#key").send_keys("wrong", Keys.ENTER)
        WebDriverWait(browser, 60, 0.05).until(lambda _: "not know this key" in page.text("#said"))
        assert page.one("#key").is_displayed()
        page.enter("#key", KEY)
        assert not page.one("#key").is_displayed() and page.text("#said") == ""
        page.enter("#user", "gina")
        page.enter("#prompt", QUESTION)
        page.check_answers("gina")
        page.check_recommendations("gina")
        assert all("401" in one for one in page.complaints())
        assert KEY not in server.log.read_text()
