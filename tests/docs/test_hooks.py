"""What the site does to a document: links hold where the page lies, lists keep what belongs to an item."""

from __future__ import annotations

import pytest

from docsite.links import widened
from docsite.notebook import page_of
from docsite.sequence import draw, read


@pytest.mark.parametrize(
    ("source", "link", "site"),
    [
        ("docs/deploy.md", "../configs/federation.yaml", "configs/federation.yaml"),
        ("docs/index.md", "../CONTRIBUTING.md#tests", "CONTRIBUTING.md#tests"),
        ("docs/reference/index.md", "../../configs/demo.yaml", "../configs/demo.yaml"),
        ("docs/reference/index.md", "../promises.md", "../promises.md"),
        ("CONTRIBUTING.md", "docs/method.md#other-methods", "method.md#other-methods"),
        ("docs/tutorials/index.md", "../notebooks/own.ipynb", "../notebooks/own.md"),
        ("docs/index.md", "https://flower.ai", "https://flower.ai"),
        ("docs/index.md", "#here", "#here"),
    ],
)
def test_a_link_of_the_repository_holds_in_the_site(source, link, site):
    from docsite.hooks import moved

    assert moved(f"[a]({link})", source, source.removeprefix("docs/")) == f"[a]({site})"


def test_what_belongs_to_an_item_of_a_list_stays_in_it():
    import markdown

    text = "1. One.\n\n   ```sh\n   make demo\n   ```\n\n2. Two.\n\nText.\n\n- Three,\n  and more\n\n  of it\n\nEnd.\n"
    page = markdown.markdown(widened(text), extensions=["pymdownx.superfences"])
    assert page.count("<ol>") == 1 and page.count("<li>") == 3 and page.endswith("<p>End.</p>")
    assert page.index("make") < page.index("</li>") and "<p>of it</p>" in page


def test_a_diagram_says_what_its_source_says():
    told = "A->>B: ask\nB-->>A: <answer>\nA-)A: note\n"
    source = f"sequenceDiagram\n    box ours\n        participant A as one and one\n    end\n    participant B\n{told}"
    picture = draw(read(source))
    for words in ("ours", "one and one", "B", "ask", "&lt;answer&gt;", "note"):
        assert f">{words}<" in picture.replace("> ", ">"), words
    assert picture.count('class="message"') == 3 and picture.count("stroke-dasharray") == 1


@pytest.mark.parametrize("line", ["C->>A: x", "A->B: x", "loop"])
def test_a_diagram_that_cannot_be_drawn_is_refused(line):
    with pytest.raises(ValueError, match="is not understood"):
        read(f"sequenceDiagram\nparticipant A\nparticipant B\n{line}\n")


def test_a_notebook_becomes_a_page(tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    path = tmp_path / "first.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Title"), new_code_cell("1 + 1")]), path)
    page = page_of(path)
    assert page.startswith("# Title\n\n*A notebook") and page.endswith("```python\n1 + 1\n```\n")
