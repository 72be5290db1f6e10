"""Run by tests in a fresh, isolated process: loads every checkpoint under a folder and runs it."""

import json
import sys
from pathlib import Path

sys.modules["llm_pruner"] = None

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

folder = Path(sys.argv[1])
tokens, prompt = (torch.tensor(rows) for rows in json.loads((folder / "tokens.json").read_text()))
out: dict = {}
for config in sorted(folder.glob("*/*/config.json")):
    model, info = AutoModelForCausalLM.from_pretrained(
        config.parent, output_loading_info=True, trust_remote_code=(config.parent / "modeling_pruned.py").is_file()
    )
    model.eval()
    with torch.no_grad():
        logits = model(tokens).logits
        generated = model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=True)
    problems = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    result = {"logits": logits, "generated": generated, "problems": problems}
    out.setdefault(config.parent.parent.name, {})[config.parent.name] = result
torch.save(out, folder / "out.pt")
