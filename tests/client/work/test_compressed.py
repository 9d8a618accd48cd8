"""A site whose updates travel compressed: what is lost stays here and is added to the next update."""

from __future__ import annotations

import pytest
import torch

from client.answer import answer
from client.state.store import SiteState
from client.work.workbench import forget
from dusss_core.files import digest_of_tensors
from dusss_core.phases import Phase
from feddusss import compression, wire
from feddusss.compression import compress, expand
from tests.client.conftest import RUN_KEY, declined, make_content, tensors_of
from tests.client.privacy.test_paid import ledger_of, sent

SETTINGS = {"topk": {"wire": "topk", "topk_share": 0.3}, "int8": {"wire": "int8"}}
BOTH = pytest.mark.parametrize("name", SETTINGS)


@pytest.fixture(autouse=True)
def small(fake, monkeypatch):
    monkeypatch.setattr(compression, "SMALL", 4)
    monkeypatch.setattr(compression, "BLOCK", 8)


def model():
    return tensors_of(make_content())


def codec(name):
    return compression.codec(name, 0.3)


def message(name, round, model, base=None, digest=None):
    """A message with the whole model, or with the change from `base`."""
    content = make_content(
        round=round,
        model_digest=digest or digest_of_tensors(model),
        **SETTINGS[name],
        **({"base": digest_of_tensors(base)} if base else {}),
    )
    content["arrays"] = wire.pack(compress(codec(name), model, base)[0] if base else model)
    return content


def change(reply, name):
    """What the coordinator makes of an answer, as a difference."""
    before = model()
    zeros = {tensor: value * 0 if wire.is_rounded(tensor, value) else value for tensor, value in before.items()}
    return expand(codec(name), tensors_of(reply), zeros)["body.weight"]


def state_of(site_file) -> SiteState:
    return SiteState(site_file.parent / "state", "tiny", RUN_KEY)


@BOTH
def test_what_an_update_loses_is_in_the_next_one(site_file, name):
    truth = []
    for round in (1, 2, 3):
        answered = answer("train", make_content(round=round, run_key="cd" * 16), site_file)
        truth.append(tensors_of(answered)["body.weight"] - model()["body.weight"])
    arrived = [change(answer("train", message(name, round, model()), site_file), name) for round in (1, 2, 3)]
    lost = state_of(site_file).lost(Phase.SEGMENT, 4)["body.weight"]
    assert float(lost.abs().max()) > 0
    torch.testing.assert_close(sum(arrived) + lost, sum(truth), rtol=0, atol=1e-5)
    assert not torch.allclose(arrived[1], truth[1], rtol=0, atol=1e-4)


@BOTH
def test_a_round_that_is_asked_for_again_is_answered_with_the_same_bytes(site_file, name):
    answer("train", message(name, 1, model()), site_file)
    second = sent_tensors(answer("train", message(name, 2, model()), site_file))
    assert sent_tensors(answer("train", message(name, 2, model()), site_file)) == second
    forget()
    assert sent_tensors(answer("train", message(name, 2, model()), site_file)) == second


def test_a_site_that_missed_rounds_keeps_what_it_lost(site_file):
    answer("train", message("topk", 1, model()), site_file)
    lost = state_of(site_file).lost(Phase.SEGMENT, 2)["body.weight"]
    assert torch.equal(state_of(site_file).lost(Phase.SEGMENT, 9)["body.weight"], lost)
    with_it = change(answer("train", message("topk", 9, model()), site_file), "topk")
    for file in state_of(site_file).folder.glob("*-lost-*"):
        file.unlink()
    assert not torch.equal(change(answer("train", message("topk", 9, model()), site_file), "topk"), with_it)


def test_models_and_losses_of_two_rounds_are_kept(site_file):
    for round in (1, 2, 3, 4):
        answer("train", message("int8", round, model()), site_file)
    for kind in ("lost", "reference"):
        files = sorted(path.name for path in state_of(site_file).folder.glob(f"segment-{kind}-*"))
        assert files == [f"segment-{kind}-00000{round}.safetensors" for round in (3, 4)]


def test_without_compression_nothing_of_it_is_kept(site_file):
    answer("train", make_content(), site_file)
    assert not [
        path for path in state_of(site_file).folder.iterdir() if "lost" in path.name or "reference" in path.name
    ]


@BOTH
def test_a_change_brings_a_site_to_the_model_that_its_digest_names(site_file, name, monkeypatch):
    from tests.server import fake_training

    loaded = []
    monkeypatch.setattr(fake_training._Trainer, "load_shared", lambda self, tensors: loaded.append(tensors) or 1 / 0)
    first, second = model(), {tensor: value + 1 for tensor, value in model().items()}
    state_of(site_file).save_exchanged(Phase.SEGMENT, 1, digest_of_tensors(first), first, {})
    arrives = expand(codec(name), compress(codec(name), second, first)[0], first)
    answer("train", message(name, 2, second, first, digest_of_tensors(arrives)), site_file)
    assert digest_of_tensors(loaded[0]) == digest_of_tensors(arrives)


@pytest.mark.parametrize(
    ("base", "digest", "lacks"),
    [
        # never sent; the sum is another; a whole model is another than was announced
        ({"w": torch.zeros(1)}, None, True),
        (None, "ab" * 32, False),
    ],
)
def test_a_model_that_is_not_what_was_announced_is_declined(site_file, base, digest, lacks):
    content = message("int8", 2, model(), digest=digest)
    if base:
        content["config"]["base"] = digest_of_tensors(base)
    reply = answer("train", content, site_file)
    assert declined(reply) and reply.config_records["config"].get("lacks", False) is lacks
    assert not state_of(site_file).folder.exists()


def test_a_change_of_another_form_is_declined(site_file):
    first = model()
    state_of(site_file).save_exchanged(Phase.SEGMENT, 1, digest_of_tensors(first), first, {})
    content = message("int8", 2, first, first)
    content["arrays"] = wire.pack({"body.weight": torch.zeros(10**4)})
    assert "missing" in declined(answer("train", content, site_file))


def test_a_private_site_is_served_the_same_bytes_and_pays_for_another_encoding(private, site_file):
    private.site(site_file, epsilon=50)
    first = answer("train", message("int8", 1, model()), site_file)
    assert sent(answer("train", message("int8", 1, model()), site_file)) == sent(first)
    assert len(ledger_of(site_file).entries()) == 1
    others = [message("topk", 1, model()), message("topk", 1, model())]
    others[1]["config"]["topk_share"] = 0.2
    for number, other in enumerate(others, start=2):
        assert declined(answer("train", other, site_file)) is None
        assert len(ledger_of(site_file).entries()) == number


def sent_tensors(reply) -> bytes:
    """The tensors of an answer as they travel."""
    assert declined(reply) is None
    return wire.content(reply.array_records["arrays"])
