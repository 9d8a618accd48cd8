"""The sentences of a document: of its paragraphs, list items, headings and cells of tables.

Code and diagrams have none, nor has what a script writes: a page, or a part between two comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docsite.links import without_fences

_PAGE = re.compile(r"^<!-- written by ", re.MULTILINE)
_PART = re.compile(r"^<!-- (\w+): written by .*?^<!-- \1: end -->", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_ITEM = re.compile(r"(\s*)([-*]|\d+\.) +")
_CELLS = re.compile(r"(?<!\\)\|")
_END = re.compile(r"(?<=[.?!]) (?=[A-Z`(\[])|(?<=[.?!]\)) (?=[A-Z`(\[])|(?<=:) (?=[A-Z])")


def sentences(text: str) -> list[str]:
    """Those of a document in Markdown, or of a part of one, in its order and as `plain` gives them."""
    if _PAGE.search(text):
        return []
    blocks = (" ".join(block.replace("*", "").split()) for block in _blocks(without_fences(_by_hand(text))))
    return [plain(sentence) for block in blocks if block for sentence in _END.split(block)]


def plain(text: str) -> str:
    """Without line ends, emphasis, and the signs of code and of quotations."""
    return " ".join(re.sub(r"[*`>]", "", text).split())


def _by_hand(text: str) -> str:
    return _COMMENT.sub("", _PART.sub("", text))


def _blocks(text: str) -> Iterator[str]:
    block: list[str] = []
    after_blank, in_list = True, False
    for line in text.splitlines():
        item = _ITEM.match(line)
        if not line.strip():
            yield " ".join(block)
            block, after_blank = [], True
            continue
        if line.startswith("    ") and after_blank and not in_list:
            continue  # a block of code
        if line.startswith(("|", "#")) or item:
            yield " ".join(block)
            block = []
        in_list = bool(item) or (in_list and line.startswith(" "))
        if line.startswith("|"):
            yield from (cell.strip(" :-") for cell in _CELLS.split(line))
        elif line.startswith("#"):
            yield line.strip("# ")
        else:
            block.append(line[item.end() :] if item else line)
        after_blank = False
    yield " ".join(block)
