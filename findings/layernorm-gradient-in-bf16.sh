#!/usr/bin/env bash
# The gradient of a LayerNorm's bias and weight in bf16 on the CPU.
#
# Guess before running: the sum over all tokens, added up in fp32 and rounded once, as that of a linear layer's bias is.
#
# Seen (torch 2.13.0, x86-64): it is added up in bf16. 5000 tokens that each send a gradient of 1 give 512 (two
# accumulators that stop at 256 each; 4096 in fp16), and with gradients of both signs it is off by 6 % of its
# size, in fp16 by 0.7 %. Linear (bias), RMSNorm, GroupNorm and a plain product with a weight add in fp32.
#
# So whoever trains norms or all biases (BitFit) of a BERT, GPT-2 or ViT in bf16 on a CPU does it by a coarse gradient;
# the LLaMA family, whose norms are RMSNorm, is spared. torch.autocast, under which a LayerNorm of fp32 weights stays
# in fp32, has none of it.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import torch
from torch import nn

WIDTH = 512
LAYERS = {
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "Linear": lambda: nn.Linear(WIDTH, WIDTH),
    "GroupNorm": lambda: nn.GroupNorm(4, WIDTH),
}
generator = torch.Generator().manual_seed(0)
x_TD = torch.randn(5000, WIDTH, generator=generator)
mixed_TD = torch.randn(5000, WIDTH, generator=generator).bfloat16()  # the same numbers in every type


def bias_gradient(kind, dtype, upstream_TD):
    layer = LAYERS[kind]().to(dtype)
    layer(x_TD.to(dtype)).backward(upstream_TD.to(dtype))
    return layer.bias.grad.double()


def off(found_D, true_D):
    return float((found_D - true_D).norm() / true_D.norm())


true_D = mixed_TD.double().sum(0)
for kind in LAYERS:
    ones = {d: float(bias_gradient(kind, d, torch.ones(5000, WIDTH))[0]) for d in (torch.bfloat16, torch.float16)}
    error = {d: off(bias_gradient(kind, d, mixed_TD), true_D) for d in (torch.bfloat16, torch.float16)}
    print(kind, "bias, gradients of 1:", list(ones.values()), " both signs, off by:",
          [f"{e:.2%}" for e in error.values()])
    assert off(bias_gradient(kind, torch.float32, mixed_TD), true_D) < 1e-5
    if kind == "LayerNorm":
        assert list(ones.values()) == [512, 4096]
        assert 0.03 < error[torch.bfloat16] < 0.3 and 0.003 < error[torch.float16] < 0.04
    else:
        assert ones[torch.bfloat16] in (4992, 5008) and ones[torch.float16] == 5000
        assert error[torch.bfloat16] < 0.005 and error[torch.float16] < 0.001


def weight_error(layer):
    """Of the weight's gradient, against fp64 of the same layer."""
    exact = type(layer)(WIDTH).double()
    exact(x_TD.bfloat16().double()).backward(mixed_TD.double())
    layer.to(torch.bfloat16)(x_TD.bfloat16()).backward(mixed_TD)
    return off(layer.weight.grad.double(), exact.weight.grad)


norm, rms = weight_error(nn.LayerNorm(WIDTH)), weight_error(nn.RMSNorm(WIDTH))
print(f"weight, both signs, off by: LayerNorm {norm:.2%}, RMSNorm {rms:.2%}")
assert 0.03 < norm < 0.3 and rms < 0.01
print("torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
