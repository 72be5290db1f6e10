"""The checkpoint: staged beside its target, reloaded in a fresh process, published by one rename.

The only file that writes output folders. Whatever fails on the way, the target is what it was before.
"""

import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from llm_pruner.errors import RunError, UsageError, VerificationError

log = logging.getLogger(__name__)

ASIDE = "-old"
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
PARTS = (  # what a folder may hold and still be a checkpoint that --overwrite replaces
    *WEIGHTS, "*.json", "README.md", "report.html", "LICENSE*", ".gitattributes", "tokenizer*", "*.model", "*.jinja",
    "merges.txt", "vocab.txt", "additional_chat_templates", "modeling_pruned.py",
)  # fmt: skip
MARGIN = 64 * 2**20  # tokenizer, card and file system, beside the weights


def check_target(target: Path, source: str, overwrite: bool) -> None:
    """UsageError when the checkpoint cannot go to `target`: a file, the input, or something that is in the way."""
    try:
        there = target.resolve()
        parent = _existing(there.parent)
        is_folder, is_file = target.is_dir(), target.is_file()
    except (OSError, RuntimeError) as error:  # too long a name, a loop of links
        raise UsageError(f"--save_model {target}: {error}") from error
    if is_file:
        raise UsageError(f"{target} is a file; --save_model wants a folder")
    if os.path.isdir(source):
        model = Path(source).resolve()
        if there == model or there in model.parents or model in there.parents:
            raise UsageError(f"{target} is, holds or is in the input model; choose another --save_model")
    if is_folder and (os.path.ismount(there) or there == Path.cwd() or there in Path.cwd().parents):
        raise UsageError(f"{target} is a mount point or where you are, and cannot be renamed; use a folder inside it")
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{target} cannot be written: {parent} is not a folder with write permission")
    if is_folder and any(target.iterdir()):
        if not overwrite:
            raise UsageError(f"{target} is not empty; use --overwrite to replace it or --save_model for another folder")
        if not _is_checkpoint(target):
            raise UsageError(f"{target} holds something else than a checkpoint; --overwrite only replaces checkpoints")


def _is_checkpoint(folder: Path) -> bool:
    """Whether every file looks like part of a transformers checkpoint, config and weights among them."""
    try:
        named = "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
    names = [path.name for path in folder.iterdir()]
    weights = any(fnmatch(name, pattern) for name in names for pattern in WEIGHTS)
    return named and weights and all(any(fnmatch(name, pattern) for pattern in PARTS) for name in names)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def check_disk(target: Path, size: int) -> None:
    """RunError when the disk that `target` is on has no room for `size` more bytes."""
    existing = _existing(target.resolve().parent)
    free, needed = shutil.disk_usage(existing).free, size + MARGIN
    if free < needed:
        raise RunError(f"{existing} has {free / 1e9:.2f} GB free, the checkpoint needs {needed / 1e9:.2f} GB")


@contextlib.contextmanager
def staged(target: Path, overwrite: bool = False):
    """A folder beside `target` that takes its place when the block ends, and vanishes when it fails.

    A checkpoint that is at `target` stays what it was until then. RunError when writing fails, UsageError when
    something has appeared at `target` meanwhile and `overwrite` is not set.
    """
    target = Path(os.path.realpath(target))
    with _staging(target) as staging:
        try:
            yield staging
            _open_permissions(staging)
            _publish(staging, target, overwrite)
        except Exception as error:
            if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
                raise RunError(f"saving to {target} failed, nothing there was changed: {error}") from error
            raise


def write(model, tokenizer, folder: Path) -> None:
    """Model, generation config and, unless None, tokenizer as `save_pretrained` writes them."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError:  # Llama-2's, for one: sampling parameters without do_sample, which save_pretrained refuses
        dropped = [name for name in SAMPLING if getattr(model.generation_config, name, None) is not None]
        for name in dropped:
            setattr(model.generation_config, name, None)
        log.warning("the generation config does not sample, so its %s are left out", ", ".join(dropped))
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def verify(model, folder: Path) -> None:
    """Reloads `folder` by stock transformers in a fresh process, without llm_pruner, and compares logits.

    VerificationError when it does not load completely, or when logits differ by more than rounding.
    """
    import torch
    from safetensors.torch import load_file, save_file

    device = model.device
    generator = torch.Generator().manual_seed(0)
    length = min(16, model.config.max_position_embeddings)
    input_ids = torch.randint(model.config.vocab_size, (2, length), generator=generator)
    with torch.no_grad():
        expected = model(input_ids.to(device)).logits.float().cpu()
    spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    if device.type == "cuda" and not spread:  # it is written, and its copy needs the room
        model.cpu()
        torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder_of_probe:
        probe, out = Path(folder_of_probe, "probe.safetensors"), Path(folder_of_probe, "out.safetensors")
        save_file({"input_ids": input_ids}, probe)
        script = Path(__file__).with_name("verify.py")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": folder_of_probe}
        environment.pop("PYTHONPATH", None)
        command = [sys.executable, str(script), str(folder), str(probe), str(out), "auto" if spread else str(device)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder_of_probe)
        if result.returncode == -signal.SIGKILL:
            raise RunError("the fresh process that reloads the checkpoint was killed, most likely for its memory")
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise VerificationError(f"the saved checkpoint does not reload, nothing was published: {last}")
        found = load_file(out)["logits"]
    tolerance = 1e-5 if model.dtype == torch.float32 else 1e-3
    if found.shape != expected.shape:
        raise VerificationError(f"the reloaded logits are {tuple(found.shape)}, in memory {tuple(expected.shape)}")
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(found)):
        raise VerificationError("the reloaded model is not finite where the one in memory is; nothing was published")
    difference = (found - expected)[finite].abs().max().item() if finite.any() else 0.0
    scale = expected[finite].abs().max().item() if finite.any() else 1.0
    if difference > tolerance * max(scale, 1e-6):
        raise VerificationError(f"the reloaded logits differ by {difference:.3g} (of {scale:.3g}); nothing published")


@contextlib.contextmanager
def _staging(target: Path):
    """An empty folder beside `target`, gone afterwards; those that killed runs left behind go too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.partial-"
    for leftover in target.parent.glob(f"{prefix}*"):
        pid = leftover.name.removeprefix(prefix).split("-")[0]
        if not pid.isdigit() or _alive(int(pid)):
            continue
        if leftover.name.endswith(ASIDE) and not target.exists():
            os.rename(leftover, target)  # killed between the two renames: this is the only copy
        else:
            shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=target.parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _publish(staging: Path, target: Path, overwrite: bool) -> None:
    """Puts `staging` at `target` in one step. What was there ends up in `staging`, or away."""
    if not target.exists() or not any(target.iterdir()):
        os.rename(staging, target)
    elif not overwrite:
        raise UsageError(f"{target} was filled by something else during the run; nothing there was changed")
    elif not _exchange(staging, target):
        aside = staging.with_name(staging.name + ASIDE)
        os.rename(target, aside)
        try:
            os.rename(staging, target)
        except BaseException:
            os.rename(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders atomically (Linux's renameat2); False where that cannot be done."""
    at_cwd, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0


def _open_permissions(folder: Path) -> None:
    """Temporary files are private; a checkpoint has the permissions of any other new file."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~mask)
