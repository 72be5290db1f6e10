"""Checkpoints of tiny models, and what may be wrong with the files of one."""

import os
from pathlib import Path

from llm_pruner.model.tokenizers import load_tokenizer
from tests.support import tiny
from tests.support.commands import DEMO


def save_tiny(folder: Path, case: str = "llama", seed: int = 0, **changes) -> str:
    """Saves a tiny random model with the demo's tokenizer, and returns the folder."""
    tokenizer = load_tokenizer(str(DEMO))
    tiny.model(case, seed, vocab_size=len(tokenizer), **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


class Evil:
    """Pickled, it makes a file called `pwned` where it is loaded."""

    def __reduce__(self):
        return (os.system, ("touch pwned",))
