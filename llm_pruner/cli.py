"""The command line: flags → options → run → exit code. torch is imported only when a run starts."""

import argparse
import logging
import signal
import sys

from llm_pruner.config import FIELDS, kind_of, parse_flag
from llm_pruner.errors import PrunerError, UsageError, did_you_mean, is_out_of_memory, redact
from llm_pruner.importance import available
from llm_pruner.rules import resolve

EPILOG = """\
examples:
  %(prog)s --model demo --pruning_ratio 0.5
  %(prog)s --model meta-llama/Llama-3.1-8B --pruning_ratio 0.5 --dry_run
  %(prog)s --model ./my-model --prune heads=0.25,mlp=0.5 --eval_data test.txt --save_model pruned/mine
  %(prog)s --model ./my-model --target hidden_size=2048,intermediate_size=10825
  %(prog)s --config configs/magnitude.yaml --model ./my-model

exit codes: 0 ok, 1 failed, 2 usage, 3 unsupported or illegal shape, 4 verification failed, 130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(message)

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            hint = did_you_mean(word.lstrip("-"), FIELDS) if word.startswith("-") else "see --help"
            raise UsageError(f"unknown argument {unknown[0]!r}; {hint}")
        return parsed


def build_parser() -> argparse.ArgumentParser:
    """A flag for every field of Options."""
    parser = _Parser(
        prog="prune_llm.py",
        description="Structured pruning of a Hugging Face language model: prune, save a stock checkpoint, score it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML with any of the options below; flags win over it")
    sections: dict[str, argparse._ArgumentGroup] = {}
    for name, f in FIELDS.items():
        group = sections.setdefault(f.metadata["group"], parser.add_argument_group(f.metadata["group"]))
        help_text = f.metadata["help"].replace("%", "%%")
        if name == "importance":
            help_text += f": {', '.join(available())}"
        if kind_of(name) is bool:
            group.add_argument(f"--{name}", action="store_true", help=help_text)
            continue
        choices = f.metadata["choices"]
        metavar = f.metadata["metavar"] or ("{" + ",".join(choices) + "}" if choices else name.upper())
        if f.default is not None:
            help_text += f" (default: {f.default})"
        group.add_argument(f"--{name}", metavar=metavar, help=help_text)
    return parser


def parse(argv: list[str]):
    """Options from the command line. UsageError when it cannot be understood."""
    given = vars(build_parser().parse_args([_underscored(word) for word in argv]))
    yaml_file = given.pop("config", None)
    flags = {name: value if value is True else parse_flag(name, value) for name, value in given.items()}
    return resolve(flags, yaml_file)


def _underscored(word: str) -> str:
    """Flags may be spelled with `-` or `_`; what follows `=` is a value and stays."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word[2:].partition("=")
    return f"--{flag.replace('-', '_')}{equals}{value}"


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    show_traceback = "--traceback" in argv
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("llm_pruner").setLevel(logging.INFO)
    try:
        options = parse(argv)
        show_traceback = options.traceback
        from llm_pruner.prune import run

        run(options, argv)
    except PrunerError as error:
        return _fail(str(error), error.exit_code, show_traceback)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was published", 130, show_traceback)
    except Exception as error:
        return _fail(_describe(error), 1, show_traceback)
    return 0


def _describe(error: Exception) -> str:
    if is_out_of_memory(error):
        return "out of memory; try --dtype bfloat16, --device cpu, --device_map auto or a smaller --max_seq_len"
    return f"{type(error).__name__}: {error} (--traceback shows where)"


def _fail(message: str, code: int, show_traceback: bool) -> int:
    if show_traceback:
        import traceback

        print(redact(traceback.format_exc()), file=sys.stderr)
    print(f"prune_llm: error: {redact(' '.join(message.split()))}", file=sys.stderr)
    return code
