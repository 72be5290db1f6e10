"""The checkpoint: staged beside its target, reloaded in a fresh process, published by one rename.

The only file that writes output folders. Whatever fails on the way, the target is what it was before.
"""

import contextlib
import ctypes
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llm_pruner.errors import RunError, UsageError, VerificationError

log = logging.getLogger(__name__)

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
MARGIN = 64 * 2**20  # tokenizer, card and file system, beside the weights


def check_target(target: Path, source: str, overwrite: bool) -> None:
    """UsageError when the checkpoint cannot go to `target`: a file, the input, or something that is in the way."""
    if target.is_file():
        raise UsageError(f"{target} is a file; --save_model wants a folder")
    if os.path.isdir(source):
        here, there = target.resolve(), Path(source).resolve()
        if here == there or here in there.parents:
            raise UsageError(f"{target} is or holds the input model; choose another --save_model")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise UsageError(f"{target} is not empty; use --overwrite to replace it or --save_model for another folder")
        if not (target / "config.json").is_file():
            raise UsageError(f"{target} holds something else than a checkpoint; --overwrite only replaces checkpoints")
    existing = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{target} cannot be written: {existing} is not a folder with write permission")


def check_disk(target: Path, size: int) -> None:
    """RunError when the disk under `target` has no room for a checkpoint of `size` bytes beside what is there."""
    existing = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
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

    device = _room_for(model)
    generator = torch.Generator().manual_seed(0)
    length = min(16, model.config.max_position_embeddings)
    input_ids = torch.randint(model.config.vocab_size, (2, length), generator=generator)
    with torch.no_grad():
        expected = model(input_ids.to(model.device)).logits.float().cpu()
    with tempfile.TemporaryDirectory() as folder_of_probe:
        probe, out = Path(folder_of_probe, "probe.safetensors"), Path(folder_of_probe, "out.safetensors")
        save_file({"input_ids": input_ids}, probe)
        script = Path(__file__).with_name("verify.py")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        command = [sys.executable, str(script), str(folder), str(probe), str(out), str(device)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder_of_probe)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise VerificationError(f"the saved checkpoint does not reload, nothing was published: {last}")
        found = load_file(out)["logits"]
    same_device = device.type == model.device.type
    tolerance = 1e-5 if model.dtype == torch.float32 and same_device else 1e-3 if same_device else 5e-2
    if found.shape != expected.shape:
        raise VerificationError(f"the reloaded logits are {tuple(found.shape)}, in memory {tuple(expected.shape)}")
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(found)):
        raise VerificationError("the reloaded model is not finite where the one in memory is; nothing was published")
    difference = (found - expected)[finite].abs().max().item() if finite.any() else 0.0
    scale = expected[finite].abs().max().item() if finite.any() else 1.0
    if difference > tolerance * max(scale, 1e-6):
        raise VerificationError(f"the reloaded logits differ by {difference:.3g} (of {scale:.3g}); nothing published")


def _room_for(model):
    """The device to reload on: the model's, unless a second copy does not fit there."""
    import torch

    device = model.device
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 1.2 * size + 2**30:
        return torch.device("cpu")
    return device


@contextlib.contextmanager
def _staging(target: Path):
    """An empty folder beside `target`, gone afterwards; those that killed runs left behind go too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.partial-"
    for leftover in target.parent.glob(f"{prefix}*"):
        pid = leftover.name.removeprefix(prefix).split("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
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
        aside = staging.with_name(f"{staging.name}-old")
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
