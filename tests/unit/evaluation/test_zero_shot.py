import json
import logging
import math
import random
import re
import socket
import sys
from pathlib import Path
from statistics import stdev

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_pruner.config.groups import USUAL_TASKS
from llm_pruner.errors import RunError, UsageError
from llm_pruner.evaluation import tasks, zero_shot
from llm_pruner.model.demo.text import held_out
from tests.support.commands import DEMO

CONTEXTS = (  # of the demo model's world, short enough for two of them and a question in its 128 tokens
    "In the evening Mara had two ropes and Oren had seven ropes. So",
    "On Monday Kofi came to the",
    "Lena lost one coin near the stone bridge. She",
    "Then Piet and Sana walked from the school to the ",  # lm_eval lets the answer begin with this space
    "There he met Vera, who had",
    "A thin fog lay",
    "Milo gave three of his red apples to",
    "They agreed to meet again on",
    "Snow had covered the",
    "Bruno found one more",
    "In the evening Tilda had no kettles and Ines had",
    "It was a quiet day, and",
)
CHOICES = (
    ["Oren had more", "Mara had more", "they had the same", "no"],
    ["mill with four old nets", "inn", "evening"],
    ["looked for it in vain", "had more"],
    ["market", "stone bridge", "gulls were loud on the roofs"],
    ["six coins", "no coins", "the coins and the lanterns", "it"],
    ["over the water", "in the street"],
    ["Yusuf", "the harbour", "Milo, who had a rope"],
    ["Sunday", "Friday", "the ferry"],
    ["steps during the night", "roofs", "bread"],
    ["rope behind the mill", "day", "letter near the chapel", "x"],
    ["one kettle", "three kettles"],
    ["the tide was low", "the gulls", "So"],
)
LABELS = (0, 1, 0, 1, 3, 0, 1, 1, 0, 2, 1, 0)
QUESTIONS = [{"text": t, "choices": c, "label": n} for t, c, n in zip(CONTEXTS, CHOICES, LABELS, strict=True)]
EXAMPLES = [
    {"text": "The sun was", "choices": ["warm", "cold"], "label": 0},
    {"text": "The wind was", "choices": ["warm", "cold and the gulls were loud"], "label": 1},
    {"text": "Rain fell on the", "choices": ["water", "sun", "roofs all morning"], "label": 2},
    {"text": "The street was", "choices": ["full of people", "low"], "label": 0},
]
TASK = {
    "task": "harbour",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "examples.jsonl", "test": "questions.jsonl"}},
    "output_type": "multiple_choice",
    "training_split": "train",
    "test_split": "test",
    "doc_to_text": "text",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Data sets are built in the test's folder, and a local task asks nobody for anything."""
    import datasets

    def refuse(*arguments, **options):
        raise AssertionError(f"a connection to {arguments}")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture
def demo():
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


@pytest.fixture
def task(tmp_path):
    """Writes the task, with changes, and its data; gives the YAML's path."""

    def write(name="task.yaml", questions=QUESTIONS, **changes) -> str:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        for file, rows in (("examples.jsonl", EXAMPLES), ("questions.jsonl", questions)):
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = {key: value for key, value in {**TASK, **changes}.items() if value is not None}
        (folder / name).write_text(yaml.safe_dump(content))
        return str(folder / name)

    return write


@pytest.fixture
def asked(monkeypatch):
    """The log-likelihoods that lm_eval had from the model, a list for each question, most recent run last."""
    import lm_eval

    runs, evaluate = [], lm_eval.evaluate

    def spy(**options):
        measured = evaluate(**options)
        for one in options["task_dict"]["tasks"].values():
            questions = {}
            for instance in one.instances:
                questions.setdefault(instance.doc_id, []).append(instance.resps[0][0])
            runs.append(list(questions.values()))
        return measured

    monkeypatch.setattr(lm_eval, "evaluate", spy, raising=False)
    return runs


@torch.no_grad()
def by_hand(model, tokenizer, context: str, choices: list[str], delimiter: str = " ") -> list[float]:
    """Σ log p of each choice's tokens after `context`."""
    known, sums = len(tokenizer.encode(context.rstrip())), []
    for choice in choices:
        ids = tokenizer.encode(context + delimiter + choice)
        logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        sums.append(sum(logs[i - 1, ids[i]].item() for i in range(known, len(ids))))
    return sums


