#!/usr/bin/env bash
# bitsandbytes, Linear8bitLt on a CPU: does model.eval() change what a layer without dropout computes?
#
# Guess before running: no. A linear layer has nothing that differs between training and evaluation. LLM.int8() rounds
# the inputs of a row to 8 bits as well as the weight, and multiplies integers; on a CPU it does the same, only slower.
#
# Seen (bitsandbytes 0.50.2, torch 2.13.0, threshold 0): in training mode the output is the product of the unrounded
# inputs with the dequantized weight, to fp32's last bits: nothing but the weight has 8 bits. After .eval() the inputs
# are rounded, and the outputs are off by hundredths of their size. It is the mode that decides, not whether a
# gradient is wanted: no_grad() in training mode does not round, an input that requires a gradient is rounded in eval.
#
# So on a CPU the loss of a training on int8 weights is not the one that an evaluation of the same rows gives, and
# neither mode tells what a GPU, which rounds in both, will show.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 bitsandbytes==0.50.2 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import bitsandbytes as bnb
import torch

torch.manual_seed(0)
inputs, outputs = 128, 64
layer = bnb.nn.Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False, threshold=0.0)
layer.weight = bnb.nn.Int8Params(torch.randn(outputs, inputs), requires_grad=False, has_fp16_weights=False)
layer = layer.to("cpu")
x = torch.randn(16, inputs)
layer.train()
layer(x)  # quantizes
scale = layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
exact = x @ (layer.weight.data.float() * scale.view(-1, 1) / 127).T


def off(mode, wanted):
    """The largest distance from the product of what was not rounded, over the size of the outputs."""
    layer.train(mode)
    with torch.set_grad_enabled(wanted):
        out = layer(x.clone().requires_grad_(wanted))
    return float((out.detach() - exact).abs().max() / exact.std())


for mode in (True, False):
    for wanted in (True, False):
        print(f"training {mode}, gradient wanted {wanted}: off by {off(mode, wanted):.1e}")
        assert off(mode, wanted) < 1e-5 if mode else off(mode, wanted) > 5e-3
print("torch", torch.__version__, "bitsandbytes", bnb.__version__)
PY
"$room/venv/bin/python" "$room/seen.py" 2> /dev/null
