#!/usr/bin/env bash
# A streamed set, shuffled through a buffer: its first 20 rows, take(20), are held out, skip(20) is trained on.
#
# Guess before running: the two never share a row, as they never do without a stream.
#
# Seen (datasets 5.2.0, transformers 5.23.0): only in the first epoch. set_epoch, which the Trainer calls, shuffles anew
# before rows are skipped, so that from the second epoch on another 20 are left out: of 1000 rows through a buffer of
# 100, 16 of the 20 held-out rows are trained on in the second epoch and 19 within three, through a buffer of 1000 all;
# as many rows that belong to training are left out for them. What is held out stays what it was, so nothing shows but a
# validation loss that is too good. skip(20) of the unshuffled stream, shuffled afterwards, never gives a held-out row;
# its take(20) are the first rows of the file.
#
# So rows are held out before shuffling: by take and skip of the plain stream, or from a file of their own. (`neuroada
# train` holds rows out once, by their numbers, before it shuffles.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import sys
import warnings

import datasets
import torch
import transformers
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()
ROWS, HELD, EPOCHS = 1000, 20, 3


def plain():
    return Dataset.from_dict({"number": list(range(ROWS))}).to_iterable_dataset(num_shards=4)


def numbers(stream):
    return [row["number"] for row in stream]


def held_out_seen(held, train):
    """How many held-out rows come up in training, per epoch and over all."""
    kept, per_epoch, all_seen = set(numbers(held)), [], set()
    for epoch in range(EPOCHS):
        train.set_epoch(epoch)
        seen = numbers(train)
        assert len(seen) == len(set(seen)) == ROWS - HELD and set(numbers(held)) == kept
        per_epoch.append(len(kept & set(seen)))
        all_seen |= kept & set(seen)
    return per_epoch, len(all_seen)


for buffer in (100, 1000):
    shuffled = plain().shuffle(seed=0, buffer_size=buffer)
    per_epoch, over_all = held_out_seen(shuffled.take(HELD), shuffled.skip(HELD))
    print(f"buffer {buffer}: of {HELD} held-out rows trained on, per epoch: {per_epoch}, over all: {over_all}")
    assert per_epoch[0] == 0 and min(per_epoch[1:]) > HELD / 2 and over_all >= HELD - 2
per_epoch, over_all = held_out_seen(plain().take(HELD), plain().skip(HELD).shuffle(seed=0, buffer_size=100))
print("held out before shuffling:", per_epoch)
assert over_all == 0


class Remembers(LlamaForCausalLM):
    def forward(self, number, **_):
        given.extend(number.tolist())
        return {"loss": self.lm_head.weight.square().sum()}


given, shape = [], {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
shuffled = plain().shuffle(seed=0, buffer_size=100)
model = Remembers(LlamaConfig(intermediate_size=8, **shape))
usual = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "remove_unused_columns": False}
arguments = TrainingArguments(sys.argv[1], per_device_train_batch_size=98, max_steps=30, **usual)
trainer = Trainer(model, arguments, train_dataset=shuffled.skip(HELD))
trainer.remove_callback(transformers.PrinterCallback)
trainer.train()
kept = set(numbers(shuffled.take(HELD)))
epochs = [given[start : start + ROWS - HELD] for start in range(0, len(given), ROWS - HELD)]
per_epoch = [len(kept & set(epoch)) for epoch in epochs]
print("trained on by the Trainer, per epoch:", per_epoch, "over all:", len(kept & set(given)))
assert per_epoch[0] == 0 and min(per_epoch[1:]) > HELD / 2
print("datasets", datasets.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" "$room/runs" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
