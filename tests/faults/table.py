"""All faults, in the order of the modules that draw them."""

import os

from tests.faults import configs, imperfect, outputs, printing, settings, stops, texts, weights

# one of so many of each kind is tried
EVERY = int(os.environ.get("LLM_PRUNER_FAULTS_EVERY", "1"))
ALL = [
    fault
    for module in (configs, weights, settings, texts, outputs, printing, stops, imperfect)
    for fault in module.faults()
]
KINDS: dict[str, list] = {}
for fault in ALL:
    KINDS.setdefault(fault.kind, []).append(fault)
FAULTS = [fault for own in KINDS.values() for fault in own[::EVERY]]
