#!/usr/bin/env bash
# LoRA with modules_to_save=["norm"] on a bf16 model: the last norm, model.norm, is to be trained whole beside it.
#
# Guess before running: model.norm is trained, in fp32 as LoRA's own weights are.
#
# Seen (peft 0.21.2, transformers 5.23.0): every module whose name ends so is: input_layernorm and
# post_attention_layernorm of every block, q_norm and k_norm of Qwen3. It is the end of the text and no part between
# dots. "model.norm" is the one norm. And PEFT casts LoRA's weights to fp32, not these copies: they stay bf16, where 50
# steps of Adam at 1e-3 leave every one of them at exactly 1, since a step is less than half of the distance to the next
# number; in fp32 all of them move. The same for an lm_head or an embedding, but there small weights still move.
#
# So whole names belong into the list, and what is trained is counted (print_trainable_parameters); in bf16 the copies
# are cast by hand: module.modules_to_save.float(). (`neuroada train` names modules in full, and steps fp32 numbers for
# what is trained whole.)
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
from peft import LoraConfig, get_peft_model

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 8}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
BLOCK = ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"]
HEADS = ["model.layers.0.self_attn.q_norm", "model.layers.0.self_attn.k_norm"]
IDS = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))


def wrapped(name, dtype, saved):
    """(the model, its modules that are trained whole, the data types of LoRA's weights)"""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES)
    model = getattr(transformers, f"{name}ForCausalLM")(config).to(dtype)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=saved)
    model = get_peft_model(model, lora)
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    own = {value.dtype for key, value in trained.items() if "lora_" in key}
    ending, start = ".modules_to_save.default.weight", "base_model.model."
    whole = {k.removeprefix(start).removesuffix(ending): v for k, v in trained.items() if k.endswith(ending)}
    assert len(whole) + 2 == len(trained)
    return model, whole, own


for name, blocks in (("Llama", BLOCK), ("Qwen3", BLOCK + HEADS)):
    for saved, wanted in ((["norm"], ["model.norm", *blocks]), (["model.norm"], ["model.norm"])):
        _, whole, _ = wrapped(name, torch.bfloat16, saved)
        print(f"{name}, {saved}:", sorted(whole))
        assert sorted(whole) == sorted(wanted)
for dtype in (torch.bfloat16, torch.float32):
    model, whole, own = wrapped("Llama", dtype, ["norm"])
    steps = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    for _ in range(50):
        steps.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert all(bool((parameter.grad != 0).any()) for parameter in whole.values())
        steps.step()
    kinds = {parameter.dtype for parameter in whole.values()}
    moved = torch.cat([parameter.detach().flatten() != 1 for parameter in whole.values()]).float().mean().item()
    print(f"model in {dtype}: LoRA in {own}, norms in {kinds}, weights of norms that moved in 50 steps: {moved:.1%}")
    assert own == {torch.float32} and kinds == {dtype}
    assert moved == 0 if dtype == torch.bfloat16 else moved > 0.99
print("peft", peft.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
