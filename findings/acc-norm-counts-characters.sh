#!/usr/bin/env bash
# Which lengths lm-evaluation-harness divides by for `acc_norm`, where choices are not all of one byte a character.
#
# Guess before running: by bytes, as its authors describe "byte-length normalized accuracy".
#
# Seen (lm_eval 0.4.13): by characters. Of choices in different scripts, or with and without accents, another one wins than
# by bytes; what divides by bytes is a metric of its own, `acc_bytes`, which tasks have to ask for. The space that is
# put before a choice is scored and not counted by either.
#
# So figures of `acc_norm` on other languages than English compare with others of the harness only.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet lm_eval==0.4.13 torch==2.13.0 transformers==5.23.0 accelerate==1.14.0
cat > "$room/seen.py" <<'PY'
import json
import pathlib
import sys

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

folder = pathlib.Path(sys.argv[1])
accented, plain = "ößüäé", "abcdefgh"  # 5 characters in 10 bytes; 8 in 8
worth = {f" {accented}": -10.0, f" {plain}": -12.0}  # 2 and 1.5 a character, 1 and 1.5 a byte
(folder / "rows.jsonl").write_text(json.dumps({"q": "Which?", "choices": [accented, plain], "gold": 1}) + "\n")
(folder / "two.yaml").write_text(f"""
task: two
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: q
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc}}
  - {{metric: acc_norm}}
  - {{metric: acc_bytes}}
""")
asked = []


class Fixed(LM):
    """Gives each choice the log-likelihood above."""

    def loglikelihood(self, requests):
        asked.extend(request.args[1] for request in requests)
        return [(worth[request.args[1]], False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        raise NotImplementedError


found = lm_eval.simple_evaluate(
    Fixed(), tasks=["two"], task_manager=TaskManager(include_path=str(folder), include_defaults=False)
)["results"]["two"]
scores = {name: found[f"{name},none"] for name in ("acc", "acc_norm", "acc_bytes")}
print("lm_eval", lm_eval.__version__, scores, "scored with the space:", asked)
assert asked == list(worth)
assert scores == {"acc": 0.0, "acc_norm": 1.0, "acc_bytes": 0.0}, "not by characters any more"
PY
HF_HOME="$room/hub" HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" "$room" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
