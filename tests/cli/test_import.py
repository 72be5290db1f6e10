"""What a process pays for importing the package."""

import subprocess
import sys

from tests import REPOSITORY


def test_import_is_light():
    code = "import sys, llm_pruner; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
