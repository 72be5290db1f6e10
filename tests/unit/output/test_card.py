"""The model card of a pruning, of a recovery and of a run that made a model sparse."""

from llm_pruner.output.card import card
from tests.support.reports import TRAINING, as_json, evaluated, pruned, recovered, sparse

ZERO_SHOT = {
    "before": {"piqa": {"acc": 0.75, "acc_stderr": 0.01, "samples": 1838}, "arc": {"acc": 0.2, "acc_norm": 0.25}},
    "after": {"piqa": {"acc": 0.5, "acc_stderr": 0.012, "samples": 1838}, "arc": {"acc": 0.1, "acc_norm": 0.125}},
}


def test_of_a_pruning():
    text = card(pruned())
    assert text.startswith("---\nbase_model: models/dense-1b\n")
    assert "trust_remote_code=True" in text
    lines = text.splitlines()
    for line in (
        "# dense-1b, pruned",
        "|  | dense | pruned |",
        "| hidden_size | 48 | 48 |",
        "| num_attention_heads | 8 | 8, 6, 4, 2, 4, 8 |",
        "| parameters | 1,000,000 | 600,000 |",
        "| bytes | 2,000,000 | 1,200,000 |",
        "| perplexity (words.txt, 1501 windows of 128 tokens) | 20.00 | 60.00 |",
        "Units chosen by flap (seed 7) on 128 samples of c4.",
        "    python prune_llm.py --model models/dense-1b --param_ratio 0.4 --save_model out/small",
    ):
        assert line in lines, text
    assert lines[lines.index("|  | dense | pruned |") - 1] == "", "a table begins a paragraph"
    assert not [line for line in lines if line.startswith(("| layers", "| zero-shot"))]
    assert card(pruned(perplexity={}, evaluation={})).count("perplexity") == 0
    assert "| 20.00 | not finite |" in card(pruned(perplexity={"before": 20.0, "after": None}))
    assert "| layers | 6 | 4 |" in card(pruned(layers={"before": 6, "after": 4, "kept": [0, 1, 4, 5]}))
    assert "units set to zero" in card(pruned(masked=True))
    assert "An ordinary `llama` checkpoint" in card(pruned(model_type={"before": "llama", "after": "llama"}))


FEWER_TOKENS = {
    "bits_per_byte": {"before": 1.0, "after": 1.25},
    "vocabulary": {"data": ["own.txt"], "covered": 0.991, "bytes_per_token": {"before": 4.0, "after": 3.9}},
    "widths": {"before": {"vocab_size": 5000}, "after": {"vocab_size": 3008}},
}


def test_of_fewer_tokens():
    lines = card(pruned(**FEWER_TOKENS)).splitlines()
    # 60 ^ (1 / 1.25): what the dense model's bits are by token of the new vocabulary
    assert "| perplexity (words.txt, 1501 windows of 128 tokens) | 26.46 | 60.00 |" in lines
    assert "| bits per byte (words.txt) | 1.0000 | 1.2500 |" in lines
    assert any("5,000 tokens became 3,008, the most frequent ones of own.txt: 99.1 % of it." in line for line in lines)
    assert not any("bits per byte" in line for line in card(pruned()).splitlines())


def test_of_nothing_but_fewer_tokens():
    stock = {"model_type": {"before": "llama", "after": "llama"}}
    text = card(pruned(**FEWER_TOKENS, **stock, importance="token counts", calibration=None))
    opening = (
        "[models/dense-1b](models/dense-1b) with tokens removed from its vocabulary. An ordinary `llama` checkpoint: "
    )
    assert opening in text
    assert "heads" not in text.split("|")[0]
    # no unit was chosen, and no seed played a part
    assert "Units chosen" not in text
    assert "token counts" not in text
    assert "seed" not in text
    several = FEWER_TOKENS["vocabulary"] | {"data": ["own.txt", "c4"]}
    assert "the most frequent ones of own.txt and c4: 99.1 % of them." in card(
        pruned(**FEWER_TOKENS | {"vocabulary": several})
    )


