"""The files of a model's folder, looked at before they are read: which ones are, what they hold, if they are whole."""

import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_pruner.errors import PlanError, PrunerError, RunError, UsageError, first_line, shown
from llm_pruner.files import check_regular, read_json
from llm_pruner.validation import (
    Rule,
    check,
    either,
    list_of,
    mapping,
    maybe,
    number,
    text,
    truth,
    whole,
)

if TYPE_CHECKING:
    import torch

ADAPTER, GENERATION = "adapter_config.json", "generation_config.json"
# what transformers looks for, in its order: modeling_utils._get_resolved_checkpoint_files
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# what else it, or a tokenizer, may open
READ = (
    "config.json", GENERATION, ADAPTER, "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json",
    "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "processor_config.json", "preprocessor_config.json",
)  # fmt: skip
POINTER = b"version https://git-lfs.github.com/spec/"
HEADS = re.compile(r"(^|\.)(score|classifier|classification_head|regression_head|reward_head|value_head|v_head|"
                   r"qa_outputs|multiple_choice_head|seq_relationship)\.")  # fmt: skip
LAYER = re.compile(r"\.\d+\.")
WEIGHT, MASK = re.compile(r"\.(weight|bias)$"), re.compile(r"(attn|attention)\.(masked_)?bias$")
FLOATS = ("F64", "F32", "F16", "BF16")

INDEX: dict[str, Rule] = {"metadata": mapping, "weight_map": mapping}
TOKENS = maybe(either(whole(-(2**31), 2**31), list_of(whole(-(2**31), 2**31))))
GENERATION_FIELDS: dict[str, Rule] = {
    **dict.fromkeys(("temperature", "top_p", "typical_p", "min_p", "top_h", "epsilon_cutoff", "eta_cutoff"),
                    maybe(number(0))),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale"), maybe(number(0))),
    **dict.fromkeys(("length_penalty", "penalty_alpha", "diversity_penalty", "max_time"), maybe(number())),
    **dict.fromkeys(
        ("top_k", "num_beams", "num_beam_groups", "num_return_sequences", "max_length", "max_new_tokens", "min_length",
         "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), maybe(whole(-1, 2**62)),
    ),
    **dict.fromkeys(
        ("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values", "output_attentions",
         "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate", "token_healing"),
        maybe(truth),
    ),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "suppress_tokens",
                     "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"), TOKENS),
    "early_stopping": maybe(either(truth, text)),
    "cache_implementation": maybe(text),
    **dict.fromkeys(("cache_config", "watermarking_config", "compile_config"), maybe(mapping)),
    "stop_strings": maybe(either(text, list_of(text))),
    "transformers_version": maybe(text),
}  # fmt: skip


