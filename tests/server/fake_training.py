"""Stands in for `dusss_core.training`: the same interface over a few numbers, so that the federation is tested alone.

What a round makes depends on all that may matter: the shared and the private state, the data, the round, the seeds.
"""

from __future__ import annotations

import numpy as np
import torch

from dusss_core.errors import NotFinite
from dusss_core.seeds import generator

NORM = ("norm.weight", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked")


def install(monkeypatch) -> None:
    """Put the stand-in where the sites and the coordinator look."""
    import client.work.workbench
    import dusss_core.student
    import dusss_core.training
    import server.simulation.local

    for name in (
        "Pretrainer",
        "Segmenter",
        "can_train",
        "start_of",
        "initial_shared",
        "text_guided_masks",
        "dice_of_text",
        "evaluate_student",
        "evaluate_logits",
        "with_own_statistics",
        "at_its_best",
    ):
        monkeypatch.setattr(dusss_core.training, name, globals()[name])
    monkeypatch.setattr(dusss_core.student, "whole_student", lambda config, tensors, layers=None: dict(tensors))
    monkeypatch.setattr(dusss_core.student, "layers_without_a_site", lambda config: "shared")
    monkeypatch.setattr(dusss_core.student, "write_fitted", lambda *args, **more: False)
    for module in (client.work.workbench, server.simulation.local):
        monkeypatch.setattr(module, "build_text_bank", lambda sentences, *args, **kwargs: tuple(sentences))


def can_train(config, phase, train):
    if len(train) == 0:
        return "the site has no training pictures"
    if phase == "pretrain" and not train.has_text.any():
        return "the site has no sentences"
    return None


def with_own_statistics(config, phase, tensors, *rest):
    return tensors


def at_its_best(config, student, *rest):
    return student


def initial_shared(config, phase, vlm=None):
    draw = generator(config.seed, "init", phase)
    tensors = {
        "body.weight": torch.randn(3, 4, generator=draw),
        "body.bias": torch.zeros(4),
        "scale": torch.tensor(1.0),
        "norm.weight": torch.ones(4),
        "norm.running_mean": torch.zeros(4),
        "norm.running_var": torch.ones(4),
        "norm.num_batches_tracked": torch.tensor(0),
    }
    return {name: tensor for name, tensor in tensors.items() if not (config.local_norm and name in NORM)}


def start_of(config, phase, vlm=None):
    from dusss_core.training.sharing import Start

    return Start(initial_shared(config, phase, vlm), {})


class _Trainer:
    phase = ""

    def __init__(self, config, site, train, val, *, device, progress, heir_of=None):
        self.config, self.site, self.train, self.val, self.progress = config, site, train, val, progress
        self.model = initial_shared(config.model_copy(update={"local_norm": False}), self.phase)
        self.moment = torch.zeros(3, 4)
        self.teacher = None
        self.step = 0
        self.steps_per_round = getattr(config, self.phase).epochs * max(1, len(train) // 8)

    def load_shared(self, tensors):
        self.model.update({name: tensor.clone() for name, tensor in tensors.items()})
        if self.step == 0:
            self.teacher = self.model["body.weight"].clone()

    def shared(self, *, copies=True):
        return {
            name: tensor.clone() for name, tensor in self.model.items() if not (self.config.local_norm and name in NORM)
        }

    def shapes(self):
        return {name: tensor.shape for name, tensor in self.shared().items()}

    def private(self, *, copies=True):
        local = {f"local.{name}": self.model[name].clone() for name in NORM if self.config.local_norm}
        return {
            "step": torch.tensor(self.step),
            "optimizer.0.exp_avg": self.moment.clone(),
            "objective.teacher.body.weight": self.teacher.clone(),
            **local,
        }

    def kept(self):
        return [*self.model.values(), self.moment]

    def load_private(self, tensors):
        self.step, self.moment = int(tensors["step"]), tensors["optimizer.0.exp_avg"].clone()
        self.teacher = tensors["objective.teacher.body.weight"].clone()
        self.model.update(
            {
                name.removeprefix("local."): tensor.clone()
                for name, tensor in tensors.items()
                if name.startswith("local.")
            }
        )

    def validate(self):
        if not len(self.val):
            return {}
        return {"dice": _score(self.model["body.weight"], self.val.images), "loss": float(self.model["scale"])}

    def train_round(self, round):
        draw = generator(self.config.seed, self.site, self.phase, round)
        picture = float(np.asarray(self.train.images, dtype=np.float64).mean()) / 255
        for step in range(self.steps_per_round):
            gradient = torch.randn(3, 4, generator=draw) * 0.1 + self.teacher * 0.01 + picture
            self.moment = 0.9 * self.moment + gradient
            # Dice rises from round to round, so that the last round's model is final
            sign = -1 if self.config.study == "falling" else 1
            self.model["body.weight"] = self.model["body.weight"] + sign * 0.01 * self.moment
            self.model["scale"] = self.model["scale"] * 0.99
            self.model["norm.running_mean"] = self.model["norm.running_mean"] + picture
            self.model["norm.running_var"] = self.model["norm.running_var"] * 0.9 + 0.1 * picture
            self.model["norm.num_batches_tracked"] = self.model["norm.num_batches_tracked"] + 1
            self.teacher = 0.9 * self.teacher + 0.1 * self.model["body.weight"]
            self.step += 1
            if self.progress:
                self.progress(step + 1, self.steps_per_round, 0.5)
        if self.config.study == "nan":
            raise NotFinite(f"site {self.site}: the loss is nan", "lower the learning rate")
        if self.config.study == "broken":
            raise RuntimeError(f"site {self.site}: a picture is damaged")
        return {"loss": float(self.model["body.weight"].abs().mean()), "n_steps": float(self.steps_per_round)}


class Pretrainer(_Trainer):
    phase = "pretrain"

    def __init__(self, config, site, train, val, text, *, device="cpu", progress=None, heir_of=None):
        super().__init__(config, site, train, val, device=device, progress=progress)
        assert text == train.sentences


class Segmenter(_Trainer):
    phase = "segment"

    def __init__(
        self, config, site, train, val, *, text_logits=None, text_dice=None, device="cpu", progress=None, heir_of=None
    ):
        super().__init__(config, site, train, val, device=device, progress=progress)
        if text_logits is not None:
            self.moment = self.moment + float(np.nanmean(np.asarray(text_logits, dtype=np.float32)))


def text_guided_masks(config, vlm, split, text, device="cpu"):
    n, _, height, width = split.images.shape
    logits = np.full((n, 1, height, width), np.nan, dtype=np.float16)
    logits[split.has_text] = float(vlm["body.weight"].mean() + vlm["norm.running_mean"].mean() * 1e-3)
    return logits


def dice_of_text(config, vlm, val, text, device="cpu"):
    return np.where(val.masked & val.has_text, 0.5, np.nan)


def evaluate_student(config, student, split, device="cpu", text=None, *, distances=True, behind=False):
    if not len(split):
        return {"n": 0.0}
    dice = _score(student["body.weight"], split.images)
    return {"dice": dice, "iou": dice / 2, **({"hd95": 3.0} if distances else {}), "n": float(len(split))}


def evaluate_logits(config, logits, split, *, text_only=True):
    return {"dice": 0.5, "iou": 0.4, "n": float(len(split))} if len(split) else {"n": 0.0}


def _score(weight, images):
    return float(torch.sigmoid(weight.mean() + np.asarray(images, dtype=np.float64).mean() / 255))


def forget():
    """What the end of a process does to the sites' workbenches."""
    import client.work.workbench

    client.work.workbench.forget()
