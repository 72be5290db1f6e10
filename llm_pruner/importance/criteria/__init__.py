"""One file for each published criterion."""
