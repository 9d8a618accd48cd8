"""The one error that means "the user must mend something"."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the program is wrong and a person can put it right.

    Command lines print it without a traceback and exit with code 2.

    Args:
        problem: what is wrong, with the place: file, row, key.
        remedy: what to do about it, one imperative sentence.
    """

    def __init__(self, problem: str, remedy: str = ""):
        super().__init__(problem if not remedy else f"{problem}\n  -> {remedy}")
        self.problem = problem
        self.remedy = remedy


class NotFinite(UserError):
    """Training gave a loss or weights that are not finite."""
