"""The documentation: its pages are all in the site, its links lead somewhere, and the site can be built."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def listed(entry):
    """Yield the pages of a table of contents."""
    if isinstance(entry, str):
        yield entry
    else:
        for item in entry.values() if isinstance(entry, dict) else entry:
            yield from listed(item)


def test_every_page_is_in_the_table_of_contents():
    assert sorted(listed(SITE["nav"])) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name
)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_what_the_reference_names_is_there_and_documented():
    for page in (DOCS / "api").glob("*.md"):
        for module in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            found = importlib.util.find_spec(module)
            assert found is not None, module
            assert found.origin is not None
            assert Path(found.origin).read_text().startswith('"""'), module


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_nobody(tmp_path):
    """Needs the extra `docs`: `pip install -e '.[docs]'`."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for page in (tmp_path / "site").rglob("*.html"):
        for target in re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]+)", page.read_text()):
            assert not target.startswith(("http:", "https:", "//")), f"{page.name}: {target}"
    reference = (tmp_path / "site" / "api" / "allocation" / "index.html").read_text()
    assert "Raises" in reference
