"""summary.json has the test figures under the names of docs/run_files.md, and no other that a site sends."""

from __future__ import annotations

import pytest

from server.rounds.summary import figures_of_test, overall


def test_what_a_site_sends_of_its_test_is_ordered_and_nothing_is_made_up():
    sent = {"dice": 0.7, "iou": 0.6, "hd95": 4.0, "n": 20.0, "dice_pooled": 0.8, "dice_1": 0.75, "dice_pooled_1": 0.81}
    sent |= {"n_positive": 18.0, "n_positive_1": 17.0, "dice_low": 0.65, "dice_high": 0.74, "iou_low": 0.5}
    sent |= {"dice_from_0": 5.0, "dice_from_60": 15.0, "text_dice": 0.9, "text_dice_low": 0.8, "text_dice_high": 0.95}
    sent |= {"text_dice_from_0": 20.0, "dice_of_patient_7": 0.1, "surprise_low": 1.0, "surprise_high": 2.0}
    found = figures_of_test(sent)
    assert found == {
        "dice": 0.7, "iou": 0.6, "hd95": 4.0, "dice_pooled": 0.8, "dice_1": 0.75, "dice_pooled_1": 0.81,
        "n_positive": 18, "n_positive_1": 17, "text_dice": 0.9,
        "intervals": {"dice": [0.65, 0.74], "text_dice": [0.8, 0.95]},
        "dice_bins": {"0": 5, "60": 15}, "text_dice_bins": {"0": 20},
    }  # fmt: skip
    assert isinstance(found["n_positive"], int)
    assert figures_of_test({}) == {"dice": None, "iou": None, "hd95": None}


def test_both_kinds_of_dice_are_over_sites():
    sites = {"a": {"n_test": 10, "dice": 0.6, "dice_pooled": 0.8}, "b": {"n_test": 30, "dice": 0.7, "dice_pooled": 0.7}}
    found = overall(sites)
    assert found["dice_mean"] == pytest.approx(0.65) and found["dice_worst"] == 0.6
    assert found["dice_pooled_mean"] == pytest.approx(0.75) and found["dice_pooled_worst"] == 0.7
    assert not any("pooled" in name for name in overall({"a": {"n_test": 10, "dice": 0.6}}))
