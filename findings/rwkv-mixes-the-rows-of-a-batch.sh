#!/usr/bin/env bash
# RWKV writes the answers to several prompts of equal length in one batch: nothing is padded, nothing is drawn.
#
# Guess before running: each row is what it is alone, but for roundings. A recurrence keeps a state per row.
#
# Seen (transformers 5.23.0, CPU): the prompt's logits are right, and from the second new token on each row is mixed with
# the others. Where the model goes on by one token, the row that it remembers has no dimension of time, so that it is
# spread over the batch instead: no error, for the shapes fit. Whole texts in one pass, training and batches of one row
# are exact.
#
# So a score of RWKV by generate depends on the batch size and on the rows beside a row: write one by one.
# (`neuroada` tries it with two rows before it writes, and then gives each row a batch of its own.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import torch
import transformers
from transformers import MambaConfig, MambaForCausalLM, RwkvConfig, RwkvForCausalLM

transformers.logging.set_verbosity_error()
PROMPTS, LENGTH, NEW = 8, 6, 8
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
ASKED = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
for kind, config in ((RwkvForCausalLM, RwkvConfig(**SIZES)), (MambaForCausalLM, MambaConfig(**SIZES))):
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    prompts = torch.randint(1, 64, (PROMPTS, LENGTH))
    every = torch.ones_like(prompts)
    together = model.generate(prompts, attention_mask=every, **ASKED)[:, LENGTH:]
    alone = torch.cat([model.generate(row[None], attention_mask=every[:1], **ASKED) for row in prompts])[:, LENGTH:]
    with torch.no_grad():
        whole = model(prompts).logits
        single = torch.cat([model(row[None]).logits for row in prompts])
    first = int((together[:, 0] == alone[:, 0]).sum())
    same = sum(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    print(f"{kind.__name__}: of {PROMPTS} rows {first} begin as alone, {same} are as alone")
    assert (whole - single).abs().max() < 1e-4 * single.std() and first == PROMPTS
    assert same < PROMPTS / 2 if kind is RwkvForCausalLM else same == PROMPTS
print("transformers", transformers.__version__, "torch", torch.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
