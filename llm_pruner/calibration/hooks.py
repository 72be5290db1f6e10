"""Hooks on modules, and other forwards in place of theirs, that are gone when their context ends, whatever happens."""

import contextlib
from collections.abc import Callable
from typing import Any

from torch import nn


class Hooks(contextlib.ExitStack):
    """A context in which modules are observed, or compute something else.

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

    def replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Make a module compute something else than its own.

        Args:
            module: The module.
            forward: What it computes.
        """
        self.callback(_restore, module, module.__dict__.get("forward"))
        module.forward = forward


def _restore(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Give a module its own forward again: of its class, unless it had one on the instance, which accelerate sets."""
    if forward is None:
        del module.forward
    else:
        module.forward = forward
