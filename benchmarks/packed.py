"""lm_eval on a decoder with full attention, several questions at a time and each question's context once.

lm_eval runs the context of a question again for every answer, and computes logits that nobody reads. Here contexts and
answers stand in one sequence, each token sees its own context and answer only, and logits are those of answers. The
log-likelihoods are the same but for rounding.

    python benchmarks/packed.py     # the check: the largest difference, and the times of both, on a few questions
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from lm_eval.models.huggingface import HFLM
from torch.nn.functional import log_softmax
from tqdm import tqdm

# tokens of a sequence
LENGTH = 512
Request = tuple[tuple[str, str], list[int], list[int]]


class Packed(HFLM):
    """A model of transformers, of which many log-likelihoods are asked."""

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        found: dict[int, tuple[float, bool]] = {}
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="packed log-likelihoods")
        for pack in packs([(context, answer) for _, context, answer in requests], self.max_length):
            found |= self._scored(pack, requests)
            bar.update(len(found) - bar.n)
        bar.close()
        return [found[place] for place in range(len(requests))]

    def _scored(
        self, pack: list[tuple[tuple[int, ...], list[int]]], requests: list[Request]
    ) -> dict[int, tuple[float, bool]]:
        """{number of a request: (log-likelihood of its answer, whether that is the likeliest)}."""
        ids: list[int] = []
        position: list[int] = []
        # of each token the question, and the answer or 0 for its context
        question: list[int] = []
        branch: list[int] = []
        read: dict[int, list[int]] = {}

        def put(tokens: Sequence[int], first: int, number: int, answer: int) -> range:
            start = len(ids)
            ids.extend(tokens)
            position.extend(range(first, first + len(tokens)))
            question.extend([number] * len(tokens))
            branch.extend([answer] * len(tokens))
            return range(start, len(ids))

        for number, (context, places) in enumerate(pack):
            last = put(context, 0, number, 0)[-1]
            for answer, place in enumerate(places, 1):
                # the last token of an answer predicts nothing that is asked
                read[place] = [last, *put(requests[place][2][:-1], len(context), number, answer)]
        questions, branches = torch.tensor(question), torch.tensor(branch)
        seen = (questions[:, None] == questions) & ((branches == 0) | (branches[:, None] == branches))
        mask = torch.zeros(len(ids), len(ids)).masked_fill(~seen.tril(), torch.finfo(torch.float32).min)
        wanted = torch.tensor([index for place in read for index in read[place]])
        logits = self.model(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.tensor([position], device=self.device),
            attention_mask=mask[None, None].to(self.device, self.model.dtype),
            use_cache=False,
            logits_to_keep=wanted.to(self.device),
        ).logits[0]
        found, start = {}, 0
        for place, rows in read.items():
            own = log_softmax(logits[start : start + len(rows)].float(), -1)
            label = torch.tensor(requests[place][2], device=own.device)
            found[place] = (own.gather(1, label[:, None]).sum().item(), bool((own.argmax(-1) == label).all()))
            start += len(rows)
        return found


def packs(
    requests: Sequence[tuple[list[int], list[int]]], most: int
) -> Iterator[list[tuple[tuple[int, ...], list[int]]]]:
    """Yield [(context, numbers of the requests with it)] of at most LENGTH tokens, or one context's.

    Args:
        requests: (context, answer) of each.
        most: How many tokens context and answer may have; a longer context loses its first.
    """
    by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, (context, answer) in enumerate(requests):
        by_context[tuple(context[-(most + 1 - len(answer)) :])].append(place)
    pack: list[tuple[tuple[int, ...], list[int]]] = []
    size = 0
    for context, places in by_context.items():
        own = len(context) + sum(len(requests[place][1]) - 1 for place in places)
        if pack and size + own > LENGTH:
            yield pack
            pack, size = [], 0
        pack.append((context, places))
        size += own
    yield pack


def check(questions: int = 8) -> tuple[float, float]:
    """Return (the largest difference of a log-likelihood from lm_eval's own, how many times as long that takes)."""
    from real import TASKS, dense, tasks_of
    from smollm2 import fetched

    from llm_pruner.model.tokenizers import load_tokenizer

    model, tokenizer, largest = dense(), load_tokenizer(str(fetched())), 0.0
    seconds = [0.0, 0.0]
    own, theirs = (
        kind(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1) for kind in (Packed, HFLM)
    )
    for name in TASKS:
        ((_, task),) = tasks_of([name]).items()
        task.build_all_requests(limit=questions)
        asked = list(task.instances)
        found = []
        for place, lm in enumerate((own, theirs)):
            started = time.perf_counter()
            found.append(lm.loglikelihood(asked))
            seconds[place] += time.perf_counter() - started
        largest = max(largest, *(abs(a[0] - b[0]) for a, b in zip(*found, strict=True)))
    return largest, seconds[1] / seconds[0]


if __name__ == "__main__":
    difference, times = check()
    print(f"largest difference: {difference:.2e} nats; lm_eval's own takes {times:.1f} times as long")
