#!/usr/bin/env bash
# Prompt tuning, and a batch to write from: a short row is padded on the left beside a longer one, as usual.
#
# Guess before running: it writes what it writes alone. The padding is masked, and generate counts positions from the
# mask.
#
# Seen (peft 0.21.2, transformers 5.23.0): not with prompt tuning, nor with p-tuning. Of 20 short rows LLaMA and GPT-2
# write none as they do alone, and the longest row of each batch as it does alone. The learnt tokens stand before the
# padding, and PEFT drops position_ids with a warning: the padding is counted, so the text begins later than it did in
# training, further from what was learnt. Without an adapter, and with prefix tuning, all rows are as they are alone. A
# forward pass over rows that are padded on the right, as in training, is exact.
#
# So a model with prompt tuning writes rows of equal length together, or one by one, and a score of it depends on the
# batch size. (`neuroada` has no such method; its deltas leave positions alone.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import warnings

import peft
import torch
import transformers
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
SHORT, LONG, TRIES = 5, 17, 20
IDS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.3}
LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
ASKED = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 8}
METHODS = {
    "no adapter": None,
    "prompt tuning": PromptTuningConfig(**ASKED),
    "p-tuning": PromptEncoderConfig(**ASKED, encoder_hidden_size=32),
    "prefix tuning": PrefixTuningConfig(**ASKED),
}


def written(model, ids, mask):
    given = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    return model.generate(input_ids=ids, attention_mask=mask, **given)[:, ids.shape[1] :]


def alone(model, row):
    return written(model, row[None], torch.ones_like(row)[None])[0]


for kind, config in ((LlamaForCausalLM, LlamaConfig(**IDS, **LLAMA)), (GPT2LMHeadModel, GPT2Config(**IDS, **GPT2))):
    for name, method in METHODS.items():
        torch.manual_seed(0)
        model = kind(config)
        model = (model if method is None else get_peft_model(model, method)).eval()
        short_same = long_same = 0
        for _ in range(TRIES):
            short, long = torch.randint(3, 60, (SHORT,)), torch.randint(3, 60, (LONG,))
            ids = torch.stack([torch.cat([torch.zeros(LONG - SHORT, dtype=torch.long), short]), long])
            mask = (ids > 0).long()
            found = written(model, ids, mask)
            short_same += torch.equal(found[0], alone(model, short))
            long_same += torch.equal(found[1], alone(model, long))
        print(f"{kind.__name__}, {name}: as alone: {short_same} short and {long_same} long rows of {TRIES}")
        assert long_same == TRIES
        assert short_same < TRIES / 4 if name in ("prompt tuning", "p-tuning") else short_same == TRIES
        right = torch.cat([short, torch.zeros(LONG - SHORT, dtype=torch.long)])[None]
        with torch.no_grad():
            padded = model(input_ids=right, attention_mask=(right > 0).long()).logits[:, -LONG:][:, :SHORT]
            plain = model(input_ids=short[None], attention_mask=torch.ones(1, SHORT)).logits[:, -SHORT:]
        assert (padded - plain).norm() < 1e-4 * plain.norm()
print("peft", peft.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
