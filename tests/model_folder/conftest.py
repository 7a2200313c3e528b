import pytest

from gnet_jax.model_folder import TrainedModel
from tests.convert.conftest import small_folder


@pytest.fixture
def small() -> TrainedModel:
    """A narrow network for 32x32 images of three classes."""
    return small_folder()
