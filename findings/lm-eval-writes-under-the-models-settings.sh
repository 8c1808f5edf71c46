#!/usr/bin/env bash
# Tasks in which a model writes (gsm8k, ifeval), scored by lm-evaluation-harness with transformers.
#
# Guess before running: without sampling it writes the most likely text, up to the task's max_gen_toks. What the model's
# generation_config.json advises for chats plays no part.
#
# Seen (lm_eval 0.4.13, transformers 5.23.0): a task says whether to draw, and how many tokens as max_length; all else
# comes from the model's file. A repetition penalty of 1.05, which Qwen2.5's chat models ship, changes what is written,
# and so do beams and no_repeat_ngram_size; max_new_tokens there takes the place of the task's number of tokens. Engines
# that do not read the file, and a copy of the model without it, are asked otherwise, so that the scores of one model
# differ by what lies beside it.
#
# So compare written answers only where this file is the same, or pass the neutral values in --gen_kwargs.
# (`neuroada eval --harness` says which of these settings are on and keeps them in its file; `eval --tasks` has none.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 'lm_eval[hf]==0.4.13' tokenizers==0.23.2
cat > "$room/seen.py" <<'PY'
import importlib.metadata
import logging

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

logging.disable(logging.WARNING)
transformers.logging.set_verbosity_error()
words = {f"w{n}": n for n in range(60)} | {"<unk>": 60, "</s>": 61}
splitter = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
splitter.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=splitter, eos_token="</s>", unk_token="<unk>", pad_token="</s>")
torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
ends = {"bos_token_id": None, "eos_token_id": 61, "pad_token_id": 61}
model = LlamaForCausalLM(LlamaConfig(vocab_size=62, **sizes, **ends, initializer_range=0.3)).eval()
ASKED = {"until": ["stop"], "do_sample": False, "max_gen_toks": 12}


def written(given=ASKED, **own):
    before = {name: getattr(model.generation_config, name) for name in own}
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    asker = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    asked = [Instance("generate_until", {}, (f"w{n} w{n + 1} w{n + 2}", given), n) for n in range(20)]
    found = asker.generate_until(asked, disable_tqdm=True)
    for name, value in before.items():
        setattr(model.generation_config, name, value)
    return found


plain = written()
assert written(do_sample=True, temperature=2.0, top_p=0.5) == plain
for own in ({"repetition_penalty": 1.05}, {"num_beams": 4}, {"no_repeat_ngram_size": 3}, {"max_new_tokens": 40}):
    found = written(**own)
    changed = sum(one != other for one, other in zip(found, plain, strict=True))
    print(f"{own}: {changed} of 20 answers are others; the longest has {max(len(a.split()) for a in found)} words")
    assert changed
    if "max_new_tokens" in own:
        assert max(len(answer.split()) for answer in found) == 40 > max(len(answer.split()) for answer in plain)
assert written(ASKED | {"repetition_penalty": 1.0}, repetition_penalty=1.05) == plain
print("lm_eval", importlib.metadata.version("lm_eval"), "transformers", transformers.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