class Tensor(NamedTuple):
    """What a file says of a tensor. dtype: as safetensors writes it, "BF16"."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def check_folder(folder: str | Path) -> None:
    """Look at what stands beside the weights.

    Raises:
        UsageError: The folder holds an adapter, a file that would be opened is no regular one, or
            generation_config.json says something illegal.
    """
    folder = Path(folder)
    if os.path.lexists(folder / ADAPTER):
        raise UsageError(
            f"{folder} holds an adapter ({ADAPTER}): merge it into its model first (peft's merge_and_unload), or take "
            f"{ADAPTER} away"
        )
    for name in READ:
        check_openable(folder / name)
    if (folder / GENERATION).is_file():
        _check_generation(folder / GENERATION)


def check_openable(path: Path, error: type[PrunerError] = UsageError) -> None:
    """Raise `error` for a pipe, a device or a socket, which would be opened; a folder or nothing is passed over."""
    if os.path.exists(path) and not os.path.isdir(path):
        check_regular(path, "the file", error)


def _check_generation(path: Path) -> None:
    """UsageError for what GenerationConfig does not take; sampling parameters without do_sample are legal."""
    from transformers import GenerationConfig

    check_no_pointer(path, UsageError)
    raw = read_json(path, "the file")
    check(raw, GENERATION_FIELDS, str(path))
    try:
        GenerationConfig.from_dict(raw).validate()
    except Exception as error:
        raise UsageError(f"{path} is no legal generation config: {' '.join(str(error).split())}") from error


def tidy(generation_config: Any) -> list[str]:
    """Take out the settings that keep a generation config from being saved, and return their names.

    These are sampling parameters without do_sample, as Llama-2 has them, or those of a beam search without beams.
    """
    try:
        generation_config.validate(strict=True)
        return []
    except ValueError as error:
        found = [name for name in re.findall(r"`(\w+)`:", str(error)) if hasattr(generation_config, name)]
    for name in found:
        setattr(generation_config, name, None)
    return found


def check_no_pointer(path: Path, error: type[PrunerError] = RunError) -> None:
    """Raise `error` for a Git LFS pointer, which stands for a file that was not fetched, and for an empty file."""
    with open(path, "rb") as file:
        start = file.read(len(POINTER))
    if start == POINTER:
        raise error(f"{path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    if not start:
        raise error(f"{path} is empty")


def weight_files(folder: str | Path, named: str | None = None) -> tuple[dict[str, str] | None, list[Path]]:
    """Return (the index's weight_map, or None; the files) that transformers would read, by its own rules.

    Args:
        folder: Of the checkpoint.
        named: config.json's `transformers_weights`, which goes first.

    Raises:
        UsageError: The index is none, or a name leads out of the folder.
        RunError: Nothing is there, or a shard is missing.
    """
    folder = Path(folder)
    if named:
        _check_inside(named, f"{folder / 'config.json'}: transformers_weights")
    for name in (named,) if named else WEIGHTS:
        check_openable(folder / name, RunError)
        if (folder / name).is_file():
            break
    else:
        raise RunError(f"{folder} holds no weights: no {' or '.join([named] if named else WEIGHTS)}")
    first = folder / name
    if not name.endswith(".index.json"):
        return None, [first]
    check_no_pointer(first)
    index = read_json(first, "the index")
    check(index, INDEX, str(first), required=tuple(INDEX))
    places = index["weight_map"]
    if not places:
        raise UsageError(f"{first}: weight_map names no tensor")
    for tensor, shard in places.items():
        if not isinstance(shard, str):
            raise UsageError(f"{first}: weight_map: {shown(tensor)} must be in a file, not in {shown(shard)}")
        _check_inside(shard, str(first))
    files = [folder / shard for shard in sorted(set(places.values()))]
    for file in files:
        if not os.path.exists(file):
            raise RunError(f"{file} is missing; the checkpoint is incomplete")
        check_regular(file, "the shard", RunError)
    return places, files


def _check_inside(name: str, where: str) -> None:
    if name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
        raise UsageError(f"{where} names {shown(name)}, which is outside the checkpoint; refused")


def check_weights(folder: str | Path, config: Any) -> dict[str, Tensor]:
    """Look at the weight files that will be read, and at no others, without reading a tensor.

    Args:
        folder: Of the checkpoint.
        config: Its configuration.

    Returns:
        The tensors, by their names in the files.

    Raises:
        UsageError: As `weight_files`.
        RunError: A file is truncated, broken or a Git LFS pointer, the index names a tensor that its shard does not
            hold, or a weight is of a dtype that only a quantisation has.
        PlanError: There is a head which a language model does not have.
    """
    places, files = weight_files(folder, getattr(config, "transformers_weights", None))
    tensors: dict[str, Tensor] = {}
    for file in files:
        check_no_pointer(file)
        tensors |= {name: Tensor(file, dtype, shape) for name, dtype, shape in _listed(file)}
    for name, shard in (places or {}).items():
        if name not in tensors or tensors[name].file.name != shard:
            raise RunError(f"{Path(folder, shard)} does not hold {shown(name)}, which the index says is in it")
    quantised = getattr(config, "quantization_config", None)
    for name, tensor in tensors.items():
        if HEADS.search(name):
            raise _other_parts(tensor.file, name)
        if WEIGHT.search(name) and not MASK.search(name) and tensor.dtype not in FLOATS and not quantised:
            raise RunError(
                f"{tensor.file}: {name} is of {tensor.dtype}, and config.json has no quantization_config that says how "
                "to read it; get the weights in float32, float16 or bfloat16"
            )
    return tensors


def check_unused(tensors: Mapping[str, Tensor], unused: Iterable[str]) -> None:
    """Raise a PlanError for a matrix outside the layers that the model has no place for.

    Without that matrix it is another model.

    Args:
        tensors: {name: tensor} of the weight files.
        unused: The names that the model has no place for.
    """
    for name in unused:
        if name in tensors and len(tensors[name].shape) > 1 and not LAYER.search(name):
            raise _other_parts(tensors[name].file, name)


def _other_parts(file: Path, name: str) -> PlanError:
    return PlanError(
        f"{file} holds {name}, which the language model does not have: a model with another head, or other parts, is "
        "refused"
    )


def _listed(file: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of every tensor in a weight file. RunError when it is broken."""
    try:
        yield from (_of_safetensors if file.suffix == ".safetensors" else _of_pickle)(file)
    except PrunerError:
        raise
    except Exception as error:
        # of safetensors, zipfile, pickle …
        raise RunError(f"{file} is truncated or broken: {first_line(error)}") from error


def _of_safetensors(file: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            part = opened.get_slice(name)
            yield name, part.get_dtype(), tuple(part.get_shape())


def _of_pickle(file: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Unpickles nothing but tensors, whose data stays on the disk."""
    import torch

    mapped = {"mmap": True} if zipfile.is_zipfile(file) else {"map_location": "meta"}
    found = torch.load(file, weights_only=True, **mapped)
    if not isinstance(found, dict):
        raise RunError(f"{file} holds {type(found).__name__}, not tensors by name")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise RunError(f"{file} holds {shown(name)}, which is no tensor: weights alone are read")
        yield name, _dtype(tensor.dtype), tuple(tensor.shape)


def _dtype(dtype: "torch.dtype") -> str:
    """As safetensors writes it, where it is one that weights may have."""
    name = str(dtype).removeprefix("torch.")
    return {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(name, name)
