"""Optimised images, DeepDream and attribution, on a tiny network."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gnet_jax.cli.main import main
from gnet_jax.config import Preprocessing, UserError
from gnet_jax.data.decode import central_crop
from gnet_jax.inference import cam
from gnet_jax.inference.cam import ActivationMapper
from gnet_jax.inference.images import Pictures
from gnet_jax.inference.predict import layer_shapes
from gnet_jax.lab.look import attribution, examples, objectives, similarity, visualize
from gnet_jax.lab.look.dream import dream
from gnet_jax.model.googlenet import GoogLeNet, endpoints, init
from gnet_jax.model_folder import TrainedModel, write_folder
from tests.tiny import tiny_arch, tiny_variables

PIXELS = Preprocessing(image_size=16, resize_to=16, mean=(99, 99, 99), std=(50, 50, 50))
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))
NAMES = ("Great white shark, man-eater", *(f"class {n}" for n in range(1, 9)), "man-eater")


@pytest.fixture(scope="module")
def trained():
    model = GoogLeNet(tiny_arch())
    return TrainedModel(model, tiny_variables(model), PIXELS, NAMES, {"file": "tiny"})


@pytest.fixture(scope="module")
def optimise(trained):
    return partial(
        visualize.visualize, trained.model, trained.variables, preprocessing=PIXELS, steps=8
    )


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("look") / "model"
    write_folder(path, trained)
    return str(path)


def activations(trained, pixels):
    """The network's activations for uint8 images."""
    x = (np.asarray(pixels, np.float32) - 99) / 50
    return jax.jit(partial(endpoints, trained.model))(trained.variables, x)


def test_images_excite_their_channels_more_than_the_first_ones(trained, optimise):
    goals = [objectives.channel("inception_4a", n) for n in (0, 4)]
    images, values = optimise(goals)
    assert images.shape == (2, 1, 16, 16, 3)
    first, _ = optimise(goals, steps=1)
    found, before = (activations(trained, each[:, 0]) for each in (images, first))
    for place, number in enumerate((0, 4)):
        own = np.asarray(found["inception_4a/output"])[place, ..., number].mean()
        assert own == pytest.approx(values[place], rel=0.02)
        assert own > 1.1 * np.asarray(before["inception_4a/output"])[place, ..., number].mean()


def test_an_image_does_not_depend_on_the_objectives_beside_it(optimise):
    (pair, _), (alone, _) = (
        optimise([objectives.channel("mixed4a", n) for n in numbers]) for numbers in ((0, 5), (5,))
    )
    assert np.abs(pair[1].astype(int) - alone[0]).max() <= 2
    assert np.abs(pair[1].astype(int) - pair[0]).max() > 20
    other, _ = optimise(objectives.channel("mixed4a", 5), seed=1)
    assert np.abs(other.astype(int) - alone[0]).max() > 20


def test_a_function_of_activations_is_an_objective(optimise):
    _, value = optimise(lambda found: -found["inception_3a/output"].mean(), robust=False)
    _, before = optimise(lambda found: -found["inception_3a/output"].mean(), robust=False, steps=0)
    assert value > before


def test_a_channel_that_does_not_exist_is_refused(optimise):
    with pytest.raises(UserError, match="objective 1 is nan"):
        optimise([objectives.channel("inception_3a", n) for n in (0, 9999)])


def test_diversity_rewards_images_that_differ():
    score = objectives.diversity("inception_3a")
    one = np.random.default_rng(0).normal(size=(1, 4, 4, 6))
    other = np.random.default_rng(1).normal(size=(1, 4, 4, 6))
    same, different = np.concatenate([one, one]), np.concatenate([one, other])
    assert score({"inception_3a/output": same}) == pytest.approx(-1, abs=1e-4)
    assert score({"inception_3a/output": different}) > -0.9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inception_4a:2", lambda v: v["inception_4a/output"][..., 2].mean()),
        ("mixed4a:2@1,3", lambda v: v["inception_4a/output"][0, 1, 3, 2]),
        ("class:Great_white_shark", lambda v: v["loss3/classifier"][0, 0]),
        ("class:3", lambda v: v["loss3/classifier"][0, 3]),
        ("dream:mixed3a_1x1", lambda v: (v["inception_3a/1x1"] ** 2).mean()),
        (
            "-mixed4a:2+2.5*class:great_white_shark-mixed3a:1",
            lambda v: (
                -v["inception_4a/output"][..., 2].mean()
                + 2.5 * v["loss3/classifier"][0, 0]
                - v["inception_3a/output"][..., 1].mean()
            ),
        ),
    ],
)
def test_objectives_are_written_as_text(trained, text, expected):
    found = activations(trained, np.asarray(PHOTO)[None, :16, :16])
    ((name, score),) = objectives.parse(text, layer_shapes(trained), NAMES)
    assert name == text
    values = {key: np.asarray(value) for key, value in found.items()}
    assert float(score(found)) == pytest.approx(float(expected(values)), rel=1e-4, abs=1e-6)


