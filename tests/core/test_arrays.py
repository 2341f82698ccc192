"""Arrays of a checkpoint, read as views of one buffer."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from sagellm_lifetime.core.arrays import part, read_arrays

ARRAYS = {
    "a.f64": np.linspace(0, 1, 7),
    "a.f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.i64": np.array([-1, 2**62]),
    "b.i32": np.zeros((0, 4), dtype=np.int32),
    "b.bool": np.array([True, False, True]),
}


def test_what_safetensors_wrote(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(ARRAYS, path)
    found = read_arrays(path)
    assert found.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(ARRAYS, path)
    path.write_bytes(path.read_bytes()[:-16])
    with pytest.raises(ValueError):  # noqa: PT011  # NumPy's words
        read_arrays(path)


def test_part():
    assert set(part(ARRAYS, "b.")) == {"i64", "i32", "bool"}
    assert part(ARRAYS, "c.") == {}
