"""Faults in what a hospital answers."""

from __future__ import annotations

from benchmarks.fault_kinds.table import Outcome, fault, without_victim
from benchmarks.fault_lab import SITES, Lab, misbehaving, now, poisoned


def _bad_update(lab: Lab, name: str, damage: str, reason: str) -> Outcome:
    lab.victim.stop()
    lab.victim.start(**misbehaving(lab.folder / name, poisoned(damage)))
    try:
        lab.there.wait_online(set(SITES))
        with lab.study(name) as out:
            lab.end_of_round(out, 2)
            since = now()
    finally:
        lab.victim.stop()
    return without_victim(out, since, reason)


@fault("an update with NaN", quick=True)
def nan_update(lab: Lab, name: str) -> Outcome:
    return _bad_update(lab, name, "next(iter(tensors.values())).view(-1)[0] = float('nan')", "holds NaN or infinity")


@fault("an update with a wrong shape")
def wrong_shape(lab: Lab, name: str) -> Outcome:
    damage = "key = next(iter(tensors)); tensors[key] = tensors[key][..., None]"
    return _bad_update(lab, name, damage, "instead of float32")


@fault("an update a thousand times too large", quick=True)
def too_large(lab: Lab, name: str) -> Outcome:
    damage = "tensors.update({key: t * 1000 for key, t in tensors.items() if t.is_floating_point()})"
    return _bad_update(lab, name, damage, "times as large as the median")


@fault("figures of a liar: a Dice of 5")
def liars_figures(lab: Lab, name: str) -> Outcome:
    return _bad_update(lab, name, "figures['val.dice'] = 5.0", "'val.dice' is 5")


@fault("a variance below 0")
def impossible_statistics(lab: Lab, name: str) -> Outcome:
    damage = "[t.fill_(-1e30) for key, t in tensors.items() if key.endswith('running_var')]"
    return _bad_update(lab, name, damage, "holds a variance below 0")


@fault("a huge answer: 200 MB")
def huge_reply(lab: Lab, name: str) -> Outcome:
    return _bad_update(lab, name, "tensors['x'] = torch.zeros(50_000_000)", "larger than the")
