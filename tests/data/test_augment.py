import jax
import jax.numpy as jnp
import numpy as np

from gnet_jax.config import Preprocessing
from gnet_jax.data import preprocess

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 4, 5, 3), np.uint8)
PLAIN = Preprocessing(mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))


def test_channels_are_normalised_in_the_networks_order():
    expected = (IMAGES.astype(np.float32) - [10, 20, 30]) / [2, 4, 8]
    np.testing.assert_allclose(preprocess(jnp.asarray(IMAGES), preprocessing=PLAIN), expected)
    bgr = Preprocessing(channels="BGR", mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))
    expected = (IMAGES[..., ::-1].astype(np.float32) - [10, 20, 30]) / [2, 4, 8]
    np.testing.assert_allclose(preprocess(jnp.asarray(IMAGES), preprocessing=bgr), expected)


def mirrored(images, key, offset=0):
    """Which images came out mirrored; every image is either that or unchanged."""
    plain = np.asarray(preprocess(jnp.asarray(images), preprocessing=PLAIN))
    found, _ = augmented(images, key, offset, flip=True)
    flips = (found == plain[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(found[~flips], plain[~flips])
    return flips


def test_about_half_of_the_images_are_mirrored():
    flips = mirrored(IMAGES, jax.random.PRNGKey(0))
    assert 20 < flips.sum() < 44
    assert (flips != mirrored(IMAGES, jax.random.PRNGKey(1))).any()


def test_a_mirror_is_keyed_by_the_place_in_the_global_batch():
    key = jax.random.PRNGKey(0)
    whole = mirrored(IMAGES, key)
    parts = [mirrored(IMAGES[at : at + 16], key, offset=at) for at in range(0, 64, 16)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
