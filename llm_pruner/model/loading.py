"""From a name to a configuration, a tokenizer and a model. Nothing that a checkpoint brings is ever executed."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_pruner.errors import (
    PlanError,
    RunError,
    UsageError,
    first_line,
    is_out_of_memory,
    shortened,
    shown,
)
from llm_pruner.files import check_regular, spelled
from llm_pruner.model import configuration
from llm_pruner.model.checkpoint_files import ADAPTER, check_folder, check_no_pointer, check_unused, check_weights
from llm_pruner.model.families import SPARSE_ACTIVATIONS, family_of

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
PICKLED_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
SMALL_FILES = ("*.json", "tokenizer*", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICEN*", "NOTICE*", "USE_POLICY*")


def resolve(name: str) -> str:
    """Return what to load from: the folder of the demo model, a local folder, or a hub id.

    Args:
        name: What the user calls the model.

    Raises:
        RunError: It is neither.
    """
    if name == "demo":
        return str(Path(__file__).parent / "demo" / "model")
    path = Path(name).expanduser()
    if path.is_dir():
        if os.path.lexists(path / ADAPTER):
            check_folder(path)
        if not os.path.exists(path / "config.json"):
            raise RunError(f"{name} holds no config.json; `model` wants the folder of a transformers checkpoint")
        return str(spelled(path))
    if path.is_file():
        raise RunError(f"{name} is a file; `model` wants the folder of a transformers checkpoint")
    if name.startswith((".", "/", "~")) or name.count("/") != 1 and "\\" in name or name.count("/") > 1:
        raise RunError(f"there is no folder {name}")
    return name


def check_family(source: str, revision: str | None = None) -> dict:
    """Read and check config.json. Imports nothing heavy.

    Args:
        source: A local folder or a hub id.
        revision: Branch, tag or commit of a hub model.

    Returns:
        The content.

    Raises:
        UsageError: It says what it cannot mean.
        PlanError: The family is not supported, or the weights are quantised.
        RunError: It is not there, or the hub does not give it.
    """
    raw = _config_json(source, revision)
    if not raw.get("model_type"):
        raise UsageError(f"{os.path.join(source, 'config.json')} has no model_type")
    family_of(raw["model_type"])
    check_dense(source, raw.get("quantization_config"), "prune first, then quantise or sparsify")
    return raw


def check_dense(source: str, quantised: Any, advice: str) -> None:
    """Raise a PlanError for the `quantization_config` of quantised weights or of sparse activations.

    Args:
        source: The model, for the message.
        quantised: The configuration's `quantization_config`, or None.
        advice: What to do instead, for the message.
    """
    if quantised:
        sparse = isinstance(quantised, dict) and quantised.get("quant_method") == SPARSE_ACTIVATIONS
        raise PlanError(f"{source} {'has sparse activations' if sparse else 'holds quantised weights'}; {advice}")


def load_config(source: str, revision: str | None = None, any_family: bool = False) -> Any:
    """Load the configuration of a model, from config.json alone; a model can be built of it.

    What stands beside it in a local folder is looked at as well.

    Args:
        source: A local folder or a hub id.
        revision: Branch, tag or commit of a hub model.
        any_family: Whether every type that transformers knows will do.

    Returns:
        The configuration, an object of transformers.

    Raises:
        UsageError: As `check_family`; PlanError and RunError likewise.
    """
    raw = _config_json(source, revision) if any_family else check_family(source, revision)
    if os.path.isdir(source):
        check_folder(source)
    from transformers import AutoConfig

    where = os.path.join(source, "config.json")
    return configuration.build(
        raw, where, lambda: AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    )


def _config_json(source: str, revision: str | None) -> dict:
    path = os.path.join(source, "config.json")
    if not os.path.isdir(source):
        path = _from_hub(source, revision, lambda hub: hub.hf_hub_download(source, "config.json", revision=revision))
    check_regular(Path(path), "the file")
    check_no_pointer(Path(path), UsageError)
    return configuration.read(Path(path))


def _from_hub(source: str, revision: str | None, download: Callable[[Any], str]) -> str:
    """What `download` returns; RunError with what to do for each way in which the hub says no."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return download(huggingface_hub)
    except errors.GatedRepoError as error:
        raise RunError(
            f"{source} is gated: ask for access on its hub page, then log in (`hf auth login` or HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RunError(f"{source} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise RunError(f"{source} is neither a local folder nor a model on the hub that you can see") from error
    except errors.HFValidationError as error:
        raise RunError(f"{source!r} is neither a local folder nor a hub id: {error}") from error
    except errors.LocalEntryNotFoundError as error:
        raise RunError(f"the hub cannot be reached and {source} is not cached; give a local folder") from error
    except errors.EntryNotFoundError as error:
        raise RunError(f"{source} on the hub has no such file: {error}") from error
    except (OSError, errors.HfHubHTTPError) as error:
        raise RunError(f"the hub cannot be reached for {source}: {error}") from error
    except Exception as error:
        # the http library's own errors: their base class differs between hub versions
        if type(error).__module__.startswith(("httpx", "requests", "httpcore")):
            raise RunError(f"the hub cannot be reached for {source}: {error}") from error
        raise


def fetch(source: str, revision: str | None = None, weights: bool = True) -> str:
    """Return the local folder with the files of a model; download them for a hub id, safetensors before pickles.

    Args:
        source: A local folder or a hub id.
        revision: Branch, tag or commit of a hub model.
        weights: Whether the weights are wanted too.

    Raises:
        RunError: The hub does not give them.
    """
    if os.path.isdir(source):
        return source

    def download(patterns: Any) -> str:
        return _from_hub(
            source,
            revision,
            lambda hub: hub.snapshot_download(
                source, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
            ),
        )

    folder = download(SMALL_FILES + (WEIGHT_FILES if weights else ()))
    if weights and not any(Path(folder).glob("model*.safetensors")):
        folder = download(SMALL_FILES + PICKLED_FILES)
    return folder


def pick_device(name: str) -> Any:
    """Return the torch device of a name; `auto` is the first GPU, else the CPU.

    Raises:
        UsageError: There is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise ValueError("it holds no weights; `dry_run` needs none")
        torch.empty(0, device=device)
    except Exception as error:
        raise UsageError(f"`device` {shown(name)}: {shortened(str(error).splitlines()[0])}") from error
    return device


def load_model(folder: str, config: Any, dtype: str = "auto", device: Any = None, device_map: str | None = None) -> Any:
    """Load the trained model in a folder, in evaluation mode.

    Args:
        folder: A local folder.
        config: Its configuration.
        dtype: A dtype of torch by its name, or `auto` for the checkpoint's.
        device: A torch device; None with `device_map`.
        device_map: How the model is spread over devices, as in from_pretrained.

    Returns:
        The model, an object of transformers.

    Raises:
        RunError: A tensor is missing or has another shape than the configuration says: weights that are not there would
            be random, and random weights are never pruned. And as in `check_weights`.
    """
    from transformers import AutoModelForCausalLM

    check_folder(folder)
    tensors = check_weights(folder, config)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=device_map or {"": device},
            trust_remote_code=False,
            # reported below, by name
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise RunError(f"{folder} cannot be loaded: {first_line(error)}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := sorted(info.get(problem) or (), key=str):
            name, *shapes = keys[0] if isinstance(keys[0], tuple) else (keys[0],)
            what = f"{name} {' instead of '.join(str(tuple(shape)) for shape in shapes)}".strip()
            raise RunError(f"{folder}: {problem.removesuffix('_keys')} tensors, first {what} ({len(keys)} in all)")
    if unexpected := info.get("unexpected_keys"):
        check_unused(tensors, unexpected)
        logger.warning("%s: %d tensors that this model does not use are left behind", folder, len(unexpected))
    if offloaded := [name for name, p in model.named_parameters() if p.device.type == "meta"]:
        raise RunError(f"{offloaded[0]} does not fit on the devices and was offloaded; it cannot be cut there")
    return model.eval()
