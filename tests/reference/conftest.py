import pytest

from tests.support.float64 import Reference


@pytest.fixture(scope="module")
def reference(shared) -> Reference:
    return Reference(shared)
