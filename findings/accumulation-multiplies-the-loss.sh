#!/usr/bin/env bash
# Eight rows in one batch, and the same rows as four batches of two with gradient_accumulation_steps=4.
#
# Guess before running: one step on the mean of the eight rows either way, but for rounding.
#
# Seen (transformers 5.23.0, torch 2.13.0): so it is for the causal models LLaMA and GPT-2. For T5 and BART that write
# text, for BERT's masked language model and for the classifiers of LLaMA, GPT-2, BERT, RoBERTa and DistilBERT the
# logged loss and the norm of the gradient are four times as large, and SGD goes four times as far. The Trainer takes a
# model whose forward has **kwargs for one that divides its loss by the num_items_in_batch that it is handed, and so
# divides by nothing itself; these have **kwargs and take the mean of each batch all the same. max_grad_norm=1, the
# default, then clips what would not have been clipped; Adam without clipping hides it, but for the logged numbers. With
# accepts_loss_kwargs = False on the model all are as with one batch. (GPT-2's loss is too small by the first token of
# each row, 5/6 of the mean in rows of six, with one batch and with four: its labels are shifted, but its class's name
# tells the Trainer nothing of that, which counts them all. With accepts_loss_kwargs = False it is right.)
#
# So runs of such models with other gradient_accumulation_steps cannot be compared by their losses, and under SGD or
# clipping not by what they learn; model.accepts_loss_kwargs = False, set before the Trainer is made, mends it where
# batches hold equally many labels. (`neuroada train` does not use the Trainer: it sums the losses of all tokens of a
# step, and divides once.)
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
from transformers import Trainer, TrainingArguments

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()

SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 32, "pad_token_id": 1, "num_labels": 2}
BERT = SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DISTIL = {"vocab_size": 64, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
DISTIL |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
GPT2 = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "pad_token_id": 1}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
T5 |= {"decoder_start_token_id": 0, "tie_word_embeddings": False}
BART = {"vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 32}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
BART |= {"dropout": 0.0}
CASES = [  # settings, class, how many times too large with four batches
    ("Llama", SIZES, "ForCausalLM", 1),
    ("GPT2", GPT2, "LMHeadModel", 1),
    ("Llama", SIZES, "ForSequenceClassification", 4),
    ("Bert", BERT, "ForMaskedLM", 4),
    ("GPT2", GPT2, "ForSequenceClassification", 4),
    ("T5", T5, "ForConditionalGeneration", 4),
    ("Bart", BART, "ForConditionalGeneration", 4),
    ("Bert", BERT, "ForSequenceClassification", 4),
    ("Roberta", BERT, "ForSequenceClassification", 4),
    ("DistilBert", DISTIL, "ForSequenceClassification", 4),
]


class Rows(torch.utils.data.Dataset):
    def __init__(self, classes):
        self.classes = classes

    def __len__(self):
        return 8

    def __getitem__(self, number):
        ids = torch.randint(3, 60, (6,), generator=torch.Generator().manual_seed(number))
        return {"input_ids": ids, "labels": torch.tensor(number % 2) if self.classes else ids}


def one_step(name, settings, kind, accumulated, **told):
    """(loss, norm of the gradient, how far SGD went) of one step on the eight rows"""
    torch.manual_seed(0)
    model = getattr(transformers, name + kind)(getattr(transformers, f"{name}Config")(**settings))
    for key, value in told.items():
        setattr(model, key, value)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    sizes = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    usual = {"max_steps": 1, "logging_steps": 1, "save_strategy": "no", "optim": "sgd", "learning_rate": 0.1}
    usual |= {"report_to": [], "disable_tqdm": True, "use_cpu": True, "max_grad_norm": 1e9}
    trainer = Trainer(model, TrainingArguments(sys.argv[1], **usual, **sizes), train_dataset=Rows("Class" in kind))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    log = trainer.state.log_history[0]
    return torch.tensor([log["loss"], log["grad_norm"], (after - before).norm().item()])


for name, settings, kind, factor in CASES:
    whole, parts = (one_step(name, settings, kind, accumulated) for accumulated in (1, 4))
    times = parts / whole
    print(f"{name}{kind}: loss {whole[0]:.3f} and {parts[0]:.3f}; loss, gradient and step times {times.tolist()}")
    assert torch.allclose(times, torch.full((3,), float(factor)), rtol=2e-3), times
    told = one_step(name, settings, kind, 4, accepts_loss_kwargs=False)
    assert torch.allclose(told, whole * (6 / 5 if kind == "LMHeadModel" else 1), rtol=2e-3), (told, whole)
print("transformers", transformers.__version__, "torch", torch.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" "$room/runs" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