def test_a_number_that_names_a_class_is_that_class_and_otherwise_a_position():
    names = ["1", "2", "3"]
    assert [objectives.find_class(text, names) for text in ("1", "3", "0")] == [0, 2, 0]
    with pytest.raises(UserError, match="there are classes 0 to 2"):
        objectives.find_class("7", names)


def test_a_layer_is_all_its_channels(trained):
    found = objectives.parse("inception_3a/5x5", layer_shapes(trained), NAMES)
    assert [name for name, _ in found] == ["inception_3a/5x5:0", "inception_3a/5x5:1"]
    vector = objectives.direction("inception_3a", [1.0, -2.0])
    assert float(vector({"inception_3a/output": jnp.ones((1, 2, 2, 2))})) == -1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inception_3a:99", "inception_3a:99"),
        ("inception_9a", "inception_9a"),
        ("inception_4a:1@9,9", "below 4,4"),
        ("class:whale", "unknown class 'whale'"),
        ("class:man-eater", "classes 0 and 9"),
        ("class:3+inception_3a/output:x", "inception_3a/output:x"),
        ("inception_4a:1+inception_3a", "'inception_3a' is a whole layer; .* as in inception_3a:0"),
        ("inception_4a+mixed3a", "'inception_4a' is a whole layer"),
        ("inception_4a:1-2*mixed3a", "'mixed3a' is a whole layer"),
        ("inception_4a:1+", "unknown layer ''"),
        ("nolayer:3", r"there are( [^ ,]+,){5} and \d+ others$"),
        ("class:77", "classes 0 to 9"),
    ],
)
def test_an_unknown_objective_is_refused(trained, text, words):
    with pytest.raises(UserError, match=words):
        objectives.parse(text, layer_shapes(trained), NAMES)


def test_a_relu_that_blocks_an_image_lets_its_gradient_through():
    x = jnp.array([[-1.0, -2.0], [-1.0, 2.0]])
    gradient = jax.grad(lambda x: visualize.relu(x).sum())(x)
    np.testing.assert_array_equal(gradient, [[1, 1], [0, 1]])


def test_moved_images_stay_near_their_place():
    image = np.zeros((1, 1, 32, 32, 3), np.float32)
    image[0, 0, 12:20, 12:20] = 1
    moved = np.asarray(visualize.transform(jnp.asarray(image), jax.random.key(1)))
    assert moved.shape == image.shape
    assert moved[0, 0, 15:17, 15:17].min() > 0.5
    assert not np.array_equal(moved, image)


def test_the_command_draws_a_sheet_and_reuses_its_pictures(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "sheet.png"
    arguments = ["visualize", folder, "inception_3a/5x5", " -mixed4a:1", "--steps", "2"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "3 objectives" in capsys.readouterr().out
    names = {file.name for file in (tmp_path / "sheet").iterdir()}
    assert names == {"inception_3a-5x5-0.png", "inception_3a-5x5-1.png", "-mixed4a-1.png"}
    (tmp_path / "sheet" / "inception_3a-5x5-1.png").unlink()
    made = []
    run = visualize.visualize
    monkeypatch.setattr(
        visualize, "visualize", lambda m, v, goals, **k: made.extend(goals) or run(m, v, goals, **k)
    )
    assert main([*arguments, "--out", str(out)]) == 0
    assert len(made) == 1
    assert main([*arguments, "--out", str(out), "--seed", "1"]) == 0
    assert len(made) == 4
    config = json.loads((Path(folder) / "config.json").read_text())
    config["preprocessing"]["mean"] = [1.0, 2.0, 3.0]  # as its author may correct it
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    (changed / "config.json").write_text(json.dumps(config))
    again = [arguments[0], str(changed), *arguments[2:], "--out", str(out), "--seed", "1"]
    assert main(again) == 0
    assert len(made) == 7
    assert main([*again[:-4], "--out", str(tmp_path / "changed.png")]) == 2
    assert "choose another file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["inception_9a:1"], "inception_9a"),
        (["mixed4a:1", "--steps", "0"], "--steps is 0"),
        (["mixed4a:1", "--size", "1"], "1x1"),
        ([], "no objective"),
    ],
)
def test_the_command_refuses_what_it_cannot_draw(folder, tmp_path, capsys, options, words):
    assert main(["visualize", folder, *options, "--out", str(tmp_path / "a.png")]) == 2
    assert words in capsys.readouterr().err


