# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The page: what is written in it, and what a browser makes of it."""

import json
import math
import re
import shutil
import subprocess
from collections import Counter
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from largebatch.cli.bench import figures, page
from largebatch.cli.bench.results import Results

from .bench_setting import MACHINE, make

PLOTS = ["roofline-0", "copy-0", "speedup-0"]
FAMILIES = [f"family-{name}-0" for name in ("lamb", "lion", "wire", "topk", "ulysses")]
VOID = ("meta", "link", "input", "br")
LOADING = ("src", "href", "srcset", "poster", "data", "action", "xlink:href", "formaction")


class Reader(HTMLParser):
    """Reads a page and notes its tags, their attributes and the text of each kind of tag."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.loads = [], Counter(), [], []
        self.text = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.ids += [value for name, value in attrs if name == "id"]
        self.loads += [value for name, value in attrs if name in LOADING]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"line {self.getpos()[0]}"

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data


@pytest.fixture(scope="module")
def html():
    return page.render([make()])


# ---- What is written -----------------------------------------------------------------------------


def test_the_page_is_valid_and_has_all_plots(html):
    read = Reader(html)
    assert not read.open
    assert len(set(read.ids)) == len(read.ids)
    assert set(PLOTS + FAMILIES) <= set(read.ids)
    drawn = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.S)
    assert set(json.loads(drawn.group(1))) == {*PLOTS, *FAMILIES}
    assert read.tags["script"] == 3


def test_the_page_needs_no_network(html):
    read = Reader(html)
    assert set(read.loads) == {"data:,"}
    assert "default-src 'none'" in html
    own = html.replace(re.search(r'<script id="plotly">.*?</script>', html, re.S).group(), "")
    assert len(own) < len(html) / 10
    for word in ("http:", "https:", "//cdn", "url(", "@import", "fetch(", "import(", "XMLHttp"):
        assert word not in own


def test_several_machines_have_a_section_each():
    other = make()
    other.machine["device"] = "GPU <one>"
    read = Reader(page.render([make(), other]))
    assert {"machine-0", "machine-1", *PLOTS, "roofline-1", "family-lamb-1"} <= set(read.ids)
    assert read.text["h1"] == f"{MACHINE['device']}GPU <one>"
    assert set(read.loads) == {"data:,", "#machine-0", "#machine-1"}


def test_text_is_escaped():
    evil = "<script>alert('x')</script>"
    found = make()
    for name in ("family", "operation", "case", "dtype", "implementation"):
        for row in found.rows:
            row[name] += evil
    found.machine["device"] += evil
    found.problems[0]["problem"] += evil
    read = Reader(page.render([found]))
    assert read.tags["script"] == 3
    assert evil in read.text["h1"]
    for tag in ("small", "td"):
        assert evil in read.text[tag]
    figure = figures.roofline(found)
    assert all("<script" not in text for t in figure["data"] for text in t.get("hovertext", ()))


def test_all_rows_and_problems_are_in_the_page(html):
    read = Reader(html)
    assert html.count('<tr class="') == len(make().rows)
    assert "MemoryError: 9 GB" in read.text["span"]
    assert "skipped: no apex" in read.text["span"]
    assert "Not all of it ran" not in html
    stopped = make()
    stopped.finished = False
    assert "Not all of it ran" in page.render([stopped])


def test_tiles_count_wins_and_losses():
    tiles = {text: number for number, text in page._tiles(make())}
    assert tiles["calls measured, 6 operations"] == str(len(make().rows))
    assert tiles["operations in which ours is the fastest"] == "4 of 5"
    assert tiles["comparisons that ours lost"] == "2 of 19"


@pytest.mark.parametrize("rows", [0, 1])
def test_a_page_of_little(rows):
    alone = [{**make().rows[0], "bytes": None, "percent_of_copy": None, "GBps": None}][:rows]
    read = Reader(page.render([Results({**MACHINE, "copy_GBps": None}, {}, alone)]))
    assert set(PLOTS) <= set(read.ids)


# ---- Figures -------------------------------------------------------------------------------------


def test_the_line_of_the_roofline_is_a_copy():
    (_, line, tenth, *points) = figures.roofline(make())["data"]
    for nbytes, time in zip(line["x"], line["y"], strict=True):
        assert nbytes / time / 1e6 == pytest.approx(MACHINE["copy_GBps"])
    assert tenth["y"] == pytest.approx([10 * time for time in line["y"]])
    with_bytes = [row for row in make().rows if row["bytes"]]
    assert sum(len(trace["x"]) for trace in points) == len(with_bytes) == len(make().rows) - 1
    assert {trace["name"] for trace in points} == {"largebatch", "others", "does less work"}


def test_losses_have_a_colour_of_their_own():
    _, faster, slower = figures.speed_up(make())["data"]
    peers = [row["times_ours"] for row in make().rows if row["role"] == "peer"]
    assert sorted(faster["x"] + slower["x"]) == sorted(peers)
    assert (faster["marker"]["color"], slower["marker"]["color"]) == ("@ours", "@loss")
    assert max(slower["x"]) < 1 <= min(faster["x"])
    q1 = [x - less for x, less in zip(slower["x"], slower["error_x"]["arrayminus"], strict=True)]
    assert q1 == pytest.approx([0.9 * x for x in slower["x"]])


def test_a_family_has_a_panel_for_each_case():
    bars = figures.family(make(), "lamb")["data"]
    assert len(bars) == 4
    assert len(bars[0]["x"]) == 5  # cpu-base too
    assert bars[0]["marker"]["color"].count("@ours") == 2


# ---- In a browser --------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--virtual-time-budget=8000", "--window-size=1280,5200",
)  # fmt: skip
LIGHT = {
    "ours": (0x0B, 0x66, 0xC3), "peer": (0xD9, 0x82, 0x00), "floor": (0x94, 0x9B, 0xA6),
    "loss": (0xC0, 0x2B, 0x3B), "copy": (0x3D, 0x47, 0x56),
}  # fmt: skip
DARK = {"ours": (0x58, 0xA6, 0xFF), "peer": (0xED, 0xA6, 0x3A)}
# In each plot: colour and the fewest pixels that it has there.
COLOURS = {
    "roofline-0": {"ours": 500, "peer": 200, "floor": 100, "copy": 1000},
    "copy-0": {"ours": 300, "peer": 300, "floor": 50, "copy": 150},
    "speedup-0": {"ours": 1000, "loss": 100, "copy": 200},
    **{name: {"ours": 100, "peer": 1000} for name in FAMILIES},
    "family-lamb-0": {"ours": 3000, "peer": 20000, "floor": 1000},
}
# Says where the plots are, and sorts and filters by what a user would do.
ASK = """<script>
addEventListener("load", () => {
  const plots = [...document.querySelectorAll(".plot")].map(plot => {
    const box = plot.getBoundingClientRect();
    return [plot.id, [box.left, box.top, box.right, box.bottom]];
  });
  const table = document.getElementById("rows-0"), said = {};
  const button = [...table.querySelectorAll("button")].find(b => b.textContent == "% copy");
  const cells = () => [...table.tBodies[0].rows].map(r => r.cells[button.parentElement.cellIndex]);
  const values = () => cells().map(cell => cell.dataset.v);
  button.click(); said.up = values();
  button.click(); said.down = values();
  const input = document.querySelector("input");
  input.value = "LION int8"; input.dispatchEvent(new Event("input"));
  said.shown = [...table.tBodies[0].rows].filter(r => !r.hidden).map(r => r.textContent);
  document.body.dataset.said = JSON.stringify({...said, plots: Object.fromEntries(plots)});
});
</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Return a function that opens a page and returns what the browser prints."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}")

    def run(html, *options):
        folder = tmp_path_factory.mktemp("browser")
        (folder / "page.html").write_text(html)
        done = subprocess.run(
            [browser, *OPTIONS, f"--user-data-dir={folder / 'user'}", *options,
             (folder / "page.html").as_uri()],
            capture_output=True, text=True, timeout=120, check=True, cwd=folder,
        )  # fmt: skip
        return folder, done.stdout

    return run


