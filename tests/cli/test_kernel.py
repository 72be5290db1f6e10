"""The tests of sparse decoding in Triton's interpreter: `TRITON_INTERPRET` counts when triton is imported."""

import sys

import pytest

from tests import REPOSITORY

TESTS = REPOSITORY / "tests" / "unit" / "sparsity" / "test_decode.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="triton has wheels for Linux alone")
def test_the_kernel_in_the_interpreter(python):
    done = python(
        "-m", "pytest", "-x", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist", TESTS, "--rootdir",
        str(REPOSITORY), TRITON_INTERPRET="1", OMP_NUM_THREADS="1", timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
