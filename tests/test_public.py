"""The public API: `import gnet_jax`."""

import dataclasses
import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import gnet_jax
from gnet_jax.config import Preprocessing, UserError
from gnet_jax.convert.export import export
from gnet_jax.model.googlenet import endpoints
from gnet_jax.model_folder import write_folder
from tests.convert.conftest import small_folder

NAMES = ["GoogLeNet", "Outputs", "VARIANTS", "googlenet", "init", "load", "preprocess"]


@pytest.mark.parametrize("command", ["import gnet_jax; dir(gnet_jax)", "--version"])
def test_importing_the_package_and_printing_its_version_import_no_jax(command):
    run = "import sys; from gnet_jax.cli.main import main; main(['--version'])"
    code = run if command == "--version" else command
    check = "; import sys; assert not {'jax', 'flax', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code + check], check=True)


def test_every_public_name_is_listed_documented_and_importable():
    assert set(NAMES) < set(gnet_jax.__all__) < set(dir(gnet_jax))
    for name in gnet_jax.__all__:
        assert getattr(gnet_jax, name) is not None
        assert name in str(gnet_jax.__doc__)
    for name in gnet_jax.VARIANTS:
        assert name in str(gnet_jax.__doc__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = gnet_jax.nothing


def test_a_network_is_built_initialised_and_applied():
    network = gnet_jax.googlenet("paper", num_classes=5, width_multiplier=1 / 16, stem="small")
    assert isinstance(network, gnet_jax.GoogLeNet)
    key = jax.random.PRNGKey(0)
    variables = jax.eval_shape(lambda key: gnet_jax.init(network, key, 32), key)
    pixels = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    x = gnet_jax.preprocess(pixels, preprocessing=gnet_jax.Preprocessing())
    assert x[0, 0, 0].tolist() == [-123, -117, -104]
    found = jax.eval_shape(network.apply, variables, x)
    assert isinstance(found, gnet_jax.Outputs)
    assert found.logits.shape == (2, 5)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A model of BGR images of 20 pixels in a folder, and two photos of that size."""
    root = tmp_path_factory.mktemp("public")
    pixels = Preprocessing(20, "warp", 20, "BGR", (100.0, 110.0, 120.0), (50.0, 60.0, 70.0))
    model = dataclasses.replace(small_folder(image_size=20), preprocessing=pixels)
    write_folder(root / "model", model)
    photos = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(root / f"{number}.png")
    x = (photos[..., [2, 1, 0]] - np.array(pixels.mean)) / np.array(pixels.std)
    logits = jax.jit(model.model.apply)(model.variables, x.astype(np.float32)).logits
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return root, model, photos, odds / odds.sum(axis=1, keepdims=True)


def test_a_loaded_model_predicts_what_the_network_computes(stored, monkeypatch):
    root, model, photos, expected = stored
    monkeypatch.setenv("HOME", str(root))
    loaded = gnet_jax.load("~/model")
    assert (loaded.model, loaded.class_names) == (model.model, model.class_names)
    assert (loaded.preprocessing, loaded.source) == (model.preprocessing, model.source)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, model.variables)
    paths = [str(root / "0.png"), root / "1.png"]
    pictures = [Image.fromarray(photo) for photo in photos]
    for given in (paths, pictures, list(photos), photos, (paths[0], photos[1])):
        found = loaded.predict(given)
        assert len(found) == 2
        for row, odds in zip(found, expected, strict=True):
            order = np.argsort(-odds)
            assert [name for name, _ in row] == [model.class_names[i] for i in order]
            np.testing.assert_allclose([p for _, p in row], odds[order], rtol=1e-3)
    for given in (paths[1], pictures[1], photos[1]):
        assert loaded.predict(given, top=1) == [found[1][:1]]


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "convert",
    [
        encoded,
        jnp.asarray,
        lambda picture: Image.open(io.BytesIO(encoded(picture))),
        lambda picture: picture.convert("RGBA"),
        lambda picture: picture.convert("RGBA").convert("RGBa"),
        lambda picture: picture.convert("RGBX"),
    ],
)
def test_every_kind_of_image_is_the_same_image(stored, convert):
    _, model, photos, _ = stored
    images = [convert(Image.fromarray(photo)) for photo in photos]
    assert model.predict(images) == model.predict(photos)
    np.testing.assert_array_equal(model.batch(images[0]), model.batch(photos[:1]))


def test_a_folder_and_a_data_set_are_many_images(stored, tmp_path):
    root, model, photos, _ = stored
    assert model.predict(str(root)) == model.predict([root / "0.png", root / "1.png"])
    for name in ("train", "val"):
        pixels = photos if name == "val" else 255 - photos
        np.savez(tmp_path / f"{name}.npz", x=pixels, y=[0, 1])
    data = f"npz:{tmp_path}"
    assert model.predict(data) == model.predict(photos)
    assert model.predict(f"{data}#1") == model.predict(photos[:1])
    np.testing.assert_array_equal(
        model.features(data, split="train"), model.features(list(255 - photos))
    )


def test_the_orientation_of_any_image_is_applied(stored):
    _, model, _, _ = stored
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored with a quarter turn
    file = encoded(picture.transpose(Image.Transpose.ROTATE_90), exif=exif)
    expected = model.batch(picture)
    for given in (file, Image.open(io.BytesIO(file))):
        np.testing.assert_array_equal(model.batch(given), expected)
        assert model.cam(given) == model.cam(picture)


PIXELS = np.zeros((20, 30, 3), np.uint8)


@pytest.mark.parametrize("method", ["predict", "features", "cam", "batch"])
@pytest.mark.parametrize(
    ("image", "named"),
    [
        (PIXELS / 255, "float64"),
        (PIXELS.astype(np.uint16), "uint16"),
        (PIXELS.transpose(2, 0, 1), r"\(3, 20, 30\)"),
        (PIXELS[..., [0, 1, 2, 0]], r"\(20, 30, 4\)"),
        (PIXELS[0, 0], r"\(3,\)"),
        (PIXELS[None, None], r"\(1, 1, 20, 30, 3\)"),
        (Image.new("F", (30, 20)), "mode F"),
        (Image.new("I", (30, 20)), "mode I"),
        (b"text", "not an image"),
        (None, "NoneType"),
        (iter([PIXELS]), "iterator"),
        ([PIXELS, {}], r"images\[1\].*dict"),
        ("absent.jpg", r"absent\.jpg"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_an_image_is_refused_in_one_sentence(stored, method, image, named):
    _, model, _, _ = stored
    with pytest.raises(UserError, match=named) as raised:
        getattr(model, method)(image)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("image", ["a.jpg", Image.new("RGB", (3, 4)), [PIXELS]], ids=type)
def test_preprocess_says_that_it_takes_arrays(image):
    with pytest.raises(UserError, match=f"{type(image).__name__}.*batch"):
        gnet_jax.preprocess(image, preprocessing=gnet_jax.Preprocessing())


def test_a_batch_is_the_networks_normalised_input(stored):
    _, model, photos, _ = stored
    x = (photos[..., ::-1] - np.array([100, 110, 120])) / np.array([50, 60, 70])
    np.testing.assert_allclose(model.batch(photos), x, rtol=1e-6)
    assert model.batch([]).shape == (0, 20, 20, 3)


def test_features_are_a_layers_output_averaged_or_flattened(stored):
    _, model, photos, _ = stored
    found = jax.jit(lambda x: endpoints(model.model, model.variables, x))(model.batch(photos))
    for layer, key in (("pool5", "pool5/7x7_s1"), ("inception_4a/5x5", "inception_4a/5x5")):
        value = np.asarray(found[key])
        rows = model.features(photos, layer=layer)
        assert rows.dtype == np.float32
        means = value if value.ndim == 2 else value.mean(axis=(1, 2))
        np.testing.assert_allclose(rows, means, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            model.features(photos[0], layer=layer, flatten=True),
            value[:1].reshape(1, -1),
            rtol=1e-4,
            atol=1e-5,
        )
    for layer in ("pool6", "inception_9a"):
        with pytest.raises(UserError, match=layer):
            model.features(photos, layer=layer)
    with pytest.raises(UserError, match="no images"):
        model.features([])


def test_a_map_is_a_picture_for_one_image_and_a_list_for_several(stored):
    _, model, photos, _ = stored
    one, several = model.cam(photos[0]), model.cam(photos)
    assert isinstance(one, Image.Image)
    assert hasattr(one, "_repr_png_")  # notebooks show it
    assert [type(picture) for picture in several] == 2 * [Image.Image]
    assert several[0] == one
    assert model.cam(photos[0], class_index=1) != model.cam(photos[0], class_index=2)
    with pytest.raises(UserError, match="class 3"):
        model.cam(photos[0], class_index=3)


def test_an_image_that_cannot_be_read_is_named(stored):
    root, model, _, _ = stored
    (root / "text.png").write_text("not an image")
    for bad in ("absent.png", "text.png"):
        with pytest.raises(UserError, match=bad):
            model.predict([root / "0.png", root / bad])
    with pytest.raises(UserError, match="uint8"):
        model.predict(np.zeros((20, 20, 3)))


def test_an_exported_file_is_loaded_too(stored):
    root, model, photos, _ = stored
    export(model, root / "exported.safetensors")
    loaded = gnet_jax.load(root / "exported.safetensors")
    assert loaded.predict(photos[0]) == model.predict(photos[0])


def test_a_missing_or_corrupt_model_is_named(stored, tmp_path):
    root, *_ = stored
    with pytest.raises(UserError, match="absent"):
        gnet_jax.load(tmp_path / "absent")
    with pytest.raises(UserError, match=str(tmp_path)):
        gnet_jax.load(tmp_path)
    broken = tmp_path / "model"
    write_folder(broken, gnet_jax.load(root / "model"))
    tensors = load_file(broken / "model.safetensors")
    save_file({name: value + 1 for name, value in tensors.items()}, broken / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        gnet_jax.load(broken)
