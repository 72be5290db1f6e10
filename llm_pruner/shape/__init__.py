"""How much goes: from a request, by way of budgets and ratios, to the widths of every layer and a plan."""
