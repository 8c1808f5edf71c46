#!/usr/bin/env bash
# A T5 v1.1 (the layout of flan-T5 and mT5: gated GELU, a head of its own, tie_word_embeddings false), converted by
# CTranslate2 from a folder that transformers 5 reads.
#
# Guess before running: its probabilities are transformers' up to rounding, as they are for the first T5.
#
# Seen (ctranslate2 4.8.5, transformers 5.23.0): all logits are divided by the root of the width (flan-T5-large: by 32).
# transformers 5 sets tie_word_embeddings to true for every T5 and keeps what it stood for as scale_decoder_outputs; the
# converter still goes by the former. The likeliest token stays the same one, so greedy answers look right; samples,
# beams, scores and whatever compares probabilities are another model's. The first T5 is right.
#
# So scores and samples of a fine-tuned flan-T5 or mT5 under CTranslate2 are to be checked. (`neuroada export --to
# ctranslate2` tells the converter what transformers computes, and compares the scores of a row.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 ctranslate2==4.8.5 tokenizers==0.23.3 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import json
import sys
from pathlib import Path

import ctranslate2
import torch
import transformers
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

transformers.logging.set_verbosity_error()
room, size, width = Path(sys.argv[1]), 64, 32
words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{n}": n for n in range(3, size)}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
    unk_token="<unk>", pad_token="<pad>", eos_token="</s>",
)
row = torch.arange(5, 45)
names = [f"w{n}" for n in row.tolist()]
for kind in ("first", "v1.1"):
    newer = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if kind == "v1.1" else {}
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(
        vocab_size=size, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, **newer
    )).eval()
    model.save_pretrained(room / kind)
    tokenizer.save_pretrained(room / kind)
    stated = json.loads((room / kind / "config.json").read_text())
    print(kind, {key: stated[key] for key in ("tie_word_embeddings", "scale_decoder_outputs")})
    with torch.inference_mode():
        begun = torch.cat([torch.tensor([0]), row[:-1]])
        logits = model(input_ids=row[None], decoder_input_ids=begun[None]).logits[0]
    wanted, divided = (x.log_softmax(-1).gather(1, row[:, None])[:, 0] for x in (logits, logits / width**0.5))
    TransformersConverter(str(room / kind)).convert(str(room / f"{kind}-converted"))
    engine = ctranslate2.Translator(str(room / f"{kind}-converted"), compute_type="float32")
    found = torch.tensor(engine.score_batch([names], [names])[0].log_probs)[: len(row)]
    off, off_divided = (float((found - x).abs().max()) for x in (wanted, divided))
    print(f"  log-probabilities: {off:.2g} from the model's, {off_divided:.2g} from those of divided logits")
    right, other = (off_divided, off) if newer else (off, off_divided)
    assert right < 1e-2 < 1 < other
print("ctranslate2", ctranslate2.__version__, "transformers", transformers.__version__)
PY
mkdir "$room/made"
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" "$room/made" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
