"""Zero-shot tasks: what lm_eval gives for a model in memory. lm_eval is an extra, imported only where it is used.

A local task is a YAML file as lm_eval documents it; its `data_files` may be relative to it. Its `!function`s are Python
files beside it, and they run. Numbers are those of `lm_eval --model hf` for the same checkpoint, dtype and batch size
(log-probabilities are in the model's dtype there too).
"""

import contextlib
import copy
import functools
import io
import logging
import math
import numbers
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from llm_pruner.console import aligned
from llm_pruner.errors import PrunerError, RunError, UsageError, is_out_of_memory
from llm_pruner.evaluation.tasks import LOCAL, check_tasks, is_file, known_tasks, read_task
from llm_pruner.output.tasks import is_accuracy, main_metric, metrics_of, tasks_of, value_of

logger = logging.getLogger(__name__)

# questions, where lm_eval's `auto` is no help
FIXED_BATCH = 8
RESAMPLES = (
    # for the standard error of the few metrics that have no formula for it; lm_eval's 100,000 take minutes
    1000
)


def zero_shot(
    model,
    tokenizer,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    batch_size: int | None = None,
    apply_chat_template: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, dict]:
    """Run zero-shot tasks of lm_eval on a model in memory, which stays where and as it is.

    Metrics are called as in lm_eval, a filter's name behind a comma unless it is `none`; values that are not finite are
    left out.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        tasks: Names of lm_eval's tasks, groups and tags, or YAML files of local ones.
        num_fewshot: Examples in the prompt; by default the task's. A task whose YAML says 0 keeps it, as in lm_eval.
        batch_size: Questions per forward pass; by default 8 on a CPU, what fits on a GPU, 1 for whole texts.
        apply_chat_template: Whether questions are put in the tokenizer's chat template.
        limit: Only so many questions of each task.
        seed: Of everything random.

    Returns:
        {task: {metric: value, metric_stderr: value, …, "samples": n}} in the order asked; a group gives its aggregate.

    Raises:
        UsageError: As in `check_tasks`, or a chat template is asked for and the tokenizer has none.
        RunError: The hub does not give the data, there is no tokenizer, memory does not suffice, or log-likelihoods are
            not numbers.
    """
    tasks = check_tasks(tasks)
    if tokenizer is None:
        raise RunError("the model has no tokenizer, which zero-shot tasks need")
    if apply_chat_template and not tokenizer.chat_template:
        raise UsageError("apply_chat_template: the tokenizer has no chat template")
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise RunError("the tokenizer has neither a bos nor an eos token; lm_eval needs one to begin a text with")
    modes = [(module, module.training) for module in model.modules()]
    # lm_eval gives it a pad token
    tokenizer = copy.deepcopy(tokenizer)
    results = {}
    try:
        # all first: a missing data set shows before the work
        loaded = {task: _load(task, seed) for task in tasks}
        for task, parts in loaded.items():
            _set_fewshot(parts["tasks"], num_fewshot, seed)
            metrics = _evaluate(task, parts, model, tokenizer, batch_size, apply_chat_template, limit, seed)
            for name in _rows(next(iter(parts["groups"].values()), None) or parts["tasks"].values()):
                results[name] = _row(name, metrics[name])
    finally:
        for module, training in modes:
            module.training = training
    return results


def table(results: Mapping[str, dict[str, dict]]) -> str:
    """Return a table of results: rows are tasks and the mean of the accuracies that every model has.

    The metric is acc_norm, else acc, else another accuracy, else the task's first; accuracies are in percent.

    Args:
        results: {model: {task: {metric: value}}}.
    """
    lines, accuracies, models = [["", *results]], [], list(results.values())
    for task in tasks_of(models):
        metric = main_metric(models, task) or metrics_of(models, task)[0]
        values = [value_of(scores, task, metric)[0] for scores in models]
        scale, digits = (100, 1) if is_accuracy(metric) else (1, 2)
        lines.append([f"{task} ({metric})", *("-" if v is None else f"{v * scale:,.{digits}f}" for v in values)])
        if is_accuracy(metric) and None not in values:
            accuracies.append(values)
    if accuracies:
        lines.append(["mean", *(f"{100 * sum(column) / len(column):.1f}" for column in zip(*accuracies))])
    return aligned(lines)


def mean_accuracy(rows: Mapping[str, dict]) -> float | None:
    """Return the mean over the tasks of one model that have an accuracy; None where none has."""
    values = [rows[task][metric] for task in rows if (metric := main_metric([rows], task))]
    return sum(values) / len(values) if values else None


@functools.cache
def _manager(everything: bool):
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=everything)


def _load(task: str, seed: int) -> dict:
    """lm_eval's objects for a task, a group or a tag, with their data: {"tasks": {name: Task}, "groups": …}."""
    from transformers import set_seed

    with _quiet(), _one_line(task, "lm_eval cannot set it up"), tempfile.TemporaryDirectory() as folder:
        # some tasks shuffle their choices
        set_seed(seed % 2**32)
        if not is_file(task):
            path = known_tasks()[task]
            try:
                return _manager(path is None).load([str(path or task)])
            except KeyError as error:
                if path is None and task not in _manager(True).all_tasks:
                    raise UsageError(f"lm_eval has no task {task!r}; `lm_eval ls tasks` lists them") from error
                raise
        content, path = read_task(Path(task)), Path(task).resolve()
        if content.get("dataset_path") in LOCAL and content.get("dataset_kwargs"):
            located = {"include": str(path), "dataset_kwargs": content["dataset_kwargs"]}
            path = Path(folder, "task.yaml")
            path.write_text(yaml.safe_dump(located), encoding="utf-8")
        return _manager(False).load([str(path)])