@pytest.fixture(scope="module")
def said(browse, html):
    """Return what the page says about itself, once it is drawn."""
    _, dom = browse(html.replace("</body>", ASK + "</body>"), "--dump-dom")
    return json.loads(unescape(re.search(r'data-said="([^"]*)"', dom).group(1)))


@pytest.fixture(scope="module")
def image(browse, html):
    return photograph(browse, html)


def photograph(browse, html, *options):
    folder, _ = browse(html, "--screenshot=page.png", *options)
    return np.asarray(Image.open(folder / "page.png").convert("RGB")).astype(int)


def pixels(image, box, colour):
    """Count the pixels of this colour within a box."""
    left, top, right, bottom = map(round, box)
    part = image[top:bottom, left:right]
    assert part.shape == (bottom - top, right - left, 3), "the screenshot ends before the plot"
    return int((abs(part - np.array(colour)).max(axis=2) <= 6).sum())


def too_few(image, boxes):
    """Return (plot, colour) for each colour that a plot lacks."""
    return {
        (name, colour)
        for name, colours in COLOURS.items()
        for colour, fewest in colours.items()
        if pixels(image, boxes[name], LIGHT[colour]) < fewest
    }


def columns(image, box, colour, pixels=4):
    """Return the columns of a box that have this colour in so many places below the legend."""
    left, top, right, bottom = map(round, box)
    near = abs(image[top + 40 : bottom, left:right] - np.array(LIGHT[colour])).max(axis=2) <= 6
    return np.flatnonzero(near.sum(axis=0) >= pixels)


