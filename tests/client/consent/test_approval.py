"""A person says yes to a study, with all its settings and partners, before anything of it runs at the site."""

from __future__ import annotations

import json

import pytest

from client.__main__ import main
from client.answer import answer
from client.consent.book import MOST_WAITING, Book
from client.consent.proposal import Proposal, digest_of
from client.state.chain import entries
from feddusss import __version__, cli
from tests.client.conftest import declined, limit, make_content
from tests.server.conftest import make_study

PARTNERS = {"alder": "SHA256:aaaa", "birch": "SHA256:bbbb", "cedar": "SHA256:cccc"}


def study_of(**changes):
    federation = {"min_sites": 2, **changes.pop("federation", {})}
    method = changes.pop("method", {"preset": "mean_teacher"})
    return make_study(**{"method": method, "federation": federation, **changes})


def terms_of(study, partners=PARTNERS) -> str:
    return study.terms(partners).model_dump_json()


def asks(site_file, study=None, kind="train", partners=PARTNERS, **settings):
    """What the site says to a message of that study."""
    study = study or study_of()
    content = make_content(study=study.training(), terms=terms_of(study, partners), **settings)
    return declined(answer(kind, content, site_file))


def approves(site_file, capsys, study="tiny", *options):
    """Look at what asks, and approve it by the digest that is shown."""
    assert main(["show", study, "--site", str(site_file)]) == cli.OK
    shown = capsys.readouterr().out
    digest = shown.split("python -m client approve ")[1].split()[1]
    assert main(["approve", study, digest, "--site", str(site_file), "--by", "Dr Data", *options]) == cli.OK
    capsys.readouterr()
    return shown


@pytest.fixture
def careful(site_file, fake):
    limit(site_file, approval=True)
    return site_file


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_nothing_is_trained_evaluated_or_told_before_a_person_has_approved_it(careful, capsys, kind, fake):
    what = {"what": "val"} if kind == "evaluate" else {}
    assert "waiting for approval at alder" in asks(careful, kind=kind, **what)
    assert not list((careful.parent / "state").glob("studies/*"))
    approves(careful, capsys)
    assert asks(careful, kind=kind, **what) is None


def test_a_yes_is_to_the_whole_digest_that_was_shown(careful, capsys):
    asks(careful)
    assert main(["show", "tiny", "--site", str(careful)]) == cli.OK
    digest = capsys.readouterr().out.split("python -m client approve ")[1].split()[1]
    assert len(digest) == 64
    # two proposals that begin alike are cheap to make, and the first is pushed out by sending more
    for typed in (digest[:12], digest[:63]):
        assert main(["approve", "tiny", typed, "--site", str(careful)]) == cli.USER_MUST_MEND
        assert "may begin with them" in capsys.readouterr().err
    assert asks(careful) is not None


def test_a_proposal_that_is_pushed_out_while_the_book_is_read_is_none_that_was_changed(careful, monkeypatch):
    for seed in (1, 2):
        asks(careful, study_of(seed=seed))
    book, read = Book(careful.parent / "state"), Book._read

    def read_late(self, path, approvals):
        if path.exists() and len(list(path.parent.iterdir())) == 2:
            path.unlink()
        return read(self, path, approvals)

    monkeypatch.setattr(Book, "_read", read_late)
    assert len(book.all()) == 1


def test_an_approved_study_of_secure_sums_gets_no_update_outside_of_one(careful, capsys):
    study = study_of(federation={"secure_aggregation": True, "min_sites": 3})
    asks(careful, study)
    approves(careful, capsys)
    assert "outside of a sum" in asks(careful, study)
    assert not list((careful.parent / "state").glob("studies/*/*/segment-0*"))
    assert asks(careful, study, kind="query") is None


def test_what_was_approved_by_whom_and_when_stands_in_the_audit_log(careful, capsys):
    asks(careful)
    approves(careful, capsys)
    log = entries(careful.parent / "state" / "audit.jsonl")
    [asked] = [entry["fields"] for entry in log if entry["event"] == "approval asked for"]
    [approved] = [entry["fields"] for entry in log if entry["event"] == "study approved"]
    assert approved == {**asked, "by": "Dr Data"} and asked["study"] == "tiny" and len(asked["digest"]) == 64


