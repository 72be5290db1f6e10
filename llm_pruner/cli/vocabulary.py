"""The vocabulary that `prune` cuts first: its text, the tokens that stay, the rewritten tokenizer."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_pruner.config.prune import PruneOptions
from llm_pruner.errors import PlanError, RunError, redact
from llm_pruner.evaluation.scores import Measurement
from llm_pruner.model import loading
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.output.reports import Measured, Vocabulary
from llm_pruner.vocabulary.choice import Counted, Wanted, choose, counted, tell, template_tokens, texts_to_count
from llm_pruner.vocabulary.cut import VocabularyCut
from llm_pruner.vocabulary.ids import special_tokens
from llm_pruner.vocabulary.rewriting import loaded, rewrite, whole_file


@dataclass(frozen=True)
class Origin:
    """The model that is pruned, and what its vocabulary is cut to at first.

    Attributes:
        source: Where the model is.
        revision: Which version of it.
        dense: Its configuration.
        tokens: The vocabulary that stays; None where all of it does.
        folder: Where the tokenizer for that is.
        tokenizer: The tokenizer of the whole vocabulary, where some of it goes.
        text: The texts whose tokens were counted; None where a plan tells the tokens.
    """

    source: str
    revision: str | None
    dense: Any
    tokens: VocabularyCut | None = None
    folder: str | None = None
    tokenizer: Any = None
    text: Counted | None = None

    @property
    def config(self) -> Any:
        """The configuration of the model that everything else is done to."""
        return self.tokens.config if self.tokens else self.dense

    @property
    def fetched(self) -> str:
        """The folder of the model's small files."""
        return loading.fetch(self.source, self.revision, weights=False)

    def told(self, before: Measurement, after: Measurement) -> Vocabulary | None:
        """Return what a report tells of the vocabulary.

        Args:
            before: How the dense model was measured.
            after: How the pruned one was.
        """
        if self.tokens is None:
            return None
        sizes = Measured(before.bytes_per_token, after.bytes_per_token)
        if self.text is None:
            return Vocabulary(None, None, sizes)
        return Vocabulary([redact(name) for name in self.text.names], self.text.covered(self.tokens.ids), sizes)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder for the tokenizer until the checkpoint is written. RunError where the disk has no room."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="llm_pruner-")
    except OSError as error:
        raise RunError(f"no temporary folder can be made: {error.strerror or error}") from error
    with folder:
        yield Path(folder.name)


def with_vocabulary(options: PruneOptions, wanted: Wanted, origin: Origin, folder: Path) -> Origin:
    """Choose the tokens that stay, and write the tokenizer for them.

    Args:
        options: For the texts.
        wanted: How many tokens should stay, or which.
        origin: The model.
        folder: An empty folder.

    Raises:
        PlanError: There is no tokenizer whose vocabulary can be pruned, or too many tokens would go, or none.
        UsageError: A text is nothing.
    """
    source, rows = origin.fetched, origin.dense.vocab_size
    tokenizer = load_tokenizer(source)
    if tokenizer is None:
        raise PlanError(f"{options.model} has no tokenizer, so its vocabulary cannot be pruned")
    try:
        file = whole_file(source, tokenizer, folder / "whole")
        if max(file.tokens) >= rows:
            raise PlanError(f"{file.where} has token {max(file.tokens)}, and the model knows {rows}")
        text = None
        if wanted.ids is None:
            names = texts_to_count(options.vocab_data, options.calibration_data, options.model)
            text = counted(names, tokenizer)
            needed = template_tokens(tokenizer) | special_tokens(origin.dense, source)
            kept = choose(file, text.counts, needed, rows, wanted)
            tell(text, kept, rows)
        else:
            kept = list(wanted.ids)
        tokens = VocabularyCut(origin.dense, tuple(kept))
        target = folder / "tokenizer"
        rewrite(file, target, tokens.new, tokens.config)
        loaded(target, tokenizer, file, tokens.new, text.sample if text else "")
    except OSError as error:
        raise RunError(f"the tokenizer cannot be written to {folder}: {error.strerror or error}") from error
    return Origin(origin.source, origin.revision, origin.dense, tokens, str(target), tokenizer, text)