def markers(image, box, colour):
    """Return the middles of what is wide and of this colour: of points, not of error bars."""
    there = columns(image, box, colour)
    runs = np.split(there, np.flatnonzero(np.diff(there) > 1) + 1)
    return [run.mean() for run in runs if len(run) > 5]


def test_a_browser_draws_all_plots(image, said):
    assert too_few(image, said["plots"]) == set()


def test_bars_are_as_long_as_the_times(image, said):
    ours, peer = (row["median_ms"] for row in make().rows if row["family"] == "topk")
    box = said["plots"]["family-topk-0"]
    lengths = [len(columns(image, box, colour)) for colour in ("ours", "peer")]
    assert lengths[1] > 150
    assert lengths[0] == pytest.approx(lengths[1] * ours / peer, abs=2)


def test_without_its_script_a_browser_draws_none(browse, html, said):
    """So the test above can fail."""
    without = re.sub(r'<script id="plotly">.*?</script>', "", html, flags=re.S)
    lacking = too_few(photograph(browse, without), said["plots"])
    assert lacking == {(name, colour) for name, colours in COLOURS.items() for colour in colours}


def test_losses_are_left_of_the_line_and_wins_right(image, said):
    box = said["plots"]["speedup-0"]
    line = columns(image, box, "copy", pixels=80).mean()
    (loss,), wins = (markers(image, box, colour) for colour in ("loss", "ours"))
    assert loss < line < min(wins)
    peers = [row["times_ours"] for row in make().rows if row["role"] == "peer"]
    a_decade = (max(wins) - loss) / math.log10(max(peers) / min(peers))
    assert line - loss == pytest.approx(a_decade * math.log10(1 / min(peers)), abs=2)


def test_a_dark_screen_has_colours_of_its_own(browse, html, said):
    dark = photograph(browse, html, "--blink-settings=preferredColorScheme=0")
    box = said["plots"]["family-lamb-0"]
    for colour, value in DARK.items():
        assert pixels(dark, box, value) > 1000
        assert pixels(dark, box, LIGHT[colour]) == 0
    assert dark[5, 5].max() < 64


def test_rows_are_sorted_and_filtered(said):
    unknown, known = said["up"].count(""), [float(v) for v in said["up"] if v]
    assert (unknown, len(known)) == (1, len(make().rows) - 1)
    assert known == sorted(known)
    assert said["up"][-1] == said["down"][-1] == ""  # what is unknown comes last either way
    assert [float(v) for v in said["down"][:-1]] == sorted(known, reverse=True)
    assert len(said["shown"]) == 4
    assert all("largebatch, int8 momentum" in text for text in said["shown"])
    assert math.isclose(max(known), max(r["percent_of_copy"] or 0 for r in make().rows))
