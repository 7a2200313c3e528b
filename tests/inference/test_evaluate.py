"""Every image scored once, averages over crops and models, and what is refused."""

import dataclasses
import io
import shutil
import types
import unicodedata
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from gnet_jax.config import UserError
from gnet_jax.data.augment import preprocess
from gnet_jax.data.batches import BadRecords, eval_batches
from gnet_jax.data.decode import ImageError
from gnet_jax.data.sources import DataError, open_source
from gnet_jax.data.sources.classes import imagenet_classes
from gnet_jax.inference.evaluate import (
    Evaluation,
    crop_plan,
    evaluate,
    extract,
    pair_classes,
    paper_table,
    write_results,
)
from gnet_jax.inference.predict import Predictor, softmax
from gnet_jax.model_folder import write_folder
from gnet_jax.training.step import TrainState, eval_step


def expected_counts(models, source, crops):
    """Top-1 and top-5 hits, image by image, written as plainly as can be."""
    predictors = [Predictor(model, 8) for model in models]
    top1 = top5 = 0
    for index in range(len(source)):
        picture = Image.fromarray(source[index].image)
        probabilities = np.zeros(len(source.class_names))
        for model, predictor in zip(models, predictors, strict=True):
            views = extract(picture, crop_plan(*picture.size, crops, model.preprocessing))
            probabilities += softmax(predictor.logits(views)).mean(axis=0) / len(models)
        order = np.argsort(-probabilities).tolist()
        top1 += order[0] == source.labels[index]
        top5 += source.labels[index] in order[:5]
    return top1, top5


def counts(evaluation: Evaluation) -> tuple[int, int, int]:
    return evaluation.images, evaluation.top1_count, evaluation.top5_count


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_set_that_does_not_divide_by_the_batch_is_counted_exactly_once(
    model_a, make_photos, batch_size
):
    source = make_photos(13)
    expected = expected_counts([model_a], source, 1)
    assert 0 < expected[0] < expected[1] < 13  # or the counts would prove little
    found = evaluate([model_a], source, batch_size=batch_size)
    assert counts(found) == (13, *expected)
    assert (found.crops, found.models, found.damaged) == (1, 1, ())
    assert found.top1 == expected[0] / 13
    assert found.top5 == expected[1] / 13
    assert found.images_per_sec > 0
    shown = found.as_dict()
    assert (shown["top1"], shown["top5"]) == (found.top1, found.top5)
    assert (shown["images"], shown["crops"], shown["models"]) == (13, 1, 1)


def test_every_index_is_read_once_whatever_the_threads(model_a, make_photos):
    source, read = make_photos(11), []

    class Watched:
        class_names = source.class_names
        labels = source.labels
        fingerprint = source.fingerprint
        describe = source.describe

        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            read.append(index)
            return source[index]

    results = {counts(evaluate([model_a], Watched(), threads=n, batch_size=3)) for n in (1, 5)}
    assert sorted(read) == sorted(2 * list(range(11)))
    assert len(results) == 1


def counts_in_training(model_a, source):
    """What the evaluation in training counts."""
    own = {name: model_a.variables[name] for name in ("params", "batch_stats")}
    state = TrainState(jnp.zeros(()), opt_state=(), average={}, rng=jnp.zeros(2), **own)
    totals = {"count": 0, "top1": 0, "top5": 0}
    step = jax.jit(
        partial(
            eval_step,
            model=model_a.model,
            preprocess=partial(preprocess, preprocessing=model_a.preprocessing),
        )
    )
    for batch in eval_batches(source, batch_size=4, preprocessing=model_a.preprocessing):
        sums = step(state, batch)
        totals = {name: total + int(sums[name]) for name, total in totals.items()}
    return tuple(totals.values())


def test_one_model_one_crop_counts_what_the_evaluation_in_training_counts(model_a, make_photos):
    source = make_photos(13)
    assert counts(evaluate([model_a], source)) == counts_in_training(model_a, source)


