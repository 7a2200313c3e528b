"""The public API: `import gnet_jax`."""

import dataclasses
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
