import pytest

from gnet_jax.model_folder import ModelFolder
from tests.convert.conftest import small_folder


@pytest.fixture
def small() -> ModelFolder:
    """A narrow network for 32x32 images of three classes."""
    return small_folder()
