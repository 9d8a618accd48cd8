"""Training of both phases at one site, and the evaluation of what came out.

A trainer holds one site's share of one phase: `load_shared` takes the round's global model, `train_round` trains,
`shared` is what may travel, `private` is what may not.
"""

from dusss_core.training.evaluation import (
    at_its_best,
    evaluate_logits,
    evaluate_student,
    text_guided_masks,
    told_logits,
)
from dusss_core.training.finetuning import fine_tuned, on_labels_alone
from dusss_core.training.judging import dice_of_text
from dusss_core.training.personal import PersonalSegmenter, student_after
from dusss_core.training.pretrain import Pretrainer
from dusss_core.training.segment import Segmenter
from dusss_core.training.sharing import Start, can_train, handed_on, initial_shared, start_of
from dusss_core.training.statistics import with_own_statistics

__all__ = [
    "PersonalSegmenter",
    "Pretrainer",
    "Segmenter",
    "Start",
    "at_its_best",
    "can_train",
    "dice_of_text",
    "evaluate_logits",
    "evaluate_student",
    "fine_tuned",
    "handed_on",
    "initial_shared",
    "on_labels_alone",
    "start_of",
    "student_after",
    "text_guided_masks",
    "told_logits",
    "with_own_statistics",
]