def expected(scores: list[list[float]], questions=QUESTIONS) -> dict[str, float]:
    """What zero_shot should give when the choices have these log-likelihoods; no choice wins by less than noise."""
    right = {"acc": [], "acc_norm": []}
    for question, sums in zip(questions, scores, strict=True):
        lengths = [len(choice) for choice in question["choices"]]
        for name, divisors in (("acc", [1] * len(sums)), ("acc_norm", lengths)):
            values = [value / divisor for value, divisor in zip(sums, divisors, strict=True)]
            best, second = sorted(values, reverse=True)[:2]
            assert best - second > 1e-5
            right[name].append(float(values.index(best) == question["label"]))
    result = {}
    for name, hits in right.items():
        result |= {name: sum(hits) / len(hits), f"{name}_stderr": pytest.approx(stdev(hits) / math.sqrt(len(hits)))}
    return {**result, "samples": len(questions)}


def same(found: list[list[float]], scores: list[list[float]]) -> None:
    for ours, lm_evals in zip(scores, found, strict=True):
        assert lm_evals == pytest.approx(ours, abs=2e-5, rel=1e-5)
        assert ours.index(max(ours)) == lm_evals.index(max(lm_evals))


@pytest.mark.slow
def test_scores_by_hand(demo, tokenizer, task, asked):
    scores = [by_hand(demo, tokenizer, q["text"], q["choices"]) for q in QUESTIONS]
    right = expected(scores)
    assert 0 < right["acc"] < 1
    assert 0 < right["acc_norm"] < 1
    assert right["acc"] != right["acc_norm"]
    assert zero_shot.zero_shot(demo, tokenizer, [task()]) == {"harbour": right}
    same(asked[0], scores)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_examples_in_the_prompt_by_hand(demo, tokenizer, task, asked, seed):
    sampler = random.Random(seed)
    scores = []
    for question in QUESTIONS:
        shots = sampler.sample(EXAMPLES, 2)
        prompt = "".join(f"{shot['text']} {shot['choices'][shot['label']]}\n\n" for shot in shots)
        scores.append(by_hand(demo, tokenizer, prompt + question["text"], question["choices"]))
    results = [zero_shot.zero_shot(demo, tokenizer, [task()], num_fewshot=2, seed=seed) for _ in range(2)]
    assert results == [{"harbour": expected(scores)}] * 2
    same(asked[0], scores)
    assert asked[1] == asked[0]


def test_other_examples_with_another_seed(demo, tokenizer, task, asked):
    for seed in (0, 1):
        zero_shot.zero_shot(demo, tokenizer, [task()], num_fewshot=2, seed=seed, limit=3)
    assert asked[0] != asked[1]


def test_chat_template_by_hand(demo, tokenizer, task, asked, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    scores = [by_hand(demo, tokenizer, f"user: {q['text']}\nassistant:", q["choices"], "") for q in QUESTIONS]
    found = zero_shot.zero_shot(demo, tokenizer, [task()], apply_chat_template=True)
    assert found == {"harbour": expected(scores)}
    same(asked[0], scores)


def test_the_same_as_lm_evals_own_command(demo, tokenizer, task, monkeypatch):
    import lm_eval
    import lm_eval.evaluator
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda storage: None)  # which runs pip
    path = task()
    monkeypatch.chdir(Path(path).parent)  # where lm_eval looks for data files
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=demo.bfloat16(), tokenizer=tokenizer, batch_size=3), tasks=[path], num_fewshot=1, limit=9,
        random_seed=5, numpy_random_seed=5, torch_random_seed=5, fewshot_random_seed=5,
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
    )["results"]["harbour"]  # fmt: skip
    ours = zero_shot.zero_shot(demo, tokenizer, [path], num_fewshot=1, limit=9, batch_size=3, seed=5)["harbour"]
    assert ours.pop("samples") == 9
    assert ours == {name: theirs[f"{name},none"] for name in ours}
    assert set(ours) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}


def test_batch_size_does_not_matter(demo, tokenizer, task, asked):
    results = [zero_shot.zero_shot(demo, tokenizer, [task()], batch_size=size) for size in (1, 5, None)]
    assert results[0] == results[1] == results[2]
    for run in asked[1:]:
        same(run, asked[0])


def test_limit_takes_the_first(demo, tokenizer, task, asked):
    found = zero_shot.zero_shot(demo, tokenizer, [task()], limit=5)["harbour"]
    scores = [by_hand(demo, tokenizer, q["text"], q["choices"]) for q in QUESTIONS[:5]]
    assert found == expected(scores, QUESTIONS[:5])


