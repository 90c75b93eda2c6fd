"""Report and watch page in headless Chromium, if there is one: scripts run, a phone is wide enough."""

import re
import shutil
import subprocess
import threading
from html import unescape

import pytest

from experiments.report.cli import build_report
from experiments.watch.serve import server
from experiments.watch.state import look
from tests.experiments.test_report_panels import write
from tests.experiments.test_watch import write_run

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")]

PHONE = """<!doctype html><title>-</title>
<iframe id="f" style="width:375px;height:700px" src="{target}"></iframe>
<script>
onload = () => setTimeout(() => {{
  const page = document.getElementById("f").contentDocument, root = page.documentElement;
  document.title = `${{root.scrollWidth}} of ${{root.clientWidth}}`;
}}, 400);
</script>"""

HOVER = """<script>
onload = () => {
  const svg = document.querySelector(".panel svg"), frame = svg.getBoundingClientRect();
  const over = () => svg.dispatchEvent(new PointerEvent("pointermove",
    { clientX: frame.left + frame.width / 2, clientY: frame.top + frame.height / 2, bubbles: true }));
  over();
  const before = document.querySelector(".tip").textContent;
  document.querySelector(".switches button").click();
  over();
  const gone = [...svg.querySelectorAll(".s0")].every((part) => part.style.display === "none");
  document.title = JSON.stringify({ before, after: document.querySelector(".tip").textContent, gone });
};
</script></body>"""


def title_in_browser(address: str, folder) -> str:
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}",
            "--allow-file-access-from-files", "--virtual-time-budget=4000", "--dump-dom", address,
        ],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    found = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return unescape(found[1])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    report = {
        "name": "x",
        "series": ["scheme.name"],
        "panels": [{"kind": "curve", "y": "accuracy_mean"}, {"kind": "heat", "y": "test_accuracy"}],
    }
    for scheme in ("proposed", "fedavg"):
        write(folder / "runs" / scheme, scheme=scheme, report=report)
    return build_report([folder / "runs"], folder / "out")


def test_values_are_shown_and_lines_switched(page, tmp_path):
    text = page.read_text()
    (tmp_path / "page.html").write_text(text.replace("</body>", HOVER))
    said = title_in_browser(f"file://{tmp_path / 'page.html'}", tmp_path / "profile")
    assert '"gone":true' in said
    before, after = re.findall(r'"(?:before|after)":"([^"]*)"', said)
    assert "proposed: 0." in before
    assert "proposed" not in after
    assert "fedavg: 0." in after


def test_the_report_fits_a_phone(page, tmp_path):
    (tmp_path / "phone.html").write_text(PHONE.format(target=f"file://{page}"))
    wide, of = title_in_browser(f"file://{tmp_path / 'phone.html'}", tmp_path / "profile").split(" of ")
    assert int(wide) == int(of) <= 375


def test_the_watch_page_shows_the_run(tmp_path):
    folder = write_run(tmp_path / "run")
    found = server(0, lambda: look(folder))
    threading.Thread(target=found.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{found.server_address[1]}/"
        assert title_in_browser(address, tmp_path / "profile") == "3/10 proposed · 2 devices · seed 4"
    finally:
        found.shutdown()
        found.server_close()
