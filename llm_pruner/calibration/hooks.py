"""Hooks on modules that are gone when their context ends, whatever happens in it."""

import contextlib
from collections.abc import Callable
from typing import Any

from torch import nn


class Hooks(contextlib.ExitStack):
    """A context in which modules are observed.

    Example:
        with Hooks() as hooks:
            hooks.on_input(model.lm_head, lambda hidden: seen.append(hidden))
            model(input_ids)
    """

    def on_input(self, module: nn.Module, observe: Callable[[Any], object]) -> None:
        """Call `observe` with the first input of a module before it runs.

        Args:
            module: The module.
            observe: Takes the input; what it returns is left alone.
        """

        def hook(_: nn.Module, arguments: tuple) -> None:
            observe(arguments[0])

        self.callback(module.register_forward_pre_hook(hook).remove)

    def on_output(self, module: nn.Module, observe: Callable[[Any], Any]) -> None:
        """Call `observe` with the output of a module behind it.

        Args:
            module: The module.
            observe: Takes the output. What it returns takes the output's place, unless it is None.
        """
        self.callback(module.register_forward_hook(lambda _, __, output: observe(output)).remove)
