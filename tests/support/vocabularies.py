"""Small tokenizers of every kind whose vocabulary can be pruned, trained on a few lines."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

LINES = [
    "The river runs past the old mill, and the miller's children run after it.",
    "In winter the wheel stands still; in spring it turns again, slowly at first.",
    "Nobody remembers who built the mill, nor when the river first turned its wheel.",
    "“Where does it go?” asked the youngest. “To the sea,” said the miller, “like all rivers.”",
    "def turn(wheel):\n    return wheel.speed * 2  # twice as fast",
]
TEXT = "\n".join(LINES)
# what the training text has nothing of
OTHER = "Überraschung: 42 žlutých koní, 日本語 и ещё немного 🚀!"
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
BLANK = "\u2581"


def byte_level(size: int = 420) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return _with_template(made)


def byte_fallback(size: int = 420) -> Tokenizer:
    """As Llama 2 has it: characters, and bytes for those that the vocabulary lacks."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL + BYTES)
    made.train_from_iterator([line.replace(" ", f" {BLANK}") for line in LINES], trainer)
    return _with_bytes(made)


def unigram(size: int = 420) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=SPECIAL + BYTES, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    return _with_bytes(made)


def word_piece(size: int = 150) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL))
    return _with_template(made)


KINDS = {"byte-level": byte_level, "byte fallback": byte_fallback, "unigram": unigram, "word piece": word_piece}


def _with_bytes(made: Tokenizer) -> Tokenizer:
    raw = json.loads(made.to_str())
    raw["model"]["byte_fallback"] = True
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] not in BYTES]
    made = Tokenizer.from_str(json.dumps(raw))
    made.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_template(made)


def _with_template(made: Tokenizer) -> Tokenizer:
    """Begins every text with <s>, whose id stands in the post-processor."""
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    return made


def save(made: Tokenizer, folder: Path, **options) -> PreTrainedTokenizerFast:
    """Save it as a checkpoint has it, and return what transformers loads."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left", **names | options)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