def test_text_scored_by_hand(demo, tokenizer, task):
    """As wikitext is: windows of the model's length, each token predicted once, the last window as long as the others.
    The prefix of the first is the bos token."""
    stories = held_out().split("\n")
    pages = [" ".join(stories[:5]), stories[5]]
    length = demo.config.max_position_embeddings
    total = 0.0
    for page in pages:
        ids = [tokenizer.bos_token_id, *tokenizer.encode(page)]
        for start in range(1, len(ids), length):
            end = min(start + length, len(ids))
            window = ids[max(0, end - length - 1) : end]
            with torch.no_grad():
                logs = demo(torch.tensor([window[:-1]])).logits[0].double().log_softmax(-1)
            scored = range(len(window) - (end - start), len(window))
            total += sum(logs[i - 1, window[i]].item() for i in scored)
    assert len(tokenizer.encode(pages[0])) > 2 * length
    words = sum(len(re.split(r"\s+", page)) for page in pages)
    size = sum(len(page.encode()) for page in pages)
    path = task(
        questions=[{"page": page} for page in pages], output_type="loglikelihood_rolling", doc_to_choice=None,
        dataset_kwargs={"data_files": "questions.jsonl"}, training_split=None, test_split="train",
        doc_to_text="", doc_to_target="page",
        metric_list=[{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    )  # fmt: skip
    for size_asked in (None, 4):
        found = zero_shot.zero_shot(demo, tokenizer, [path], batch_size=size_asked)["harbour"]
        assert found == {
            "word_perplexity": pytest.approx(math.exp(-total / words), rel=1e-4),
            "byte_perplexity": pytest.approx(math.exp(-total / size), rel=1e-4),
            "bits_per_byte": pytest.approx(-total / size / math.log(2), rel=1e-4),
            "samples": 2,
        }


def test_several_tasks_in_the_order_asked(demo, tokenizer, task):
    filters = [{"name": "mine", "filter": [{"function": "take_first"}]}]
    second, first = task("b.yaml", task="b", test_split="train"), task("a.yaml", task="a", filter_list=filters)
    found = zero_shot.zero_shot(demo, tokenizer, [f"{second}, {first}", second])
    assert list(found) == ["b", "a"]
    assert found["b"]["samples"] == len(EXAMPLES)
    assert {"acc,mine", "acc_stderr,mine", "samples"} < set(found["a"])
    assert found["b"] == zero_shot.zero_shot(demo, tokenizer, [second])["b"]


@pytest.fixture
def tasks_of_lm_eval(task, tmp_path, monkeypatch):
    """Tasks, a tag and groups as if they came with lm_eval: its own ones need the hub."""
    from lm_eval.tasks import TaskManager

    folder = tmp_path / "tasks"
    for name, file in (("one", "questions.jsonl"), ("two", "few.jsonl")):
        task(f"{name}.yaml", task=name, tag="all_of_them", training_split=None,
             dataset_kwargs={"data_files": {"test": str(folder / file)}})  # fmt: skip
    (folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS[:6]))
    mean = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    for name, extra in (("both", {"aggregate_metric_list": mean}), ("plain", {})):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, "task": ["one", "two"], **extra}))
    manager = TaskManager(include_defaults=False, include_path=folder)
    for module in (tasks, zero_shot):
        monkeypatch.setattr(
            module, "known_tasks", lambda: dict.fromkeys(("both", "plain", "all_of_them", "one", "null"))
        )
    monkeypatch.setattr(zero_shot, "_manager", lambda everything: manager)


def test_groups_and_tags(demo, tokenizer, tasks_of_lm_eval):
    found = zero_shot.zero_shot(demo, tokenizer, ["both"])
    parts = zero_shot.zero_shot(demo, tokenizer, ["plain"])
    assert parts == zero_shot.zero_shot(demo, tokenizer, ["all_of_them"])
    assert list(parts) == ["one", "two"]
    assert list(found) == ["both"]
    assert (parts["one"]["samples"], parts["two"]["samples"], found["both"]["samples"]) == (12, 6, 18)
    assert found["both"]["acc"] == pytest.approx((12 * parts["one"]["acc"] + 6 * parts["two"]["acc"]) / 18)
    assert zero_shot.zero_shot(demo, tokenizer, ["one", "both"]) == {"one": parts["one"], **found}


def test_what_looked_like_a_name(demo, tokenizer, tasks_of_lm_eval):
    with pytest.raises(UsageError, match="lm_eval has no task 'null'"):
        zero_shot.zero_shot(demo, tokenizer, ["null"])


