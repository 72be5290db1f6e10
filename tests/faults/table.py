"""All faults, in the order of the modules that draw them."""

import os

from tests.faults import configs, imperfect, outputs, printing, settings, stops, texts, weights

EVERY = int(os.environ.get("LLM_PRUNER_FAULTS_EVERY", "1"))  # one of so many is tried, evenly of all kinds
ALL = [
    fault
    for module in (configs, weights, settings, texts, outputs, printing, stops, imperfect)
    for fault in module.faults()
]
FAULTS = ALL[::EVERY]