def test_folders_named_by_numbers_are_evaluated_as_in_training(model_a, make_photo, tmp_path):
    """The val split lacks classes, and as text its names come in another order."""
    numbers = [str(number) for number in range(5, 12)]
    for split, names in (("train", numbers), ("val", numbers[2:6])):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                make_photo(17 * int(name) + i).save(tmp_path / split / name / f"{i}.png")
    train, val = (open_source(f"folder:{tmp_path}", split) for split in ("train", "val"))
    model = dataclasses.replace(model_a, class_names=train.class_names)
    expected = counts_in_training(model, val)
    assert 0 < expected[1] < expected[0] == 16
    assert counts(evaluate([model], val)) == expected
    shutil.rmtree(tmp_path / "train")  # the model alone tells the classes
    alone = open_source(f"folder:{tmp_path}", "val")
    assert len(alone.class_names) == 4
    assert counts(evaluate([model], alone)) == expected


@pytest.mark.parametrize(("crops", "count"), [(10, 5), (144, 2)])
def test_crops_and_two_models_are_averaged_as_probabilities(
    model_a, model_b, make_photos, crops, count
):
    source = make_photos(count)
    models = [model_a, model_b]
    found = evaluate(models, source, crops, batch_size=32)
    assert counts(found) == (count, *expected_counts(models, source, crops))
    assert (found.crops, found.models) == (crops, 2)


@pytest.fixture
def vote(model_a, make_photos, monkeypatch):
    """Evaluates one image of a label with models that answer with the given probabilities.

    Each model has a row of probabilities for each crop; the other classes share the rest.
    """

    def run(label, crops, *models):
        answers = iter(models)

        class Answers:
            def __init__(self, trained, batch_size):
                rows = np.array(next(answers), np.float64)
                others = np.repeat((1 - rows.sum(axis=1, keepdims=True)) / 5, 5, axis=1)
                self.rows, self.trained = np.log(np.hstack([rows, others])), trained

            def logits(self, squares):
                assert squares.shape == (crops, 32, 32, 3)
                return (self.rows + 3).astype(np.float32)  # logits are free of a constant

            def warm_up(self):
                pass

        monkeypatch.setattr("gnet_jax.inference.evaluate.Predictor", Answers)
        source = make_photos(1)
        source.labels = [label]
        return evaluate([model_a] * len(models), source, crops).top1_count

    return run


@pytest.mark.parametrize(
    ("images", "crops", "batch_size", "expected"),
    [
        (5, 1, 64, [5]),  # no batch is larger than the set
        (5, 1, 2, [2, 2, 1]),
        (5, 10, 32, [30, 20]),
        (2, 10, 4, [10, 10]),  # in batches of 4, because 5 would be too many
    ],
)
def test_a_batch_has_at_most_as_many_crops_as_are_asked_for(
    model_a, model_b, make_photos, monkeypatch, images, crops, batch_size, expected
):
    """The networks are run once before the time is taken."""
    events = []

    class Counts:
        def __init__(self, trained, batch_size):
            events.append(batch_size)
            self.trained = trained

        def warm_up(self):
            events.append("ready")

        def logits(self, squares):
            events.append(len(squares))
            return np.zeros((len(squares), 7), np.float32)

    def perf_counter():
        events.append("time")
        return 2.0 * events.count("time")

    monkeypatch.setattr("gnet_jax.inference.evaluate.Predictor", Counts)
    clock = types.SimpleNamespace(perf_counter=perf_counter)
    monkeypatch.setattr("gnet_jax.inference.evaluate.time", clock)
    options = {"batch_size": batch_size, "bad_limit": 0.5}
    found = evaluate([model_a, model_b], make_photos(images), crops, **options)
    largest = min(batch_size, expected[0])
    calls = [count for count in expected for _ in range(2)]
    assert events == [largest, largest, "ready", "ready", "time", *calls, "time"]
    assert found.images_per_sec == images / 2.0


def test_probabilities_of_crops_are_averaged_and_not_logits(vote):
    """One crop is sure of class 0, nine are for class 1; the mean of the logits is for class 0."""
    rows = [(0.999_99, 0.000_004), *9 * [(0.2, 0.7)]]
    assert np.mean(np.log([a / b for a, b in rows])) > 0
    assert (vote(0, 10, rows), vote(1, 10, rows)) == (0, 1)


