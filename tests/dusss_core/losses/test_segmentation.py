import math

import pytest
import torch

from dusss_core.config import MethodConfig
from dusss_core.losses import merged_target, pseudo_label_loss, semi_supervised_loss, supervised_loss
from tests.dusss_core.gradients import assert_same_as_reference

H, W = 3, 4
each_classes = pytest.mark.parametrize("channels", [1, 3])


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def masks(records: int, channels: int, seed: int = 1) -> torch.Tensor:
    high = 2 if channels == 1 else channels
    return torch.randint(0, high, (records, H, W), generator=torch.Generator().manual_seed(seed)).byte()


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-logits)) if len(logits) == 1 else torch.exp(logits) / torch.exp(logits).sum(dim=0)


def naive_ce(logits, target, confidence=0.0):
    """Of one record, C x H x W, pixel by pixel."""
    total = 0
    for y in range(H):
        for x in range(W):
            p, t = probabilities(logits[:, y, x]), target[:, y, x]
            if len(p) == 1:
                p, t = torch.cat([1 - p, p]), torch.cat([1 - t, t])
            if t.max() >= confidence:
                total = total - (t * torch.log(p)).sum()
    return total / (H * W) if torch.is_tensor(total) else logits.sum() * 0


def naive_dice(logits, target):
    p = probabilities(logits)
    foreground = [(p[c], target[c]) for c in range(len(p) > 1, len(p))]
    losses = [1 - (2 * (q * t).sum() + 1) / (q.sum() + t.sum() + 1) for q, t in foreground]
    return sum(losses) / len(losses)


def naive_pseudo(logits, target, confidence, dice):
    return naive_ce(logits, target, confidence) + (naive_dice(logits, target) if dice else 0)


def one_hot(mask, channels):
    if channels == 1:
        return (mask > 0)[None].double()
    return torch.stack([(mask == c).double() for c in range(channels)])


def naive_supervised(logits, mask, dice, weight):
    total = 0
    for z, m, w in zip(logits, mask, weight, strict=True):
        total = total + w * naive_pseudo(z, one_hot(m, len(z)), 0.0, dice)
    return total / max(sum(weight), 1e-9)


@each_classes
@pytest.mark.parametrize("dice", [True, False])
@pytest.mark.parametrize("weight", [None, [1.0, 0.0, 2.5], [0.0, 0.0, 0.0]])
def test_supervised_loss_is_the_naive_one(channels, dice, weight):
    mask = masks(3, channels)
    mask[1] = 0
    as_tensor = None if weight is None else torch.tensor(weight)
    assert_same_as_reference(
        lambda z: supervised_loss(z, mask, dice=dice, weight=as_tensor),
        lambda z: naive_supervised(z, mask, dice, weight or [1.0] * 3),
        random(3, channels, H, W),
    )


@each_classes
@pytest.mark.parametrize("dice", [True, False])
def test_of_a_region_its_own_pixels_count_alone(channels, dice):
    mask, region = masks(3, channels), masks(1, 1, seed=4)[0].bool()
    assert 2 < region.sum() < H * W - 2

    def naive(logits):
        costs = []
        for z, m in zip(logits, mask, strict=True):
            p, truth = probabilities(z)[:, region], one_hot(m, channels)[:, region]
            costs.append(-torch.where(truth > 0, p, 1 - p if channels == 1 else 1.0).log().sum() / region.sum())
            if dice:
                costs[-1] = costs[-1] + naive_dice(z[:, region], truth)
        return sum(costs) / len(costs)

    assert_same_as_reference(
        lambda z: supervised_loss(z, mask, dice=dice, region=region), naive, random(3, channels, H, W)
    )
    everywhere = torch.ones(H, W, dtype=torch.bool)
    logits = random(3, channels, H, W)
    torch.testing.assert_close(
        supervised_loss(logits, mask, dice=dice, region=everywhere), supervised_loss(logits, mask, dice=dice)
    )


@each_classes
def test_supervised_loss_of_one_record_and_of_none(channels):
    assert_same_as_reference(
        lambda z: supervised_loss(z, masks(1, channels), dice=True),
        lambda z: naive_supervised(z, masks(1, channels), True, [1.0]),
        random(1, channels, H, W),
    )
    empty = random(0, channels, H, W).requires_grad_()
    loss = supervised_loss(empty, masks(0, channels), dice=True)
    loss.backward()
    assert float(loss.detach()) == 0