@pytest.mark.parametrize("training", [False, True])
def test_the_model_stays_as_it_is(demo, task, training):
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    demo = demo.bfloat16().train(training)
    demo.model.layers[1].eval()
    before = {name: (p.data_ptr(), p.dtype, p.clone()) for name, p in demo.named_parameters()}
    modes = [module.training for module in demo.modules()]
    first = zero_shot.zero_shot(demo, tokenizer, [task()])
    assert [module.training for module in demo.modules()] == modes
    for name, parameter in demo.named_parameters():
        where, dtype, value = before[name]
        assert (parameter.data_ptr(), parameter.dtype) == (where, dtype)
        assert torch.equal(parameter, value)
    assert tokenizer.pad_token is None
    assert first == zero_shot.zero_shot(demo, tokenizer, [task()])


def test_quiet(demo, tokenizer, task, capfd, caplog):
    logger = logging.getLogger("lm_eval")
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, "lm_eval"):
        before = logger.level, logger.propagate, list(logger.handlers)
        zero_shot.zero_shot(demo, tokenizer, [task()], num_fewshot=1)
        assert (logger.level, logger.propagate, list(logger.handlers)) == before
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name.startswith(("lm_eval", "datasets.b", "llm_pr"))] == []


def test_says_that_prompts_are_cut(demo, tokenizer, task, caplog):
    long = [{**question, "text": held_out()[:800] + question["text"]} for question in QUESTIONS[:2]]
    zero_shot.zero_shot(demo, tokenizer, [task(questions=long)])
    assert "6 prompts are cut on the left to the model's 128 tokens" in caplog.text


def test_an_answer_that_the_model_cannot_hold(demo, tokenizer, task):
    long = [{"text": "a", "choices": [held_out()[:800], "b"], "label": 1}]
    with pytest.raises(RunError, match=r"task.yaml: lm_eval failed: AssertionError: .*max_length") as caught:
        zero_shot.zero_shot(demo, tokenizer, [task(questions=long)])
    assert "\n" not in str(caught.value)


def test_fixed_number_of_examples(demo, tokenizer, task, caplog):
    fixed = zero_shot.zero_shot(demo, tokenizer, [task(num_fewshot=0)], num_fewshot=2)
    assert "harbour: num_fewshot stays 0" in caplog.text
    assert fixed == zero_shot.zero_shot(demo, tokenizer, [task()])


def test_more_examples_than_there_are(demo, tokenizer, task):
    with pytest.raises(UsageError, match="lower num_fewshot"):
        zero_shot.zero_shot(demo, tokenizer, [task()], num_fewshot=5)


def test_a_broken_model(demo, tokenizer, task):
    with torch.no_grad():
        demo.lm_head.weight[3] = math.nan
    with pytest.raises(RunError, match=r"harbour: the model's log-likelihoods are not numbers"):
        zero_shot.zero_shot(demo, tokenizer, [task()])


