"""Records that a file of texts may hold, and the text that they stand for.

JSON Lines, a list, or a single record, told by what is in the file: records of `text`, of Alpaca's fields, or of chat
`messages`. The templates are Stanford Alpaca's (github.com/tatsu-lab/stanford_alpaca), and AMP's for calibration.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm_pruner.errors import UsageError, first_line, shown

TEXT, ALPACA, CHAT = "text", "Alpaca", "chat"
# what tells the kind; the first that is there does
FIELD = {CHAT: "messages", ALPACA: "instruction", TEXT: "text"}
KNOWN = "records of `text`, of `instruction`, `input` and `output` (Alpaca), or of chat `messages` are read"
SUFFIXES = (".json", ".jsonl", ".ndjson")
BLANKS = re.compile(r"[ \t\r\n]*")

# AMP's
PROMPT = "Instruction: {instruction}\nInput: {input}\nResponse:"
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


class Part(NamedTuple):
    """A piece of a record's text.

    Attributes:
        text: The text.
        learned: Whether training predicts it.
    """

    text: str
    learned: bool


@dataclass(frozen=True)
class Records:
    """Records of one kind.

    Attributes:
        kind: TEXT, ALPACA or CHAT.
        of: A text each, {field of Alpaca: text} each, or a list of messages each.
        where: The file, for messages.
    """

    kind: str
    of: list
    where: str

    def text(self, tokenizer=None) -> str:
        """Return all of them as running text. UsageError where the tokenizer's chat template refuses one."""
        if self.kind == TEXT:
            return "\n\n".join(self.of)
        return "\n\n".join("".join(part.text for part in self.parts(i, tokenizer)) for i in range(len(self.of)))

    def templated(self, tokenizer) -> bool:
        """Return whether the text of a record has its begin and end already."""
        return self.kind == CHAT and bool(getattr(tokenizer, "chat_template", None))

    def answered(self) -> "Records":
        """Return those that have something to learn. UsageError when there is none."""
        if self.kind == ALPACA:
            found, what = [record for record in self.of if record["output"]], "an 'output'"
        else:
            found, what = [chat for chat in self.of if any(map(_learned, chat))], "an answer of the assistant"
        if not found:
            raise UsageError(f"{self.where} has no record with {what}")
        return Records(self.kind, found, self.where)

    def parts(self, number: int, tokenizer=None) -> list[Part]:
        """Return the text of a record of Alpaca's or a chat, in parts that are learned and parts that are not.

        Args:
            number: The record's, from 0.
            tokenizer: Its chat template, if it has one, spells a chat.

        Raises:
            UsageError: The record does not go with the template.
        """
        record = self.of[number]
        if self.kind == ALPACA:
            template = WITH_INPUT if record["input"] else WITHOUT_INPUT
            return [Part(template.format(**record), False), Part(record["output"], True)]
        if not self.templated(tokenizer):
            return _plain(record)
        try:
            return _by_template(record, tokenizer)
        except Exception as error:
            # of jinja2, or whatever the template raises
            reason = first_line(error)
            raise UsageError(
                f"{self.where}: record {number + 1} does not go with the chat template of the tokenizer: {reason}"
            ) from error


def parsed(text: str, path: Path, where: str) -> Records | None:
    """Return the records in the text of a file, None where it is running text.

    Args:
        text: What the file holds.
        path: Whose name may say that it is JSON; otherwise text that is no JSON is running text.
        where: The file, for messages.

    Raises:
        UsageError: It is no JSON though its name or its first record says so, or its records are not all of one of the
            known kinds.
    """
    named = path.suffix.lower() in SUFFIXES
    values: list[Any] = []
    decoder, place = json.JSONDecoder(), _behind_blanks(text, 0)
    try:
        while place < len(text):
            value, place = decoder.raw_decode(text, place)
            values.append(value)
            place = _behind_blanks(text, place)
    except (ValueError, RecursionError) as error:
        if named or _kind(values[0] if values else _first_of_list(text)):
            line = text.count("\n", 0, place if values else getattr(error, "pos", place)) + 1
            raise UsageError(f"{where}, line {line:,}, is not JSON: {_reason(error)}") from error
        return None
    records = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    if not values or not named and not isinstance(next(iter(records), None), dict):
        return None
    if not records:
        raise UsageError(f"{where} is an empty list; {KNOWN}")
    return checked(records, where)


def _behind_blanks(text: str, place: int) -> int:
    """The first place from `place` on that is not blank."""
    found = BLANKS.match(text, place)
    assert found, "no blanks are a match too"
    return found.end()


