"""From a name or a file to one text, from a text to token windows."""

from pathlib import Path
from typing import TYPE_CHECKING

from llm_pruner.errors import RunError, UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

DATASETS = ("wikitext2", "demo")


def check_name(name: str) -> None:
    """UsageError when `name` is neither a data set nor a file."""
    if name not in DATASETS and not Path(name).expanduser().is_file():
        raise UsageError(f"evaluation data {name!r} is neither a file nor a data set; {did_you_mean(name, DATASETS)}")


def load_text(name: str) -> str:
    """The evaluation text called `name`: a data set's test split, or a text file as it is.

    UsageError for a name that is neither, RunError when the data set cannot be had.
    """
    if name == "demo":
        from llm_pruner.demo.text import held_out

        return held_out()
    if name == "wikitext2":
        return "\n\n".join(_wikitext2("test"))
    check_name(name)
    try:
        return Path(name).expanduser().read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"evaluation data {name} is not a UTF-8 text file: {error}") from error


def _wikitext2(split: str) -> list[str]:
    import datasets

    try:
        return datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)["text"]
    except Exception as error:
        raise RunError(
            f"wikitext2 cannot be had from the hub ({type(error).__name__}); give a text with --eval_data FILE, "
            "or --eval_data none"
        ) from error


def token_windows(text: str, tokenizer, length: int, vocab_size: int | None = None) -> "torch.Tensor":
    """`text` tokenised once, cut into windows without overlap, the remainder dropped: LongTensor [n, length].

    UsageError when the text is shorter than one window, or has tokens that the model does not know.
    """
    import torch

    ids = tokenizer(text, verbose=False)["input_ids"]
    if len(ids) < length:
        raise UsageError(
            f"the evaluation text has {len(ids)} tokens, one window needs {length}; "
            "give a longer text or a smaller --max_seq_len"
        )
    if vocab_size is not None and max(ids) >= vocab_size:
        raise UsageError(
            f"the tokenizer gives token {max(ids)}, the model knows {vocab_size}; they do not belong together"
        )
    count = len(ids) // length
    return torch.tensor(ids[: count * length]).view(count, length)
