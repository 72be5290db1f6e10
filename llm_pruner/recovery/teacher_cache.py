"""A teacher's distributions on disk, so that it runs once for several epochs, students and runs.

The folder holds teacher_cache.json, which says of what the cache is, and shards, which are memory-mapped to be read.
Each has the predicted tokens of some consecutive windows and is written whole or not at all: a filling that was
interrupted goes on with those that are missing. The key is a part of their names, so none is taken for another's.
"""

import hashlib
import re
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from llm_pruner import files, validation
from llm_pruner.console import is_main, log, progress
from llm_pruner.errors import RunError, UsageError
from llm_pruner.files import read_state, write_state, write_whole
from llm_pruner.output.places import check_disk
from llm_pruner.recovery.examples import IGNORED, Examples, collate
from llm_pruner.recovery.likeliest import Likeliest, likeliest_of, packed, record, unpacked
from llm_pruner.recovery.settled import Settled
from llm_pruner.recovery.sources import Sources

KEY = "teacher_cache.json"
STATE = {
    "teacher": validation.text, "windows": validation.text, "vocab_size": validation.whole(1),
    "top_k": validation.whole(1), "temperature": validation.number(0, above=True),
}  # fmt: skip
# what a cache is of that is refused
OTHER = {
    "teacher": "of another teacher",
    "windows": "of other training windows (`data`, `train_seq_len`, `nsamples`, `seed` and the tokenizer decide)",
    "vocab_size": "of another vocabulary",
    "top_k": "of `teacher_top_k` {}",
    "temperature": "of `temperature` {}",
}
OURS = re.compile(rf"{re.escape(KEY)}(\.damaged(-\d+)?)?|shard-\d+-[0-9a-f]{{12}}\.npy|\.[0-9a-f]{{12}}\.\d+\.partial")
# bytes of a shard: what an interruption can lose
SHARD = 64 * 2**20
# shards that are open at a time
OPEN = 64
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TeacherCache:
    """The distributions of every predicted token of some windows.

    Args:
        folder: Where the shards are.
        counts: Predicted tokens of each window.
        key: What `key_of` gives for the cache.

    Attributes:
        kind: How a distribution is stored.
        bounds: The first window of each shard, and the number of windows.
        shards: The windows of each shard.
    """

    def __init__(self, folder: Path, counts: Sequence[int], key: dict[str, Any]):
        self.folder, self.key = folder, key
        self.kind = record(key["top_k"], key["vocab_size"])
        # of the tokens of each window
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        number = self.starts[:-1] // max(1, SHARD // self.kind.itemsize)
        bounds = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(counts)]
        self.shards = [range(*pair) for pair in zip(bounds, bounds[1:])]
        self.bounds = bounds
        self._mapped = lru_cache(OPEN)(self._map)

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"shard-{shard:05d}-{files.key_of(self.key)[:12]}.npy"

    def missing(self) -> list[int]:
        """Return the shards that are not there, or not as they were written."""
        return [shard for shard in range(len(self.shards)) if not self._is_whole(shard)]

    def size(self, shards: Iterable[int]) -> int:
        """Return the bytes of some shards."""
        return sum(self._tokens(shard) for shard in shards) * self.kind.itemsize

    def write(self, shard: int, rows: Iterable[np.ndarray]) -> None:
        """Write a shard.

        Args:
            shard: Its number.
            rows: The records of its tokens, in parts.

        Raises:
            RunError: The disk does not take it.
        """

        def fill(partial: Path) -> None:
            header = {"descr": np.lib.format.dtype_to_descr(self.kind), "fortran_order": False,
                      "shape": (self._tokens(shard),)}  # fmt: skip
            with open(partial, "wb") as file:
                np.lib.format.write_array_header_2_0(file, header)
                for some in rows:
                    file.write(some.tobytes())

        try:
            write_whole(self.path(shard), fill)
        except OSError as error:
            raise RunError(f"teacher cache {self.path(shard)} cannot be written: {error.strerror or error}") from error

    def of(self, windows: Sequence[int], device: torch.device) -> Likeliest:
        """Return the distributions of all predicted tokens of some windows, window by window.

        Args:
            windows: Their numbers.
            device: Where the tensors go.

        Raises:
            RunError: The cache was changed after it was opened, or holds tokens that there are not.
        """
        rows = np.concatenate([self._rows(window) for window in windows])
        if rows["tokens"].max() >= self.key["vocab_size"] or not (rows["log_rest"] <= 0).all():
            raise RunError(f"teacher cache {self.folder} is damaged: it holds no log-probabilities; remove it")
        return unpacked(rows, device)

    def _rows(self, window: int) -> np.ndarray:
        shard = bisect(self.bounds, window) - 1
        first = self.starts[self.bounds[shard]]
        try:
            mapped = self._mapped(shard)
        except (OSError, ValueError) as error:
            raise RunError(f"teacher cache {self.path(shard)} was changed meanwhile: {error}") from error
        return mapped[self.starts[window] - first : self.starts[window + 1] - first]

    def _tokens(self, shard: int) -> int:
        own = self.shards[shard]
        return int(self.starts[own.stop] - self.starts[own.start])

    def _map(self, shard: int) -> np.ndarray:
        """ValueError for a file that is cut short, or of another form."""
        mapped = np.load(self.path(shard), mmap_mode="r")
        if mapped.dtype != self.kind or mapped.shape != (self._tokens(shard),):
            raise ValueError(f"{mapped.shape} of {mapped.dtype}")
        return mapped

    def _is_whole(self, shard: int) -> bool:
        try:
            self._map(shard)
        except FileNotFoundError:
            return False
        except (OSError, ValueError, EOFError):
            log(f"note: {self.path(shard)} is damaged, and is written again")
            return False
        return True


