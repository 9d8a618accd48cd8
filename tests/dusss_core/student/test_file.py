"""A student's file is whole, says how it is used, and is refused where it is not what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import dusss_core
from dusss_core.build import build_student
from dusss_core.errors import UserError
from dusss_core.files import read_tensors, write_tensors
from dusss_core.models.weights import shared_tensors
from dusss_core.student import About, layers_without_a_site, read_student, whole_student, write_student
from dusss_core.student.file import KEY
from dusss_core.student.vlm import AboutVLM
from tests.dusss_core.student.conftest import make_config, make_tensors
from tests.sites.builders import picture


def test_what_is_written_is_read_with_all_that_it_takes_to_use_it(student_file):
    path = student_file(image={"channels": 3, "classes": 2, "names": ["cyst", "tumour"], "mean": 0.4})
    student = dusss_core.load(path, "cpu")
    config = make_config(image={"channels": 3, "classes": 2, "names": ["cyst", "tumour"], "mean": 0.4})
    assert student.about.image == config.image
    assert student.about.names == ["background", "cyst", "tumour"]
    assert (student.about.study, student.about.round, student.about.study_digest) == ("tiny", 3, "a" * 64)
    written = make_tensors(config)
    assert all(torch.equal(written[name], value) for name, value in student.tensors().items())


def test_a_checkpoint_that_lacks_normalisation_layers_is_made_whole_from_the_start_of_the_study():
    config = make_config(local_norm=True, seed=7)
    model = build_student(config)
    travels = {name: value + 1 for name, value in shared_tensors(model, local_norm=True).items()}
    whole = whole_student(config, travels)
    assert whole.keys() == model.state_dict().keys() > travels.keys()
    assert all(torch.equal(whole[name], travels[name]) for name in travels)
    rest = whole.keys() - travels.keys()
    assert all(torch.equal(whole[name], model.state_dict()[name]) for name in rest)


@pytest.mark.parametrize(
    ("norm", "local", "layers"),
    [("batch", False, "shared"), ("batch", True, "unfitted"), ("group", True, "initial")],
)
def test_an_outsiders_student_says_whose_layers_it_has(norm, local, layers):
    assert layers_without_a_site(make_config(local_norm=local, student={"norm": norm})) == layers


def test_other_tensors_than_normalisation_layers_may_not_be_missing():
    config = make_config(local_norm=True)
    travels = shared_tensors(build_student(config), local_norm=True)
    del travels["head.weight"]
    with pytest.raises(UserError, match=r"lacks head\.weight"):
        whole_student(config, travels)


def test_decoders_that_a_method_compares_are_no_part_of_the_file():
    config = make_config(method={"objective": "mcnet"})
    tensors = build_student(config).state_dict()
    assert any(name.startswith("others.") for name in tensors)
    whole = whole_student(config, tensors)
    assert whole.keys() == build_student(make_config()).state_dict().keys()
    assert all(torch.equal(whole[name], tensors[name]) for name in whole)


def _changed(path, change):
    about, tensors = read_student(path)
    change(tensors)
    write_student(path, about, tensors)
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("head.bias"), r"lacks head\.bias"),
        (lambda t: t.update(stray=torch.zeros(2)), "has no place for stray"),
        (lambda t: t.update({"head.weight": torch.zeros(1, 8, 1, 1)}), r"another shape of head\.weight"),
        *(
            (lambda t, type=type: t.update({"head.weight": t["head.weight"].to(type)}), r"another type of head\.weight")
            for type in (torch.float64, torch.float16, torch.bfloat16, torch.int32)
        ),
    ],
    ids=["one too few", "one too many", "another shape", "double", "half", "bfloat16", "whole numbers"],
)
def test_weights_that_do_not_fit_the_network_are_refused_by_name(student_file, change, told):
    with pytest.raises(UserError, match=told):
        dusss_core.load(_changed(student_file(), change), "cpu")


def test_a_changed_number_is_noticed(student_file):
    path = student_file()
    tensors, metadata = read_tensors(path)
    tensors["head.bias"] += 1e-6
    write_tensors(path, tensors, metadata)
    with pytest.raises(UserError, match="not those that were written"):
        dusss_core.load(path, "cpu")


def test_a_checkpoint_weights_alone_and_pickle_are_refused_with_what_to_use(student_file, tmp_path):
    tensors, _ = read_tensors(student_file())
    write_tensors(tmp_path / "checkpoint.safetensors", tensors, {"config_digest": "b" * 64})
    write_tensors(tmp_path / "alone.safetensors", tensors)
    torch.save(tensors, tmp_path / "pickle.pt")
    for name, told in (("checkpoint.safetensors", "a checkpoint"), ("alone.safetensors", "weights alone")):
        with pytest.raises(UserError, match=told) as refused:
            dusss_core.load(tmp_path / name, "cpu")
        assert "student.safetensors" in refused.value.remedy
    with pytest.raises(UserError, match="not a whole safetensors file"):
        dusss_core.load(tmp_path / "pickle.pt", "cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"invented": 1},
        {"threshold": 0},
        {"image": {"size": 33}},
        {"study": "a study"},
        {"study": "../a"},
    ],
)
def test_a_header_of_another_release_is_refused(student_file, change):
    path = student_file()
    tensors, metadata = read_tensors(path)
    header = {**json.loads(metadata[KEY]), **change}
    write_tensors(path, tensors, {KEY: json.dumps(header)})
    with pytest.raises(UserError, match=rf"'{next(iter(change))}"):
        dusss_core.load(path, "cpu")


def test_a_header_whose_settings_do_not_go_together_is_refused(student_file):
    path = student_file()
    tensors, metadata = read_tensors(path)
    header = json.loads(metadata[KEY])
    header["image"]["size"] = 48
    header["network"] = {"network": "vilt", "patch": 32}
    write_tensors(path, tensors, {KEY: json.dumps(header)})
    with pytest.raises(UserError, match="does not divide"):
        dusss_core.load(path, "cpu")


@pytest.mark.parametrize("width", [100_000, 10**15])
def test_a_header_that_names_a_network_beyond_all_memory_is_refused_before_it_is_built(student_file, width):
    path = student_file()
    about, tensors = read_student(path)
    network = about.network.model_copy(update={"width": width})
    write_student(path, about.model_copy(update={"network": network}), tensors)
    with pytest.raises(UserError, match=r"its weights do not fit|cannot be built"):
        dusss_core.load(path, "cpu")


@pytest.mark.parametrize("study", ["a study", "../a", "a:b"])
def test_both_headers_name_a_study_as_its_settings_may(study):
    image = {"size": 32}
    common = {"study": study, "image": image, "layers": "shared"}
    for kind, more in ((About, {"network": {}}), (AboutVLM, {"vlm": {}})):
        assert kind.model_validate({**common, **more, "study": "tiny"}).config().study == "tiny"
        with pytest.raises(ValidationError, match="study"):
            kind.model_validate({**common, **more})


def test_what_a_later_release_learnt_from_is_used_as_far_as_this_one_knows_it():
    config = make_config(student={"network": "early_fusion"}, method={"objective": "early_fusion"})
    about = About.of(config, layers="shared")
    assert about.hears
    assert not about.model_copy(update={"objective": "of_a_later_release"}).hears


def test_an_outsider_must_fit_first_and_is_told_how(student_file):
    student = dusss_core.load(student_file(layers="unfitted"), "cpu")
    with pytest.raises(UserError) as refused:
        student.predict(picture(1))
    assert "dusss_core fit" in refused.value.remedy


def test_fitted_statistics_are_those_of_the_pictures_and_nothing_else_changes(student_file, tmp_path):
    student = dusss_core.load(student_file(layers="unfitted"), "cpu")
    pictures = [np.clip(picture(i) // 2, 0, 255) for i in range(6)]
    fitted = student.fit(pictures)
    assert (fitted.about.layers, fitted.about.fitted_on) == ("fitted", 6)
    before, after = student.tensors(), fitted.tensors()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {name for name in before if name.endswith(statistics)}
    first = next(name for name in after if name.endswith("running_mean"))
    images = torch.from_numpy(np.stack([fitted._tile(fitted._prepared(p)) for p in pictures])).float()
    seen = fitted.network.stem[0]((images / 255 - 0.5) / 0.25)
    assert torch.allclose(after[first], seen.mean((0, 2, 3)), atol=1e-5)
    fitted.save(tmp_path / "mine.safetensors")
    again = dusss_core.load(tmp_path / "mine.safetensors", "cpu")
    assert np.array_equal(again.predict(pictures[0]).mask, fitted.predict(pictures[0]).mask)


def test_a_network_without_statistics_cannot_be_fitted_and_says_so(student_file):
    student = dusss_core.load(student_file(layers="initial", student={"norm": "group"}), "cpu")
    with pytest.raises(UserError, match="no statistics to fit"):
        student.fit([picture(1), picture(2)])
    student.predict(picture(1))


def test_the_header_holds_no_path_and_no_public_weights():
    config = make_config(student={"weights": "/home/someone/start.safetensors"})
    assert "someone" not in About.of(config, layers="shared").model_dump_json()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_and_give_no_empty_mask(student_file, value):
    path = student_file()
    about, tensors = read_student(path)
    tensors["down.0.0.0.weight"][0, 0, 0, 0] = value
    write_student(path, about, tensors)
    with pytest.raises(UserError, match=r"not all finite: down\.0\.0\.0\.weight"):
        dusss_core.load(path, "cpu")
