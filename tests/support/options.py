"""Options as a user gives them."""

from pathlib import Path


def write(folder: Path, text: str) -> str:
    """Writes a YAML file of options, and returns its path."""
    path = folder / "options.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)