def test_a_dream_has_the_photos_size_and_excites_its_layer(trained):
    dreamt = dream(trained, PHOTO, "inception_3a", octaves=2, steps=3)
    assert dreamt.size == PHOTO.size
    squares = [np.asarray(each)[None, :16, :16] for each in (PHOTO, dreamt)]
    before, after = (
        np.square(activations(trained, each)["inception_3a/output"]).mean() for each in squares
    )
    assert after > before


def test_a_dream_is_made_by_a_command(folder, tmp_path, capsys):
    PHOTO.save(tmp_path / "photo.png")
    arguments = ["dream", folder, str(tmp_path / "photo.png"), "--layer", "mixed3a:1"]
    arguments += ["--octaves", "1", "--steps", "1", "--out", str(tmp_path / "dream.png")]
    assert main(arguments) == 0
    assert np.any(np.asarray(Image.open(tmp_path / "dream.png")) != np.asarray(PHOTO))
    assert main([*arguments, "--octave-scale", "1"]) == 2
    assert "--octave-scale is 1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def square():
    return np.asarray(PHOTO)[:16, :16]


def test_integrated_gradients_sum_to_the_difference_of_the_logits(trained, square):
    found = attribution.attribute(trained, square, 3)
    logits = [
        np.asarray(activations(trained, each)["loss3/classifier"])[0, 3]
        for each in (square[None], np.full_like(square, 99)[None])
    ]
    assert found.difference == pytest.approx(float(logits[0] - logits[1]), rel=1e-3)
    assert float(found.integrated.sum()) == pytest.approx(found.difference, rel=0.01)


def test_the_gradient_is_that_of_the_logit_to_the_pixels(trained, square):
    found = attribution.attribute(trained, square, 3)
    change = np.random.default_rng(3).normal(size=square.shape).astype(np.float32)
    step = 0.05
    ends = np.stack([square + step * change, square - step * change])
    up, down = np.asarray(activations(trained, ends)["loss3/classifier"])[:, 3]
    assert (found.gradient * change).sum() == pytest.approx((up - down) / (2 * step), rel=0.05)


def test_random_weights_change_every_map(trained, square):
    found = attribution.attribute(trained, square, 3)
    other = attribution.attribute(attribution.randomised(trained), square, 3)
    for a, b in zip(found[:3], other[:3], strict=True):
        assert attribution.similarity(a, a) == pytest.approx(1)
        assert attribution.similarity(a, b) < 0.9


def test_grad_cam_of_the_last_block_is_the_activation_map(trained):
    own = ActivationMapper(trained)(PHOTO, 3)
    given = ActivationMapper(trained, layer="mixed5a")(PHOTO, 3)
    np.testing.assert_allclose(given["main"].evidence, own["main"].evidence, rtol=1e-5)
    assert not given["aux 4a"].evidence.any()  # this head does not depend on block 5a
    before = ActivationMapper(trained, layer="inception_3a/3x3")(PHOTO, 3)
    assert all(before[head].evidence.any() for head in own)
    with pytest.raises(UserError, match="pool3"):
        ActivationMapper(trained, layer="pool3")


def test_the_first_convolution_keeps_its_max_pool():
    model = GoogLeNet(tiny_arch(stem="imagenet"))
    variables = init(model, jax.random.key(0), 96)
    x = np.random.default_rng(0).normal(size=(1, 96, 96, 3)).astype(np.float32)
    found = endpoints(model, variables, x)
    logits = cam._logits(model, variables, x, "conv1", None, found["conv1/7x7_s2"])
    np.testing.assert_allclose(logits, found["loss3/classifier"], rtol=1e-4, atol=1e-5)
    changed = cam._logits(model, variables, x, "conv1", None, 2 * found["conv1/7x7_s2"])
    assert np.abs(changed - logits).max() > 1e-3


