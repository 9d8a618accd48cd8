"""Each promise of the documents stands where it is said to stand, and the tests that hold it are there."""

from __future__ import annotations

import pytest

from docsite import promises
from docsite.promises import Promise, broken
from feddusss import cli

WEIGHTY = {
    "docs/architecture.md",
    "docs/privacy.md",
    "docs/secure_aggregation.md",
    "docs/reliability.md",
    "docs/deploy.md",
    "docs/use_a_model.md",
}


@pytest.mark.parametrize("promise", promises.promises(), ids=lambda promise: f"{promise.document}: {promise.says[:50]}")
def test_a_promise_stands_in_its_document_and_its_tests_are_there(promise):
    assert broken(promise) is None


def test_every_document_that_promises_is_in_the_list():
    assert {promise.document for promise in promises.promises()} >= WEIGHTY


def test_the_page_is_that_of_the_list():
    assert promises.main(["--check"]) == cli.OK


TEST = "tests/docs/test_promises.py::test_the_page_is_that_of_the_list"


@pytest.mark.parametrize(
    ("promise", "reason"),
    [
        (Promise("docs/privacy.md", "Nobody can ever learn anything.", [TEST]), "does not say"),
        (Promise("docs/gone.md", "Whose privacy.", [TEST]), "does not say"),
        (Promise("docs/privacy.md", "Whose privacy.", []), "no test holds"),
        (Promise("docs/privacy.md", "Whose privacy.", [TEST + "_too"]), "no such test"),
        (Promise("docs/privacy.md", "Whose privacy.", ["tests/gone.py::test_x"]), "no such test"),
    ],
)
def test_a_promise_that_nothing_holds_is_told_of(promise, reason):
    assert reason in broken(promise)


def test_line_ends_and_emphasis_do_not_count():
    assert (
        broken(Promise("docs/privacy.md", "Whose privacy. One patient of this hospital's training data", [TEST]))
        is None
    )
