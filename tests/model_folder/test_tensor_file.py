"""Safetensors files of other origins."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from gnet_jax.model_folder import WeightsError
from gnet_jax.model_folder.folder import is_safetensors, read_tensors


def test_half_precision_is_read_as_float32(tmp_path):
    values = np.array([1.5, -2.25], np.float32)
    data = values.astype(ml_dtypes.bfloat16).tobytes()
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + data)
    save_file({"w": values.astype(np.float16)}, tmp_path / "b")
    for name in ("a", "b"):
        assert is_safetensors(tmp_path / name)
        tensors, metadata = read_tensors(tmp_path / name)
        assert tensors["w"].dtype == np.float32
        assert metadata == {}
        np.testing.assert_array_equal(tensors["w"], values)


def test_a_type_that_is_no_weight_is_named(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2))
    with pytest.raises(WeightsError, match=r"w .*F8_E4M3"):
        read_tensors(tmp_path / "a")
