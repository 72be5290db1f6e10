"""A family: models of IBM's `granite` are built like llama's, with factors that do not depend on widths."""

from llm_pruner import Family

GRANITE = Family()