def test_models_have_the_same_weight_and_are_averaged_as_probabilities(vote):
    first, second = [(0.70, 0.28)], [(0.25, 0.70)]  # 0.475 and 0.49; twice the first: 0.55, 0.42
    assert (vote(1, 1, first, second), vote(0, 1, first, second)) == (1, 0)
    first, second = [(0.72, 0.25)], [(0.30, 0.68)]  # 0.51 and 0.465; twice the second: 0.44, 0.54
    assert (vote(0, 1, first, second), vote(1, 1, first, second)) == (1, 0)
    models = [[(0.999_99, 0.000_004)], [(0.2, 0.7)], [(0.2, 0.7)]]  # mean logits are for class 0
    assert (vote(1, 1, *models), vote(0, 1, *models)) == (1, 0)


def test_of_equal_probabilities_the_first_class_is_counted(vote):
    assert (vote(0, 1, [(0.4, 0.4)]), vote(1, 1, [(0.4, 0.4)])) == (1, 0)


def test_the_fifth_class_counts_and_the_sixth_does_not(model_a, make_photos):
    params = dict(model_a.variables["params"])
    kernel = jnp.zeros_like(params["classifier"]["kernel"])
    bias = jnp.array([3, 7, 1, 6, 2, 5, 4], jnp.float32)  # classes 1, 3, 5, 6, 0, then 4, 2
    params["classifier"] = {"kernel": kernel, "bias": bias}
    model = dataclasses.replace(model_a, variables=model_a.variables | {"params": params})
    source = make_photos(7)
    for labels, expected in (
        ([1, 3, 5, 6, 0, 4, 2], (7, 1, 5)),
        ([4, 2, 4, 2, 0, 0, 3], (7, 0, 3)),
    ):
        source.labels = labels
        assert counts(evaluate([model], source)) == expected


def test_an_ensemble_of_one_and_of_twice_the_same_equals_the_model(model_a, make_photos):
    source = make_photos(7)
    alone = evaluate([model_a], source, 10, batch_size=20)
    assert counts(evaluate([model_a, model_a], source, 10, batch_size=20)) == counts(alone)


def test_models_of_different_classes_are_refused(model_a, make_photos):
    renamed = dataclasses.replace(model_a, class_names=("ant", "bee", "cow", *"defg"))
    with pytest.raises(UserError, match=r"1 and 2 .*'cat'"):
        evaluate([model_a, renamed], make_photos(2))
    fewer = dataclasses.replace(model_a, class_names=("ant", "bee"))
    with pytest.raises(UserError, match=r"1 and 2 .*'cat'"):
        evaluate([model_a, fewer], make_photos(2))
    with pytest.raises(UserError, match=r"1 and 2 .*'cat'"):
        evaluate([fewer, model_a], make_photos(2))


def permuted(model, order):
    """The same model with its outputs in another order."""
    params = dict(model.variables["params"])
    head = params["classifier"]
    params["classifier"] = {"kernel": head["kernel"][:, order], "bias": head["bias"][order]}
    names = tuple(model.class_names[i] for i in order)
    return dataclasses.replace(
        model, variables=model.variables | {"params": params}, class_names=names
    )


ORDER = np.array([3, 0, 6, 1, 2, 5, 4])


def test_an_ensemble_is_averaged_by_name(model_a, model_b, make_photos):
    source = make_photos(13)
    expected = counts(evaluate([model_a, model_b], source))
    assert counts(evaluate([model_a, permuted(model_b, ORDER)], source)) == expected
    assert counts(evaluate([permuted(model_a, ORDER), model_b], source)) == expected


def test_data_are_matched_to_the_model_by_name(model_a, make_photos):
    source = make_photos(13)
    expected = counts(evaluate([model_a], source))
    assert counts(evaluate([permuted(model_a, ORDER)], source)) == expected
    found = make_photos(13)
    found.class_names = tuple(source.class_names[i] for i in ORDER)
    found.labels = [ORDER.tolist().index(label) for label in source.labels]
    result = evaluate([model_a], found)
    assert (counts(result), result.pairing) == (expected, None)
    # A source that holds some of the classes only: its labels are numbered without the others.
    present = sorted(set(source.labels[:5]))
    few = make_photos(5)
    few.class_names = tuple(source.class_names[i] for i in present)
    few.labels = [present.index(label) for label in source.labels[:5]]
    same = make_photos(5)
    same.labels = source.labels[:5]
    assert counts(evaluate([model_a], few)) == counts(evaluate([model_a], same))


