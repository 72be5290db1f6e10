"""Exporters write a finished model in another format, into a folder of its own inside the checkpoint.

None comes with this package; others register theirs under the entry points `llm_pruner.exporters`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_pruner.registry import Registry

# (model, tokenizer or None, a folder that is there and empty)
Exporter = Callable[[Any, Any, Path], None]
EXPORTERS = Registry("llm_pruner.exporters", "exporter")


def exporters_called(names: Sequence[str] | None) -> dict[str, Exporter]:
    """Return {name: exporter}. UsageError for a name that is not registered."""
    return {name: EXPORTERS.get(name) for name in names or ()}
