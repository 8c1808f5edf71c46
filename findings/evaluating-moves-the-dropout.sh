#!/usr/bin/env bash
# Does it change a training with dropout how often it is evaluated?
#
# Guess before running: no. Evaluation has no dropout and takes its rows in order, and the Trainer's shuffling has a
# seed of its own, so nothing in it draws a random number.
#
# Seen (torch 2.13.0, transformers 5.23.0): it does. A DataLoader draws one number of torch's global stream each time
# it is iterated, without shuffling, without workers and for a list of numbers; with a generator of its own it draws
# from that. The Trainer gives its evaluation loader none. So after every evaluation the dropout of the next steps is
# another one: trainings that differ in eval_steps alone end in other weights, and one that is evaluated once more has
# left its curve. Logging, saving and resuming do not do it; nor does anything without dropout.
#
# So two runs can only be compared that were evaluated at the same steps; in one's own loop a validation loader needs
# generator=torch.Generator().
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import sys
import warnings

import torch
import transformers
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()


def next_number(**settings):
    torch.manual_seed(0)
    for _ in DataLoader([1, 2, 3], **settings):
        pass
    return torch.rand(1).item()


torch.manual_seed(0)
untouched = torch.rand(1).item()
print("the next random number is the same after reading a DataLoader:", next_number() == untouched)
assert next_number() != untouched and next_number(batch_size=3, shuffle=False) != untouched
assert next_number(generator=torch.Generator()) == untouched


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, number):
        ids = torch.randint(50, (8,), generator=torch.Generator().manual_seed(number))
        return {"input_ids": ids, "labels": ids}


def trained(dropout, **settings):
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    drops = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    model = GPT2LMHeadModel(GPT2Config(**shape, **drops))
    usual = {"save_strategy": "no", "logging_strategy": "no", "per_device_train_batch_size": 4, "num_train_epochs": 2}
    arguments = TrainingArguments(sys.argv[1], report_to=[], disable_tqdm=True, use_cpu=True, **(usual | settings))
    trainer = Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows())
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


evaluated = {"eval_strategy": "steps", "eval_steps": 2}
for dropout in (0.0, 0.1):
    plain = trained(dropout)
    same = {
        "again": torch.equal(trained(dropout), plain),
        "logged": torch.equal(trained(dropout, logging_strategy="steps", logging_steps=1), plain),
        "saved": torch.equal(trained(dropout, save_strategy="steps", save_steps=2), plain),
        "evaluated": torch.equal(trained(dropout, **evaluated), plain),
    }
    print(f"dropout {dropout}: the same weights as without:", same)
    assert same == {"again": True, "logged": True, "saved": True, "evaluated": dropout == 0}
print("torch", torch.__version__, "transformers", transformers.__version__)
PY
"$room/venv/bin/python" "$room/seen.py" "$room/runs" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
