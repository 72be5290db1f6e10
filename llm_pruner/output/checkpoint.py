"""The checkpoint: staged beside its target, reloaded in a fresh process, published by one rename.

The only file that writes output folders. Whatever fails on the way, the target is what it was before, and what is
finished is never thrown away: where its place is taken meanwhile, it goes beside it.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from llm_pruner.calibration.windows import window_length
from llm_pruner.errors import RunError, VerificationError
from llm_pruner.files import exchange, rename_to_free, spelled, sync, sync_all
from llm_pruner.model.checkpoint_files import tidy
from llm_pruner.model.tokenizers import carry_over
from llm_pruner.output import manifest
from llm_pruner.output.places import not_ours, published

logger = logging.getLogger(__name__)

REPLACED = "-old"
STOPS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))


@contextlib.contextmanager
def staged(target: Path, overwrite: bool = False):
    """Make a folder beside a target that takes its place when the block ends, and vanishes when it fails.

    Args:
        target: The folder to publish.
        overwrite: Whether a checkpoint of this program may be replaced.

    Yields:
        The folder to write to.

    Raises:
        RunError: Writing fails, or the place is taken.
    """
    target = Path(os.path.realpath(target))
    with _staging(target) as staging:
        try:
            yield staging
            _open_permissions(staging)
            sync_all(staging)
            with uninterrupted():
                _publish(staging, target, overwrite)
        except Exception as error:
            if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
                raise RunError(f"saving to {target} failed, nothing there was changed: {error}") from error
            raise


def write(model, tokenizer, folder: Path, source: str | None = None) -> None:
    """Write model and generation config as `save_pretrained` does, and the tokenizer.

    Args:
        model: The model.
        tokenizer: Its tokenizer, or None.
        folder: An empty folder.
        source: The folder of the model that it was made from, whose tokenizer's files are carried over as they are.
    """
    if dropped := tidy(model.generation_config):
        logger.warning("the generation config makes no use of its %s, so they are left out", ", ".join(dropped))
    model.save_pretrained(folder)
    if source:
        carry_over(source, folder, tokenizer)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)


def finite_logits(model):
    """Return where the model's logits for the probe are finite: BoolTensor [2, tokens, vocabulary].

    Raises:
        RunError: They are finite nowhere.
    """
    import torch

    finite = torch.isfinite(_logits(model, _probe(model)))
    if not finite.any():
        # Imports torch, which a pipeline does not need in its own process.
        from llm_pruner.calibration.layerwise import cause_of_nan

        raise cause_of_nan(model, _probe(model), "the model gives no finite logits")
    return finite


def verify(model, folder: Path, finite=None) -> None:
    """Reload `folder` by stock transformers in a fresh process, without llm_pruner, and compare logits.

    Args:
        model: What was written to `folder`.
        folder: The checkpoint.
        finite: Where logits have to be finite, of `finite_logits`; by default everywhere.

    Raises:
        VerificationError: It does not load completely, logits differ by more than rounding, or are not finite.
        RunError: The fresh process cannot do its work: no memory, no disk.
    """
    import torch
    from safetensors.torch import load_file, save_file

    device, input_ids = model.device, _probe(model)
    expected = _logits(model, input_ids)
    here = torch.isfinite(expected)
    if not (here if finite is None else here | ~finite).all():
        raise VerificationError("the new model's logits are NaN or Inf; nothing was published")
    sharded = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    # it is written, and its copy needs the room
    if device.type == "cuda" and not sharded:
        model.cpu()
        torch.cuda.empty_cache()
    # Beside the checkpoint, where there is room: the usual place of temporary files may be full.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-probe-") as folder_of_probe:
        probe, out = Path(folder_of_probe, "probe.safetensors"), Path(folder_of_probe, "out.safetensors")
        save_file({"input_ids": input_ids}, probe)
        script = Path(__file__).with_name("verify.py")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": folder_of_probe}
        environment["TMPDIR"] = folder_of_probe
        environment.pop("PYTHONPATH", None)
        command = [sys.executable, str(script), str(folder), str(probe), str(out), "auto" if sharded else str(device)]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace",
            cwd=folder_of_probe,
        )  # fmt: skip
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        if result.returncode == -signal.SIGKILL:
            raise RunError("the fresh process that reloads the checkpoint was killed, most likely for its memory")
        if result.returncode == os.EX_OSERR:
            raise RunError(f"the fresh process that reloads the checkpoint failed, nothing was published: {last}")
        if result.returncode:
            raise VerificationError(f"the saved checkpoint does not reload, nothing was published: {last}")
        found = load_file(out)["logits"]
    if model.device != device:
        model.to(device)
    tolerance = 1e-5 if model.dtype == torch.float32 else 1e-3
    if found.shape != expected.shape:
        raise VerificationError(f"the reloaded logits are {tuple(found.shape)}, in memory {tuple(expected.shape)}")
    if not torch.equal(here, torch.isfinite(found)):
        raise VerificationError("the reloaded model is not finite where the one in memory is; nothing was published")
    difference = (found - expected)[here].abs().max().item() if here.any() else 0.0
    scale = expected[here].abs().max().item() if here.any() else 1.0
    if difference > tolerance * max(scale, 1e-6):
        raise VerificationError(f"the reloaded logits differ by {difference:.3g} (of {scale:.3g}); nothing published")


def _probe(model):
    """The same tokens for every model of a vocabulary: LongTensor [2, tokens]."""
    import torch

    config = model.config.get_text_config()
    length = window_length(config, 16)
    return torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))


def _logits(model, input_ids):
    """Float32, on the CPU."""
    import torch

    with torch.no_grad():
        return model(input_ids.to(model.device)).logits.float().cpu()


@contextlib.contextmanager
def uninterrupted():
    """Let signals that end a run wait until the block is done: it moves or removes folders."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in set(STOPS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


