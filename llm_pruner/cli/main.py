"""The command line: flags → options → run → exit code. torch is imported only when a run starts."""

import argparse
import logging
import signal
import sys
import threading
import traceback
from dataclasses import Field
from typing import Any

from llm_pruner import console
from llm_pruner._version import __version__
from llm_pruner.cli.commands import CODES, COMMANDS, PRUNE, Command
from llm_pruner.cli.messages import with_flags
from llm_pruner.config.groups import SECTIONS
from llm_pruner.config.options import fields_of, kind_of, parse_flag
from llm_pruner.errors import (
    PrunerError,
    UsageError,
    did_you_mean,
    is_out_of_disk,
    is_out_of_memory,
    redact,
    shortened,
)
from llm_pruner.importance import CRITERIA
from llm_pruner.output import places


class Stopped(SystemExit):
    """A signal asks the run to end: as an exception, so that nothing half-written stays behind."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.status = 128 + number
        self.signal = signal.Signals(number).name


class _Parser(argparse.ArgumentParser):
    def __init__(self, known, **options):
        super().__init__(**options)
        self.known = known

    def error(self, message: str):
        raise UsageError(message)

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            hint = did_you_mean(word.lstrip("-"), self.known) if word.startswith("-") else "see --help"
            raise UsageError(f"unknown argument {unknown[0]!r}; {hint}")
        return parsed


def build_parser(command: Command = PRUNE, every: bool = True) -> argparse.ArgumentParser:
    """Return a parser with a flag for every option of the command; its help shows all of them, or the common ones."""
    known = fields_of(command.options)
    examples = "".join(f"  %(prog)s {line}\n" for line in command.examples)
    more = "" if every else "these are the common options; `--help all` shows every one\n\n"
    parser = _Parser(
        known,
        prog=command.prog,
        usage=f"{command.prog} [options]",
        description=command.description,
        epilog=f"{more}examples:\n{examples}\n{CODES}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    sections: dict[str, argparse._ArgumentGroup] = {}
    for name, f in sorted(known.items(), key=lambda item: SECTIONS.index(item[1].metadata["group"])):
        group: argparse._ActionsContainer = parser
        if every or f.metadata["common"]:
            title = f.metadata["group"]
            if title not in sections:
                sections[title] = parser.add_argument_group(title)
            group = sections[title]
        _add_flag(group, name, f, hidden=not every and not f.metadata["common"])
    return parser


def _add_flag(group, name: str, f: Field, hidden: bool) -> None:
    text = f.metadata["help"].replace("%", "%%")
    if name == "importance":
        text += f": {', '.join(CRITERIA.names())}"
    if kind_of(f) is bool:
        group.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS if hidden else text)
        return
    choices = f.metadata["choices"]
    metavar = f.metadata["metavar"] or ("{" + ",".join(choices) + "}" if choices else name.upper())
    if f.default is not None:
        text += f" (default: {','.join(f.default) if isinstance(f.default, tuple) else f.default})"
    several: dict[str, Any] = {"nargs": "+", "action": "extend"} if kind_of(f) is tuple else {}
    group.add_argument(f"--{name}", metavar=metavar, help=argparse.SUPPRESS if hidden else text, **several)


def parse(argv: list[str], command: Command = PRUNE):
    """Return the command's options from its arguments. UsageError when they cannot be understood."""
    known = fields_of(command.options)
    words, every = [_underscored(word) for word in argv], True
    if "--help" in words or "-h" in words:
        every = "all" in words
        words = ["--help"]
    given = vars(build_parser(command, every).parse_args(words))
    flags: dict[str, Any] = {
        name: value if value is True else parse_flag(known[name], value) for name, value in given.items()
    }
    return command.resolve(flags, flags.get("config"))


def _underscored(word: str) -> str:
    """Flags may be spelled with `-` or `_`; what follows `=` is a value and stays."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word[2:].partition("=")
    return f"--{flag.replace('-', '_')}{equals}{value}"


def main(argv: list[str] | None = None, command: Command = PRUNE) -> int:
    """Run the command and return its exit code."""
    console.steady()
    try:
        return _main(sys.argv[1:] if argv is None else argv, command)
    except KeyboardInterrupt:
        # once more, while the first was being told
        return 130


def _main(argv: list[str], command: Command) -> int:
    show_traceback = "--traceback" in argv
    _heed_signals()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("llm_pruner").setLevel(logging.INFO)
    name = command.prog
    try:
        options = parse(argv, command)
        show_traceback = options.traceback
        command.function()(options, argv)
    except PrunerError as error:
        return _fail(name, f"{with_flags(str(error), command.options)}{_saved()}", error.exit_code, show_traceback)
    except KeyboardInterrupt:
        return _fail(name, f"interrupted{_saved() or '; nothing was published'}", 130, show_traceback)
    except Stopped as stop:
        message = f"ended by {stop.signal}{_saved() or '; nothing was published'}"
        return _fail(name, message, stop.status, show_traceback)
    except Exception as error:
        return _fail(name, f"{_describe(error)}{_saved()}", 1, show_traceback)
    return 0


def _heed_signals() -> None:
    """SIGTERM and SIGHUP (a lost connection) end a run as Ctrl-C does, unless they are ignored, as under nohup."""

    def stop(number, _):
        raise Stopped(number)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, stop)


def _saved() -> str:
    """What the run has published before it ended otherwise than it should."""
    folders = ", ".join(map(str, places.published))
    return f"; saved before that: {folders}" if folders else ""


def dispatch(argv: list[str] | None = None) -> int:
    """Run `llm-pruner COMMAND …` and return its exit code."""
    console.steady()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--version"]:
        print(f"llm-pruner {__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: llm-pruner COMMAND …   (llm-pruner COMMAND --help shows its options, --version the version)\n")
        for name, command in COMMANDS.items():
            print(f"  {name:10} {command.description}")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        return _fail("llm-pruner", f"unknown command {argv[0]!r}; {did_you_mean(argv[0], COMMANDS)}", 2, False)
    return main(argv[1:], COMMANDS[argv[0]])


def _describe(error: Exception) -> str:
    if is_out_of_memory(error):
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        advice = "try --dtype bfloat16, --device cpu, --device_map auto or a smaller --max_seq_len"
        return f"out of memory{reason}; {advice}"
    if is_out_of_disk(error):
        return f"no space left on the disk ({str(error).splitlines()[0]})"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error} (--traceback shows where)"


def _fail(name: str, message: str, code: int, show_traceback: bool) -> int:
    if show_traceback:
        print(redact(traceback.format_exc()), file=sys.stderr)
    print(f"{name}: error: {shortened(redact(' '.join(message.split())))}", file=sys.stderr)
    return code
