"""What a run leaves behind: checkpoints that are staged, verified and published, reports, model cards and pages."""

__all__ = [
    "checkpoint",
    "conditions",
    "exporters",
    "lineage",
    "manifest",
    "page",
    "places",
    "reports",
    "saving",
    "tasks",
    "wording",
]
