"""What counts as a sentence of a document, and what does not."""

from __future__ import annotations

from docsite.sentences import sentences


def test_code_and_diagrams_and_what_a_script_writes_are_no_sentences():
    text = """# Head

Before:

    python -m server  # Nothing of this.

```mermaid
A-->B: never
```

<!-- systems: written by benchmarks/systems.py -->
| nothing | never |
<!-- systems: end -->
<!-- A comment. -->
After.
"""
    assert sentences(text) == ["Head", "Before:", "After."]
    assert sentences("# A page\n\n<!-- written by docsite/x.py -->\n\nNothing.\n") == []


def test_items_headings_and_cells_are_sentences_of_their_own():
    text = """## No full stop
A paragraph over
two lines
- one, that goes on
  here
- two

  and a paragraph of it
1. three
   > quoted
### Next

| Head | And `a \\| b` |
|:--|--:|
| a cell | |
"""
    assert sentences(text) == [
        "No full stop",
        "A paragraph over two lines",
        "one, that goes on here",
        "two",
        "and a paragraph of it",
        "three quoted",
        "Next",
        "Head",
        "And a \\| b",
        "a cell",
    ]


def test_a_paragraph_is_cut_where_a_sentence_ends():
    text = "**The promise.** One of 1.5 million. `fit` is one: so is this. Third: Four! (A fifth.) [Sixth](x.md)? 7 no."
    assert sentences(text) == [
        "The promise.",
        "One of 1.5 million.",
        "fit is one: so is this.",
        "Third:",
        "Four!",
        "(A fifth.)",
        "[Sixth](x.md)? 7 no.",
    ]