def test_all_of_a_study_is_kept_here_in_clear_and_shown_as_a_person_reads_it(careful, capsys):
    study = study_of(segment={"optimizer": {"lr": 0.05}})
    asks(careful, study)
    [path] = (careful.parent / "state" / "approvals" / "tiny").glob("*.json")
    kept = json.loads(path.read_text())
    assert kept["training"] == study.training().model_dump(mode="json")
    assert kept["terms"]["partners"] == PARTNERS and kept["terms"]["release"] == __version__
    assert main(["studies", "--site", str(careful)]) == cli.OK
    listed = capsys.readouterr().out
    assert "tiny" in listed and path.stem[:12] in listed and "waits for approval" in listed
    shown = approves(careful, capsys)
    assert f"release   {__version__}" in shown and f"digest    {path.stem}" in shown
    assert "partners  3, of which each round needs 2 at least" in shown
    assert all(f"{name}  {key}" in shown for name, key in PARTNERS.items())
    assert "segment.optimizer.lr: 0.05" in shown and "federation.weighting: " in shown
    assert "leaves    in each round the trained weights of the student" in shown and "stays     pictures" in shown
    main(["studies", "--site", str(careful)])
    assert "approved by Dr Data" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("federation", "more", "told"),
    [
        ({"secure_aggregation": True, "min_sites": 3}, "", "inside a sum over several hospitals alone"),
        (
            {},
            "privacy: {epsilon: 8, delta: 1.0e-5, records: 16}\n",
            "with noise (epsilon 8, delta 1e-05)",
        ),
    ],
)
def test_what_will_leave_is_shown_as_the_study_and_the_sites_own_file_have_it(careful, capsys, federation, more, told):
    asks(careful, study_of(federation=federation))
    careful.write_text(careful.read_text() + more)
    shown = approves(careful, capsys).partition("leaves    ")[2].partition("stays     ")[0]
    assert told in shown and ("no other figure" in shown) == bool(more)


def test_a_simulation_asks_nobody(fake, tmp_path):
    """Its sites are made by whoever starts it."""
    from server.simulation.materialise import materialise
    from sites.config import load_site

    files = materialise(study_of(), tmp_path / "run")
    assert files and not any(load_site(file).limits.approval for file in files)
    assert all(asks(file) is None for file in files)


@pytest.mark.parametrize(
    "changes",
    [
        {"segment": {"patience": 21}},
        {"segment": {"optimizer": {"lr": 0.05}}},
        {"method": {"preset": "supervised"}},
        {"federation": {"min_sites": 1}},
        {"federation": {"weighting": "uniform"}},
        {"federation": {"sizes": {"alder": 16}}},
        {"seed": 99},
    ],
)
def test_the_approved_name_with_other_settings_waits_for_a_new_yes(careful, capsys, changes):
    asks(careful)
    approves(careful, capsys)
    assert "waiting for approval" in asks(careful, study_of(**changes))
    key = next(iter(changes))
    assert main(["show", "tiny", "--site", str(careful)]) == cli.OK
    told = capsys.readouterr().out.split("changed since approved by Dr Data")[1].split("settings that are not")[0]
    assert f"{key}." in told or f"{key}:" in told
    assert asks(careful) is None  # what was approved still may


@pytest.mark.parametrize(
    "partners",
    [
        {"alder": PARTNERS["alder"]},
        {**PARTNERS, "stranger": "SHA256:dddd"},
        {**PARTNERS, "birch": "SHA256:other"},
        {},
    ],
)
def test_other_partners_wait_for_a_new_yes(careful, capsys, partners):
    asks(careful)
    approves(careful, capsys)
    assert "waiting for approval" in asks(careful, partners=partners)


def test_timeouts_fewer_rounds_and_a_partner_who_leaves_need_no_new_yes(careful, capsys):
    asks(careful, study_of(segment={"rounds": 3}))
    approves(careful, capsys)
    free = study_of(segment={"rounds": 2}, federation={"min_sites": 2, "round_timeout_s": 5, "retries": 0})
    assert asks(careful, free) is None
    left = {name: key for name, key in PARTNERS.items() if name != "cedar"}
    assert asks(careful, study_of(segment={"rounds": 3}), partners=left) is None
    assert "waiting for approval" in asks(careful, study_of(segment={"rounds": 4}))


def test_a_yes_holds_for_another_release_and_for_settings_that_it_brings(careful, capsys):
    asks(careful)
    approves(careful, capsys)
    # as the release before kept it: it had neither that setting nor that number
    [path] = (careful.parent / "state" / "approvals" / "tiny").glob("*.json")
    older = json.loads(path.read_text())
    assert older["training"]["segment"].pop("patience", "absent") != "absent"
    older["terms"]["release"] = "0.0.1"
    text = json.dumps(older, sort_keys=True, indent=1)
    approved = path.parents[1] / "_approved.json"
    approved.write_text(approved.read_text().replace(path.stem, digest_of(text)))
    path.unlink()
    (path.parent / f"{digest_of(text)}.json").write_text(text)
    assert asks(careful) is None
    assert "waiting for approval" in asks(careful, study_of(segment={"patience": 3}))


