"""A study whose large pictures are cut into tiles, with the real method."""

from __future__ import annotations

import json

from server.simulation.simulate import simulate
from tests.server.conftest import make_study


def test_sites_of_large_pictures_train_on_tiles_and_weigh_by_pictures(quiet, tmp_path):
    study = make_study(image={"size": 32, "mode": "tile"}, pretrain__rounds=1, segment__rounds=1)
    study.simulation.data.synth.size = 64
    summary = simulate(study, tmp_path, reporter=quiet)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "train" in line and line["site"] != "*"]
    assert len(trained) == 4 and all(line["accepted"] for line in trained)
    steps = {line["site"]: line["train"]["n_steps"] for line in trained if line["phase"] == "segment"}
    for line in trained:
        site = summary["sites"][line["site"]]
        pictures = site["n_labeled"] + site["n_unlabeled"]
        assert 0 < line["num-examples"] <= pictures
        # four tiles of each picture, and as many more steps
        assert steps[line["site"]] == -(-4 * pictures // study.segment.batch)
    assert summary["global"]["dice_mean"] is not None
