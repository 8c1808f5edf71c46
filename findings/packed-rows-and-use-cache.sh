#!/usr/bin/env bash
# Two rows packed into one without padding: position_ids begin again at the second, and there is no attention_mask.
#
# Guess before running: transformers sees from the positions that these are two rows and keeps them apart; in training
# at least.
#
# Seen (transformers 5.23.0, torch 2.13.0): only without a cache. use_cache is on by default, in training mode as well,
# and then the second row of LLaMA, Qwen2, Mistral, Gemma 2 and GPT-2 looks at the first: its logits are off by 42 % of
# their size (GPT-2's by 14, Gemma 2's by 110 %), and nothing is said. With use_cache=False they are those of the row
# alone, but for rounding, with eager attention and SDPA. gpt-oss looks at the first row either way, since it does not
# hand its positions on to where its masks are made.
#
# So whoever packs rows in a loop of one's own has to call the model with use_cache=False (the Trainer of transformers
# sets it in the config) and to try it: a row packed behind another against itself alone. (`neuroada train` does both,
# and refuses `train.packing` for gpt-oss.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import warnings

import torch
import transformers

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT_OSS = SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}
CASES = [
    ("Llama", "ForCausalLM", SIZES, "eager"),
    ("Llama", "ForCausalLM", SIZES, "sdpa"),
    ("Qwen2", "ForCausalLM", SIZES, "sdpa"),
    ("Mistral", "ForCausalLM", SIZES, "sdpa"),
    ("Gemma2", "ForCausalLM", SIZES, "eager"),
    ("GPT2", "LMHeadModel", GPT2, "sdpa"),
    ("GptOss", "ForCausalLM", GPT_OSS, "eager"),
]
torch.manual_seed(0)
first_1S, second_1S = torch.randint(3, 60, (1, 9)), torch.randint(3, 60, (1, 7))
packed_1S = torch.cat([first_1S, second_1S], 1)
positions_1S = torch.cat([torch.arange(9), torch.arange(7)])[None]
for name, kind, sizes, attention in CASES:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, name + kind)._from_config(config, attn_implementation=attention).train()
    with torch.no_grad():
        alone_SV = model(input_ids=second_1S, use_cache=False).logits[0]
        by_default_SV = model(input_ids=packed_1S, position_ids=positions_1S).logits[0, 9:]
        uncached_SV = model(input_ids=packed_1S, position_ids=positions_1S, use_cache=False).logits[0, 9:]
    apart = [((found_SV - alone_SV).norm() / alone_SV.norm()).item() for found_SV in (by_default_SV, uncached_SV)]
    print(f"{name}, {attention}: off by {apart[0]:.2g} of the row's logits, with use_cache=False by {apart[1]:.2g}")
    assert apart[0] > 0.05 and (apart[1] > 0.05 if name == "GptOss" else apart[1] < 1e-5), apart
print("transformers", transformers.__version__, "torch", torch.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
