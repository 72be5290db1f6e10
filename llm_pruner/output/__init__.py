"""What a run leaves behind: checkpoints that are staged, verified and published, reports, model cards and pages."""
