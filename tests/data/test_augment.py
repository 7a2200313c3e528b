import hashlib
import importlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gnet_jax.config import AugmentConfig, ConfigError, Preprocessing
from gnet_jax.data.augment import augment, preprocess
from gnet_jax.training.sharding import data_mesh, replicated, split

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 4, 5, 3), np.uint8)
LABELS = np.arange(64, dtype=np.int32)
KEY = jax.random.PRNGKey(0)
augment_module = importlib.import_module("gnet_jax.data.augment")  # the package has the function
PLAIN = Preprocessing(mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))
EVERYTHING = AugmentConfig(
    brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, erase=0.5, mixup=0.4, shift=2
)


def augmented(images, key=KEY, offset=0, labels=None, preprocessing=PLAIN, **changes):
    """(float32 inputs, labels) with nothing switched on but the given."""
    a = AugmentConfig(**({"flip": False} | changes))
    labels = LABELS[: len(images)] if labels is None else labels
    compiled = jax.jit(
        partial(augment, preprocessing=preprocessing, augmentation=a, num_classes=64)
    )
    return jax.device_get(compiled(images, labels, key, offset=offset))


def test_channels_are_normalised_in_the_networks_order():
    expected = (IMAGES.astype(np.float32) - [10, 20, 30]) / [2, 4, 8]
    np.testing.assert_allclose(preprocess(jnp.asarray(IMAGES), preprocessing=PLAIN), expected)
    bgr = Preprocessing(channels="BGR", mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))
    expected = (IMAGES[..., ::-1].astype(np.float32) - [10, 20, 30]) / [2, 4, 8]
    np.testing.assert_allclose(preprocess(jnp.asarray(IMAGES), preprocessing=bgr), expected)


def normalised(images):
    """As `PLAIN` does it; the divisions are exact."""
    return (images.astype(np.float32) - np.float32(PLAIN.mean)) / np.float32(PLAIN.std)


