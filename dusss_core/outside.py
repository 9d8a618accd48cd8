"""Text from outside: a message's names, a reason that quotes them, an error's text.

Before it is written (log.txt, the audit log, the screen) it is shortened and escaped here, so that nobody can write
lines of their own into a log, move a terminal's cursor, or fill a disk with a name.
"""

from __future__ import annotations

LONGEST = 500
"""Characters of a text that are kept."""
_MARGIN = "    | "
"""Before every further line of a text of several, so that none looks like a line of the log's own."""


def shown(text: object, longest: int = LONGEST) -> str:
    """`text` in one line: what cannot be printed is escaped (`\\n`, `\\x1b`), what is too long is cut, and that told.

    Args:
        longest: characters that are kept, before they are escaped.
    """
    whole = str(text)
    kept = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in whole[:longest])
    return kept if len(whole) <= longest else f"{kept}... ({len(whole)} characters)"


def printable(text: object) -> str:
    """`text` of a program's own, whose lines are its own too, with all else that cannot be printed escaped."""
    return "\n".join(shown(line, 10_000) for line in str(text).split("\n"))


def shown_lines(text: object, most: int = 200, longest: int = 2000) -> str:
    """`text` of several lines, such as a traceback: each as `shown`, all but the first behind a margin.

    Args:
        most: lines that are kept, of which the last ones say what went wrong.
    """
    lines = str(text).rstrip("\n").split("\n")
    if len(lines) > most:
        lines = [*lines[:1], f"... ({len(lines) - most} lines)", *lines[len(lines) - most + 1 :]]
    return f"\n{_MARGIN}".join(shown(line, longest) for line in lines)
