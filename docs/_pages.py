"""What mkdocs.yml cannot say: pages that lie in the root of the repository, and all of docs/extend in the menu."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_config(config: MkDocsConfig) -> None:
    """Put every page of docs/extend in the menu, the overview first."""
    pages = sorted(page.name for page in Path(config.docs_dir, "extend").glob("*.md") if page.name != "index.md")
    config.nav = [
        {"Extend": ["extend/index.md", *(f"extend/{page}" for page in pages)]} if item == "extend" else item
        for item in config.nav or []
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root to those of docs/."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        text = (root / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=with_links_of_the_site(text)))
    return files


def with_links_of_the_site(text: str) -> str:
    """Return a page of the root with links to docs/ and to other such pages, as seen from docs/."""
    for source, page in PAGES.items():
        text = re.sub(rf"\]\({re.escape(source)}(?=[)#])", f"]({page}", text)
    return text.replace("](docs/", "](")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Take away the mark of blocks that the tests leave out: with it they would not be seen as blocks of code."""
    return re.sub(r"^```(\w+) no-test$", r"```\1", markdown, flags=re.MULTILINE)
