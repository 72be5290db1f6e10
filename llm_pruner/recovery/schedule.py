"""How far a training run is, in steps and in time: learning rate, when to log, to score, to keep and to stop.

Progress is the larger of the share of the steps and the share of the minutes, so the learning rate has come down to
nothing when either is used up. Seconds count over interruptions.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from llm_pruner.console import progress
from llm_pruner.output.reports import Point
from llm_pruner.recovery.unfinished import mark_kept, read_mark

# how often the loss is noted, and perplexity measured, in a whole run
POINTS, SCORES = 100, 10


class Schedule(TrainerCallback):
    """The schedule of one run.

    Args:
        steps: Optimiser steps of the whole run.
        limit: Seconds of the whole run, or None.
        warmup: The share of the run in which the learning rate rises.
        save_seconds: Seconds between two checkpoints.
        scores: Whether there is a text to measure perplexity on.

    Attributes:
        share: Makes a number of the first process that of all; set when the processes are known.
    """

    def __init__(self, steps: int, limit: float | None, warmup: float, save_seconds: float, scores: bool = True):
        self.steps, self.limit, self.warmup, self.save_seconds, self.scores = steps, limit, warmup, save_seconds, scores
        self.share = lambda value: value
        # before: seconds of the runs that were interrupted
        self.before = self.progress = self.seconds = 0.0
        self.logged = self.scored = self.saved = 0.0
        self.history: list[Point] = []

    def rate(self, _step: int = 0) -> float:
        """Return the share of the peak learning rate at this progress: a linear rise, then a cosine to 0."""
        done = max(self.progress, 0.5 / self.steps)
        if done < self.warmup:
            return done / self.warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - self.warmup) / (1 - self.warmup))))

    def go_on(self, folder: Path) -> None:
        """Continue where the checkpoint in `folder` was kept; before the Trainer makes its scheduler."""
        kept = read_mark(folder)
        assert kept is not None, "what is gone on from has been read before"
        self.history, self.before = kept.history, kept.seconds
        self.seconds = self.before
        self._move(kept.step)
        self.logged = self.scored = self.progress

    def on_save(self, args, state, control, **_):
        # each process writes files of its own
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            mark_kept(folder, state.global_step, self.seconds, self.history)

    def _move(self, step: int) -> None:
        shares = [step / self.steps, self.seconds / self.limit if self.limit else 0.0]
        self.progress = min(1.0, max(shares))

    def on_train_begin(self, args, state, control, **_):
        self.started = time.monotonic()
        self.saved = self.seconds
        self.bar = progress(total=100, desc="train", unit="%", disable=not state.is_world_process_zero)

    def on_step_end(self, args, state, control, **_):
        self.seconds = self.share(self.before + time.monotonic() - self.started)
        self._move(state.global_step)
        over = self.progress >= 1
        control.should_log = over or self.progress - self.logged >= 1 / POINTS
        control.should_evaluate = self.scores and (over or self.progress - self.scored >= 1 / SCORES)
        control.should_save = over or self.seconds - self.saved >= self.save_seconds
        # what is kept knows its time
        control.should_log |= control.should_save
        control.should_training_stop = over
        if control.should_log:
            self.logged = self.progress
        if control.should_evaluate:
            self.scored = self.progress
        if control.should_save:
            self.saved = self.seconds
        self.bar.update(round(100 * self.progress) - self.bar.n)

    def on_epoch_end(self, args, state, control, **_):
        control.should_log = control.should_save = control.should_evaluate = False

    def on_log(self, args, state, control, logs=None, **_):
        logs = logs or {}
        now = Point(round(self.seconds, 3), state.global_step)
        if "loss" in logs:
            self._note(replace(now, loss=logs["loss"], learning_rate=logs["learning_rate"]))
        if "eval_loss" in logs:
            perplexity = math.exp(min(logs["eval_loss"], 700))
            self._note(replace(now, perplexity=perplexity))
            self.bar.set_postfix_str(f"perplexity {perplexity:.2f}")

    def _note(self, point: Point) -> None:
        """Keep a loss, or a perplexity, unless there is one of that step."""
        noted = {(one.step, one.perplexity is None) for one in self.history}
        if (point.step, point.perplexity is None) not in noted:
            self.history.append(point)

    def on_train_end(self, args, state, control, **_):
        self.bar.close()


def shared(accelerator):
    """Return a function that makes a number of the first process that of all."""
    if accelerator.num_processes == 1:
        return lambda value: value
    from accelerate.utils import broadcast

    return lambda value: broadcast(torch.tensor(value, dtype=torch.float32, device=accelerator.device)).item()
