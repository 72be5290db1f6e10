"""Run by test_reload_per_layer.py in fresh, isolated processes, `reload_per_layer.py MODE FOLDER`:

remote: llm_pruner cannot be imported; FOLDER/saved/* with trust_remote_code=True, saved again in FOLDER/from_remote
registered: llm_pruner is imported before transformers; FOLDER/saved/* and FOLDER/from_remote/*, without permission
late: FOLDER/saved/llama without permission, before and after llm_pruner is imported

What the models give goes to FOLDER/MODE.pt.
"""

import copy
import sys
from pathlib import Path

if __name__ == "__main__":
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode == "remote":
        sys.modules["llm_pruner"] = None
    else:
        sys.path.insert(0, str(Path(__file__).parents[2]))
    if mode == "registered":
        import llm_pruner  # noqa: F401

import torch
from transformers import AutoModelForCausalLM

TOKENS = torch.randint(1, 96, (2, 12), generator=torch.Generator().manual_seed(1))
MASK = torch.ones(2, 12, dtype=torch.long)
MASK[0, :5] = 0


@torch.no_grad()
def outputs(model) -> dict:
    """What `model` gives for TOKENS in every way of running it; on the way out it attends eagerly."""
    model.eval()

    def generate(mask=None, **kwargs):
        return model.generate(TOKENS, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0, **kwargs)

    results = {
        "logits": model(TOKENS).logits,
        "deepcopy": copy.deepcopy(model)(TOKENS).logits,
        "cache": generate(use_cache=True),
        "no_cache": generate(use_cache=False),
        "static": generate(cache_implementation="static"),
        "padded": model(TOKENS, attention_mask=MASK).logits[:, 5:],
        "padded_cache": generate(MASK),
        "padded_no_cache": generate(MASK, use_cache=False),
    }
    model.set_attn_implementation("eager")
    eager = model(TOKENS, output_attentions=True)
    results["eager"] = eager.logits
    results["eager_cache"] = generate()
    results["heads"] = torch.tensor([attention.shape[1] for attention in eager.attentions])
    return results


@torch.no_grad()
def logits(folder: Path, **kwargs) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, **kwargs)(TOKENS).logits


@torch.no_grad()
def reload(folder: Path, **kwargs) -> dict:
    """`outputs` of the checkpoint; its logits when loaded in other ways; and what loading it complained about."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **kwargs)
    results = {"class": type(model).__module__, "problems": {key: str(value) for key, value in info.items() if value}}
    for name, way in {
        "bf16": {"dtype": torch.bfloat16},
        "auto": {"device_map": "auto"},
        "cpu": {"device_map": {"": "cpu"}},
        "loaded_eager": {"attn_implementation": "eager"},
    }.items():
        results[name] = logits(folder, **way, **kwargs)
    return {**results, **outputs(model)}


def cases() -> list[str]:
    return sorted(path.name for path in (folder / "saved").iterdir())


def remote() -> dict:
    results = {}
    for case in cases():
        results[case] = reload(folder / "saved" / case, trust_remote_code=True)
        model = AutoModelForCausalLM.from_pretrained(folder / "saved" / case, trust_remote_code=True)
        model.save_pretrained(folder / "from_remote" / case)
        results[case]["again"] = logits(folder / "from_registered" / case, trust_remote_code=True)
    return results


def registered() -> dict:
    return {
        case: {**reload(folder / "saved" / case), "again": logits(folder / "from_remote" / case)} for case in cases()
    }


def late() -> dict:
    results = {}
    try:
        AutoModelForCausalLM.from_pretrained(folder / "saved" / "llama")
    except Exception as error:
        results["error"] = str(error)
    import llm_pruner  # noqa: F401

    return {**results, "logits": logits(folder / "saved" / "llama")}


if __name__ == "__main__":
    torch.save(globals()[mode](), folder / f"{mode}.pt")