def key_of(found: Sources, settled: Settled, examples: Examples) -> dict[str, Any]:
    """Return what a cache is of. The windows count by their tokens, whatever text and tokenizer they came from.

    Args:
        found: The sources of the run.
        settled: The options of the run.
        examples: What is trained on.
    """
    digest = hashlib.sha256()
    for ids, labels in examples.pairs:
        digest.update(f"{len(ids)} ".encode() + ids.numpy().tobytes() + labels.numpy().tobytes())
    vocab_size, teacher = found.config.vocab_size, found.teacher_digest(weights=False)
    if found.teacher_tokens:
        teacher = files.key_of({"teacher": teacher, "tokens": found.teacher_tokens})
    return {
        "teacher": teacher,
        "windows": digest.hexdigest()[:32],
        "vocab_size": vocab_size,
        "top_k": min(settled.asked.teacher_top_k, vocab_size),
        "temperature": float(settled.asked.temperature),
    }


def check_place(folder: Path) -> None:
    """Raise a UsageError where `folder` holds something else than a cache."""
    others = [path.name for path in folder.iterdir() if not OURS.fullmatch(path.name)] if folder.is_dir() else []
    if others:
        raise UsageError(f"`teacher_cache` {folder} holds {sorted(others)[0]}, which is not of a cache; choose another")


def opened(folder: Path, key: dict[str, Any], examples: Examples) -> TeacherCache:
    """Return the cache in a folder, which is made when there is none.

    Args:
        folder: Where the cache is.
        key: Of the cache that is wanted, see `key_of`.
        examples: Its windows.

    Raises:
        UsageError: The folder holds a cache of something else.
        RunError: The folder cannot be written.
    """
    state = read_state(folder / KEY, STATE)
    if state:
        wrong = next((name for name in key if state[name] != key[name]), None)
        if wrong:
            what = OTHER[wrong].format(state[wrong])
            raise UsageError(f"`teacher_cache` {folder} is {what}; name another folder, or remove this one")
    elif is_main():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_state(folder / KEY, key)
        except OSError as error:
            raise RunError(f"teacher cache {folder} cannot be written: {error.strerror or error}") from error
    return TeacherCache(folder, [int((labels[1:] != IGNORED).sum()) for _, labels in examples.pairs], key)


def filled(found: Sources, settled: Settled, examples: Examples, load: Callable[[], Any]) -> TeacherCache:
    """Return the complete cache of a recovery. Of several processes, each fills its share.

    Args:
        found: The sources of the run.
        settled: The options of the run.
        examples: What is trained on.
        load: Loads the teacher; not called by a process whose share is there.

    Raises:
        UsageError: The folder holds a cache of something else.
        RunError: The cache cannot be written, or the teacher's logits are not finite.
    """
    assert settled.asked.teacher_cache, "there is a cache"
    folder = Path(settled.asked.teacher_cache).expanduser()
    state = PartialState(cpu=settled.torch_device.type == "cpu")
    key = key_of(found, settled, examples)
    with state.main_process_first():
        cache = opened(folder, key, examples)
        missing = cache.missing()
        if is_main() and missing:
            check_disk(folder / KEY, cache.size(missing), "the teacher cache")
    own = [shard for shard in missing if shard % state.num_processes == state.process_index]
    if missing:
        log(f"teacher cache {folder}: writing {len(missing)} of {len(cache.shards)} shards, {_mb(cache, missing)}")
    else:
        log(f"teacher cache {folder}: complete, {_mb(cache, range(len(cache.shards)))}; the teacher is not loaded")
    if own:
        _fill(cache, own, load(), examples, settled)
    state.wait_for_everyone()
    if cache.missing():
        raise RunError(f"teacher cache {folder} is incomplete; all processes need the same folder")
    return cache


def _mb(cache: TeacherCache, shards: Iterable[int]) -> str:
    return f"{cache.size(shards) / 1e6:,.1f} MB"


def _fill(cache: TeacherCache, shards: Sequence[int], teacher, examples: Examples, settled: Settled) -> None:
    with progress(total=sum(len(cache.shards[shard]) for shard in shards), desc="teacher", unit=" windows",
                  disable=not is_main()) as bar:  # fmt: skip
        for shard in shards:
            cache.write(shard, _records(cache, shard, teacher, examples, settled, bar))


def _records(
    cache: TeacherCache, shard: int, teacher, examples: Examples, settled: Settled, bar
) -> Iterator[np.ndarray]:
    """The records of a shard's tokens, batch by batch, as the teacher would compute them while the student trains."""
    windows, size = cache.shards[shard], settled.train_batch_size
    device, dtype = settled.torch_device, PRECISIONS.get(settled.precision)
    for start in range(windows.start, windows.stop, size):
        some = range(start, min(start + size, windows.stop))
        batch = {name: value.to(device) for name, value in collate([examples[i] for i in some]).items()}
        read = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = teacher(**read, use_cache=False).logits
        known = likeliest_of(logits[:, :-1][batch["labels"][:, 1:] != IGNORED], cache.key["top_k"],
                             cache.key["temperature"])  # fmt: skip
        if not known.log_p[:, 0].isfinite().all():
            raise RunError("the teacher's logits are not finite, so there is nothing to learn from it")
        yield packed(known, cache.kind)
        bar.update(len(some))
