"""The pages' script at work, where there is a browser; what it reads is tested without one."""

import html
import json
import re
import shutil
import subprocess

import pytest

from normalform.lab import report
from normalform.lab.experiments import page as experiments_page
from parsed_page import Page
from synthetic_run import write_run
from test_experiments_page import TABLE, keep

BROWSERS = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
BROWSER = next(BROWSERS, "")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --allow-file-access-from-files "
    "--virtual-time-budget=30000 --dump-dom"
)
ACT = """
const pause = () => new Promise((done) => setTimeout(done, 50));
const count = (chart) => chart.querySelectorAll("svg .mark-symbol path").length;
(async () => {
  while (!document.body.dataset.drawn) await pause();
  const charts = [...document.querySelectorAll("[data-chart]")];
  const named = (name) => charts.find((one) => JSON.parse(one.dataset.chart).spec === name);
  const answer = {
    undrawn: charts.filter((one) => !one.querySelector("svg path")).map((one) => one.dataset.chart),
    over: charts.filter((one) => one.querySelector("svg").getBoundingClientRect().right
      > document.documentElement.clientWidth).map((one) => one.dataset.chart),
    wide: document.documentElement.scrollWidth - window.innerWidth,
    pressed: [], legend: [],
  };
  for (const details of document.querySelectorAll("details")) details.open = true;
  answer.open = document.documentElement.scrollWidth - window.innerWidth;
  const controls = document.querySelectorAll("a[href], button, input, summary, [tabindex]");
  answer.controls = controls.length;
  answer.unreachable = [...controls].filter((one) => {
    one.focus();
    return document.activeElement !== one || one.tabIndex !== 0;
  }).map((one) => one.outerHTML);
  for (const button of document.querySelectorAll(".keys button")) {
    const chart = named(button.parentElement.dataset.of);
    const seen = [count(chart)];
    for (const press of [1, 2]) {
      button.click();
      for (let i = 0; i < 10; i++) await pause();
      seen.push(count(chart));
    }
    answer.pressed.push([button.parentElement.dataset.of, button.dataset.value, seen]);
  }
  const main = charts.find((one) => JSON.parse(one.dataset.chart).spec.includes("error:"));
  for (const button of main ? document.querySelectorAll(".legend button") : []) {
    const before = count(main);
    button.click();
    for (let i = 0; i < 10; i++) await pause();
    answer.legend.push([button.dataset.key, before - count(main)]);
  }
  answer.tips = [];
  for (const chart of charts) {
    const mark = [...chart.querySelectorAll("svg .mark-symbol path")].at(-1);
    for (const kind of ["pointermove", "mousemove"]) {
      mark?.dispatchEvent(new PointerEvent(kind, { bubbles: true, clientX: 9, clientY: 9 }));
    }
    await pause();
    const tip = document.getElementById("vg-tooltip-element");
    answer.tips.push(mark ? tip?.textContent ?? "" : "no mark");
  }
  document.body.dataset.answer = JSON.stringify(answer);
})().catch((error) => { document.body.dataset.answer = JSON.stringify(`${error.stack}`); });
"""
FRAME = """<!DOCTYPE html><body><iframe id="f" src="acting.html" style="width:{}px;height:800px">
</iframe><script>
setInterval(() => {{ document.body.dataset.answer = f.contentDocument.body?.dataset.answer; }}, 50);
</script></body>"""


def act(page, tmp_path, width):
    """What a page answers to somebody who presses its buttons; None without a browser."""
    if not BROWSER:
        return None
    before, end, after = page.read_text("utf-8").rpartition("</body>")
    acting = f"{before}<script>{ACT}</script>{end}{after}"
    (tmp_path / "acting.html").write_text(acting, "utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width))
    profile, start = f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path}/frame.html"
    command = [BROWSER, *OPTIONS.split(), profile, start]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(html.unescape(re.search(r'data-answer="([^"]*)"', shown.stdout)[1]))


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Two comparisons and experiments on one page."""
    runs = tmp_path_factory.mktemp("runs")
    for name, arms in (("batch", ["batch 32", "batch 2", "none"]), ("group", ["group:4", "layer"])):
        write_run(runs / name, seeds=[0, 1], images=60, epochs=1, arms=arms)
    keep(runs / "experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments_page, "EXPERIMENTS", TABLE)
        return report.merge(sorted(runs.iterdir()))


@pytest.mark.parametrize("width", [1280, 390])
def test_merged_page(width, merged, tmp_path):
    page = Page(merged.read_text("utf-8"))
    assert len(page.slots) == 2 * (2 + 1) + 3
    assert sum("data-value" in button for button in page.all("button")) == 6
    assert [b["data-key"] for b in page.all("button") if "data-key" in b] == [
        "batch",
        "none",
        "group:4",
        "layer",
    ]
    answer = act(merged, tmp_path, width)
    if answer is None:
        return
    assert answer["undrawn"] == answer["over"] == answer["unreachable"] == []
    assert answer["wide"] <= 0
    assert answer["open"] <= 0
    assert answer["controls"] > 30
    assert [name for name, _, _ in answer["pressed"]] == [
        f"experiments/{name}" for name in ("holds", "fails", "partial") for _ in range(2)
    ]
    for _, _, (before, hidden, again) in answer["pressed"]:
        assert (before, hidden, again) == (12, 6, 12)  # three seeds, two arms, two panels
    assert all("arm" in tip and "error" in tip for tip in answer["tips"][-3:])
    assert [(key, gone > 0) for key, gone in answer["legend"]] == [
        ("batch", True),
        ("none", True),
        ("group:4", False),
        ("layer", False),
    ]
