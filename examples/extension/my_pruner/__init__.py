"""What another package adds to llm_pruner by entry points: a criterion, a method, a loss, an exporter and a family."""
