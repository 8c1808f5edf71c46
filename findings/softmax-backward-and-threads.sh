#!/usr/bin/env bash
# torch on a CPU: does the gradient of softmax depend on the number of threads?
#
# Guess before running: no. Rows are independent, each is summed by one thread in one order, and 64 rows of 20
# are too few to be shared among threads at all; so torch.set_num_threads changes no bit, as it changes none of
# softmax itself, of a matrix product or of a layer norm of this size.
#
# Seen (torch 2.13.0; the same with 2.11.0 and 2.14.1): the forward pass is the same bits with 1, 2 and 3 threads. The
# gradient is the same with 2 and 3, and another in the last bit with 1, in some of the rows, wherever a row is
# longer than the vector unit's 8 (AVX2) or 16 (AVX-512) numbers and no multiple of them. Without vector
# instructions, and for rows of 8 or 16, there is no difference. log_softmax (the usual loss) has none either.
#
# So a training with eager attention, or with dropout in scaled_dot_product_attention (whose CPU path is then
# softmax and dropout one by one), is not the same bits on a machine with one core and on one with several.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import torch

generator = torch.Generator().manual_seed(0)


def with_threads(count, call):
    torch.set_num_threads(count)
    return call()


for width in (8, 16, 20, 85):
    scores = torch.randn(64, width, generator=generator, requires_grad=True)
    grad = torch.randn(64, width, generator=generator)
    forward = [with_threads(n, lambda: scores.softmax(-1)) for n in (1, 2, 3)]
    backward = [
        with_threads(n, lambda: torch.autograd.grad(scores.softmax(-1), scores, grad)[0]) for n in (1, 2, 3)
    ]
    usual = [
        with_threads(n, lambda: torch.autograd.grad(scores.log_softmax(-1), scores, grad)[0]) for n in (1, 2, 3)
    ]
    one, two, three = backward
    rows = int((one != two).any(dim=1).sum())
    largest = float((one - two).abs().max())
    print(f"width {width}: gradient with 1 and 2 threads differs in {rows} of 64 rows, by {largest:.1e} at most")
    assert torch.equal(forward[0], forward[1]), "the forward pass depends on the threads"
    assert torch.equal(usual[0], usual[1]), "log_softmax depends on the threads"
    assert torch.equal(two, three), "2 and 3 threads differ"
    assert bool(rows) == (width not in (8, 16)), "another set of widths differs"
print(torch.__version__, torch.backends.cpu.get_cpu_capability())
PY
ATEN_CPU_CAPABILITY=avx2 "$room/venv/bin/python" "$room/seen.py"
