#!/usr/bin/env bash
# torch on an x86 CPU without AVX-512: what do bf16 products cost beside fp32 ones?
#
# Guess before running: about as much, or two to three times. Widening bf16 to fp32 is a shift, the sums are
# kept in fp32 anyway, and half as many bytes are read. The forward pass, the gradient of the inputs and that of
# the weight are the same number of multiplications, so that all three slow down alike.
#
# Seen (torch 2.13.0, AVX2, one thread; oneDNN switched off stands for such a CPU on others, since without
# AVX-512 it is not asked either): of a layer of 576 -> 1536 and 128 tokens the forward pass takes 7 to 8 times as
# long as in fp32, the gradient of the inputs (grad @ weight) about 40 times, the gradient of the weight about 4
# times. It is the layout that decides, not the work: the same grad @ weight with the weight laid out by columns
# takes about 5 times. At 4096 x 4096 the gradient of the inputs takes over 100 times. The numbers are right: the
# sums are kept in fp32 and rounded once.
#
# So a frozen bf16 model, of which training needs no gradient but this one, is the worst case of all; a benchmark
# of forward passes, or of full fine-tuning's weight gradients, does not show it. Widening both operands before
# each product and rounding after it gives the same numbers at nearly the speed of fp32.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import time

import torch

torch.set_num_threads(1)
torch.manual_seed(0)
tokens, inputs, outputs = 128, 576, 1536
x, weight, grad = torch.randn(tokens, inputs), torch.randn(outputs, inputs), torch.randn(tokens, outputs)
products = {
    "forward": lambda x, w, g: torch.nn.functional.linear(x, w),
    "gradient of the inputs": lambda x, w, g: g @ w,
    "gradient of the weight": lambda x, w, g: g.T @ x,
    "gradient of the inputs, weight by columns": lambda x, w, g: g @ w.T.contiguous().T,
}


def seconds(product, *tensors):
    product(*tensors)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        product(*tensors)
        best = min(best, time.perf_counter() - started)
    return best


wide, narrow = (x, weight, grad), tuple(t.bfloat16() for t in (x, weight, grad))
slower, back = {}, tuple(t.bfloat16().float() for t in (x, weight, grad))
with torch.backends.mkldnn.flags(enabled=False):
    for name, product in products.items():
        slower[name] = seconds(product, *narrow) / seconds(product, *wide)
        print(f"{name}: {slower[name]:.1f} times as long as in fp32")
        error = (product(*narrow).float() - product(*back)).norm() / product(*back).norm()
        assert error < 2**-8, "not the same numbers"
    by_way = lambda x, w, g: (g.float() @ w.float()).bfloat16()  # noqa: E731
    widened = seconds(by_way, *narrow) / seconds(products["gradient of the inputs"], *wide)
    print(f"gradient of the inputs, by way of fp32: {widened:.1f} times")
assert slower["gradient of the inputs"] > 10, "the gradient of the inputs is quick now"
assert slower["gradient of the inputs"] > 2 * slower["forward"], "as slow as the forward pass now"
assert slower["gradient of the inputs"] > 2 * slower["gradient of the weight"], "as slow as the weight's now"
assert widened < slower["gradient of the inputs"] / 4, "widening does not pay any more"
print(torch.__version__, torch.backends.cpu.get_cpu_capability())
PY
"$room/venv/bin/python" "$room/seen.py"