@each_classes
def test_an_empty_mask_that_is_predicted_empty_costs_nothing(channels):
    logits = torch.full((1, channels, H, W), -30.0)
    if channels > 1:
        logits[:, 0] = 30
    assert float(supervised_loss(logits, torch.zeros(1, H, W), dice=True)) == pytest.approx(0, abs=1e-5)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4]).view(1, 1, 2, 2).requires_grad_()
    loss = supervised_loss(
        logits,
        torch.tensor(
            [
                [
                    [
                        1,
                        1,
                    ],
                    [0, 0],
                ]
            ]
        ),
        dice=True,
    )
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def soft_targets(records, channels, seed=5):
    return torch.stack([probabilities(z) for z in random(records, channels, H, W, seed=seed)])


@each_classes
@pytest.mark.parametrize("dice", [True, False])
def test_pseudo_label_loss_is_the_naive_one(channels, dice):
    target = soft_targets(3, channels).double()

    def naive(logits):
        return sum(naive_pseudo(z, t, 0.0, dice) for z, t in zip(logits, target, strict=True)) / 3

    assert_same_as_reference(
        lambda z: pseudo_label_loss(z, target.to(z.dtype), dice=dice), naive, random(3, channels, H, W)
    )


@each_classes
def test_a_sure_pseudo_label_costs_what_the_mask_costs(channels):
    logits, mask = random(3, channels, H, W), masks(3, channels)
    target = torch.stack([one_hot(m, channels) for m in mask]).float()
    torch.testing.assert_close(pseudo_label_loss(logits, target, dice=True), supervised_loss(logits, mask, dice=True))


def naive_merged(teacher, text, method):
    """Of one record."""
    w = method.merge_text_weight
    if method.merge == "logits":
        return probabilities(2 * (1 - w) * teacher + 2 * w * text)
    return probabilities(probabilities(teacher) + probabilities(text))


