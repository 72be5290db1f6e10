"""All faults, in the order of the modules that draw them."""

from tests.faults import configs, imperfect, outputs, printing, settings, stops, texts, weights

FAULTS = [
    fault
    for module in (configs, weights, settings, texts, outputs, printing, stops, imperfect)
    for fault in module.faults()
]
