"""Methods on a real model, scored on the kind of text they were calibrated with and on another kind.

    python benchmarks/real.py                     # needs $LLM_PRUNER_SHARED, by default ../shared, and smollm2.py
    python benchmarks/real.py --only "FLAP AL-AM" --ratios 0.2 --texts WikiText-2
    python benchmarks/real.py --no_questions      # without the tasks of the dense model and of TASKED
    python benchmarks/real.py --recover           # ours distilled for twenty minutes each

SmolLM2-135M-Instruct in float32, a share of its attention and MLP parameters removed. Calibrated on 128 windows of 512
tokens, seed 0, of wikitext-2/valid.txt, or on as many of a mixture, half of it prose. Scored on 51 windows of 512
tokens, evenly of wikitext-2/test.txt, and on 40 of prose: of the last 600 documents of english-24mb.txt.xz those that
have 2,000 characters or more and are not of WikiText (none of its marks `@-@` and `<unk>`), in their order. The
mixture's prose are such documents too, all but the last 1,200. Rows that are in results/real.json are not run again.
"""

import argparse
import itertools
import json
import lzma
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path

import torch
from measure import RESULTS, HostMemory, keep
from quality import ADAPTIVE, BIAS, SHARED, Row, named, reconstructed, scored
from smollm2 import fetched
from torch.nn.functional import kl_div, nll_loss
from transformers import AutoModelForCausalLM

from llm_pruner import Budget, calibration_prompts
from llm_pruner.calibration.windows import token_windows
from llm_pruner.evaluation.tasks import read_task
from llm_pruner.methods import Journal
from llm_pruner.model.memory import give_back
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.output.conditions import Stopwatch
from llm_pruner.shape.draft import Draft, draft

RATIOS = (0.2, 0.3, 0.1, 0.5)
NSAMPLES, LENGTH = 128, 512
WINDOWS = {"WikiText-2": 51, "prose": 40}
# what decisions are made on
DEVELOPED = {"WikiText-2, validation": 24, "prose, development": 24}
TEST, DEVELOPMENT, LONG, MARKS = 600, 1200, 2000, ("@-@", "<unk>")
TEXTS = ("mixture", "WikiText-2")
# of distillation: of 4e-5, 1e-4 and, with frozen embeddings, 2.7e-4 this rate had the lowest KL on DEVELOPED after 80
# steps
MINUTES, RATE = 20, 1e-4
TASKS, QUESTIONS = ("arc_easy", "arc_challenge", "piqa", "winogrande"), 500


METHODS: dict[str, Row] = {
    "random": scored("random"),
    "magnitude": scored("magnitude"),
    "Taylor": scored("taylor"),
    "AMP": scored("amp"),
    "Wanda-sp": scored("wanda_sp"),
    "FLAP UL-UM": scored("flap", **BIAS),
    "FLAP AL-AM": scored("flap", ADAPTIVE, **BIAS),
    "ShortGPT": named("shortgpt"),
    # as much text as 2SSP and Putri measure perplexity on
    "BlockPruner": named("blockpruner", perplexity_tokens=2048),
    "2SSP": named("2ssp"),
    "Putri": named("putri"),
    "SliceGPT": named("slicegpt"),
    "reconstruct": reconstructed(),
    "reconstruct, per layer, in one run": reconstructed(per_layer=True),
    "reconstruct, per layer": reconstructed(per_layer=True),
    "reconstruct, shape not searched": reconstructed(search_minutes=0.0),
    "reconstruct, per layer, layers alone": reconstructed(per_layer=True, global_epochs=0),
}
# those whose models are made of one another: the ratios, and whose row the first of them is
IN_ONE_RUN = {"reconstruct, per layer, in one run": ((0.2, 0.3, 0.5), "reconstruct, per layer")}
# whose models are asked questions, at the first two ratios and calibrated on the mixture
TASKED = ("FLAP AL-AM", "Putri", "2SSP", "reconstruct", "reconstruct, per layer", *IN_ONE_RUN)