METHODS = {
    "default": MethodConfig(),
    "text weighs more": MethodConfig(merge_text_weight=0.8),
    "probabilities": MethodConfig(merge="probabilities"),
    "no teacher": MethodConfig(teacher=False),
    "no text": MethodConfig(text_mask=False),
    "neither": MethodConfig(teacher=False, text_mask=False),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@each_classes
@each_method
def test_merged_target_is_the_naive_one_and_the_teachers_alone_without_text(channels, method):
    teacher, text = random(3, channels, H, W), random(3, channels, H, W, seed=2)
    text[1] = torch.nan
    got = merged_target(
        teacher,
        text,
        merge=method.merge,
        text_weight=method.merge_text_weight,
        has_text=torch.tensor([True, False, True]),
    )
    for i in range(3):
        wanted = probabilities(teacher[i]) if i == 1 else naive_merged(teacher[i], text[i], method)
        torch.testing.assert_close(got[i], wanted)


def test_the_plain_sum_of_eq_15_is_the_default_and_the_literal_one_calls_everything_foreground():
    teacher, text = random(2, 1, H, W).requires_grad_(), random(2, 1, H, W, seed=2).requires_grad_()
    got = merged_target(teacher, text, merge="logits", text_weight=0.5)
    torch.testing.assert_close(got, torch.sigmoid(teacher + text).detach())
    literal = merged_target(teacher, text, merge="probabilities", text_weight=0.5)
    assert (literal > 0.5).all() and literal.max() < 0.89
    assert not got.requires_grad and not literal.requires_grad


def naive_semi(student, teacher, text, has_text, method, confidence, dice):
    """Eq. 15 to 17, record by record."""

    def cost(i, target):
        return naive_pseudo(student[i], target, confidence, dice)

    losses = []
    for i in range(len(student)):
        guided = method.text_mask and has_text[i]
        if method.teacher and guided:
            losses.append((cost(i, naive_merged(teacher[i], text[i], method)) + cost(i, probabilities(text[i]))) / 2)
        elif method.teacher:
            losses.append(cost(i, probabilities(teacher[i])))
        elif guided:
            losses.append(cost(i, probabilities(text[i])))
    return sum(losses) / len(losses) if losses else student.sum() * 0


@each_classes
@each_method
@pytest.mark.parametrize(("confidence", "dice"), [(0.0, False), (0.75, False), (0.75, True)])
@pytest.mark.parametrize("has_text", [[True, False, True, False], [True] * 4, [False] * 4, [True], [False]])
def test_semi_supervised_loss_is_the_naive_one(channels, method, confidence, dice, has_text):
    n = len(has_text)
    teacher, text = random(n, channels, H, W, seed=2).double(), random(n, channels, H, W, seed=3).double()
    text[~torch.tensor(has_text)] = torch.nan

    def ours(student):
        loss, parts = semi_supervised_loss(
            student,
            teacher.to(student.dtype),
            text.to(student.dtype),
            torch.tensor(has_text),
            method=method,
            confidence=confidence,
            dice=dice,
        )
        assert all(value.isfinite() and not value.requires_grad for value in parts.values())
        return loss

    assert_same_as_reference(
        ours,
        lambda student: naive_semi(student, teacher, text, has_text, method, confidence, dice),
        random(n, channels, H, W),
    )


def test_paths_without_input_are_off():
    student, teacher = random(2, 1, H, W), random(2, 1, H, W, seed=2)
    has_text = torch.tensor([True, True])

    def loss(teacher, text, has_text, method):
        return semi_supervised_loss(student, teacher, text, has_text, method=method, confidence=0.0)[0]

    for off in ((None, has_text), (teacher, None)):
        assert loss(teacher, *off, METHODS["default"]) == loss(teacher, teacher, has_text, METHODS["no text"])
    alone = loss(None, teacher, has_text, METHODS["default"])
    assert alone == loss(teacher, teacher, has_text, METHODS["no teacher"])
    assert loss(None, None, None, METHODS["default"]) == 0


def test_parts_are_the_means_over_the_records_they_apply_to():
    student, teacher, text = (random(3, 1, H, W, seed=s) for s in (1, 2, 3))
    has_text = torch.tensor([True, False, True])
    loss, parts = semi_supervised_loss(student, teacher, text, has_text, method=METHODS["default"], confidence=0.0)
    from_text = [naive_ce(student[i], probabilities(text[i])) for i in (0, 2)]
    torch.testing.assert_close(parts["text"], sum(from_text) / 2)
    torch.testing.assert_close(parts["teacher"], naive_ce(student[1], probabilities(teacher[1])))
    torch.testing.assert_close(loss, (parts["merged"] + parts["text"] + parts["teacher"]) / 3)
    assert parts["confident"] == 1
    alone = semi_supervised_loss(student, teacher, text, has_text, method=METHODS["no text"], confidence=0.0)
    assert set(alone[1]) == {"teacher", "confident"}


def test_confident_is_the_share_of_target_pixels_that_weigh():
    student, teacher = torch.zeros(1, 1, 1, 4), torch.tensor([4.0, -4.0, 0.1, -0.1]).view(1, 1, 1, 4)
    loss, parts = semi_supervised_loss(student, teacher, None, None, method=METHODS["default"], confidence=0.9)
    assert parts["confident"] == 0.5
    assert float(loss) == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("method", ["default", "probabilities", "no teacher", "no text"])
def test_pseudo_labels_get_no_gradient(method):
    tensors = [random(2, 1, H, W, seed=s).requires_grad_() for s in (1, 2, 3)]
    has_text = torch.tensor([True, False])
    loss, _ = semi_supervised_loss(*tensors, has_text, method=METHODS[method], confidence=0.0)
    loss.backward()
    assert [tensor.grad is not None for tensor in tensors] == [True, False, False]


@each_classes
def test_autocast_and_half_precision_give_finite_float32(channels):
    student = random(2, channels, H, W).bfloat16().requires_grad_()
    teacher, text = random(2, channels, H, W, seed=2).bfloat16(), random(2, channels, H, W, seed=3).half()
    text[1] = torch.nan

    def losses():
        has_text = torch.tensor([True, False])
        semi, _ = semi_supervised_loss(student, teacher, text, has_text, method=METHODS["default"], confidence=0.5)
        return semi, supervised_loss(student, masks(2, channels), dice=True)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses()
    for got, wanted in zip(inside, losses(), strict=True):
        assert got.dtype == torch.float32 and got.isfinite() and torch.equal(got, wanted)
    sum(inside).backward()
    assert student.grad.isfinite().all()


def test_a_teacher_that_is_not_ramped_up_leaves_the_merged_target_to_the_text():
    student, text = random(2, 1, H, W), random(2, 1, H, W, seed=3)
    has_text = torch.tensor([True, True])

    def loss(seed, ramp):
        teacher = random(2, 1, H, W, seed=seed)
        method = METHODS["default"]
        return semi_supervised_loss(student, teacher, text, has_text, method=method, confidence=0, teacher_ramp=ramp)[0]

    assert loss(2, 0.0) == loss(4, 0.0)
    assert loss(2, 0.5) != loss(4, 0.5)
    assert loss(2, 1.0) == pytest.approx(
        float(naive_semi(student, random(2, 1, H, W, seed=2), text, has_text, METHODS["default"], 0, False))
    )


def test_pseudo_labels_of_the_teacher_alone_can_be_ramped_up_without_those_from_text():
    student, teacher, text = (random(2, 1, H, W, seed=s) for s in (1, 2, 3))
    has_text = torch.tensor([True, False])

    def loss(**ramps):
        method = METHODS["default"]
        return semi_supervised_loss(student, teacher, text, has_text, method=method, confidence=0, **ramps)[0]

    alone = naive_ce(student[1], probabilities(teacher[1]))
    torch.testing.assert_close(loss() - loss(teacher_only_weight=0.0), alone / 2)
