"""Tests, by tiers: unit (one folder per room), cli (processes), documents, faults, reference (trained models), gpu."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