def test_of_a_recovery():
    lines = card(recovered()).splitlines()
    for line in (
        "- recovered",
        "# dense-1b, pruned and recovered",
        "|  | dense | pruned | recovered |",
        "| intermediate_size | 80 | 40 | 40 |",
        "| parameters | 1,000,000 | 600,000 | 600,000 |",
        "| perplexity (words.txt, 1501 windows of 128 tokens) | 20.00 | 60.00 | 30.00 |",
        "    python prune_llm.py --model models/dense-1b --param_ratio 0.4 --save_model out/small",
        "    python -m llm_pruner recover --model out/small",
    ):
        assert line in lines, lines
    (how,) = (line for line in lines if line.startswith("Trained by"))
    said = (
        "distillation from models/dense-1b on 983,040 tokens of train.txt (windows of 64 tokens): 480 steps in 2.0 min"
    )
    assert said in how
    assert "learning rate 0.01040, 599,000 trained parameters" in how
    assert "63.1 % of the gap" in how
    lora = card(recovered(method="lora", train_weights="lora", teacher=None, recovered_share=None))
    assert "Trained by LoRA on" in lora
    assert "gap" not in lora
    assert "into low-rank adapters" in card(recovered(train_weights="lora"))


def test_of_a_recovery_that_knows_less():
    text = card(recovered(made_from=None, base_model=None, dense_perplexity=None, teacher=None, method="lora"))
    assert "|  | pruned | recovered |" in text
    assert "| parameters | 600,000 | 600,000 |" in text
    known = card(recovered(made_from=None))
    assert "| parameters | – | 600,000 | 600,000 |" in known
    assert "| 20.00 | 60.00 | 30.00 |" in known


def test_of_a_sparse_model():
    lines = card(sparse()).splitlines()
    assert "# dense-1b, sparse" in lines
    assert "Made sparse: weight 2:4, 50.0 % kept (seed 7), on 128 samples of c4." in lines
    assert any("sparse weights (weight 2:4). An ordinary `llama` checkpoint" in line for line in lines)
    sources = [{"data": "c4", "share": 0.75, "windows": 96}, {"data": "self", "share": 0.25, "windows": 32}]
    mixed = {"data": "c4 self=0.25", "nsamples": 128, "seq_len": 64, "sources": sources}
    assert "on 128 samples of c4 (96), self (32).\n" in card(sparse(calibration=mixed))
    activations = card(sparse(sparsity={"sparse": "activations"}, calibration={}, kept=None))
    assert "without that import transformers warns and loads the dense model" in activations
    assert "Made sparse: weight 2:4 (seed 7).\n" in activations


def test_zero_shot_tables():
    text = card(pruned(zero_shot=ZERO_SHOT))
    for line in (
        "| zero-shot accuracy, % | dense | pruned |",
        "| piqa (acc) | 75.0 ± 1.0 | 50.0 ± 1.2 |",
        "| arc (acc_norm) | 25.0 | 12.5 |",
        "| mean | 50.0 | 31.2 |",
    ):
        assert line in text.splitlines(), text
    after = as_json(evaluated)["models"][0]["zero_shot"]
    both = card(recovered(made_from=pruned(zero_shot=ZERO_SHOT), zero_shot={"after": after}))
    assert "| piqa (acc) | 75.0 ± 1.0 | 50.0 ± 1.2 | 75.0 ± 1.2 |" in both
    assert "| hellaswag (acc_norm) | – | – | 50.0 ± 0.9 |" in both
    assert "words" not in [line[2:7] for line in both.splitlines()]  # no accuracy
    assert "| mean" not in both  # only one task that all have


def test_no_name_breaks_the_table():
    text = card(pruned(evaluation={"data": "a|b\n<script>", "max_seq_len": 128, "windows": 3}))
    assert "| perplexity (a\\|b &lt;script>, 3 windows of 128 tokens) | 20.00 | 60.00 |" in text.splitlines()
    hostile = "a|b\n<script>{{ 7 * 7 }}"
    for report in (pruned(importance=hostile), recovered(training=TRAINING | {"data": hostile}), sparse(label=hostile)):
        text = card(report)
        assert "a\\|b &lt;script>{{ 7 * 7 }}" in text
        assert "<script" not in text
