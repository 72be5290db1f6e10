"""Reloads a checkpoint as a user would and writes its logits.

It is run as a script, in a fresh process: without llm_pruner, which only a checkpoint with sparse activations needs.

    python verify.py FOLDER PROBE OUT DEVICE

PROBE: safetensors with `input_ids`; OUT: safetensors with `logits` (float32). It ends with EX_OSERR where the machine,
and not the checkpoint, is at fault: no disk, no memory.
"""

import errno
import json
import os
import sys
from pathlib import Path

LACKS = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EROFS)
# of errors without errno
WORDS = ("no space left", "out of memory", "can't allocate memory", "cannot allocate memory")


def lacks(error: Exception) -> bool:
    """Return whether the machine lacks something: the libraries beneath say so in several ways."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in LACKS or any(w in text for w in WORDS)


def reload(folder: str, probe: str, out: str, device: str) -> None:
    """Load a checkpoint and write its logits.

    Args:
        folder: The checkpoint.
        probe: A safetensors file with `input_ids`, [prompts, tokens].
        out: The safetensors file to write `logits` to, float32 [prompts, tokens, vocabulary].
        device: Of torch, or `auto` for several.
    """
    if json.loads(Path(folder, "config.json").read_text(encoding="utf-8")).get("quantization_config"):
        sys.path.insert(0, str(Path(__file__).parents[2]))
        import llm_pruner  # noqa: F401
    else:
        # From here on importing it is an error: the checkpoint must not need it.
        sys.modules["llm_pruner"] = None  # type: ignore[assignment]

    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto",
        device_map="auto" if device == "auto" else {"": device},
        # our own file, just written
        trust_remote_code=Path(folder, "modeling_pruned.py").is_file(),
        output_loading_info=True,
    )
    problems = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if problems:
        sys.exit(f"loading it reports {problems}")
    with torch.no_grad():
        logits = model.eval()(load_file(probe)["input_ids"].to(model.device)).logits
    save_file({"logits": logits.float().cpu().contiguous()}, out)


if __name__ == "__main__":
    # this file's folder: it would shadow top-level modules
    sys.path.pop(0)
    try:
        reload(*sys.argv[1:])
    except Exception as error:
        print(" ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        sys.exit(os.EX_OSERR if lacks(error) else 1)