@contextlib.contextmanager
def _staging(target: Path):
    """An empty folder beside `target`, gone afterwards; those that killed runs left behind go too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    parent, prefix = spelled(target.parent), staging_prefix(target)
    with uninterrupted():
        for leftover in sorted(parent.glob(f"{prefix}*"), key=lambda path: path.name.endswith(REPLACED), reverse=True):
            pid = leftover.name.removeprefix(prefix).split("-")[0]
            if pid.isdigit() and not _alive(int(pid)):
                _sweep(leftover, target)
    staging = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent))
    try:
        yield staging
    finally:
        with uninterrupted():
            if staging.exists():
                shutil.rmtree(staging, ignore_errors=True)


def staging_prefix(target: Path) -> str:
    """Return how the names of folders begin in which this machine prepares `target`; others may share the disk."""
    name, machine = (
        hashlib.sha256(one).hexdigest() for one in (os.fsencode(target.name), socket.gethostname().encode())
    )
    return f".{name[:12]}.partial-{machine[:6]}-"


def _sweep(leftover: Path, target: Path) -> None:
    """Ends what a killed run left: its unfinished folder, or the checkpoint that it had replaced."""
    if leftover.name.endswith(REPLACED) and not target.exists():
        # killed between two renames: this is the only copy
        os.rename(leftover, target)
    elif manifest.of_checkpoint(leftover) is None:
        # unfinished, written by that run alone
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        _discard(leftover, target)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _publish(staging: Path, target: Path, overwrite: bool) -> None:
    """Puts `staging` at `target` in one step. What was there goes, as far as a run of this program wrote it.

    Raises:
        RunError: `target` holds something else; then the new checkpoint is in a folder beside it.
    """
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    why = f"{target} was filled by something else" if taken else None
    if taken and overwrite and target.is_dir():
        why = not_ours(target)
    if why:
        beside = _beside(target)
        os.rename(staging, beside)
        _settled(beside)
        raise RunError(f"{why}; nothing there was changed, and the finished checkpoint is in {beside}")
    if not taken:
        os.rename(staging, target)
        _settled(target)
        return
    old = staging
    if not exchange(staging, target):
        old = staging.with_name(staging.name + REPLACED)
        os.rename(target, old)
        try:
            os.rename(staging, target)
        except BaseException:
            os.rename(old, target)
            raise
    _settled(target)
    _discard(old, target)


def _settled(folder: Path) -> None:
    sync(folder.parent)
    published.append(folder)


def _beside(target: Path) -> Path:
    """A free name beside `target`."""
    number = 1
    while (beside := target.with_name(f"{target.name[:200]}-{number}")).exists():
        number += 1
    return beside


def _discard(old: Path, target: Path) -> None:
    """Remove the checkpoint that `target` replaced.

    A file that somebody put there meanwhile goes to `target`, or stays in a folder beside it where that has one of the
    same name.
    """
    left = manifest.remove(old, manifest.of_checkpoint(old) or {}, but=(manifest.REPORT,))
    for name in left:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            rename_to_free(old / name, target / name)
    if left and (left := manifest.remove(old, {})):
        beside = _beside(target)
        os.rename(old, beside)
        logger.warning("%s was put into %s during the run; it is in %s now", left[0], target, beside)


def _open_permissions(folder: Path) -> None:
    """Temporary files are private; a checkpoint has the permissions of any other new file."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~mask)
