"""Links of a document, the anchors that it has, and its lists as the site's Markdown has them."""

from __future__ import annotations

import re
import unicodedata

LINK = re.compile(r"\]\((?P<target>[^()\s]+)\)")
"""The target of [text](target)."""
_FENCE = re.compile(r"^( *(?:> )?)(```+|~~~+).*?^\1\2 *$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`[^`\n]+`")


def targets(text: str) -> list[str]:
    """Where a document's links go; what stands in code is none."""
    return [link["target"] for link in LINK.finditer(_CODE.sub("", without_fences(text)))]


def anchors(text: str) -> set[str]:
    """Of a document's headings, as both the repository's page and the site make them."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?)(?: +#+)?$", without_fences(text), re.MULTILINE):
        slug = slug_of(heading)
        times = sum(1 for other in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other))
        found.append(f"{slug}-{times}" if times else slug)
    return set(found)


def slug_of(heading: str) -> str:
    """Lower case, signs left out, a hyphen for each blank."""
    plain = LINK.sub("", heading).replace("[", "").replace("`", "")
    return re.sub(r"[^\w\- ]", "", unicodedata.normalize("NFC", plain).strip().lower()).replace(" ", "-")


def without_fences(text: str) -> str:
    """The document without its blocks of code between fences."""
    return _FENCE.sub("", text)


def widened(text: str) -> str:
    """What belongs to an item of a list, four columns in: Python-Markdown knows no other depth."""
    lines, width = [], 0
    for line in text.splitlines():
        item = re.match(r"(\d+\.|[-*]) +(?=\S)", line)
        if item:
            width = len(item[0])
        elif line and not line.startswith(" " * max(width, 1)):
            width = 0
        lines.append(" " * (4 - width) + line if width and width < 4 and line and not item else line)
    return "\n".join(lines) + "\n"