def test_out_of_memory(demo, tokenizer, task, monkeypatch):
    def forward(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(demo, "forward", forward)
    with pytest.raises(RunError, match="use a smaller `batch_size`"):
        zero_shot.zero_shot(demo, tokenizer, [task()])


def test_no_tokenizer(demo, task):
    with pytest.raises(RunError, match="no tokenizer"):
        zero_shot.zero_shot(demo, None, [task()])


def test_tokenizer_without_a_first_token(demo, task):
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(RunError, match="neither a bos nor an eos token"):
        zero_shot.zero_shot(demo, tokenizer, [task()])


def test_no_chat_template(demo, tokenizer, task):
    with pytest.raises(UsageError, match="no chat template"):
        zero_shot.zero_shot(demo, tokenizer, [task()], apply_chat_template=True)


def test_hub_task_without_the_hub(demo, tokenizer, monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"piqa: its data set could not be loaded from the hub: ") as caught:
        zero_shot.zero_shot(demo, tokenizer, ["piqa"])
    assert "\n" not in str(caught.value)


def test_names():
    assert zero_shot.check_tasks(["usual"]) == list(USUAL_TASKS)
    assert zero_shot.check_tasks(["arc_easy, wikitext", "usual,mmlu", "ai2_arc"]) == [
        "arc_easy", "wikitext", "piqa", "hellaswag", "winogrande", "arc_challenge", "boolq", "mmlu", "ai2_arc",
    ]  # fmt: skip


def test_names_are_found_without_lm_evals_index():
    """Where each task is, by its text; a group and a tag are left to lm_eval."""
    known = tasks.known_tasks()
    assert {name: known[name].name for name in ("hellaswag", "boolq", "scrolls_qasper") if known[name]} == {
        "hellaswag": "hellaswag.yaml", "boolq": "default.yaml",
    }  # fmt: skip
    assert known["mmlu"] is None
    assert known["ai2_arc"] is None
    assert not any("#" in name or ":" in name for name in known)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hellaswg", "no task 'hellaswg'; did you mean 'hellaswag'?"),
        ("ARC-Easy", "no task 'ARC-Easy'; did you mean 'arc_easy'?"),
        ("piqa,qqqqqqqqqqqqqqqqqq", "no task 'qqqqqqqqqqqqqqqqqq'; `lm_eval ls tasks` lists them"),
        ("nowhere/task.yaml", "task nowhere/task.yaml: No such file"),
        (" , ", "no task: "),
    ],
)
def test_wrong_names(name, told):
    with pytest.raises(UsageError) as caught:
        zero_shot.check_tasks([name])
    assert told in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("task: [", "task.yaml, line 2: "),
        ("task: a\nx: !!python/name:os.system", "could not determine a constructor"),
        ("just text", "is not a mapping"),
        ("", "is not a mapping"),
        ("output_type: multiple_choice", "has no `task:`"),
        ("group: a\ntask: [b, c]", "is a group"),
        ("task: a\ndataset_path: json\ndataset_kwargs: 3", "dataset_kwargs must be a mapping"),
        ("task: a\ndataset_path: json\ndataset_kwargs: {data_files: {test: [no.jsonl]}}", "file no.jsonl does not"),
        ("task: a\ninclude: task.yaml", "includes itself"),
        ("task: a\ninclude: other.yaml", "other.yaml: No such file"),
    ],
)
def test_wrong_files(tmp_path, text, told):
    path = tmp_path / "task.yaml"
    path.write_text(text + "\n")
    with pytest.raises(UsageError) as caught:
        zero_shot.check_tasks([str(path)])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_tasks_of_one_name(task):
    with pytest.raises(UsageError, match="both called 'harbour'"):
        zero_shot.check_tasks([task("a.yaml"), task("b.yaml")])


def test_data_that_is_not_json(demo, tokenizer, task, tmp_path):
    path = task()
    (tmp_path / "tasks" / "questions.jsonl").write_text("nothing of the kind\n")
    with pytest.raises(RunError, match=r"task.yaml: lm_eval cannot set it up: .*JSON") as caught:
        zero_shot.zero_shot(demo, tokenizer, [path])
    assert "\n" not in str(caught.value)


def test_included_task_with_a_function(demo, tokenizer, task, tmp_path):
    """A function of the YAML's folder is not run by the check; data files are found beside the included file."""
    path = task()
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "own.py").write_text("print('imported')\ndef text(doc):\n    return 'So ' + doc['text']\n")
    (folder / "mine.yaml").write_text(f"task: mine\ninclude: {path}\ndoc_to_text: !function own.text\n")
    assert zero_shot.check_tasks([str(folder / "mine.yaml")]) == [str(folder / "mine.yaml")]
    scores = [by_hand(demo, tokenizer, "So " + q["text"], q["choices"]) for q in QUESTIONS]
    assert zero_shot.zero_shot(demo, tokenizer, [str(folder / "mine.yaml")]) == {"mine": expected(scores)}


def test_lm_eval_is_not_installed(monkeypatch):
    tasks.known_tasks.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RunError, match=re.escape('pip install "llm_pruner[zero_shot]"')):
        zero_shot.check_tasks(["piqa"])


def test_table():
    results = {
        "dense": {
            "arc_easy": {"acc": 0.5, "acc_stderr": 0.1, "acc_norm": 0.25, "samples": 4},
            "boolq": {"acc": 0.75, "samples": 4},
            "wikitext": {"word_perplexity": 1234.567, "byte_perplexity": 2.0, "samples": 3},
            "gsm8k": {"exact_match,strict": 0.125, "exact_match_stderr,strict": 0.1, "samples": 8},
        },
        "half": {
            "arc_easy": {"acc": 0.4, "acc_norm": 1.0, "samples": 4},
            "boolq": {"acc": 0.5, "samples": 4},
            "wikitext": {"word_perplexity": 20.0, "samples": 3},
        },
    }
    assert zero_shot.table(results).splitlines() == [
        "                               dense   half",
        "arc_easy (acc_norm)             25.0  100.0",
        "boolq (acc)                     75.0   50.0",
        "wikitext (word_perplexity)  1,234.57  20.00",
        "gsm8k (exact_match,strict)      12.5      -",
        "mean                            50.0   75.0",
    ]
    assert "mean" not in zero_shot.table({"dense": {"wikitext": results["dense"]["wikitext"]}})