def test_a_message_that_does_not_say_who_takes_part_is_not_approved_blindly(careful):
    content = make_content(study=study_of().training())
    assert "does not say who takes part" in declined(answer("train", content, careful))
    hostile = make_content(study=study_of().training(), terms='{"release": "\\u001b[2J", "partners": {}}')
    assert "does not say who takes part" in declined(answer("train", hostile, careful))


def test_a_yes_that_is_withdrawn_no_longer_holds(careful, capsys):
    asks(careful)
    approves(careful, capsys)
    assert main(["withdraw", "tiny", "--site", str(careful)]) == cli.OK
    assert "waiting for approval" in asks(careful)
    capsys.readouterr()
    assert main(["studies", "--site", str(careful)]) == cli.OK
    assert "withdrawn" in capsys.readouterr().out


def test_without_the_limit_nobody_is_asked_and_nothing_is_kept(site_file, fake):
    assert asks(site_file) is None
    assert not (site_file.parent / "state" / "approvals").exists()


class TestBadInput:
    def refused(self, capsys, site_file, *argv):
        assert main([*argv, "--site", str(site_file)]) == cli.USER_MUST_MEND
        return capsys.readouterr().err

    def test_an_unknown_study_is_named_with_those_that_asked(self, careful, capsys):
        asks(careful)
        assert "there are: tiny" in self.refused(capsys, careful, "show", "lungs")
        assert "there are: tiny" in self.refused(capsys, careful, "approve", "lungs", "0" * 12)
        assert "studies --site" in self.refused(capsys, careful, "withdraw", "lungs")

    def test_a_strangers_digest_approves_nothing(self, careful, capsys):
        asks(careful)
        assert "no proposal of tiny has this digest" in self.refused(capsys, careful, "approve", "tiny", "0" * 64)
        assert "no proposal of tiny has this digest" in self.refused(capsys, careful, "approve", "tiny", "x")
        assert "waiting for approval" in asks(careful)

    def test_a_file_that_was_changed_between_show_and_approve_is_not_approved(self, careful, capsys):
        asks(careful)
        [path] = (careful.parent / "state" / "approvals" / "tiny").glob("*.json")
        main(["show", "tiny", "--site", str(careful)])
        capsys.readouterr()
        body = json.loads(path.read_text())
        body["training"]["segment"]["optimizer"]["lr"] = 0.5
        path.write_text(json.dumps(body))
        told = self.refused(capsys, careful, "approve", "tiny", path.stem)
        assert "was changed after it was kept" in told and str(path) in told
        assert "waiting for approval" in asks(careful)

    def test_a_full_disk_while_approving_changes_nothing(self, careful, capsys, monkeypatch):
        asks(careful)
        [path] = (careful.parent / "state" / "approvals" / "tiny").glob("*.json")

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("client.consent.book.write_json", full)
            told = self.refused(capsys, careful, "approve", "tiny", path.stem)
        assert "No space left" in told and "nothing was changed" in told
        assert "waiting for approval" in asks(careful)

    @pytest.mark.parametrize("name", ["approved.json", "lock", "_approved.json", "_lock"])
    def test_a_study_named_like_a_file_of_the_book_keeps_no_other_from_being_approved(self, careful, capsys, name):
        content = make_content(terms=terms_of(study_of()))
        content["config"]["training"] = study_of().training().model_dump_json().replace('"tiny"', f'"{name}"')
        assert declined(answer("train", content, careful)) is not None
        asks(careful)
        approves(careful, capsys)
        assert asks(careful) is None

    def test_many_proposals_push_out_the_oldest_that_waits_and_never_an_approved_one(self, careful, capsys):
        asks(careful)
        approves(careful, capsys)
        book = Book(careful.parent / "state")
        for seed in range(MOST_WAITING + 5):
            study = study_of(seed=100 + seed)
            book.ask(Proposal(study.training(), study.terms(PARTNERS)))
        assert len(book.all()) == MOST_WAITING + 1
        assert asks(careful) is None


def test_what_a_message_holds_is_one_printable_line_for_each_setting(careful, capsys):
    study = study_of(vlm={"text": {"encoder": "hub:a\nrm -rf /\x1b[2J"}})
    asks(careful, study)
    main(["show", "tiny", "--all", "--site", str(careful)])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and not [line for line in shown.splitlines() if line.startswith("rm -rf")]
