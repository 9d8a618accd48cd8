"""Sequence diagrams as SVG, so that the site needs no script for them.

Of Mermaid's language the part that the documents use: `box`, `participant ID as NAME`, `end`, and messages by `->>`,
`-->>` (an answer: dashed) and `-)` (nobody waits for it: an open head).
"""

from __future__ import annotations

import re
from html import escape
from typing import NamedTuple

COLUMN, ROW, HEAD, SIDE = 124, 30, 66, 70
"""Pixels between two lifelines, between two messages, above the first, and beside the outer lifelines."""
_MESSAGE = re.compile(r"(\w+)\s*(-->>|->>|-\))\s*(\w+)\s*:\s*(.+)")


class Message(NamedTuple):
    """From one participant to another, or to itself."""

    source: str
    arrow: str
    target: str
    text: str


class Diagram(NamedTuple):
    """What a block of Mermaid says."""

    names: dict[str, str]
    """Of participants, by their short name, from the left."""
    boxes: list[tuple[str, list[str]]]
    """Title, and short names of those within."""
    messages: list[Message]


def fence(source, language, css_class, options, md, **kwargs) -> str:
    """A block of the language `mermaid`, as superfences asks for it."""
    return f'<figure class="{css_class}">{draw(read(source))}</figure>'


def read(source: str) -> Diagram:
    """Parse a block.

    Raises:
        ValueError: a line that is none of the above, or a message of somebody who is not named.
    """
    names: dict[str, str] = {}
    boxes: list[tuple[str, list[str]]] = []
    messages, inside = [], False
    for line in filter(None, map(str.strip, source.splitlines())):
        if line == "sequenceDiagram":
            continue
        if line.startswith("box "):
            boxes.append((line.removeprefix("box "), []))
            inside = True
        elif line == "end":
            inside = False
        elif found := re.fullmatch(r"participant (\w+)(?: as (.+))?", line):
            names[found[1]] = found[2] or found[1]
            if inside:
                boxes[-1][1].append(found[1])
        elif (found := _MESSAGE.fullmatch(line)) and {found[1], found[3]} <= names.keys():
            messages.append(Message(*found.groups()))
        else:
            raise ValueError(f"sequence diagram: {line!r} is not understood")
    return Diagram(names, boxes, messages)


def draw(diagram: Diagram) -> str:
    """An SVG in the colour of the text around it."""
    at = {name: SIDE + COLUMN * index for index, name in enumerate(diagram.names)}
    width = 2 * SIDE + COLUMN * (len(at) - 1)
    bottom = HEAD + ROW * len(diagram.messages) + 12
    parts = []
    for title, members in diagram.boxes:
        left, right = at[members[0]] - COLUMN / 2 + 4, at[members[-1]] + COLUMN / 2 - 4
        parts.append(f'<rect class="box" x="{left}" y="1" width="{right - left}" height="{bottom}" rx="4"/>')
        parts.append(_words((left + right) / 2, 16, title, "title"))
    for name, label in diagram.names.items():
        parts.append(f'<line class="life" x1="{at[name]}" y1="46" x2="{at[name]}" y2="{bottom}"/>')
        for row, words in enumerate(_broken(label)):
            parts.append(_words(at[name], 32 + 12 * row, words, "name"))
    for row, message in enumerate(diagram.messages):
        parts += _message(at[message.source], at[message.target], HEAD + ROW * (row + 0.6), message)
    heads = (
        '<defs><marker id="sequence-head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker>'
        '<marker id="sequence-open" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0 0L8 4L0 8" fill="none" stroke="currentColor"/></marker></defs>'
    )
    told = "; ".join(f"{m.source} to {m.target}: {m.text}" for m in diagram.messages)
    size = f'viewBox="0 0 {width} {bottom + 3}" width="{width}" height="{bottom + 3}"'
    return f'<svg role="img" aria-label="{escape(told, quote=True)}" {size}>{heads}{"".join(parts)}</svg>'


def _message(left: float, right: float, y: float, message: Message) -> list[str]:
    head = "sequence-open" if message.arrow == "-)" else "sequence-head"
    dashed = ' stroke-dasharray="4 3"' if message.arrow == "-->>" else ""
    if left == right:
        path = f"M{left} {y - 6}h22v10h-21"
        return [
            f'<path class="message" d="{path}" marker-end="url(#{head})"{dashed}/>',
            _words(left + 28, y + 3, message.text, "said", "start"),
        ]
    # the words stand over the arrow; beside the last lifeline there is no room to the right
    return [
        f'<line class="message" x1="{left}" y1="{y}" x2="{right}" y2="{y}" marker-end="url(#{head})"{dashed}/>',
        _words((left + right) / 2, y - 5, message.text, "said"),
    ]


def _words(x: float, y: float, text: str, kind: str, anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _broken(label: str) -> list[str]:
    """A label in two lines where it is long."""
    cut = max(label.find("/"), label.find(", ") + 1) if len(label) > 14 else 0
    return [label[: cut + 1], label[cut + 1 :]] if cut > 0 else ["", label]
