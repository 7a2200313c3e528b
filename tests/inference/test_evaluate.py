"""Every image scored once, averages over crops and models, and what is refused."""

import dataclasses
import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.data import DataError, eval_batches, preprocess
from gnet_jax.data.decode import ImageError
from gnet_jax.inference.crops import crop_plan, extract
from gnet_jax.inference.evaluate import Evaluation, EvaluationError, evaluate
from gnet_jax.inference.predict import Predictor, softmax
from gnet_jax.training.step import TrainState, eval_step


def expected_counts(models, source, crops):
    """Top-1 and top-5 hits, image by image, written as plainly as can be."""
    predictors = [Predictor(model, crops) for model in models]
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
    assert found.as_dict()["top1"] == found.top1


def test_every_index_is_read_once_whatever_the_threads(model_a, make_photos):
    source, read = make_photos(11), []

    class Watched:
        class_names = source.class_names
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


def test_one_model_one_crop_counts_what_the_evaluation_in_training_counts(model_a, make_photos):
    own = {name: model_a.variables[name] for name in ("params", "batch_stats")}
    state = TrainState(jnp.zeros(()), opt_state=(), average={}, rng=jnp.zeros(2), **own)
    source = make_photos(13)
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
    assert counts(evaluate([model_a], source)) == tuple(totals.values())


@pytest.mark.parametrize(("crops", "count"), [(10, 5), (144, 2)])
def test_crops_and_two_models_are_averaged_as_probabilities(
    model_a, model_b, make_photos, crops, count
):
    source = make_photos(count)
    models = [model_a, model_b]
    found = evaluate(models, source, crops, batch_size=32)
    assert counts(found) == (count, *expected_counts(models, source, crops))
    assert (found.crops, found.models) == (crops, 2)


def test_probabilities_are_averaged_and_not_logits(model_a, make_photos):
    """Two surer votes against one sure one: the mean of the logits would decide otherwise."""

    def constant(*logits):
        params = dict(model_a.variables["params"])
        kernel = jnp.zeros_like(params["classifier"]["kernel"])
        params["classifier"] = {"kernel": kernel, "bias": jnp.array(logits, jnp.float32)}
        return dataclasses.replace(model_a, variables=model_a.variables | {"params": params})

    models = [constant(30, 0, -9, -9, -9, -9, -9)] + 2 * [constant(-2, 0, -9, -9, -9, -9, -9)]
    source = make_photos(4)
    source.labels = [1, 1, 1, 0]  # mean logits say 0, mean probabilities say 1
    assert counts(evaluate(models, source)) == (4, 3, 4)


def test_an_ensemble_of_one_and_of_twice_the_same_equals_the_model(model_a, make_photos):
    source = make_photos(7)
    alone = evaluate([model_a], source, 10, batch_size=20)
    assert counts(evaluate([model_a, model_a], source, 10, batch_size=20)) == counts(alone)
    predictor = Predictor(model_a)
    pictures = [Image.fromarray(image) for image in source.images]
    hits = predictor.probabilities(pictures).argmax(axis=1) == source.labels
    assert evaluate([model_a], source).top1_count == hits.sum()


def test_models_of_different_classes_are_refused(model_a, make_model, make_photos):
    renamed = dataclasses.replace(model_a, class_names=("ant", "bee", "cow", *"defg"))
    with pytest.raises(EvaluationError, match="model 2 calls class 2 'cow', not the 'cat'"):
        evaluate([model_a, renamed], make_photos(2))
    fewer = dataclasses.replace(model_a, class_names=("ant", "bee"))
    with pytest.raises(EvaluationError, match="model 2 has 2 classes, not the 7"):
        evaluate([model_a, fewer], make_photos(2))


def test_data_of_other_classes_is_refused(model_a, make_photos):
    source = make_photos(2)
    source.class_names = ("ant", "bee")
    with pytest.raises(EvaluationError, match="model has 7 classes and the data 2"):
        evaluate([model_a], source)
    source.class_names = model_a.class_names[::-1]
    with pytest.raises(EvaluationError, match="another order"):
        evaluate([model_a], source)
    source = make_photos(2)
    source.labels[1] = 7
    with pytest.raises(DataError, match="example 1 has label 7, but the data has 7 classes"):
        evaluate([model_a], source)


def test_damaged_images_are_left_out_and_named_up_to_the_limit(model_a, make_photos):
    source = make_photos(6)
    buffer = io.BytesIO()
    Image.fromarray(source.images[4]).save(buffer, "JPEG")
    source.images[2], source.images[4] = b"<html>", buffer.getvalue()[:-40]
    with pytest.raises(DataError, match=r"example 2: not an image.*; mend it, take it out"):
        evaluate([model_a], source, batch_size=2)
    with pytest.raises(DataError, match="2 of 6 images have turned out damaged, more than the 1"):
        evaluate([model_a], source, bad_limit=1 / 6)
    found = evaluate([model_a], source, bad_limit=2 / 6, batch_size=2)
    assert [record.index for record in found.damaged] == [2, 4]
    assert found.as_dict()["damaged"][0]["name"] == "example 2"
    assert found.images == 4
    good = make_photos(6)
    for images in (good.images, good.labels):
        del images[4], images[2]
    assert counts(found) == counts(evaluate([model_a], good))


def test_a_record_that_its_source_knows_to_be_damaged_is_left_out(model_a, make_photos):
    source = make_photos(6)

    class Damaged(type(source)):
        def __getitem__(self, index):
            if index == 3:
                raise ImageError("a damaged record: it has a wrong checksum")
            return super().__getitem__(index)

    source.__class__ = Damaged
    found = evaluate([model_a], source, bad_limit=0.2)
    assert found.images == 5
    assert str(found.damaged[0]) == "example 3: a damaged record: it has a wrong checksum"


def test_impossible_requests_are_refused_before_anything_is_compiled(model_a, make_photos):
    source = make_photos(2)
    wrong = dataclasses.replace(model_a, preprocessing=Preprocessing(image_size=32, resize_to=31))
    requests = [
        ("no model", [], {}),
        ("3 crops", [model_a], {"crops": 3}),
        ("batch_size is 0", [model_a], {"batch_size": 0}),
        ("threads is 0", [model_a], {"threads": 0}),
        ("bad_limit is 1", [model_a], {"bad_limit": 1}),
        ("resize_to is 31", [wrong], {}),
    ]
    for message, models, options in requests:
        with pytest.raises(UserError, match=message):
            evaluate(models, source, **options)


def test_an_empty_source_and_a_bar_on_a_terminal(model_a, make_photos, monkeypatch, capsys):
    assert counts(evaluate([model_a], make_photos(0))) == (0, 0, 0)
    assert capsys.readouterr().err == ""  # no terminal, no bar
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert evaluate([model_a], make_photos(3)).images == 3
    assert "3/3" in capsys.readouterr().err
    evaluate([model_a], make_photos(3), progress=False)
    assert capsys.readouterr().err == ""


def test_outputs_that_are_no_numbers_are_refused_and_not_called_right(model_a, make_photos):
    damaged = dataclasses.replace(
        model_a, variables=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model_a.variables)
    )
    with pytest.raises(EvaluationError, match="outputs are not finite"):
        evaluate([damaged], make_photos(3))