def _set_fewshot(tasks: Mapping, num_fewshot: int | None, seed: int) -> None:
    """As lm_eval.simple_evaluate does, which besides runs git and pip, for seconds, to describe the machine."""
    for name, task in tasks.items():
        if num_fewshot and task.get_config("num_fewshot") == 0:
            logger.warning("%s: num_fewshot stays 0, which its YAML fixes", name)
        elif num_fewshot is not None or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=seed)


def _evaluate(task, parts, model, tokenizer, batch_size, apply_chat_template, limit, seed) -> dict[str, dict]:
    """{name: what lm_eval measured} for all tasks and groups of `parts`. RunError."""
    from transformers import set_seed

    batch_size = batch_size or _batch_size(model, {one.OUTPUT_TYPE for one in parts["tasks"].values()})
    with _quiet() as cut, _one_line(task, "lm_eval failed"):
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        set_seed(seed % 2**32)
        measured = lm_eval.evaluate(
            lm=lm,
            task_dict=parts,
            limit=limit,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=True,
        )
    for name, one in parts["tasks"].items():
        answers = (answer for instance in one.instances for answer in instance.resps)
        values = (answer[0] if isinstance(answer, tuple) else answer for answer in answers)
        if any(isinstance(value, float) and math.isnan(value) for value in values):
            raise RunError(f"{name}: the model's log-likelihoods are not numbers (NaN)")
    if cut.count:
        logger.warning("%s: %d prompts are cut on the left to the model's %d tokens", task, cut.count, lm.max_length)
    return measured["results"]


def _batch_size(model, kinds: set[str]) -> int | str:
    """Return what to ask lm_eval for.

    Its `auto` tries sizes on the longest question, but on the longest text that the model could read where it is a text
    that is scored or to be written.
    """
    if "loglikelihood_rolling" in kinds:
        return 1
    return FIXED_BATCH if "generate_until" in kinds or model.device.type == "cpu" else "auto"


def _rows(item) -> Iterator[str]:
    """The names of the results to show: a group that aggregates is one, any other its members."""
    if getattr(item, "has_aggregation", False):
        yield item.name
    elif hasattr(item, "task_name"):
        yield item.task_name
    else:
        for member in item:
            yield from _rows(member)


def _row(task: str, metrics: Mapping) -> dict:
    row = {}
    for name, value in metrics.items():
        metric, comma, chosen = name.partition(",")
        if comma and isinstance(value, numbers.Real) and math.isfinite(value):
            row[metric if chosen == "none" else name] = float(value)
    if not row:
        raise RunError(f"{task}: lm_eval gives no finite result")
    return {**row, "samples": int(metrics["sample_len"])}


class _Cut(logging.Handler):
    """Counts the prompts that lm_eval says it cuts, drops everything else."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "truncat" in record.getMessage().lower()


@contextlib.contextmanager
def _quiet() -> Iterator[_Cut]:
    """Nothing printed, no warnings, nothing logged by lm_eval and below it; progress bars on a terminal only."""
    cut = _Cut()
    handlers = {"lm_eval": cut, "transformers": logging.NullHandler(), "datasets": logging.NullHandler()}
    loggers = {name: logging.getLogger(name) for name in handlers}
    before = {name: (logger.level, logger.propagate, logger.handlers) for name, logger in loggers.items()}
    for name, logger in loggers.items():
        logger.setLevel(logging.WARNING)
        logger.propagate, logger.handlers = False, [handlers[name]]
    bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(bars), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield cut
    finally:
        for name, logger in loggers.items():
            level, logger.propagate, logger.handlers = before[name]
            logger.setLevel(level)


@contextlib.contextmanager
def _one_line(task: str, what: str) -> Iterator[None]:
    """Turns what lm_eval and datasets raise into one line about `task`."""
    try:
        yield
    except PrunerError:
        raise
    except Exception as raised:
        error = _cause(raised)
        line = (
            next(iter(str(error).strip().splitlines()), "") or traceback.extract_tb(error.__traceback__)[-1].line or ""
        )
        if is_out_of_memory(error):
            raise RunError(f"{task}: memory does not suffice; use a smaller `batch_size`") from raised
        if _from_hub(error):
            raise RunError(f"{task}: its data set could not be loaded from the hub: {line}") from raised
        if "larger than population" in line:
            raise UsageError(
                f"{task} does not have so many examples to put in the prompt; lower num_fewshot"
            ) from raised
        raise RunError(f"{task}: {what}: {type(error).__name__}: {line}") from raised


def _cause(error: BaseException) -> BaseException:
    """What is wrong with a data file, where datasets says only that something is."""
    from datasets.exceptions import DatasetGenerationError

    return error.__cause__ or error if isinstance(error, DatasetGenerationError) else error


def _from_hub(error: BaseException) -> bool:
    from datasets.exceptions import DatasetNotFoundError

    library = type(error).__module__.split(".")[0]
    hub = library.startswith(("httpx", "httpcore", "requests", "huggingface_hub"))
    return hub or isinstance(error, ConnectionError | TimeoutError | DatasetNotFoundError)