def _first_of_list(text: str) -> Any:
    """The first value of a JSON list that breaks off later."""
    try:
        place = _behind_blanks(text, 0)
        return json.JSONDecoder().raw_decode(text, _behind_blanks(text, place + 1))[0]
    except (ValueError, RecursionError):
        return None


def _reason(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))


def checked(records: Sequence[Any], where: str) -> Records:
    """Return records as what they are.

    Args:
        records: What a file or a data set holds.
        where: Its name, for messages.

    Raises:
        UsageError: A record, which the message numbers, is of no known kind, or of another one than the first.
    """
    # of no known kind, the first record ends it below
    kind = _kind(records[0]) or ""
    own = {TEXT: _text, ALPACA: _alpaca, CHAT: _chat}
    found = []
    for number, record in enumerate(records, 1):
        here = f"{where}: record {number}"
        if (other := _kind(record)) is None:
            what = f"has the fields {shown(list(record))}" if isinstance(record, dict) else f"is {shown(record)}"
            raise UsageError(f"{here} {what}; {KNOWN}")
        if other != kind:
            raise UsageError(f"{here} is of another kind ({other}) than the first ({kind}); give a file of each")
        found.append(own[kind](record, here))
    return Records(kind, found, where)


def _kind(record: Any) -> str | None:
    return next((kind for kind, name in FIELD.items() if name in record), None) if isinstance(record, dict) else None


def _text(record: dict, where: str) -> str:
    return _whole(_string(record["text"], f"{where}: text"))


def _alpaca(record: dict, where: str) -> dict[str, str]:
    """Numbers are texts too, and what is not there, or null, is an empty one."""
    found = {}
    for name in ("instruction", "input", "output"):
        value = record.get(name)
        if isinstance(value, list | dict):
            raise UsageError(f"{where}: {name}: {shown(value)} must be text or a number")
        found[name] = "" if value is None else _whole(str(value))
    return found


def as_chat(record: dict[str, str]) -> list[dict[str, str]]:
    """Return a record of Alpaca's fields as the messages of a chat: a question and its answer."""
    question = f"{record['instruction']}\n\n{record['input']}".strip()
    return [{"role": "user", "content": question}, {"role": "assistant", "content": record["output"]}]


def _chat(record: dict, where: str) -> list[dict]:
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{where}: messages: {shown(messages)} must be a list of messages with `role` and `content`")
    found = []
    for number, message in enumerate(messages, 1):
        here = f"{where}: message {number}"
        if not isinstance(message, dict) or "role" not in message:
            raise UsageError(f"{here}: {shown(message)} must be a mapping with `role` and `content`")
        role = _string(message["role"], f"{here}: role")
        found.append(message | {"role": role, "content": _content(message, here)})
    return found


def _content(message: dict, where: str) -> str:
    """Of a message: text, or a list of texts. A call of a tool may have none."""
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(one, dict) and one.get("type", "text") == "text" and isinstance(one.get("text"), str)
        for one in content
    ):
        content = "".join(one["text"] for one in content)
    if content is None and message.get("tool_calls"):
        content = ""
    return _whole(_string(content, f"{where}: content", 'text, or a list of {"type": "text", "text": …}'))


def _string(value: Any, where: str, legal: str = "text") -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: {shown(value)} must be {legal}")
    return value


def _whole(text: str) -> str:
    """Without halves of characters, which JSON can spell and UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _learned(message: dict) -> bool:
    return message["role"] == "assistant"


def _plain(messages: list[dict]) -> list[Part]:
    """`role: content`, a line each."""
    parts, before = [], ""
    for message in messages:
        before += f"{message['role']}:"
        if _learned(message):
            parts += [Part(before, False), Part(f" {message['content']}", True)]
            before = "\n"
        else:
            before += f" {message['content']}\n"
    return [*parts, Part(before, False)] if before.strip() else parts


def _by_template(messages: list[dict], tokenizer) -> list[Part]:
    """By the tokenizer's own template: an answer is what that puts behind the beginning of the assistant's turn."""

    def written(count: int, begun: bool = False) -> str:
        return tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=begun)

    whole, parts, end = written(len(messages)), [], 0
    for number in (number for number, message in enumerate(messages) if _learned(message)):
        upto = written(number + 1)
        starts = (written(number, begun=True), written(number)) if number else ("",)
        before = next((start for start in starts if upto.startswith(start)), upto)
        # it may leave out what was thought in between
        if len(upto) > len(before) >= end and whole.startswith(upto):
            parts += [Part(whole[end : len(before)], False), Part(upto[len(before) :], True)]
            end = len(upto)
    return [*parts, Part(whole[end:], False)]
