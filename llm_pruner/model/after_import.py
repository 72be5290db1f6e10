"""Telling a module of transformers of our classes as soon as somebody imports it, without importing it."""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from typing import Any


def after_import(module: str, action: Callable) -> None:
    """Call `action(module)` now if the module called so is there, and else when it is imported. Repeatable."""
    if module in sys.modules:
        action(sys.modules[module])
    waiting = next((finder for finder in sys.meta_path if isinstance(finder, _AfterImport)), None)
    if waiting is None:
        sys.meta_path.insert(0, waiting := _AfterImport())
    waiting.actions[module] = action


class _AfterImport(MetaPathFinder):
    """Finds the modules as Python itself would, and acts as soon as they have run."""

    def __init__(self) -> None:
        self.actions: dict[str, Callable] = {}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in self.actions else None
        if spec is not None:
            loader: Any = spec.loader
            run, action = loader.exec_module, self.actions[fullname]

            def exec_module(module: Any) -> None:
                run(module)
                action(module)

            loader.exec_module = exec_module
        return spec
