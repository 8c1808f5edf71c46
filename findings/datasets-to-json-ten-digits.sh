#!/usr/bin/env bash
# datasets: a column of floats is written with to_json and read again.
#
# Guess before running: the same numbers, as json.dumps writes them.
#
# Seen (datasets 5.2.0): to_json writes ten digits after the point, as pandas does, whose writer it is: 1e-12 becomes
# 0.0, 1/3 is 0.3333333333, and 1.23456789e-5 has six digits left; what is far too large or small for that, 1e300 and
# 1e-300, is written in full. double_precision=15 is the most that it takes, and loses as well. Infinity and NaN become
# null. to_csv writes all digits, and to_parquet the numbers themselves.
#
# So small probabilities are 0 in such a file, and no logit or weight is what it was, without a word. json.dumps of each
# row, or Parquet, keeps them. (`neuroada` writes its own files with json.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet datasets==5.2.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import io
import json
import math

import datasets
import pandas
from datasets import Dataset

datasets.disable_progress_bars()


def written(values, **settings):
    file = io.BytesIO()
    Dataset.from_dict({"x": values}).to_json(file, **settings)
    return [json.loads(line)["x"] for line in file.getvalue().decode().splitlines()]


values = [1e-12, 1.23456789e-5, 1 / 3, 0.1 + 0.2, 1e300, 1e-300, 0.5]
came = written(values)
for value, found in zip(values, came, strict=True):
    print(f"{value!r} -> {found!r}")
assert came == [0.0, 0.0000123457, 0.3333333333, 0.3, 1e300, 1e-300, 0.5]
most = written(values, double_precision=15)
print("double_precision=15:", most)
assert most[0] == 1e-12 and most[2] != values[2] and most[3] != values[3]
try:
    written(values, double_precision=17)
except ValueError as error:
    print("double_precision=17:", error)
else:
    raise AssertionError
assert written([math.inf, math.nan]) == [None, None]
table = io.BytesIO()
Dataset.from_dict({"x": values}).to_csv(table)
assert [float(line) for line in table.getvalue().decode().split()[1:]] == values
parquet = io.BytesIO()
Dataset.from_dict({"x": values}).to_parquet(parquet)
assert pandas.read_parquet(io.BytesIO(parquet.getvalue()))["x"].tolist() == values
print("datasets", datasets.__version__, "pandas", pandas.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
