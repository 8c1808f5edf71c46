#!/usr/bin/env bash
# The gradient of a bf16 embedding on the CPU: what a token that occurs a thousand times in a batch gets.
#
# Guess before running: the sum over its places, added up in fp32 and rounded to bf16 once, as matrix products and sums
# in bf16 are: 1000 for 1000 places that each have a gradient of 1, within half a percent.
#
# Seen (torch 2.13.0, x86-64): 256, and 256 for 5000 places, too. torch.nn.functional.embedding, embedding_bag and
# weight[tokens] add place by place in bf16, where 256 + 1 is 256; in fp16 they stop at 2048. With gradients of both
# signs, 4096 places, the sum is off by 8 % of its size. index_select and gather, which read the same rows, add in fp32:
# 1000 and 4992.
#
# So a full fine-tuning in bf16 on a CPU hardly learns the embeddings of frequent tokens (padding, punctuation, "the"),
# whatever the optimizer; a sum of its own (index_select instead of embedding) or fp32 weights mend it.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import torch

WAYS = {
    "embedding": lambda weight, tokens: torch.nn.functional.embedding(tokens, weight),
    "weight[tokens]": lambda weight, tokens: weight[tokens],
    "index_select": lambda weight, tokens: torch.index_select(weight, 0, tokens),
    "gather": lambda weight, tokens: weight.gather(0, tokens[:, None].expand(-1, weight.shape[1])),
    "embedding_bag": lambda weight, tokens: torch.nn.functional.embedding_bag(tokens[:, None], weight, mode="sum"),
}


def gradient(way, dtype, upstream_TD):
    weight = torch.zeros(4, upstream_TD.shape[1], dtype=dtype, requires_grad=True)
    tokens_T = torch.zeros(len(upstream_TD), dtype=torch.long)
    WAYS[way](weight, tokens_T).backward(upstream_TD.to(dtype))
    return weight.grad[0].double()


def ones(way, dtype, places):
    return float(gradient(way, dtype, torch.ones(places, 8))[0])


mixed_TD = torch.randn(4096, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
true_D = mixed_TD.double().sum(0)
for way in WAYS:
    found = {dtype: [ones(way, dtype, places) for places in (200, 1000, 5000)]
             for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    off = float((gradient(way, torch.bfloat16, mixed_TD) - true_D).norm() / true_D.norm())
    print(f"{way}: {found}, both signs: off by {off:.1%}")
    assert found[torch.float32] == [200, 1000, 5000]
    if way not in ("index_select", "gather"):
        assert found[torch.bfloat16] == [200, 256, 256]
        assert found[torch.float16] == [200, 1000, 2048]
        assert 0.03 < off < 0.3
    else:
        assert found[torch.bfloat16] == [200, 1000, 4992]
        assert found[torch.float16] == [200, 1000, 5000]
        assert off < 0.005
print("torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
