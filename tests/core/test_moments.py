import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixel2gene.core.moments import moments


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_blocks_have_the_moments_of_all_their_rows(rows, size, seed):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(rows, 3)) * [1, 0, 30] + [5, 2, -10]).astype(np.float16)
    mean, sd = moments(values[start : start + size] for start in range(0, rows, size))
    assert mean == pytest.approx(values.mean(axis=0, dtype=np.float64))
    assert sd == pytest.approx(values.std(axis=0, dtype=np.float64), abs=1e-6)
