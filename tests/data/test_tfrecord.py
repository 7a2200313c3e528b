"""TFRecord files: TensorFlow's bytes, random access, the kept index, and every kind of damage."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gnet_jax.data.decode import ImageError
from gnet_jax.data.sources import DataError, tfds
from gnet_jax.data.sources.tfds import TfRecords, checksum, framed, record_ends

# What tf.io.TFRecordWriter writes of "GoogLeNet" and of nothing.
WRITTEN_BY_TENSORFLOW = bytes.fromhex(
    "090000000000000037f97139476f6f674c654e657410179ac3000000000000000029039807d8ea82a2"
)
COUNTS = (4, 1, 7)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gnet_jax"


@pytest.fixture
def files(tmp_path, cache):
    folder = tmp_path / "set"
    folder.mkdir()
    paths = [folder / f"a-train.tfrecord-{i:05d}-of-00003" for i in range(3)]
    for path, part in zip(paths, np.split(np.arange(12), np.cumsum(COUNTS)[:-1]), strict=True):
        path.write_bytes(b"".join(framed(data(int(i))) for i in part))
    return paths


def data(i):
    return bytes([i]) * (50 * i)  # the first is empty


def opened(files, counts=COUNTS):
    return TfRecords(files, counts, "train.npz")


def test_records_are_framed_as_tensorflow_frames_them():
    assert framed(b"GoogLeNet") + framed(b"") == WRITTEN_BY_TENSORFLOW
    # RFC 3720 gives the CRC-32C of 32 zeros.
    assert checksum(bytes(32)) == ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) % 2**32


def test_any_record_is_read_in_any_order_by_any_thread(files):
    records = opened(files)
    assert len(records) == 12
    order = [*np.random.default_rng(0).permutation(12).tolist(), *range(12)] * 5
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(records.__getitem__, order)) == [data(i) for i in order]
    assert [records.locate(i) for i in (3, 4, 5, 11)] == [(0, 3), (1, 0), (2, 0), (2, 6)]
    assert records.describe(11) == f"number 6 in {files[2].name}"
    assert [pickle.loads(pickle.dumps(records))[i] for i in (0, 7)] == [data(0), data(7)]
    for outside in (-1, 12):
        with pytest.raises(IndexError):
            records[outside]


def test_the_index_is_made_once_and_saved_beside_the_records(files, cache, monkeypatch):
    opened(files)
    assert sorted(p.name for p in files[0].parent.iterdir()) == [
        *(path.name for path in files), "train.npz"
    ]  # fmt: skip
    assert not cache.exists()
    monkeypatch.setattr(tfds, "record_ends", None)
    assert opened(files)[11] == data(11)


def test_an_index_that_cannot_be_saved_beside_the_records_is_in_the_cache(
    files, cache, monkeypatch
):
    (files[0].parent / "train.npz" / "x").mkdir(parents=True)  # the name is taken
    opened(files)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(tfds, "record_ends", None)
    assert opened(files)[11] == data(11)


def test_an_index_that_cannot_be_saved_is_made_at_every_start(files, cache, capsys):
    (files[0].parent / "train.npz" / "x").mkdir(parents=True)
    opened(files)
    (kept,) = cache.iterdir()
    kept.unlink()
    (kept / "x").mkdir(parents=True)
    assert opened(files)[11] == data(11)
    error = capsys.readouterr().err
    assert str(files[0].parent) in error
    assert str(cache) in error


@pytest.mark.parametrize("spoiled", [b"", b"PK\x03\x04 cut", b"no index"])
def test_a_damaged_index_is_rebuilt(files, spoiled):
    opened(files)
    index = files[0].parent / "train.npz"
    index.write_bytes(spoiled)
    assert opened(files)[11] == data(11)
    assert index.stat().st_size > 100


def test_a_changed_file_is_walked_again(files):
    opened(files)
    files[2].write_bytes(b"".join(framed(b"new" * i) for i in range(7)))
    assert opened(files)[11] == b"new" * 6
    files[1].write_bytes(framed(b"other"))
    os.utime(files[1], ns=(1, 1))
    assert opened(files)[4] == b"other"
    files[2].write_bytes(b"".join(framed(b"new" * i) for i in reversed(range(7))))  # the same size
    os.utime(files[2], ns=(1, 1))
    assert opened(files)[5] == b"new" * 6


def test_a_file_that_changes_while_it_is_read_is_noticed(files):
    records = opened(files)
    files[2].write_bytes(framed(b"x" * 10_000))
    with pytest.raises(DataError, match="00002-of-00003 has changed"):
        records[11]
    files[2].write_bytes(b"")
    with pytest.raises(DataError, match="00002-of-00003 has changed"):
        records[11]


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_every_flipped_bit_of_the_data_is_noticed(files):
    records, begin = opened(files), int(record_ends(files[2])[1])  # of record 2: number 7
    for at in (0, 5, 349, 350, 353):  # the last are of the checksum itself
        flip(files[2], begin + 12 + at)
        with pytest.raises(ImageError, match="checksum"):
            records[7]
        assert records[8] == data(8)
        flip(files[2], begin + 12 + at)
    assert records[7] == data(7)


@pytest.mark.parametrize("at", [0, 7, 8, 11])
def test_a_flipped_bit_of_a_length_is_noticed_at_the_start(files, at):
    begin = int(record_ends(files[2])[3])
    flip(files[2], begin + at)
    with pytest.raises(DataError, match=f"00002-of-00003 .* byte {begin:,}"):
        opened(files)


@pytest.mark.parametrize("missing", [1, 5, 500, 565])
def test_a_file_that_is_cut_short_is_named(files, missing):
    size = files[2].stat().st_size
    os.truncate(files[2], size - missing)  # record 6 has 550 bytes, and 16 around them
    with pytest.raises(DataError, match="00002-of-00003 is truncated in record 6;"):
        opened(files)


def test_records_that_are_too_many_or_too_few_are_counted(files):
    with pytest.raises(DataError, match="00002-of-00003 has 7 records instead of 8"):
        opened(files, (4, 1, 8))
    os.truncate(files[2], int(record_ends(files[2])[-2]))
    with pytest.raises(DataError, match="00002-of-00003 has 6 records instead of 7"):
        opened(files)


def test_a_missing_file_is_named(files):
    files[1].unlink()
    with pytest.raises(DataError, match=r"cannot read .*00001-of-00003: No such file"):
        opened(files)