def test_numbers_are_names_to_a_model_of_numbers(model_a, make_photos):
    """Numbers sorted as text, as other programs do, are not taken for positions."""
    numbers = tuple(map(str, range(7, 14)))
    model = dataclasses.replace(model_a, class_names=numbers)
    source = make_photos(13)
    expected = counts(evaluate([model_a], source))
    source.class_names = tuple(sorted(numbers))
    source.labels = [source.class_names.index(numbers[label]) for label in source.labels]
    assert source.class_names[0] == "10"
    assert counts(evaluate([model], source)) == expected


def test_numbers_are_positions_to_a_model_of_names_and_the_pairing_is_printed(
    model_a, make_photos, capsys
):
    source = make_photos(13)
    expected = counts(evaluate([model_a], source))
    source.class_names = tuple("0123456")
    result = evaluate([model_a], source)
    assert counts(result) == expected
    assert result.pairing is not None
    assert result.pairing in capsys.readouterr().err.splitlines()
    for pair in ("'0' is 'ant'", "'1' is 'bee'", "'6' is 'gnu'"):
        assert pair in result.pairing
    source.class_names = tuple("1234567")  # from 0, or from 1?
    with pytest.raises(UserError, match="'1', '2', '3', '4', '5' and 2 more"):
        evaluate([model_a], source)


IDS, LABELS = zip(*imagenet_classes().items(), strict=True)


@pytest.mark.parametrize(("model", "first"), [(LABELS, 0), (IDS, 0), (("background", *LABELS), 1)])
def test_a_published_model_is_matched_by_wordnet_id_label_or_position(model, first):
    everything = [*range(first, first + 1000)]
    assert pair_classes(IDS, model) == (everything, None)
    assert pair_classes(LABELS, model) == (everything, None)
    assert pair_classes(IDS[5:8], model)[0] == everything[5:8]
    labels, pairing = pair_classes([*map(str, range(1000))], model)
    assert labels == everything
    assert pairing is not None
    assert "'0' is 'background'" not in pairing
    assert "'999' is 'toilet tissue" in pairing or "'999' is 'n15075141'" in pairing
    for names, odd in (
        ([*map(str, range(1, 1001))], "'1', '2'"),
        (("n01440764", "n00000000"), "'n00000000'"),
        (("tench", "goldfish"), "'tench'"),
    ):
        with pytest.raises(UserError, match=odd):
            pair_classes(names, model)


def test_a_name_that_the_model_has_twice_is_matched_only_as_part_of_the_whole_list():
    assert pair_classes(LABELS, LABELS)[0] == [*range(1000)]
    with pytest.raises(UserError, match="'crane'"):
        pair_classes(LABELS[134:136], LABELS)
    assert pair_classes(["b", "a", "a"], ["b", "a", "a"])[0] == [0, 1, 2]
    with pytest.raises(UserError, match="'a'"):
        pair_classes(["a", "b", "a"], ["b", "a"])


def test_a_class_that_the_model_lacks_counts_only_if_the_data_have_images_of_it():
    model = ("cat", "dog", "eel")
    assert pair_classes(("cat", "dog", "zebra"), model, ["zebra"])[0] == [0, 1, -1]
    with pytest.raises(UserError, match="'zebra'"):
        pair_classes(("dog", "eel", "zebra"), model)


def test_a_model_without_names_is_paired_by_position_with_as_many_classes(capsys):
    model = ("class 0", "class 1", "class 2")
    labels, pairing = pair_classes(("cat", "dog", "eel"), model)
    assert labels == [0, 1, 2]
    assert pairing is not None
    assert "'cat' is 'class 0', 'dog' is 'class 1', 'eel' is 'class 2'" in pairing
    with pytest.raises(UserError, match="'cat', 'dog'"):
        pair_classes(("cat", "dog"), model)
    with pytest.raises(UserError, match="'dog', 'eel'"):
        pair_classes(("class 0", "dog", "eel"), model)  # some names match, so names count
    assert pair_classes(("cat", "dog", "eel"), model, ["cat", "dog", "eel"]) == ([-1] * 3, None)


