"""Every fault of the table meets the contract: refused in one line with its exit code, or harmless; nothing lost."""

import pytest

from tests.faults.table import ALL, FAULTS

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_the_contract_holds_with(fault, judge):
    found = judge(fault)
    if found:
        pytest.fail("\n".join(f"{name}: {what}" for name, what in found.items()), pytrace=False)


def test_the_table_has_as_many_kinds_and_inputs_as_the_readme_says():
    assert len(ALL) >= 1_400
    assert {fault.kind for fault in FAULTS} == {fault.kind for fault in ALL}
    assert len({fault.id for fault in ALL}) == len(ALL)