def mirrored(images, key, offset=0):
    """Which images came out mirrored; every image is either that or unchanged."""
    plain = normalised(images)
    found, _ = augmented(images, key, offset, flip=True)
    flips = (found == plain[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(found[~flips], plain[~flips])
    return flips


def test_half_of_the_images_are_mirrored():
    images = np.tile(np.uint8([[[0], [255]]]), (4000, 1, 1, 3))  # black, white
    one = mirrored(images, jax.random.PRNGKey(0))
    other = mirrored(images, jax.random.PRNGKey(1))
    slack = 4 * (0.25 / 4000) ** 0.5
    for flips in (one, other, one ^ other):  # two keys draw independently
        assert flips.mean() == pytest.approx(0.5, abs=slack)


def test_an_image_is_shifted_by_every_distance_with_mirrored_edges():
    images = np.tile(IMAGES[:1], (600, 1, 1, 1))
    found, _ = augmented(images, shift=2, labels=np.zeros(600, np.int32))
    padded = np.pad(normalised(images[0]), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = np.stack([padded[y : y + 4, x : x + 5] for y in range(5) for x in range(5)])
    which = (found[:, None] == windows).all((2, 3, 4))
    np.testing.assert_array_equal(which.sum(1), 1)
    assert stats.chisquare(which.sum(0)).pvalue > 1e-3  # all 25 are equally frequent


def test_images_are_resized_with_antialiasing_if_a_size_is_given():
    options = {"preprocessing": PLAIN, "augmentation": AugmentConfig(flip=False), "num_classes": 64}
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    found, _ = augment(images, LABELS[:2], KEY, size=12, **options)
    # each of the twelve pixels covers 4/3 pixels, with a triangular filter
    distance = abs((np.arange(16) + 0.5)[:, None] - (np.arange(12) + 0.5) * 4 / 3) * 3 / 4
    weights = np.maximum(0, 1 - distance)
    weights /= weights.sum(0)
    expected = np.einsum("bhwc,hy,wx->byxc", normalised(images), weights, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_every_part_draws_from_keys_of_its_own(monkeypatch):
    seen = []

    def note(result, keys):
        seen.append(keys)
        return result

    stubs = {
        "_shift": lambda images, keys, most: note(images, keys),
        "distort": lambda images, keys, augmentation: note(images, keys),
        "_mix": lambda images, targets, keys, alpha: note((images, targets), keys),
        "_erase": lambda x, keys, probability: note(x, keys),
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(augment_module, name, stub)
    a = AugmentConfig(shift=1, brightness=0.1, mixup=0.2, erase=0.5)

    @jax.jit
    def keys_of_every_part(offset):
        seen.clear()
        options = {"preprocessing": PLAIN, "augmentation": a, "num_classes": 64}
        augment(IMAGES[:2], LABELS[:2], KEY, offset=offset, **options)
        mirror = jax.vmap(jax.random.fold_in, (None, 0))(KEY, offset + jnp.arange(2))
        return jnp.stack([*seen, mirror])

    keys = np.concatenate([keys_of_every_part(0), keys_of_every_part(2)])
    assert keys.shape == (2 * 5, 2, 2)  # mirroring, shifting, distortion, mixup and erasing
    assert len(np.unique(keys.reshape(-1, 2), axis=0)) == 4 * 5


def test_a_mirror_is_keyed_by_the_place_in_the_global_batch():
    key = jax.random.PRNGKey(0)
    whole = mirrored(IMAGES, key)
    parts = [mirrored(IMAGES[at : at + 16], key, offset=at) for at in range(0, 64, 16)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_part_that_is_off_is_not_in_the_program():
    off = partial(
        augment, preprocessing=PLAIN, augmentation=AugmentConfig(flip=False), num_classes=64
    )
    found, targets = jax.jit(off)(IMAGES, LABELS, KEY)
    np.testing.assert_array_equal(targets, np.eye(64))
    np.testing.assert_array_equal(found, normalised(IMAGES))
    plain = jax.jit(partial(preprocess, preprocessing=PLAIN)).lower(IMAGES)
    program = jax.jit(lambda *arguments: off(*arguments)[0]).lower(IMAGES, LABELS, KEY)
    assert program.cost_analysis()["flops"] == plain.cost_analysis()["flops"]
    on = partial(augment, preprocessing=PLAIN, augmentation=AugmentConfig(), num_classes=64)
    assert "xor" not in program.compile().as_text()  # no random number is drawn
    assert "xor" in jax.jit(on).lower(IMAGES, LABELS, KEY).as_text()


def test_one_part_of_the_augmentation_does_not_change_another():
    still, _ = augmented(IMAGES, brightness=0.5)
    turned, _ = augmented(IMAGES, brightness=0.5, flip=True)
    flips = mirrored(IMAGES, KEY)
    np.testing.assert_array_equal(
        turned, np.where(flips[:, None, None, None], still[:, :, ::-1], still)
    )
    erased, _ = augmented(IMAGES, brightness=0.5, erase=1.0)
    np.testing.assert_array_equal(erased, np.where(erased == 0, 0, still))


def erased_rectangles(size=64, count=300, **changes):
    """(top, left, height, width) of what was set to zero in white images, and how many had any."""
    images = np.full((count, size, size, 3), 255, np.uint8)
    found, _ = augmented(images, labels=np.zeros(count, np.int32), **changes)
    assert set(np.unique(found)) == {0.0, *((255 - np.float32(PLAIN.mean)) / PLAIN.std)}
    rectangles = []
    for image in (found == 0).all(-1):
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        if len(rows):
            assert image.sum() == len(rows) * len(columns)  # one whole rectangle
            rectangles.append((rows[0], columns[0], len(rows), len(columns)))
    return np.array(rectangles)


def test_a_rectangle_of_the_papers_size_and_shape_is_erased():
    rectangles = erased_rectangles(erase=1.0)
    assert rectangles[:2].tolist() == [[6, 2, 23, 38], [33, 26, 13, 24]]  # as in earlier runs
    top, left, height, width = rectangles.T
    assert len(top) == 300
    area, aspect = height * width / 64**2, height / width
    assert 0.02 < area.min() < 0.023
    assert 0.30 < area.max() < 0.34
    assert area.mean() == pytest.approx(0.175, abs=0.02)
    assert 0.29 < aspect[area > 0.1].min() < 0.32  # smaller ones are rounded more coarsely
    assert 3.2 < aspect[area > 0.1].max() < 3.5
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.12)
    for start, side in ((top, height), (left, width)):  # anywhere, and never over the border
        assert start.min() == 0
        assert (start + side).max() == 64
        assert (start / np.maximum(64 - side, 1)).mean() == pytest.approx(0.5, abs=0.06)
    assert (top != left)[height == width].any()  # of equal ranges, so equal if the keys were
    drawn = area, np.log(aspect), top / np.maximum(64 - height, 1), left / np.maximum(64 - width, 1)
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.25  # each is drawn by itself


def test_erase_is_the_share_of_images_with_a_rectangle():
    assert len(erased_rectangles(erase=0.25, size=8, count=1200)) == pytest.approx(300, abs=60)


def test_neighbours_are_mixed_by_their_shares():
    found, targets = augmented(IMAGES, mixup=0.4)
    partners = np.arange(64) ^ 1
    own, others = targets[LABELS, LABELS], targets[LABELS, partners]
    np.testing.assert_array_equal(own + others, 1)
    assert own.min() >= 0.5
    assert np.count_nonzero(targets) <= 2 * 64
    share = own[:, None, None, None]
    mixed = share * IMAGES + (1 - share) * IMAGES[partners]
    expected = (mixed - np.float32(PLAIN.mean)) / np.float32(PLAIN.std)
    np.testing.assert_allclose(found, expected, atol=0.02)  # of a level, 1/32
    assert len(set(own)) > 20


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_the_share_is_the_larger_part_of_a_beta(alpha):
    images, labels = np.zeros((2000, 1, 1, 3), np.uint8), np.arange(2000, dtype=np.int32) % 2
    shares = augmented(images, labels=labels, mixup=alpha)[1].max(-1)
    assert shares.min() >= 0.5
    assert shares.max() <= 1
    for q in (0.55, 0.6, 0.7, 0.8, 0.9, 0.99):
        expected = 2 * (stats.beta.cdf(q, alpha, alpha) - 0.5)
        slack = 4 * np.sqrt(expected * (1 - expected) / 2000) + 0.01
        assert (shares < q).mean() == pytest.approx(expected, abs=slack)


def test_an_odd_number_of_images_cannot_be_mixed():
    with pytest.raises(ConfigError, match=r"augment\.mixup=0\.2 .* it has 3"):
        augmented(IMAGES[:3], mixup=0.2)


BATCH = np.random.default_rng(1).integers(0, 256, (16, 12, 12, 3), np.uint8)
# As outside of tests, where the compiler fuses multiplications with additions.
OPTIMISED = {"xla_backend_optimization_level": 3}
# Without `size`, whose products CPUs without AVX-512 round differently for 2 and for 16 images.
COMPLETE = partial(augment, preprocessing=Preprocessing(), augmentation=EVERYTHING, num_classes=64)


def sha256(*parts):
    leaves = zip(*map(jax.tree.leaves, parts), strict=True)
    joined = (np.concatenate(arrays) for arrays in leaves)
    return hashlib.sha256(b"".join(array.tobytes() for array in joined)).hexdigest()


@pytest.fixture(scope="module")
def program():
    lowered = jax.jit(COMPLETE).lower(BATCH, LABELS[:16], KEY)
    return lowered.compile(compiler_options=OPTIMISED)


@pytest.fixture(scope="module")
def whole_batch(program):
    return sha256(jax.device_get(program(BATCH, LABELS[:16], KEY)))


def test_slices_of_a_batch_have_the_bits_of_the_whole(whole_batch):
    compiled = jax.jit(COMPLETE)
    parts = [
        jax.device_get(compiled(BATCH[at : at + 4], LABELS[at : at + 4], KEY, offset=at))
        for at in range(0, 16, 4)
    ]
    assert sha256(*parts) == whole_batch


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_any_number_of_devices_gives_the_same_bits_and_no_image_travels(whole_batch, devices):
    mesh = data_mesh(jax.devices()[:devices])
    shardings = (split(mesh), split(mesh), replicated(mesh))
    jitted = jax.jit(COMPLETE, in_shardings=shardings, out_shardings=split(mesh))
    program = jitted.lower(BATCH, LABELS[:16], KEY).compile(compiler_options=OPTIMISED)
    placed = jax.device_put((BATCH, LABELS[:16], KEY), shardings)
    assert sha256(jax.device_get(program(*placed))) == whole_batch
    assert not re.findall(r"all-gather|all-reduce|all-to-all|collective", program.as_text())


def test_pmap_gives_the_same_bits(whole_batch):
    def share(images, labels):
        return COMPLETE(images, labels, KEY, offset=2 * jax.lax.axis_index("data"))

    shares = (BATCH.reshape(8, 2, 12, 12, 3), LABELS[:16].reshape(8, 2))
    out = jax.device_get(jax.pmap(share, axis_name="data")(*shares))
    assert sha256(jax.tree.map(lambda x: x.reshape(16, *x.shape[2:]), out)) == whole_batch


def test_another_key_gives_other_bits(program, whole_batch):
    other = program(BATCH, LABELS[:16], jax.random.PRNGKey(1))
    assert sha256(jax.device_get(other)) != whole_batch


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((4, 4, 3), np.uint8), ("(4, 4, 3)", "x[None]")),
        (np.zeros((1, 4, 4, 4), np.uint8), ("(1, 4, 4, 4)",)),
        (np.zeros((1, 3, 4, 4), np.uint8), ("(1, 3, 4, 4)",)),
        (np.zeros((1, 4, 4, 3), np.int32), ("int32", "uint8")),
        (np.zeros((1, 4, 4, 3), bool), ("bool",)),
        (np.full((1, 4, 4, 3), 0.5, np.float32), ("0.5", "x * 255")),
        (np.full((1, 4, 4, 3), 1, np.float32), ("from 1 to 1", "x * 255")),
        (np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 4, 4, 3), ("(x + 1) * 127.5",)),
        (np.linspace(-0.5, 200, 48, dtype=np.float32).reshape(1, 4, 4, 3), ("-0.5 to 200",)),
        (np.full((1, 4, 4, 3), 255.5, np.float32), ("255.5",)),
        (np.full((1, 4, 4, 3), -2.0, np.float32), ("-2", "255")),
        (np.full((1, 4, 4, 3), 300.0, np.float32), ("300",)),
        (np.full((1, 4, 4, 3), np.nan, np.float32), ("nan",)),
    ],
)
def test_pixels_of_another_type_shape_or_range_are_refused(images, words):
    with pytest.raises(ConfigError) as caught:
        preprocess(images, preprocessing=Preprocessing())
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_black_and_traced_pixels_are_preprocessed():
    plain = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    black = np.zeros((1, 2, 2, 3), np.float32)
    assert preprocess(black, preprocessing=plain).max() == 0
    for high in (1.5, 255.0):
        assert preprocess(black + high, preprocessing=plain).max() == high
    traced = jax.jit(lambda x: preprocess(x, preprocessing=plain))
    np.testing.assert_array_equal(traced(black + 255), black + 255)
