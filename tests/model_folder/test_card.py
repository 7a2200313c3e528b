"""The model card states the model's facts."""

import dataclasses

import pytest

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.model_folder.card import add_results, model_card
from gnet_jax.model_folder.folder import config_of, flatten
from tests.convert.conftest import small_folder

PIXELS = Preprocessing(30, "warp", 32, "BGR", (104.0, 117.0, 122.12345), (2.0, 3.0, 4.0))


def rows_of(folder, name="a model") -> dict[str, str]:
    card = model_card(config_of(folder), flatten(folder.variables), name)
    lines = [line.strip("| ").split(" | ", 1) for line in card.splitlines() if line[:1] == "|"]
    return {line[0]: line[1] for line in lines if len(line) == 2} | {"card": card}


@pytest.fixture
def folder():
    source = {"format": "test", "note": "a | b", "license": "unrestricted"}
    made = small_folder("batch_norm", image_size=30, aux_after=("4a",))
    return dataclasses.replace(made, preprocessing=PIXELS, source=source)


def test_facts_are_those_of_the_model(folder):
    found = rows_of(folder)
    params = sum(
        value.size for name, value in flatten(folder.variables).items() if name[:7] == "params/"
    )
    assert found["parameters"].startswith(f"{params:,}")
    assert found["classes"] == "3"
    assert found["normalisation"] == "batch norm"
    assert found["auxiliary heads"].startswith("4a ")
    assert found["computed in"] == "float32"
    for part in ("warped to 32x32", "30x30", "BGR", "(104.0, 117.0, 122.1235)) / (2.0, 3.0, 4.0)"):
        assert part in found["input"]
    assert found["note"] == r"a \| b"
    assert "license: other\nlicense_name: unrestricted\n---\n# a model\n" in found["card"]


def test_a_name_is_quoted_in_its_own_letters(folder):
    assert '"Blätter \\"2\\""' in rows_of(folder, 'Blätter "2"')["card"]


def test_a_shorter_side_no_heads_no_license_and_an_accuracy_are_stated_too(folder):
    other = dataclasses.replace(
        small_folder(image_size=30),
        preprocessing=dataclasses.replace(PIXELS, resize="shorter_side"),
        source={"format": "test", "validation_top1": "0.9000"},
    )
    found, first = rows_of(other), rows_of(folder)
    assert "shorter side 32" in found["input"]
    assert found["auxiliary heads"].startswith("none ")
    assert found["normalisation"] == "LRN"
    assert found["validation top1"] == "0.9000"
    assert "license" not in found["card"]
    assert ("own evaluation" in found["card"], "own evaluation" in first["card"]) == (True, False)


def test_results_have_the_hubs_format_and_replace_those_of_the_same_data(folder):
    cards = pytest.importorskip("huggingface_hub", reason="the extra [hub] is not installed")
    card = rows_of(folder)["card"]
    assert cards.ModelCard(card).data.eval_results is None
    card = add_results(card, "a model", "tfds:imagenet2012", "val", {"top-1": 0.5, "top-5": 0.9})
    card = add_results(card, "a model", "folder:/home/me/PHOTOS", "val", {"top-1": 0.25})
    card = add_results(card, "a model", "tfds:imagenet2012", "val", {"top-1": 0.75})
    data = cards.ModelCard(card).data
    found = [
        (each.dataset_type, each.dataset_name, each.dataset_split, each.metric_name)
        for each in data.eval_results
    ]
    assert sorted(found) == [
        ("PHOTOS", "PHOTOS", "val", "top-1"),
        ("imagenet-1k", "imagenet2012", "val", "top-1"),
        ("imagenet-1k", "imagenet2012", "val", "top-5"),
    ]
    assert sorted(each.metric_value for each in data.eval_results) == [0.25, 0.75, 0.9]
    assert {each.task_type for each in data.eval_results} == {"image-classification"}
    assert {each.metric_type for each in data.eval_results} == {"accuracy"}
    assert (data.library_name, data.license_name) == ("gnet_jax", "unrestricted")
    assert "/home/me" not in card
    assert "not measured" not in card
    assert card.partition("\n# a model\n")[2].startswith("\nGoogLeNet (Inception v1")


def test_a_set_in_the_working_directory_has_the_name_of_the_folder(tmp_path, monkeypatch):
    (tmp_path / "PHOTOS" / "new").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "PHOTOS" / "new")
    for data, name in ((".", "new"), ("folder:.", "new"), ("folder:..", "PHOTOS")):
        card = add_results("Mine.\n", "m", data, "val", {"top-1": 1.0})
        assert f"name: {name}\n" in card


def test_results_are_added_to_a_card_without_a_header_but_not_to_a_broken_one():
    assert add_results("Mine.\n", "m", "digits", "val", {"top-1": 1.0}).endswith("---\nMine.\n")
    for header in ("a: {", "- a", "model-index: 3", "model-index: [{results: [1]}]"):
        with pytest.raises(UserError, match="header"):
            add_results(f"---\n{header}\n---\n", "m", "digits", "val", {"top-1": 1.0})


@pytest.mark.parametrize(
    ("known", "lines"),
    [("mit", "license: mit\n"), ("mine", "license: other\nlicense_name: mine\n")],
)
def test_a_license_is_the_hubs_own_or_named(folder, known, lines):
    other = dataclasses.replace(folder, source={"format": "test", "license": known})
    assert lines in rows_of(other)["card"]
