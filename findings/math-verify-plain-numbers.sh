#!/usr/bin/env bash
# math-verify, as graders of GSM8K and MATH use it: which number does it read in a plain one?
#
# Guess before running: whatever Python's float() reads, it reads as that number; beyond it, thousands with commas,
# percent, LaTeX, a mixed number like 3 1/2 as 3.5, and a minus sign from any keyboard.
#
# Seen (math-verify 0.9.0, sympy 1.14.0): an exponent is cut off (1e6 is 1, 2.5E-3 is 2.5), so that 1e6 and 1 are
# equal answers, and between dollars 1e6 is Euler's number times 6. 3 1/2 is 1, as if the 2 and the 3 were not
# there. Nothing at all is read from a number with the minus sign of typography, nor from -.5, while .5 is read.
# A comma before one digit is a decimal point, before three it is left out. 5! is 5.
#
# So a strict column has to write numbers out before it asks, on both sides; else a wrong answer counts as right.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet "math-verify[antlr4_13_2]==0.9.0" sympy==1.14.0
cat > "$room/seen.py" <<'PY'
import sympy
from math_verify import parse, verify

EXPECTED = {
    "1e6": 1, "2.5E-3": 2.5, "$1e6$": 6 * sympy.E, "3 1/2": 1, "\N{MINUS SIGN}5": None, "-5": -5, "-.5": None,
    ".5": 0.5, "0,5": 0.5, "1,000": 1000, "5!": 5,
}
for text, value in EXPECTED.items():
    found = parse(text)
    print(f"{text!a:12} {found[0] if found else 'nothing'}")
    assert bool(found) == (value is not None), text
    assert value is None or abs(float(found[0]) - float(value)) < 1e-9, text
assert verify(parse("1"), parse("1e6")), "1e6 does not pass for 1"
assert verify(parse("1"), parse("3 1/2")), "3 1/2 does not pass for 1"
PY
"$room/venv/bin/python" "$room/seen.py"
