#!/usr/bin/env bash
# torch.optim.AdamW on bf16 parameters: how long does a large gradient keep the steps small?
#
# Guess before running: about as long as in fp32, some thousands of steps at beta2 = 0.999. The second moment, kept in
# bf16 as the parameter is, has two or three digits, so it is off by up to a percent, and decays all the same.
#
# Seen (torch 2.13.0, beta2 = 0.999): it does not decay at all. One step takes a thousandth of it, less than half of
# bf16's last digit, and is rounded away, for any value: after 300 steps with gradients of 1 and 5000 with 0.01 the
# moment is to the bit what it was, where fp32 has fallen to a hundredth and less. On the way up it goes wrong, too:
# with foreach=True or False, which multiply and add in two roundings, it reaches 0.34 instead of 0.26 after 300
# steps; fused=True stops at 0.25. fp16 decays, and so does bf16 from beta2 = 0.996 downwards.
#
# So in pure bf16 training (parameters and optimizer in bf16, as many published scripts run it) a weight that has
# seen a large gradient once, early, is slowed for the rest of the run.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import torch

WAYS = {"one by one": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def moments(dtype, way, beta=0.999):
    """(after 300 steps with gradients of 1, after 5000 more with 0.01)"""
    parameter = torch.nn.Parameter(torch.zeros(64, dtype=dtype))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, betas=(0.9, beta), weight_decay=0.0, **WAYS[way])
    found = []
    for steps, gradient in ((300, 1.0), (5000, 0.01)):
        for _ in range(steps):
            parameter.grad = torch.full_like(parameter, gradient)
            optimizer.step()
        found.append(float(optimizer.state[parameter]["exp_avg_sq"][0]))
    return found


for way in WAYS:
    exact, wide, narrow = (moments(dtype, way) for dtype in (torch.float64, torch.float16, torch.bfloat16))
    print(f"{way}: fp64 {exact[0]:.3f} -> {exact[1]:.4f}, fp16 {wide[0]:.3f} -> {wide[1]:.4f}, "
          f"bf16 {narrow[0]:.3f} -> {narrow[1]:.4f}")
    assert exact[1] < 0.01 * exact[0]
    assert wide[1] < 0.02 * wide[0], "fp16 does not decay"
    assert narrow[1] == narrow[0], "bf16 decays"
    assert (narrow[0] == 0.25) if way == "fused" else (0.32 < narrow[0] < 0.36), "it rises otherwise"
    lower = moments(torch.bfloat16, way, 0.996)
    assert lower[1] < 0.02 * lower[0], "a smaller beta does not help"
print("torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
