"""The ids of tokens in a configuration: which fields hold them, and what becomes of them when tokens get new ids."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_pruner.files import read_json

# of a generation config; each holds ids, or lists of them
LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids", "forced_decoder_ids")
# and this one, biases of sequences of them
BIASES = "sequence_bias"


def named_in(values: Mapping[str, Any]) -> set[int]:
    """Return the ids of the special tokens that a configuration names.

    Args:
        values: The configuration as a mapping.
    """
    named = [value for name, value in values.items() if name.endswith("_token_id")]
    return {number for value in named for number in (value if isinstance(value, list) else [value]) if _is_id(number)}


def special_tokens(config: Any, folder: str) -> set[int]:
    """Return the ids of the special tokens of a model, by its configuration and by its generation_config.json.

    Args:
        config: The configuration.
        folder: Of the model's small files.
    """
    path = Path(folder, "generation_config.json")
    generation = read_json(path, "the model's") if path.is_file() else {}
    return named_in(config.to_dict()) | named_in(generation if isinstance(generation, dict) else {})


def renumbered(values: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """Return what changes in a configuration: {field: value with the new ids}.

    What names a token that is gone is left out: from a list, or as null.

    Args:
        values: The configuration as a mapping.
        new: {old id: new id} of the tokens that stay.
    """
    fields = [name for name in values if name.endswith("_token_id") or name in LISTS]
    changes = {name: _mapped(values[name], new) for name in fields if values[name] is not None}
    if values.get(BIASES) is not None:
        changes[BIASES] = None
    return {name: value for name, value in changes.items() if value != values[name]}


def _mapped(value: Any, new: Mapping[int, int]) -> Any:
    """The value with new ids; None where there is none."""
    if not isinstance(value, list | tuple):
        return new.get(value) if _is_id(value) else None
    if value and isinstance(value[0], list | tuple):
        # one of them makes no sense without all of its tokens
        inner = [_mapped(one, new) for one in value if None not in [_mapped(each, new) for each in one]]
        return inner or None
    return [new[number] for number in value if number in new] or None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
