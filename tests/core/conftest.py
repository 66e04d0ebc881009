import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Several would wait for one another over networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
