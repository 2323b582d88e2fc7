"""The picture and the page: there without a network, in light and dark, and as an eye would see them."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch

import balanced_grad as bg

pytest.importorskip("matplotlib", reason="pip install 'balanced-grad[demo]'")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


def report_of(names=("audio", "<video>"), task="classification"):
    torch.manual_seed(0)
    x = {name: torch.randn(60, 2) for name in names}
    y = torch.arange(60) % 2 if task == "classification" else x[names[0]].sum(1)

    def model(inputs):
        score = sum(inputs.values()).sum(1)
        out = torch.stack([-score, score], 1) if task == "classification" else score
        return {"joint": out, **dict.fromkeys(names, out)} if len(names) == 3 else out

    return bg.diagnose(model, [(x, y)], task=task, draws=2, resamples=100, additive_items=11, progress=False)


class Parts(HTMLParser):
    """Tags that are closed, addresses that are asked for, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "img", "source"}:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "srcset", "href"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("names", [("audio", "<video>"), ("audio", "video", "text"), tuple("abcdefg")])
def test_the_page_holds_everything_and_asks_for_nothing(names, tmp_path):
    report = report_of(names)
    report.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    parts = Parts(text)
    assert parts.open == []
    assert len(parts.addresses) == 2
    assert all(address.startswith("data:image/svg+xml;base64,") for address in parts.addresses)
    assert len(set(parts.addresses)) == 2  # light and dark
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "prefers-color-scheme: dark" in text
    words = "".join(parts.words)
    assert all(name in words and each.verdict in words for name, each in report.contributions.items())


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_picture(task, ending, tmp_path):
    report_of(task=task).save(tmp_path / f"report.{ending}")
    start = (tmp_path / f"report.{ending}").read_bytes()[:8]
    assert start.startswith({"png": b"\x89PNG", "svg": b"<?xml"}[ending])


def test_without_matplotlib_the_cure_is_named(monkeypatch, tmp_path):
    for name in [each for each in sys.modules if each.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'balanced-grad\[demo\]'"):
        report_of().save(tmp_path / "report.html")


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(scheme, tmp_path):
    from matplotlib.image import imread

    report_of().save(tmp_path / "report.html")
    dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,2000", *dark]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'shot.png'}"]
    subprocess.run([*command, (tmp_path / "report.html").as_uri()], check=True, capture_output=True, timeout=120)
    seen = imread(tmp_path / "shot.png")[..., :3]
    assert (seen[0, 0].mean() > 0.5) == (scheme == "light")  # the paper
    assert len({tuple(pixel) for pixel in (seen[::3, ::3].reshape(-1, 3) * 8).round().tolist()}) > 10  # the picture
