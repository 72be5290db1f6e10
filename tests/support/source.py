"""What the source of a function shows: how much it branches. Of plain Python, for benchmarks/house.py too."""

import ast

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHING = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case)


def functions(tree: ast.AST, inside: str = "") -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """{its name behind those of the classes and functions that it stands in, and its line: function}."""
    found = {}
    for node in ast.iter_child_nodes(tree):
        name = f"{inside}.{node.name}".lstrip(".") if isinstance(node, (ast.ClassDef, *FUNCTIONS)) else inside
        if isinstance(node, FUNCTIONS):
            found[f"{name}:{node.lineno}"] = node
        found |= functions(node, name)
    return found


def branches(function) -> int:
    """How many statements of a function branch, as ruff's and pylint's counts have it, and conditional expressions.

    An `if` or `elif`, a loop, an `except`, a `case` and an `… if … else …` are one each, those of functions inside it
    too. `and`, `or`, comprehensions and their conditions, `else`, `finally`, `try` and `with` do not count.
    """
    return sum(isinstance(node, BRANCHING) for node in ast.walk(function))
