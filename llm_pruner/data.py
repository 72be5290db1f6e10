"""From a name or a file to texts, from texts to token windows."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from llm_pruner.errors import RunError, UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

DATASETS = ("wikitext2", "demo")  # what can be scored on
CALIBRATION = ("wikitext2", "c4", "alpaca", "demo")  # what can be calibrated on
PROMPT = "Instruction: {instruction}\nInput: {input}\nResponse:"  # AMP's
C4_SHARD = "en/c4-train.00000-of-01024.json.gz"


def check_name(name: str, known: tuple[str, ...] = DATASETS, what: str = "evaluation") -> None:
    """UsageError when `name` is neither a data set nor a file."""
    if name not in known and not Path(name).expanduser().is_file():
        raise UsageError(f"{what} data {name!r} is neither a file nor a data set; {did_you_mean(name, known)}")


def load_text(name: str) -> str:
    """The evaluation text called `name`: a data set's test split, or a text file as it is.

    UsageError for a name that is neither, RunError when the data set cannot be had.
    """
    if name == "demo":
        from llm_pruner.demo.text import held_out

        return held_out()
    if name == "wikitext2":
        return "\n\n".join(_dataset("eval_data", "Salesforce/wikitext", "wikitext-2-raw-v1", split="test")["text"])
    check_name(name)
    return _read(name, "evaluation")


def calibration_prompts(
    name: str, nsamples: int, seq_len: int, seed: int, tokenizer, vocab_size: int | None = None
) -> "list[torch.Tensor]":
    """`nsamples` LongTensors [at most seq_len], the same for the same seed.

    Windows of seq_len tokens at random offsets, which may overlap, of a text file or of wikitext2's train split
    joined with " "; one random window of each of so many random c4 documents that are long enough; or so many
    random Alpaca prompts without their answers, cut off at seq_len (`alpaca`, or a JSON list of records with an
    `instruction`). UsageError for less than one window, RunError when a data set cannot be had.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    if name == "c4":
        prompts = _document_windows(c4_documents(), nsamples, seq_len, generator, tokenizer)
    elif is_alpaca(name):
        records = alpaca_records(name)
        order = torch.randperm(len(records), generator=generator)[:nsamples].tolist()
        prompts = [torch.tensor(_ids(tokenizer, PROMPT.format(**records[i]))[:seq_len]) for i in order]
    else:
        ids = torch.tensor(_ids(tokenizer, running_text(name)))
        if len(ids) < seq_len:
            raise UsageError(
                f"the calibration text has {len(ids)} tokens, one window needs {seq_len}; "
                "give a longer text or a smaller --calibration_seq_len"
            )
        offsets = torch.randint(len(ids) - seq_len + 1, (nsamples,), generator=generator).tolist()
        prompts = [ids[offset : offset + seq_len] for offset in offsets]
    if vocab_size is not None:
        check_vocabulary(max(int(prompt.max()) for prompt in prompts), vocab_size)
    return prompts


def is_alpaca(name: str) -> bool:
    """Whether `name` says Alpaca records: the data set, or a JSON file of such."""
    return name == "alpaca" or Path(name).suffix == ".json" and name not in CALIBRATION


def c4_documents(option: str = "calibration_data"):
    return _dataset(option, "allenai/c4", data_files={"train": C4_SHARD}, split="train")["text"]


def running_text(name: str, what: str = "calibration") -> str:
    """The text to learn from called `name`: wikitext2's train split joined with " ", the demo's, or a text file."""
    if name == "demo":
        from llm_pruner.demo.text import training

        return training()
    if name == "wikitext2":
        return " ".join(_dataset(_option(what), "Salesforce/wikitext", "wikitext-2-raw-v1", split="train")["text"])
    check_name(name, CALIBRATION, what)
    return _read(name, what)


def _option(what: str) -> str:
    return "data" if what == "training" else "calibration_data"


def _document_windows(documents, nsamples: int, seq_len: int, generator, tokenizer):
    import torch

    prompts = []
    for document in torch.randperm(len(documents), generator=generator).tolist():
        ids = _ids(tokenizer, documents[document])
        if len(ids) > seq_len:
            offset = int(torch.randint(len(ids) - seq_len, (1,), generator=generator))
            prompts.append(torch.tensor(ids[offset : offset + seq_len]))
        if len(prompts) == nsamples:
            return prompts
    raise UsageError(
        f"{len(prompts)} calibration documents have more than {seq_len} tokens, {nsamples} are needed; "
        "use a smaller --nsamples or --calibration_seq_len"
    )


def alpaca_records(name: str, what: str = "calibration") -> list[dict[str, str]]:
    """Records with `instruction`, `input` and, where they have one, `output`. UsageError for anything else."""
    if name == "alpaca":
        records = list(_dataset(_option(what), "yahma/alpaca-cleaned", split="train"))
    else:
        try:
            records = json.loads(_read(name, what))
        except ValueError as error:
            raise UsageError(f"{what} data {name} is not JSON: {error}") from error
    if (
        not isinstance(records, list)
        or not records
        or not all(isinstance(r, dict) and "instruction" in r for r in records)
    ):
        raise UsageError(f"{what} data {name} is not a JSON list of records with an 'instruction'")
    return [{name: r.get(name) or "" for name in ("instruction", "input", "output")} for r in records]


def _read(name: str, what: str) -> str:
    try:
        return Path(name).expanduser().read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} data {name} is not a UTF-8 text file: {error}") from error


def _dataset(option: str, *arguments, **options):
    import datasets

    try:
        return datasets.load_dataset(*arguments, **options)
    except Exception as error:
        none = ", or --eval_data none" if option == "eval_data" else ""
        raise RunError(
            f"{arguments[0]} cannot be had from the hub ({type(error).__name__}); "
            f"give a text with --{option} FILE{none}"
        ) from error


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, verbose=False)["input_ids"]


def check_vocabulary(highest: int, vocab_size: int) -> None:
    if highest >= vocab_size:
        raise UsageError(
            f"the tokenizer gives token {highest}, the model knows {vocab_size}; they do not belong together"
        )


def evaluation_windows(name: str, tokenizer, config, max_seq_len: int) -> "torch.Tensor":
    """Windows of the evaluation text called `name`, of max_seq_len tokens or as many as the model has positions for:
    LongTensor [n, length]. Errors as `load_text` and `token_windows`."""
    config = config.get_text_config()
    length = min(max_seq_len, getattr(config, "max_position_embeddings", None) or max_seq_len)
    return token_windows(load_text(name), tokenizer, length, config.vocab_size)


def token_windows(text: str, tokenizer, length: int, vocab_size: int | None = None) -> "torch.Tensor":
    """`text` tokenised once, cut into windows without overlap, the remainder dropped: LongTensor [n, length].

    UsageError when the text is shorter than one window, or has tokens that the model does not know.
    """
    import torch

    ids = _ids(tokenizer, text)
    if len(ids) < length:
        raise UsageError(
            f"the evaluation text has {len(ids)} tokens, one window needs {length}; "
            "give a longer text or a smaller --max_seq_len"
        )
    if vocab_size is not None:
        check_vocabulary(max(ids), vocab_size)
    count = len(ids) // length
    return torch.tensor(ids[: count * length]).view(count, length)
