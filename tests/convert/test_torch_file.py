"""torch's files without torch: tensors come in, code does not run."""

import argparse
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from gnet_jax.convert.torch_file import is_torch_file, read_torch, write_torch
from gnet_jax.model_folder import WeightsError

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(3, np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "transposed": np.arange(6, dtype=np.float32).reshape(3, 2).T,
}


class Runs:
    """A pickle of this calls `function(*arguments)` in whoever loads it."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def zipped(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", np.arange(6, dtype="<f4").tobytes())
    return path


def legacy(path: Path, data: bytes, version: int = 1001, little_endian: bool = True) -> Path:
    head = [0x1950A86A20F9469CFC6C, version, {"little_endian": little_endian}]
    path.write_bytes(b"".join([*(pickle.dumps(part, 2) for part in head), data]))
    return path


def tensor_pickle(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """The pickle of `{"w": tensor}`, the tensor lying so in a storage of six floats."""
    buffer = io.BytesIO()
    pickler = pickle._Pickler(buffer, 2)  # type: ignore[attr-defined]

    class Named:
        """Pickled as a mere name, which need not exist."""

        def __init__(self, module, name):
            self.text = f"c{module}\n{name}\n".encode()

    class Call:
        pass

    def save_call(p, _):
        p.write(b"ctorch._utils\n_rebuild_tensor_v2\n(")
        p.write(b"(")
        p.save("storage")
        p.write(b"ctorch\nFloatStorage\n")
        for part in ("0", "cpu", 6):
            p.save(part)
        p.write(b"tQ")
        for part in (offset, shape, strides, False, OrderedDict()):
            p.save(part)
        p.write(b"tR")

    pickler.dispatch = {**pickle._Pickler.dispatch, Call: save_call}  # type: ignore[attr-defined]
    pickler.dump({"w": Call()})
    return buffer.getvalue()


def test_what_is_written_is_read(tmp_path):
    write_torch(tmp_path / "a.pth", ARRAYS)
    assert is_torch_file((tmp_path / "a.pth").read_bytes())
    found = read_torch(tmp_path / "a.pth")
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_strides_and_offsets_are_followed(tmp_path):
    found = read_torch(zipped(tmp_path / "a.pth", tensor_pickle((3, 2), (1, 3))))
    np.testing.assert_array_equal(found["w"], [[0, 3], [1, 4], [2, 5]])
    found = read_torch(zipped(tmp_path / "a.pth", tensor_pickle((2, 2), (3, 1), 1)))
    np.testing.assert_array_equal(found["w"], [[1, 2], [4, 5]])


STORAGE = struct.pack("<q", 6) + np.arange(6, dtype="<f4").tobytes()
STORAGE = pickle.dumps(["0", "0"], 2) + STORAGE + STORAGE  # the reader must stop after the first


def test_the_legacy_format_is_read(tmp_path):
    file = legacy(tmp_path / "a.pth", tensor_pickle((2, 2), (3, 1), 1) + STORAGE)
    assert is_torch_file(file.read_bytes())
    np.testing.assert_array_equal(read_torch(file)["w"], [[1, 2], [4, 5]])


@pytest.mark.parametrize("head", [(1000, True), (1001, False)])
def test_a_legacy_file_of_another_version_or_byte_order_is_refused(tmp_path, head):
    file = legacy(tmp_path / "a.pth", tensor_pickle((6,), (1,)) + STORAGE, *head)
    with pytest.raises(WeightsError, match=f"version {head[0]} or big-endian"):
        read_torch(file)


def test_a_view_of_another_storage_is_refused(tmp_path):
    data = tensor_pickle((6,), (1,)).replace(b"K\x06tQ", b"K\x06K\x01tQ")
    with pytest.raises(WeightsError, match="not a tensor's storage"):
        read_torch(zipped(tmp_path / "a.pth", data))


def test_a_compressed_storage_is_refused(tmp_path):
    file = tmp_path / "a.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", tensor_pickle((6,), (1,)))
        archive.writestr("archive/data/0", bytes(24), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="storage 0"):
        read_torch(file)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((7,), (1,), 0), ((3, 2), (2, 1), 1), ((2,), (6,), 0), ((10**9,), (0,), 0), ((2,), (-1,), 3)],
)
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path, shape, strides, offset):
    file = zipped(tmp_path / "a.pth", tensor_pickle(shape, strides, offset))
    with pytest.raises(WeightsError, match=str(file)):
        read_torch(file)


@pytest.mark.parametrize("container", [zipped, legacy])
@pytest.mark.parametrize("place", ["value", "key", "nested"])
def test_a_pickle_that_runs_a_command_is_refused_by_name(tmp_path, container, place):
    trace = tmp_path / "trace"
    runs = Runs(os.system, f"touch {trace}")
    tree = {"value": {"w": runs}, "key": OrderedDict([(("k", runs), 1)]), "nested": [[runs]]}
    file = container(tmp_path / "evil.pth", pickle.dumps(tree[place], 2))
    with pytest.raises(WeightsError, match=r"(posix|nt)\.system"):
        read_torch(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(eval, ("1",)), (getattr, (1, "real")), (pickle.loads, (b"N.",)), (np.zeros, (3,))],
)
def test_harmless_calls_are_refused_too(tmp_path, function, arguments):
    file = zipped(tmp_path / "evil.pth", pickle.dumps({"w": Runs(function, *arguments)}, 2))
    with pytest.raises(WeightsError, match=function.__name__):
        read_torch(file)


def test_a_pickle_cannot_change_the_reader(tmp_path):
    # BUILD with slot state sets attributes on whatever is on the stack
    data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x08\x00\x00\x00__code__K\x01s\x86b."
    with pytest.raises(WeightsError):
        read_torch(zipped(tmp_path / "evil.pth", data))
    test_strides_and_offsets_are_followed(tmp_path)


def test_a_cut_file_is_refused(tmp_path):
    file = tmp_path / "a.pth"
    write_torch(file, ARRAYS)
    whole = file.read_bytes()
    for length in range(4, len(whole), 97):
        file.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="cut short"):
            read_torch(file)


def test_every_type_of_storage_is_read(tmp_path):
    for name, kind, stored in (
        ("DoubleStorage", "<f8", np.float32),
        ("IntStorage", "<i4", np.int32),
        ("ShortStorage", "<i2", np.int16),
        ("CharStorage", "i1", np.int8),
        ("ByteStorage", "u1", np.uint8),
        ("BoolStorage", "?", np.bool_),
    ):
        data = tensor_pickle((6,), (1,)).replace(b"FloatStorage", name.encode())
        file = tmp_path / "a.pth"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/data/0", np.array([0, 1, 2, 3, 100, 1], kind).tobytes())
        found = read_torch(file)["w"]
        assert found.dtype == stored
        np.testing.assert_array_equal(found, np.array([0, 1, 2, 3, 100, 1], stored))


@pytest.mark.parametrize(
    ("member", "content"), [("data/0", None), ("data/0", bytes(20))], ids=["missing", "short"]
)
def test_a_storage_that_cannot_be_read_right_is_refused(tmp_path, member, content):
    file = tmp_path / "a.pth"
    parts = {"data.pkl": tensor_pickle((6,), (1,)), "data/0": bytes(24)} | {member: content}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            if data is not None:
                archive.writestr(f"archive/{name}", data)
    with pytest.raises(WeightsError, match=str(file)):
        read_torch(file)


def test_a_zip_of_other_things_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("letter.txt", "hello")
    with pytest.raises(WeightsError, match=r"no data\.pkl"):
        read_torch(tmp_path / "a.zip")


@pytest.mark.parametrize("value", [[], {}, 3, {"lr": 0.1}, {"model": {"lr": 1}}])
def test_what_is_no_state_dict_is_refused(tmp_path, value):
    with pytest.raises(WeightsError, match="state dict"):
        read_torch(zipped(tmp_path / "a.pth", pickle.dumps(value, 2)))


def torch_module():
    return pytest.importorskip("torch", reason="torch, the oracle for .pth files, is not installed")


@pytest.mark.parametrize("zipfile_serialization", [True, False])
def test_both_of_torchs_formats_read_the_same(tmp_path, zipfile_serialization):
    torch = torch_module()
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    state = {
        "whole": base,
        "transposed": base.T,  # the same storage, other strides
        "part": base[1:, 2:],
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "double": base.double(),
        "parameter": torch.nn.Parameter(base),
        "count": torch.tensor(7),
    }
    file = tmp_path / "a.pth"
    torch.save(state, file, _use_new_zipfile_serialization=zipfile_serialization)
    assert is_torch_file(file.read_bytes())
    found = read_torch(file)
    for name, tensor in state.items():
        tensor = tensor.detach()
        expected = tensor if tensor.dtype == torch.int64 else tensor.float()
        np.testing.assert_array_equal(found[name], expected.numpy(), err_msg=name)


def test_the_tensors_of_a_checkpoint_are_named_by_their_keys(tmp_path):
    torch = torch_module()
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu"), dtype=torch.float32),
        "best": np.float64(0.5),
        "size": torch.Size([2, 2]),
        "out": Path("runs"),
    }
    torch.save(checkpoint, tmp_path / "a.pth")
    found = read_torch(tmp_path / "a.pth")
    assert {"model/weight", "optimizer/state/0/exp_avg", "rng"} <= found.keys()
    np.testing.assert_array_equal(found["model/weight"], layer.weight.detach().numpy())


def test_a_whole_pickled_model_is_refused_with_the_remedy(tmp_path):
    torch = torch_module()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"torch\.nn.*Linear.*model\.state_dict\(\)"):
        read_torch(tmp_path / "a.pth")


def test_torch_loads_what_is_written(tmp_path):
    torch = torch_module()
    write_torch(tmp_path / "a.pth", ARRAYS)
    found = torch.load(tmp_path / "a.pth", weights_only=True)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name].numpy(), array)


def test_a_legacy_storage_of_another_length_is_refused(tmp_path):
    body = tensor_pickle((2, 3), (3, 1)) + pickle.dumps(["0"], 2) + struct.pack("<q", 5)
    file = legacy(tmp_path / "a.pth", body + bytes(20))
    with pytest.raises(WeightsError, match=r"\b5\b.*\b6\b"):
        read_torch(file)


@pytest.mark.parametrize("times", [2, 8, 9])
def test_a_storage_may_be_named_again_but_not_without_end(tmp_path, times):
    once = tensor_pickle((6,), (1,))
    begin, end = once.index(b"ctorch._utils"), once.rindex(b"R") + 1
    tensor = once[begin:end]
    names = (f"X\x02\x00\x00\x00w{number}".encode() for number in range(times))
    data = b"\x80\x02}(" + b"".join(name + tensor for name in names) + b"u."
    file = zipped(tmp_path / "a.pth", data)
    if times <= 8:
        assert [array.tolist() for array in read_torch(file).values()] == [list(range(6))] * times
        return
    with pytest.raises(WeightsError, match=r"\b54\b.*\b6\b"):
        read_torch(file)
