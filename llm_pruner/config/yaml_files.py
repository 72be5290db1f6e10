"""YAML, read as data and within bounds: no tags, no aliases, nothing large or deep. Imports yaml when it is called."""

from pathlib import Path
from typing import Any

from llm_pruner.errors import UsageError, shown
from llm_pruner.files import read_text

# bytes: yaml reads some 50,000 a second, and options have a few thousand
MOST = 64 * 1024
# levels that mappings and lists may be nested in
DEPTH = 32


def read_yaml_nodes(path: str | Path, what: str, tags: tuple[str, ...] = ()) -> tuple[Any, Any]:
    """Read a YAML file as data.

    Args:
        path: The file.
        what: What it is, for the message: "`config`", "task".
        tags: Tags of its own, such as "!function", whose values are read as text.

    Returns:
        The root node, with the line of every key, and the values; (None, None) where the file says nothing.

    Raises:
        UsageError: With the line, where it cannot be read, is not YAML, or goes beyond the bounds.
    """
    import yaml

    path = Path(path).expanduser()
    text = read_text(path, what, MOST)
    try:
        loader = _loader(tags)(text)
        root = loader.get_single_node()
        return (None, None) if root is None else (root, loader.construct_document(root))
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        raise UsageError(
            f"{what} {path}, line {number}: a character that YAML does not have: {error.reason}"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{what} {path}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from error


def _loader(tags: tuple[str, ...]) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader, but aliases, which may expand to gigabytes, and deep nesting, which recurses, are errors."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            mark = self.peek_event().start_mark
            if self.check_event(yaml.AliasEvent):
                raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read; write the value out", mark)
            if self.depth >= DEPTH:
                raise yaml.composer.ComposerError(None, None, f"nested more than {DEPTH} levels deep", mark)
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, ArithmeticError, KeyError, IndexError, AttributeError) as error:
                # a tag's own reader
                kind = node.tag.rpartition(":")[2]
                problem = f"{shown(node.value)} is no {kind}"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    for tag in tags:
        Loader.add_constructor(tag, lambda loader, node: str(node.value))
    return Loader
