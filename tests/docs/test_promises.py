"""Each promise of the documents stands where it is said to stand, and the tests that hold it are there."""

from __future__ import annotations

import pytest

from docsite import promises
from docsite.promises import NoPromise, Promise, broken, idle
from docsite.sentences import sentences
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
    assert promises.PAGE.read_text(encoding="utf-8") == promises.page()


def test_every_sentence_that_promises_something_names_its_tests_or_why_it_is_none():
    assert promises.main(["--check"]) == cli.OK


def test_a_new_sentence_in_neither_list_fails_by_name(monkeypatch, capsys):
    monkeypatch.setattr(promises, "documents", lambda: ["docs/privacy.md"])
    monkeypatch.setattr(promises, "_sentences", lambda path: ("Nobody will ever know.", *sentences(path.read_text())))
    assert promises.main(["--check"]) == cli.USER_MUST_MEND
    told = capsys.readouterr().err
    assert "docs/privacy.md: neither a promise nor none: Nobody will ever know." in told
    assert "promises.yaml" in told and "no_promises.yaml" in told


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


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (NoPromise("docs/privacy.md", "Whose privacy", "explains"), "no such sentence"),
        (NoPromise("docs/gone.md", "Whose privacy.", "explains"), "no such sentence"),
        (NoPromise("docs/privacy.md", "Whose privacy.", ""), "no reason"),
    ],
)
def test_a_sentence_is_excused_whole_and_with_a_reason(other, reason):
    assert reason in idle(other)
    assert idle(NoPromise("docs/privacy.md", "**Whose privacy.**", "a heading")) is None


def test_what_is_listed_and_what_is_excused_is_not_told_as_unlisted(monkeypatch):
    monkeypatch.setattr(promises, "documents", lambda: ["docs/privacy.md"])
    monkeypatch.setattr(promises, "promises", lambda: [])
    monkeypatch.setattr(promises, "no_promises", lambda: [])
    everything = [sentence for _, sentence in promises.unlisted()]
    first, second, *others = everything
    monkeypatch.setattr(promises, "promises", lambda: [Promise("docs/privacy.md", first[-30:], [TEST])])
    monkeypatch.setattr(promises, "no_promises", lambda: [NoPromise("docs/privacy.md", second, "explains")])
    assert [sentence for _, sentence in promises.unlisted()] == others


def test_every_page_that_people_write_is_read_and_no_other():
    read = set(promises.documents())
    assert {"README.md", "docs/results.md", "docs/tutorials/own_pictures.md", "docs/reference/index.md"} <= read
    assert not {"docs/promises.md", "docs/reference/study.md"} & read


def test_line_ends_and_emphasis_do_not_count():
    assert (
        broken(Promise("docs/privacy.md", "Whose privacy. One patient of this hospital's training data", [TEST]))
        is None
    )
