#!/usr/bin/env bash
# Cross entropy with label smoothing on fp16 logits, on the CPU.
#
# Guess before running: computed as without smoothing, in fp32 inside and rounded once at the end: at most a digit less.
#
# Seen (torch 2.13.0): infinite from a vocabulary of some 3000 on, whatever the amount of smoothing. The smoothed part
# adds the logarithms of all tokens before it is scaled by amount / vocabulary, and that sum, some V * ln V, is kept in
# fp16, which ends at 65504. The gradient is right all the same. The same targets written out as probabilities give the
# right loss, as do bf16, autocast (which takes the loss in fp32), and no smoothing.
#
# So a training in fp16 that looks at its loss calls every step broken, or draws no curve, and learns well; the logits
# have to be widened before the loss, or the loss to be asked for probabilities.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import math

import torch
from torch.nn.functional import cross_entropy

ROWS = 4


def case(vocabulary, amount):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, vocabulary, generator=generator).half()
    target = torch.randint(vocabulary, (ROWS,), generator=generator)
    spread = torch.full((ROWS, vocabulary), amount / vocabulary)
    spread.scatter_(1, target[:, None], 1 - amount + amount / vocabulary)
    return logits, target, spread


def with_gradient(logits, target, amount):
    logits = logits.clone().requires_grad_()
    loss = cross_entropy(logits, target, label_smoothing=amount)
    loss.backward()
    return loss.item(), logits.grad.float()


for vocabulary, infinite in ((2000, False), (4000, True), (32000, True), (151936, True)):
    for amount in (0.1, 0.001):
        logits, target, spread = case(vocabulary, amount)
        true, true_gradient = with_gradient(logits.float(), target, amount)
        half, gradient = with_gradient(logits, target, amount)
        written_out = cross_entropy(logits, spread.half()).item()
        with torch.autocast("cpu", torch.float16):
            automatic = cross_entropy(logits, target, label_smoothing=amount).item()
        off = float((gradient - true_gradient).norm() / true_gradient.norm())
        print(f"V={vocabulary} amount={amount}: fp32 {true:.3f}, fp16 {half:.3f} (gradient off by {off:.1e}), "
              f"as probabilities {written_out:.3f}, autocast {automatic:.3f}")
        assert math.isinf(half) == infinite
        assert off < 2e-3
        for other in (
            written_out,
            automatic,
            cross_entropy(logits.bfloat16(), target, label_smoothing=amount).item(),
        ):
            assert abs(other - true) < 0.1  # a step of bf16 is 0.06 there
        assert math.isfinite(cross_entropy(logits, target).item())
print("torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
