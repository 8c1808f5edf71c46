#!/usr/bin/env bash
# A Llama with the rotary scaling of Llama 3.1 and 3.2 ("llama3"), converted by CTranslate2, whose converter lists that
# type among those it supports.
#
# Guess before running: CTranslate2's logits are transformers' up to rounding; a type that it cannot scale is refused, as
# yarn is.
#
# Seen (ctranslate2 4.8.5, transformers 5.23.0): they are those of the same weights without any scaling. The converter
# writes the type and the two frequency factors, and neither `factor` nor the original length, so that the engine scales
# by 1; nothing is said. With the two numbers in the file (the engine reads them) the logits are right.
#
# So a fine-tuned Llama 3.1 or 3.2 that is served by CTranslate2 turns by other angles than it was trained with, at every
# length. (`neuroada export --to ctranslate2` writes the two numbers, and compares what came out with the model.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 ctranslate2==4.8.5 tokenizers==0.23.3 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import sys
from pathlib import Path

import ctranslate2
import numpy
import torch
import transformers
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

transformers.logging.set_verbosity_error()
room, size = Path(sys.argv[1]), 64
words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, size)}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
    unk_token="<unk>", bos_token="<s>", eos_token="</s>",
)
SCALING = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
SCALING |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def llama(**rotary):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=size, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3, rope_parameters={"rope_theta": 5e5, "rope_type": "default"} | rotary,
    )).eval()


def measured(spec, name):
    (room / name).mkdir()
    spec.validate()
    spec.save(str(room / name))
    found = ctranslate2.Generator(str(room / name), compute_type="float32").forward_batch([tokens.tolist()])
    found = torch.from_numpy(numpy.array(found))[0]
    return [float((found - wanted).abs().max() / wanted.std()) for wanted in (scaled, plain)]


model, tokens = llama(**SCALING), torch.randint(3, size, (256,))
with torch.inference_mode():
    scaled, plain = (m(tokens[None]).logits[0] for m in (model, llama()))
model.save_pretrained(room / "model")
tokenizer.save_pretrained(room / "model")
spec = TransformersConverter(str(room / "model"))._load()
of_model, of_plain = measured(spec, "as-written")
print(f"as converted: {of_model:.2g} of their spread from the model's logits, {of_plain:.1g} from those without scaling")
assert of_model > 0.05 and of_plain < 1e-3
for layer in spec.decoder.layer:
    vars(layer.self_attention)["rotary_scaling_factor"] = numpy.float32(SCALING["factor"])
    vars(layer.self_attention)["original_max_position_embeddings"] = numpy.int32(8192)
of_model, of_plain = measured(spec, "completed")
print(f"with factor and original length: {of_model:.1g} from the model's, {of_plain:.2g} from those without scaling")
assert of_model < 1e-3 and of_plain > 0.05
print("ctranslate2", ctranslate2.__version__, "transformers", transformers.__version__)
PY
mkdir "$room/made"
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" "$room/made" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