def test_attributions_are_drawn_by_a_command(folder, tmp_path, capsys):
    PHOTO.save(tmp_path / "photo.png")
    arguments = ["attribute", folder, str(tmp_path / "photo.png"), "--layer", "mixed4a"]
    arguments += ["--target", "class_3", "--out", str(tmp_path / "a.png")]
    assert main([*arguments, "--sanity"]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 2 * picture.height
    assert main([*arguments[:-4], "--target", "class_30", "--out", str(tmp_path / "b.png")]) == 2
    assert "class_30" in capsys.readouterr().err


@pytest.mark.parametrize(("last", "layer"), [("4e", "inception_4e"), ("5b", "inception_5b")])
def test_grad_cam_is_at_4e_or_at_the_last_block_of_a_network_without_it(last, layer, monkeypatch):
    found = attribution.Attribution(*[np.ones((16, 16, 3))] * 3, difference=1.0)
    monkeypatch.setattr(attribution, "attribute", lambda *given: found)
    arch = tiny_arch()
    widths = {"3a": arch.widths["3a"], last: arch.widths["3a"]}
    model = GoogLeNet(dataclasses.replace(arch, widths=widths, aux_after=()))
    names = tuple(f"class {n}" for n in range(arch.num_classes))
    network = TrainedModel(model, tiny_variables(model), PIXELS, names, {})
    figure = attribution.draw_attribution(network, PHOTO)
    assert f"Grad-CAM at {layer}" in [axes.get_title() for axes in figure.axes]


def test_networks_with_batch_norm_are_drawn_too():
    model = GoogLeNet(dataclasses.replace(tiny_arch("batch_norm")))
    variables = tiny_variables(model)
    images, value = visualize.visualize(
        model,
        variables,
        objectives.channel("inception_3a", 0),
        preprocessing=PIXELS,
        steps=2,
        images=2,
    )
    assert images.shape == (2, 16, 16, 3)
    assert np.isfinite(value)


def test_the_strongest_images_are_found_with_their_places(trained):
    pictures = Pictures("digits#12")
    best, _ = examples.top_images(trained, pictures, "inception_3a/output", [3, 12], top=2)
    squares = [central_crop(each.opened(), PIXELS) for each in pictures]
    found = np.asarray(activations(trained, squares)["inception_3a/output"])
    for number in (3, 12):
        values = found[..., number].max(axis=(1, 2))
        assert [each.image for each in best[number]] == list(np.argsort(-values)[:2])
        first = best[number][0]
        own = found[first.image, first.y, first.x, number]
        assert own == pytest.approx(first.value, rel=1e-4) == pytest.approx(values.max(), rel=1e-4)


def test_top_images_are_drawn_beside_the_optimised_one(folder, tmp_path, capsys):
    out = tmp_path / "top.png"
    arguments = ["top-images", folder, "--data", "digits#9", "--top", "2", "--out", str(out)]
    assert main([*arguments, "--steps", "2", "mixed3a:1", "mixed3a:4"]) == 0
    assert "inception_3a/output:4" in capsys.readouterr().out
    assert len(list((tmp_path / "top").iterdir())) == 2
    assert out.is_file()
    assert main([*arguments, "mixed3a:1", "mixed4a:1"]) == 2
    assert "one layer" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_drawn(folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        PHOTO.rotate(90 * number).save(photos / f"{number}.png")
    (photos / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "top.png"
    arguments = ["top-images", folder, "mixed3a:1", "--steps", "0", "--top", "2", "--out", str(out)]
    assert main([*arguments, "--data", str(photos)]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert out.is_file()
    for number in range(3):
        (photos / f"{number}.png").unlink()
    assert main([*arguments, "--data", str(photos)]) == 2
    errors = capsys.readouterr().err
    assert "broken.png" in errors
    assert "no image could be read" in errors


def test_features_are_as_similar_as_they_are_equal():
    x, y = np.random.default_rng(0).normal(size=(2, 200, 6))
    turned = 3 * x @ np.linalg.qr(y[:6])[0] + 1
    assert similarity.cka(x, x) == pytest.approx(1)
    assert similarity.cka(x, turned) == pytest.approx(1)
    assert similarity.cka(x, y) < 0.1


def test_a_probe_finds_classes_that_a_line_separates():
    x = np.random.default_rng(0).normal(size=(400, 6))
    label = (x[:, 1] + 2 * x[:, 3] > 0).astype(int)
    assert similarity.probe(x, label) > 0.9
    assert similarity.probe(x, np.roll(label, 1)) < 0.7


def test_networks_are_compared_by_a_command(trained, folder, tmp_path, capsys):
    other = dataclasses.replace(trained, variables=attribution.randomised(trained).variables)
    write_folder(tmp_path / "other", other)
    data = ["--data", "digits#40", "--out", str(tmp_path / "c.png")]
    assert main(["compare", folder, str(tmp_path / "other"), *data]) == 0
    printed = capsys.readouterr().out
    assert "model: linear probes 3a" in printed
    assert "other: linear probes 3a" in printed
    assert (tmp_path / "c.png").is_file()
    found = similarity.compare({"a": trained, "b": other}, Pictures("digits#40"))
    np.testing.assert_allclose(np.diag(found.cka["a"]), 1)
    assert np.all(np.diag(found.cka["b"]) < 1)
    assert main(["compare", folder, folder, *data]) == 2
    assert "at least two different models" in capsys.readouterr().err
    both = [folder, str(tmp_path / "other")]
    assert main(["compare", *both, "--data", "digits#5", *data[2:]]) == 2
    assert "20 labelled images" in capsys.readouterr().err