def test_a_note_lists_up_to_four_pairs_and_of_more_the_first_two_and_the_last():
    for count, shown in ((4, [0, 1, 2, 3]), (5, [0, 1, 4]), (7, [0, 1, 6])):
        names, model = ([f"{kind} {i}" for i in range(count)] for kind in ("breed", "class"))
        _, note = pair_classes(names, model)
        assert note is not None
        assert [i for i in range(count) if f"'breed {i}' is 'class {i}'" in note] == shown
        assert ("..." in note) == (count > 4)


def test_numbers_that_could_start_at_1_are_not_positions():
    model = ("ant", "bee", "cat", "dog", "elk")
    assert pair_classes(("0", "1", "2"), model)[0] == [0, 1, 2]
    assert pair_classes(("0", "4"), model)[0] == [0, 4]
    for numbers in (("1", "2", "3"), ("0", "5")):
        with pytest.raises(UserError, match=f"'{numbers[0]}'"):
            pair_classes(numbers, model)


def test_a_class_without_images_does_not_change_the_counts(model_a, make_photos):
    source = make_photos(5)
    expected = counts(evaluate([model_a], source))
    source.class_names = (*source.class_names, "zebra")
    assert counts(evaluate([model_a], source)) == expected


def test_numbers_are_no_positions_in_a_model_of_other_numbers():
    with pytest.raises(UserError, match="'0', '1'"):
        pair_classes(("0", "1"), ("5", "6", "7"))


