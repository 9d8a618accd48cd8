"""What mkdocs does beside its own work: files from outside docs/, notebooks as pages, pages that come later.

The documents are written for a reader of the repository as well: their links go to files as they lie there, and are
turned here into links that hold in the site.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from posixpath import dirname, normpath, relpath

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docsite.links import LINK, widened  # noqa: E402 (mkdocs starts this file by its path)
from docsite.notebook import page_of  # noqa: E402

BESIDE = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
"""Pages from the repository's root."""
LATER = {"errors.md": ("How-to", "What an error means")}
"""Pages that are in the navigation as soon as they are there: their section and title."""


def on_config(config):
    for name, (section, title) in LATER.items():
        if (Path(config.docs_dir) / name).is_file():
            [pages] = [part[section] for part in config.nav if section in part]
            pages.append({title: name})
    return config


def on_files(files, config):
    for name in BESIDE:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=moved(text, name, name)))
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        files.append(File.generated(config, f"configs/{path.name}", content=path.read_text(encoding="utf-8")))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = page_of(Path(notebook.abs_src_path))
        files.append(File.generated(config, notebook.src_uri.removesuffix(".ipynb") + ".md", content=page))
    return files


def on_page_markdown(markdown, page, config, files):
    markdown = widened(markdown)
    here = page.file.src_uri
    return markdown if here in BESIDE else moved(markdown, f"docs/{here}", here)


def moved(text: str, source: str, target: str) -> str:
    """A document's links, as they hold in the site.

    Args:
        source: where the document lies in the repository.
        target: its place in the site's pages.
    """

    def place(link: re.Match) -> str:
        path, hash_, anchor = link["target"].partition("#")
        if "://" in path or path.startswith("mailto:") or not path:
            return link[0]
        lies = normpath(f"{dirname(source)}/{path}" if dirname(source) else path)
        found = lies.removeprefix("docs/")
        if found.endswith(".ipynb"):
            found = found.removesuffix(".ipynb") + ".md"
        return f"]({relpath(found, dirname(target) or '.')}{hash_}{anchor})"

    return LINK.sub(place, text)