def documents() -> list[str]:
    with lzma.open(SHARED / "data/english-24mb.txt.xz", "rt", encoding="utf-8") as file:
        return file.read().split("\n\n")


def prose(found: list[str]) -> str:
    return "\n\n".join(own for own in found if len(own) >= LONG and not any(mark in own for mark in MARKS))


def validation() -> tuple[str, str]:
    """WikiText-2's validation text, the first four fifths and the last one, which decisions are made on."""
    text = (SHARED / "data/wikitext-2/valid.txt").read_text(encoding="utf-8")
    return text[: len(text) * 4 // 5], text[len(text) * 4 // 5 :]


@cache
def windows(kind: str) -> torch.Tensor:
    """LongTensor [windows, LENGTH], evenly of the text."""
    if kind.startswith("WikiText-2"):
        test = SHARED / "data/wikitext-2/test.txt"
        text = validation()[1] if kind in DEVELOPED else test.read_text(encoding="utf-8")
    else:
        text = prose(documents()[-DEVELOPMENT:-TEST] if kind in DEVELOPED else documents()[-TEST:])
    found, number = token_windows(text, load_tokenizer(str(fetched())), LENGTH), (WINDOWS | DEVELOPED)[kind]
    return found[:: len(found) // number][:number]


@cache
def prompts(text: str) -> list[torch.Tensor]:
    sources = [SHARED / "data/wikitext-2/valid.txt"]
    if text == "mixture":
        sources.append(text_file("prose", prose(documents()[:-DEVELOPMENT])))
    return drawn(sources)


def drawn(sources: Iterable[Path], nsamples: int = NSAMPLES) -> list[torch.Tensor]:
    """Calibration prompts of some files, in equal shares."""
    return calibration_prompts(list(map(str, sources)), nsamples, LENGTH, 0, load_tokenizer(str(fetched())))


def text_file(name: str, text: str) -> Path:
    """A text as a file beside the model."""
    file = fetched().parent / f"{name}.txt"
    file.write_text(text, encoding="utf-8")
    return file


def loaded(folder: Path):
    # by transformers, since `prune` takes no checkpoint whose layers differ
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def dense():
    return loaded(fetched())


@cache
@torch.no_grad()
def dense_states(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(the dense model's last hidden states [windows, LENGTH, hidden], its head [vocabulary, hidden])."""
    model = dense()
    states = torch.cat([model.model(window[None]).last_hidden_state for window in windows(kind)])
    return states, model.lm_head.weight.detach()


@torch.no_grad()
def scores(model, kinds: Iterable[str] = WINDOWS) -> dict[str, dict[str, float]]:
    """Return perplexity and KL(dense ‖ model), in nats per token, on each kind of text."""
    found: dict[str, dict[str, float]] = {"perplexity": {}, "kl": {}}
    for kind in kinds:
        states, head = dense_states(kind)
        loss = divergence = 0.0
        for window, state in zip(windows(kind), states):
            ours = model(window[None]).logits[0].log_softmax(-1)
            loss += nll_loss(ours[:-1], window[1:], reduction="sum").item()
            divergence += kl_div(ours, (state @ head.T).log_softmax(-1), log_target=True, reduction="sum").item()
        found["perplexity"][kind] = round(math.exp(loss / windows(kind)[:, 1:].numel()), 2)
        found["kl"][kind] = round(divergence / windows(kind).numel(), 4)
    return found


def tasks_of(names: Iterable[str]) -> dict:
    """Return the tasks of lm_eval, by their names."""
    from lm_eval.tasks import TaskManager, get_task_dict

    files = [SHARED / f"data/zero-shot/local_{name}.yaml" for name in names]
    return get_task_dict([read_task(file) for file in files], TaskManager())


def zero_shot(model) -> dict[str, str]:
    """{task: of each question 1 where the answer was right, else 0}, by length-normalised likelihoods where usual."""
    import lm_eval
    from packed import Packed

    lm = Packed(pretrained=model, tokenizer=load_tokenizer(str(fetched())), backend="causal", batch_size=1)
    found = lm_eval.evaluate(
        lm=lm, task_dict=tasks_of(TASKS), limit=QUESTIONS, bootstrap_iters=0, log_samples=True
    )  # fmt: skip
    answers = {}
    for name, samples in found["samples"].items():
        metric = "acc_norm" if "acc_norm" in samples[0] else "acc"
        rows = sorted(samples, key=lambda sample: sample["doc_id"])
        answers[name.removeprefix("local_")] = "".join(str(int(sample[metric])) for sample in rows)
    return answers


def made(name: str, text: str, folders: Mapping[float, Path]) -> dict[float, dict]:
    """Prune, and then score: what `prune_llm.py --param_ratio` does between loading and saving.

    Args:
        name: Of METHODS.
        text: Of TEXTS.
        folders: {ratio: where its model is saved}: the first, and those whose models are made of the one before.

    Returns:
        {ratio: its row}.
    """
    row, model, found = METHODS[name], dense(), {}
    calibrated, method, stopwatch = prompts(text), row.method(seed=0), Stopwatch()

    def drafts() -> list[Draft]:
        return [draft(Budget(param_ratio=ratio, **row.budget), model.config, method) for ratio in folders]

    # libraries that are imported on the way belong to no method
    drafts()
    # weights are on disk until they are read, and the model is not to be counted
    sum(parameter.sum() for parameter in model.parameters())
    give_back()
    before = HostMemory.now()
    HostMemory.reset_peak()
    started, journal = time.perf_counter(), Journal(print, stopwatch)
    if len(folders) == 1:
        models = iter([method.prune(model, *drafts(), calibrated, journal)])
    else:
        models = method.prune_successively(model, drafts(), calibrated, journal)
    for ratio, folder in folders.items():
        pruned_model = next(models)
        seconds, peak = time.perf_counter() - started, HostMemory.peak()
        plan = pruned_model.plan
        pruned_model.model.save_pretrained(folder)
        load_tokenizer(str(fetched())).save_pretrained(folder)
        found[ratio] = {
            "parameters": sum(p.numel() for p in pruned_model.model.parameters()),
            "removed": round(plan.removed()["decoder"], 4),
            "stock": not pruned_model.model.config.model_type.startswith("pruned_"),
            "widths": plan.widths_after(),
            "seconds": round(seconds, 1),
            "phases": {name: round(value, 1) for name, value in stopwatch.seconds.items()},
            "peak_memory_beside_the_model": peak - before,
        }
        # of the next one
        del pruned_model
        stopwatch.seconds.clear()
        give_back()
        HostMemory.reset_peak()
        started = time.perf_counter()
    return {ratio: scores(loaded(folders[ratio])) | run for ratio, run in found.items()}


def pruned(runs: dict, names: list[str], ratios: list[float], texts: list[str], finished) -> None:
    for text in texts:
        for ratio in ratios:
            for name in names:
                several, first = IN_ONE_RUN.get(name, ((ratio,), name))
                keys = {own: f"{first if own == several[0] else name} | {own} | {text}" for own in several}
                if ratio != several[0] or set(keys.values()) <= set(runs):
                    continue
                found = made(name, text, {own: folder_of(each) for own, each in keys.items()})
                runs.update({keys[own]: run for own, run in found.items()})
                finished()
                for own, each in keys.items():
                    if not (each.split(" | ")[0] in TASKED and own in RATIOS[:2] and text == TEXTS[0]):
                        shutil.rmtree(folder_of(each))


def folder_of(key: str) -> Path:
    """Where the model of a row waits for its questions."""
    return fetched().parent / "real" / key.replace(" | ", "-").replace(" ", "_")


def recovered_folder(key: str) -> Path:
    """Where the model of a row waits after its recovery."""
    return folder_of(key).with_name(f"{folder_of(key).name}-recovered")


def asked_questions(result: dict, finished) -> None:
    """Asks the dense model, and those of TASKED that are there, before and after their recovery."""
    if "zero_shot" not in result["dense"]:
        result["dense"]["zero_shot"] = zero_shot(dense())
        finished()
    waiting = [(run, folder_of(key)) for key, run in result["runs"].items()]
    waiting += [(run.get("recovered"), recovered_folder(key)) for key, run in result["runs"].items()]
    for run, folder in waiting:
        if run and "zero_shot" not in run and folder.is_dir():
            run["zero_shot"] = zero_shot(loaded(folder))
            finished()


def recovered(result: dict, wanted: set[str], finished) -> None:
    """Distils those of our models that are wanted and there, on text of the kinds that they were calibrated on."""
    for key, run in result["runs"].items():
        if key not in wanted:
            continue
        folder = folder_of(key)
        if "recovered" not in run and key.startswith("reconstruct") and folder.is_dir():
            out = recovered_folder(key)
            arguments = (
                "recover", "--model", folder, "--teacher", fetched(), "--data", training_text(), "--eval_data", "none",
                "--max_minutes", MINUTES, "--learning_rate", RATE, "--save_model", out, "--overwrite",
            )  # fmt: skip
            subprocess.run([sys.executable, "-m", "llm_pruner", *map(str, arguments)], check=True)
            training = json.loads((out / "report.json").read_text(encoding="utf-8"))["training"]
            run["recovered"] = scores(loaded(out)) | {name: training[name] for name in ("minutes", "steps", "tokens")}
            finished()


def plot(result: dict) -> None:
    """Draws results/real.png: the loss of each method against the share that goes, calibrated on the mixture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    dense = result["dense"]["perplexity"]
    figure, panels = plt.subplots(1, len(dense), figsize=(11, 5), layout="constrained", sharey=True)
    for panel, kind in zip(panels, dense):
        for name in METHODS:
            points = [
                (100 * run["removed"], math.log(run["perplexity"][kind] / dense[kind]))
                for key, run in sorted(result["runs"].items())
                if key.startswith(f"{name} | ") and key.endswith(TEXTS[0])
            ]
            if points:
                ours = name.startswith("reconstruct")
                style = {"color": "black", "linestyle": "--" if "per layer" in name else "-"} if ours else {}
                panel.plot(*zip(*points), marker="o", markersize=4, label=name, **style)
        panel.set(title=kind, xlabel="% of attention and MLP parameters removed", yscale="log")
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("log(perplexity / dense)")
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(RESULTS / "real.png", dpi=120)


def training_text() -> Path:
    """All of WikiText-2's validation text and as much prose."""
    wikitext = (SHARED / "data/wikitext-2/valid.txt").read_text(encoding="utf-8")
    return text_file("training", wikitext + "\n\n" + prose(documents()[:-DEVELOPMENT])[: len(wikitext)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ratios", nargs="*", type=float, default=RATIOS)
    parser.add_argument("--texts", nargs="*", choices=TEXTS, default=TEXTS)
    parser.add_argument("--no_questions", action="store_true", help="leave the zero-shot tasks to another call")
    parser.add_argument("--recover", action="store_true", help="distil our models, too")
    arguments = parser.parse_args()
    path = RESULTS / "real.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": {}}
    finished = partial(keep, "real", result)
    if "dense" not in result:
        result["dense"] = {"perplexity": scores(dense())["perplexity"]}
        finished()
    pruned(result["runs"], arguments.only, arguments.ratios, arguments.texts, finished)
    if arguments.recover:
        asked = itertools.product(arguments.only, map(str, arguments.ratios), arguments.texts)
        recovered(result, set(map(" | ".join, asked)), finished)
    if not arguments.no_questions:
        asked_questions(result, finished)
    plot(result)


if __name__ == "__main__":
    main()