def test_unicode_forms_of_one_name_are_the_same_class():
    forms = [unicodedata.normalize(form, "löwe") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    for data, model in (forms, forms[::-1]):
        assert pair_classes(("cat", data), (model, "cat")) == ([1, 0], None)


def test_labels_out_of_range_are_refused(model_a, make_photos):
    source = make_photos(2)
    source.labels[1] = 7
    with pytest.raises(DataError, match=r"example 1 .*label 7"):
        evaluate([model_a], source)


def test_damaged_images_are_left_out_and_named_up_to_the_limit(model_a, make_photos):
    source = make_photos(6)
    buffer = io.BytesIO()
    Image.fromarray(source.images[4]).save(buffer, "JPEG")
    source.images[2], source.images[4] = b"<html>", buffer.getvalue()[:-40]
    with pytest.raises(DataError, match="example 2: not an image"):
        evaluate([model_a], source, batch_size=2)
    with pytest.raises(DataError, match="2 of 6 images"):
        evaluate([model_a], source, bad_limit=1 / 6)
    found = evaluate([model_a], source, bad_limit=2 / 6, batch_size=2)
    assert [record.index for record in found.damaged] == [2, 4]
    assert found.as_dict()["damaged"][0]["name"] == "example 2"
    assert found.images == 4
    assert counts(evaluate([model_a], source, bad_limit=0.4))[0] == 4
    good = make_photos(6)
    for images in (good.images, good.labels):
        del images[4], images[2]
    assert counts(found) == counts(evaluate([model_a], good))


def test_by_default_a_batch_has_64_crops_of_4_threads_and_2_percent_may_be_corrupt(
    model_a, make_photos, monkeypatch
):
    given = []

    class Zeros:
        def __init__(self, trained, batch_size):
            given.append(batch_size)
            self.trained = trained

        def warm_up(self):
            pass

        def logits(self, squares):
            return np.zeros((len(squares), 7), np.float32)

    def limited(source, limit):
        given.append(limit)
        return BadRecords(source, limit)

    def loaded(load, numbers, threads):
        given.append(threads)
        return map(load, numbers)

    module = "gnet_jax.inference.evaluate"
    for name, fake in (("Predictor", Zeros), ("BadRecords", limited), ("prefetched", loaded)):
        monkeypatch.setattr(f"{module}.{name}", fake)
    assert evaluate([model_a], make_photos(70)).crops == 1
    assert given == [64, 0.02, 4]


def test_a_record_that_its_source_knows_to_be_damaged_is_left_out(model_a, make_photos):
    source = make_photos(6)

    class Damaged(type(source)):
        def __getitem__(self, index):
            if index == 3:
                raise ImageError("a corrupt record: it has a wrong checksum")
            return super().__getitem__(index)

    source.__class__ = Damaged
    found = evaluate([model_a], source, bad_limit=0.2)
    assert found.images == 5
    assert str(found.damaged[0]) == "example 3: a corrupt record: it has a wrong checksum"


def test_an_empty_source_and_a_bar_on_a_terminal(model_a, make_photos, monkeypatch, capsys):
    found = evaluate([model_a], make_photos(0))
    assert (counts(found), found.images_per_sec) == ((0, 0, 0), 0)
    assert (str(found.top1), str(found.top5)) == ("nan", "nan")
    assert capsys.readouterr().err == ""  # no terminal, no bar
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert evaluate([model_a], make_photos(3)).images == 3
    error = capsys.readouterr().err
    assert "3/3" in error


def test_outputs_that_are_not_finite_are_refused_and_not_counted_as_right(model_a, make_photos):
    damaged = dataclasses.replace(
        model_a, variables=jax.tree.map(lambda x: np.full_like(x, np.nan), model_a.variables)
    )
    with pytest.raises(UserError, match="finite"):
        evaluate([damaged], make_photos(3))


def shown(evaluations) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    console.print(paper_table(evaluations))
    return console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_papers_error_is_shown_for_the_same_models_and_crops_only():
    own = [Evaluation(1000, top1, top1 + 240, 10, n, 6, 9.0) for n, top1 in ((1, 600), (2, 610))]
    one, two = (line for line in shown(own) if "1,000" in line)
    assert [cell.strip() for cell in one.split("│")[1:7]] == [
        *("1", "10", "1,000", "40.00%", "16.00%", "9.15%")
    ]
    assert [cell.strip() for cell in two.split("│")[4:7]] == ["39.00%", "15.00%", ""]
    table_3 = {(1, 1): "10.07%", (1, 10): "9.15%", (1, 144): "7.89%"}
    table_3 |= {(7, 1): "8.09%", (7, 10): "7.62%", (7, 144): "6.67%"}
    own = [Evaluation(1000, 600, 840, crops, models, 6, 9.0) for models, crops in table_3]
    lines = [line for line in shown(own) if "1,000" in line]
    assert [line.split("│")[6].strip() for line in lines] == [*table_3.values()]


def test_with_five_classes_there_is_no_top5(tmp_path, model_a, monkeypatch):
    five = Evaluation(1000, 600, 1000, 1, 1, 5, 9.0)
    assert five.as_dict()["top5"] is None
    assert [cell.strip() for cell in shown([five])[-3].split("│")[4:6]] == ["40.00%", ""]
    written = {}

    def keep(*arguments):
        written.update(arguments[-1])
        return "card"

    monkeypatch.setattr("gnet_jax.inference.evaluate.add_results", keep)
    write_folder(tmp_path / "model", model_a)
    write_results(tmp_path / "model", "folder:p", "val", [five])
    assert written == {"top-1": 0.6}


def test_a_card_with_a_byte_order_mark_keeps_one_header_and_other_encodings_are_named(
    tmp_path, model_a
):
    write_folder(tmp_path / "model", model_a)
    card, found = tmp_path / "model/README.md", Evaluation(10, 6, 8, 1, 1, 10, 9.0)
    before = card.read_text("utf-8")
    card.write_text(before, "utf-8-sig")
    write_results(tmp_path / "model", "folder:p", "val", [found])
    after = card.read_text("utf-8")
    assert after.startswith("---\nlibrary_name: gnet_jax\n")
    assert after.count("library_name") == before.count("library_name") == 1
    card.write_bytes("---\n---\nMünchen\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"README\.md is not UTF-8"):
        write_results(tmp_path / "model", "folder:p", "val", [found])
