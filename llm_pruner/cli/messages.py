"""Messages of the library as users of the command line read them."""

import re

from llm_pruner.config.options import fields_of

# Parameters of a Budget that the command line calls otherwise.
FLAGS = {"axes": "prune", "params": "target_params", "memory": "target_memory", "ratio": "pruning_ratio"}


def with_flags(message: str, options: type) -> str:
    """Return a message of the library with its parameters, which stand in backquotes, as flags.

    Args:
        message: `nsamples` in it becomes --nsamples, and `dtype=bfloat16` --dtype bfloat16.
        options: The options of the command that is running.
    """
    known = fields_of(options)

    def flag(match: re.Match) -> str:
        name, _, value = match[1].partition("=")
        name = name if name in known else FLAGS.get(name, name)
        return f"--{name} {value}".strip() if name in known else match[0]

    return re.sub(r"`([a-z_]+(?:=[^`\s]+)?)`", flag, message)
