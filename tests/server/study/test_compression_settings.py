"""What a study may not combine with compressed changes is refused when it is loaded, with the reason."""

from __future__ import annotations

import pytest

from dusss_core.errors import UserError
from server.study.config import load_study


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["wire=int8", "secure_aggregation=true"], "masked numbers cannot be compressed"),
        (["wire=topk", "secure_aggregation=true"], "masked numbers cannot be compressed"),
        (["wire=topk", "strategy=fedmedian"], "no change at all: choose int8, or a strategy that needs the mean"),
        (["wire=topk", "strategy=fedtrimmedavg"], "no change at all"),
        (["wire=topk", "strategy=krum"], "no change at all"),
        (["wire=int4"], "known here: float32, bfloat16, int8, topk"),
        (["wire=topk", "topk_share=0"], "greater than 0"),
        (["wire=topk", "topk_share=0.6"], "less than or equal to 0.5"),
    ],
)
def test_what_does_not_go_with_compression_is_refused_with_the_reason(settings, reason):
    with pytest.raises(UserError, match=reason):
        load_study("demo", [f"federation.{setting}" for setting in settings])


@pytest.mark.parametrize("settings", [["wire=int8", "strategy=fedmedian"], ["wire=topk", "strategy=fedadam"]])
def test_what_goes_with_compression_is_taken(settings):
    load_study("demo", [f"federation.{setting}" for setting in settings])
