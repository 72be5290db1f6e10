"""The training itself: transformers' Trainer with a teacher, on a clock.

The same for one CPU, one GPU, or what `accelerate launch` starts (DDP, FSDP, DeepSpeed by its configuration).
"""

from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from llm_pruner.config.recover import RecoverOptions
from llm_pruner.recovery.examples import IGNORED, Examples, collate
from llm_pruner.recovery.losses import LOSSES, Batch, fit_maps, matched, text_loss, weights_of
from llm_pruner.recovery.schedule import Schedule, shared
from llm_pruner.recovery.settled import Settled
from llm_pruner.recovery.teacher_cache import TeacherCache
from llm_pruner.recovery.unfinished import last_kept

# transformers renamed it between the versions that are supported
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
# batches that the maps between streams of different widths are fitted on
FITTED = 8


class Recovery(Trainer):
    """A Trainer whose loss is the text's, or the distance to a teacher's logits and hidden states, run or cached."""

    lr_scheduler: Any
    maps: list[torch.Tensor | None] | None

    def __init__(self, *arguments, schedule: Schedule, options: RecoverOptions, teacher=None, layers=(), **named):
        super().__init__(*arguments, **named)
        # so the Trainer counts the predicted tokens of a whole step
        self.model_accepts_loss_kwargs = True
        self.schedule, self.options, self.teacher, self.layers, self.maps = schedule, options, teacher, layers, None
        self.weights = weights_of(options) if teacher is not None else {}

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.schedule.rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the sum over the predicted tokens, divided by how many there are in the whole optimiser step.

        While the model is being scored it is the text's loss, whatever the training's is.

        Args:
            model: The student.
            inputs: A batch of `collate`.
            return_outputs: Whether the model's outputs are returned too.
            num_items_in_batch: Predicted tokens of the whole step; None while the model is scored.
        """
        labels = inputs["labels"][:, 1:]
        counted = labels != IGNORED
        read = {name: value for name, value in inputs.items() if name not in ("labels", "index")}
        taught = self.teacher is not None and model.training
        near = taught and "hidden" in self.weights
        outputs = model(**read, use_cache=False, output_hidden_states=near)
        logits = outputs.logits[:, :-1][counted]
        if taught:
            loss = self._taught(read, inputs["index"], counted, logits, outputs, labels, near)
        else:
            loss = text_loss(logits, labels[counted])
        if num_items_in_batch is None:
            loss = loss.mean()
        else:
            # the processes' gradients are averaged
            loss = loss.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _taught(self, read, index, counted, logits, outputs, labels, near: bool) -> torch.Tensor:
        own: Any = ()
        theirs: Any = ()
        if isinstance(self.teacher, TeacherCache):
            wanted: Any = self.teacher.of(index.tolist(), logits.device)
        else:
            with torch.no_grad(), self.accelerator.autocast():
                told = self.teacher(**read, use_cache=False, output_hidden_states=near)
            wanted = told.logits[:, :-1][counted]
            if near:
                own, theirs = outputs.hidden_states[1:], matched(told.hidden_states, self.layers)
        batch = Batch(logits, labels[counted], counted, wanted, own, theirs, self.maps or (), self.options)
        return sum(weight * LOSSES.get(name)(batch) for name, weight in self.weights.items())


def _arguments(settled: Settled, folder: Path, scored: bool) -> TrainingArguments:
    """The Trainer's arguments. scored: whether perplexity is noted over time."""
    options, device = settled.asked, settled.torch_device
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settled.train_batch_size,
        per_device_eval_batch_size=settled.train_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        **{CHECKPOINTING: options.gradient_checkpointing},
        max_steps=-1 if options.steps is None else options.steps,
        num_train_epochs=settled.epochs or 1.0,
        learning_rate=settled.learning_rate,
        weight_decay=options.weight_decay,
        bf16=settled.precision == "bf16",
        fp16=settled.precision == "fp16",
        seed=options.seed,
        data_seed=options.seed,
        use_cpu=device.type == "cpu",
        logging_strategy="no",
        save_strategy="no",
        eval_on_start=scored,
        prediction_loss_only=True,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    # several GPUs are for a launcher, not for DataParallel
    arguments._n_gpu = min(arguments.n_gpu, 1)
    # the Trainer of one process takes the first GPU, whatever else was asked for
    if device.index:
        arguments.__dict__["_setup_devices"] = device
        torch.cuda.set_device(device)
    return arguments


def train(
    model, teacher, examples: Examples, scored: Examples | None, layers: list[int], settled: Settled,
    folder: Path,
) -> tuple[Recovery, Schedule]:  # fmt: skip
    """Train a model.

    Args:
        model: The student, with its adapters where those learn.
        teacher: A frozen model, whose logits and hidden states are the target, or a cache of its logits; None where
            the text is the target.
        examples: What is trained on.
        scored: Windows whose perplexity is noted over time, or None.
        layers: The teacher's layer that each of the student's was.
        settled: The options of the recovery, with nothing left to default.
        folder: Where unfinished work is kept, and found again.

    Returns:
        The Trainer, with the unmerged result, and the schedule, with the history.
    """
    options = settled.asked
    arguments = _arguments(settled, folder, scored is not None)
    per_step = settled.train_batch_size * options.gradient_accumulation_steps * arguments.world_size
    steps = options.steps or max(1, round((settled.epochs or 0) * len(examples) / per_step))
    limit = settled.max_minutes * 60 if settled.max_minutes else None
    schedule = Schedule(steps, limit, options.warmup, settled.save_minutes * 60, scored is not None)
    arguments.max_steps = steps
    kept = last_kept(folder)
    if kept:
        schedule.go_on(kept)
        arguments.eval_on_start = False
    trainer = Recovery(
        model=model, args=arguments, train_dataset=examples, eval_dataset=scored, data_collator=collate,
        schedule=schedule, options=options, teacher=teacher, layers=layers, callbacks=[schedule],
    )  # fmt: skip
    for theirs in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(theirs)
    schedule.share = shared(trainer.accelerator)
    if isinstance(teacher, torch.nn.Module):
        teacher.to(trainer.accelerator.device)
        if "hidden" in trainer.weights:
            count = min(FITTED * settled.train_batch_size, len(examples))
            batches = [examples[i]["input_ids"][None] for i in range(count)]
            trainer.maps = fit_maps(model, teacher, batches, layers)
    trainer.train(resume_from_checkpoint=str(kept) if kept else None)
    return trainer, schedule
