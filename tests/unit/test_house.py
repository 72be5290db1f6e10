"""The rules of the house, as far as the source shows them: short functions, imports at the top, docstrings."""

import ast
import re
import tokenize
from pathlib import Path

import pytest

from tests import REPOSITORY
from tests.support.source import FUNCTIONS, branches, functions

PACKAGE = REPOSITORY / "llm_pruner"
FILES = sorted(PACKAGE.rglob("*.py"))
LINES, BRANCHES = 60, 15
# Slow or optional packages, and our own modules that need them or that they import half-way.
INSIDE = (
    "accelerate", "datasets", "huggingface_hub", "importlib", "lm_eval", "matplotlib", "peft", "resource",
    "safetensors", "torch", "tokenizers", "torch_pruning", "tqdm", "transformers", "triton", "yaml",
)  # fmt: skip
OURS_INSIDE = {
    "llm_pruner/model/per_layer.py": {"llm_pruner.model"},  # modeling_pruned subclasses transformers' classes
    "llm_pruner/output/checkpoint.py": {"llm_pruner.calibration.layerwise"},  # torch, which a pipeline does without
    "llm_pruner/output/verify.py": {"llm_pruner"},  # in a process of its own
    "llm_pruner/sparsity/decode.py": {"llm_pruner.sparsity.launch"},  # needs triton
    "llm_pruner/sparsity/register.py": {"llm_pruner.sparsity.saved"},  # transformers imports it half-way
}


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(function) -> set[str]:
    found = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
    direct = {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
    return direct | {node.module or "" for node in found if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_comments_stand_on_lines_of_their_own(path):
    """But those that tools read."""
    with path.open("rb") as file:
        comments = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    behind = {token.start[0]: token.string for token in comments if token.line[: token.start[1]].strip()}
    assert [line for line, text in behind.items() if not re.match("# (fmt|noqa|type):", text)] == []


def public_names() -> dict[str, str]:
    """{public name: its module}, from the table in the package's __init__."""
    tree = parsed(PACKAGE / "__init__.py")
    table = next(
        node.body for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {alias.name: node.module for node in table if isinstance(node, ast.ImportFrom) for alias in node.names}


def definition(name: str):
    """The class or function behind a public name; None for a constant. Packages are followed to where it stands."""
    path = REPOSITORY / (public_names()[name].replace(".", "/") + ".py")
    path = path if path.exists() else path.with_suffix("") / "__init__.py"
    for _ in range(3):
        tree = parsed(path)
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, *FUNCTIONS)) and node.name == name:
                return node
        handed = [n for n in tree.body if isinstance(n, ast.ImportFrom) and name in {a.name for a in n.names}]
        if not handed:
            return None
        path = REPOSITORY / (handed[0].module.replace(".", "/") + ".py")
    return None


def is_public(name: str) -> bool:
    return not name.startswith("_")


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    measured = {name: (own.end_lineno - own.lineno + 1, branches(own)) for name, own in functions(parsed(path)).items()}
    assert not {name: own for name, own in measured.items() if own[0] > LINES or own[1] > BRANCHES}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_stand_at_the_top(path: Path) -> None:
    inside = {module for function in functions(parsed(path)).values() for module in imported(function)}
    foreign = {module for module in inside if module.split(".")[0] not in INSIDE}
    assert foreign == OURS_INSIDE.get(name_of(path), set())


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=name_of)
def test_packages_say_what_they_are_for(path: Path) -> None:
    tree = parsed(path)
    assert (ast.get_docstring(tree) or "").endswith((".", "`"))
    handed_on = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    listed = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    assert bool(listed) or not any(map(is_public, handed_on))


@pytest.mark.parametrize("name", public_names())
def test_public_names_are_documented(name: str) -> None:
    node = definition(name)
    if node is None:  # a registry, or another constant
        assert name.isupper() or name == "Request"
        return
    told = ast.get_docstring(node) or ""
    assert told.split("\n")[0].endswith(".")
    if isinstance(node, FUNCTIONS):
        arguments = [own.arg for own in (*node.args.args, *node.args.kwonlyargs)]
        missing = [own for own in arguments if f"    {own}: " not in told]
        assert not missing
        assert not arguments or "Args:\n" in told
        returned = ast.unparse(node.returns or ast.Constant(None))
        assert returned == "None" or ("Yields:\n" if returned.startswith("Iterator[") else "Returns:\n") in told
        return
    if any("dataclass" in ast.unparse(own) for own in node.decorator_list):
        own_fields = [each.target.id for each in node.body if isinstance(each, ast.AnnAssign)]
        assert not own_fields or "Attributes:\n" in told
    methods = [each for each in node.body if isinstance(each, FUNCTIONS) and is_public(each.name)]
    assert not [method.name for method in methods if not ast.get_docstring(method)]


HELP = ("option", "command_options", "add_argument")  # the functions whose texts are help, where flags are meant
NO_FLAGS = {  # names of files, and of variables of a style sheet
    "llm_pruner/sparsity/sweep.py": {"--", "---"},
    "llm_pruner/output/charts.py": {"--", "var(--"},
}


def flags_in(tree: ast.AST) -> list[str]:
    """The texts with a `--flag` in them, without docstrings and the help of options."""
    nodes = list(ast.walk(tree))
    documented = [node for node in nodes if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and node.body]
    left_out = {id(node.body[0].value) for node in documented if isinstance(node.body[0], ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in HELP:
            left_out |= set(map(id, ast.walk(node)))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in left_out]
    return [text for text in texts if isinstance(text, str) and re.search(r"(^|\W)--([a-z]|$)", text)]


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name != "cli"], ids=name_of)
def test_the_library_names_parameters_and_no_flags(path: Path) -> None:
    """The command line makes flags of what stands in backquotes."""
    assert set(flags_in(parsed(path))) <= NO_FLAGS.get(name_of(path), set())


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "cli"], ids=name_of)
def test_errors_of_the_commands_name_parameters_too(path: Path) -> None:
    """Python calls them as well; only the parser knows that there are flags."""
    raised = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Raise)]
    assert path.name == "main.py" or not [text for node in raised for text in flags_in(node)]


def test_what_needs_trained_models_stands_apart():
    """So that `make test` passes on a clone without them."""
    found = {
        path.relative_to(REPOSITORY).parts[1]
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for own in functions(parsed(path)).values()
        if "shared" in {argument.arg for argument in own.args.args}
    }
    assert found == {"reference"} or found == {"reference", "gpu"}
