#!/usr/bin/env bash
# datasets: does it matter where in a JSONL file of chats the one row with a tool call stands?
#
# Guess before running: no. A key that other rows lack (tool_calls beside role and content) becomes a field of the
# struct, and the rows without it get None, wherever they stand; the order of rows decides only the order of fields.
#
# Seen (datasets 5.2.0, the newest when this was written): it decides whether the file loads at all. The type of the
# column is read off the first block of the file alone (10 MiB). Is the odd row in it, the column becomes the new
# Json type and every row comes back as it was written, without a None. Is it in a later block, the same rows end in
# DatasetGenerationError; so does a message's missing key, and a number that is whole in the first block and 0.5 in
# the second. One file of under 10 MiB loads; two of its copies, one after the other, may not.
#
# So a set of chats that loads today can fail after rows are appended, and shuffling it decides. What helps: the
# column's features given by hand, or `chunksize` larger than the file.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet datasets==5.2.0
cat > "$room/seen.py" <<'PY'
import json
import pathlib
import sys

import datasets

datasets.disable_progress_bars()
room = pathlib.Path(sys.argv[1])
plain = {"messages": [{"role": "user", "content": "q" * 500}, {"role": "assistant", "content": "a" * 500}]}
call = {"name": "clock", "arguments": {"zone": "UTC"}}
odd = {"messages": [plain["messages"][0], {"role": "assistant", "content": "", "tool_calls": [call]}]}


def load(name, rows, **settings):
    """The rows as they come back, or the name of the error."""
    file = room / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        loaded = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(room / name), **settings)
    except datasets.exceptions.DatasetGenerationError as error:
        return type(error).__name__
    return "equal" if [dict(row) for row in loaded] == rows else "changed"


many = [plain] * 11_000  # 12 MB
seen = {
    "odd row first": load("first", [odd, *many]),
    "odd row last": load("last", [*many, odd]),
    "odd row last, one block": load("one", [*many, odd], chunksize=32 << 20),
    "odd row last, small file": load("small", [*many[:1000], odd]),
    "whole numbers, then 0.5 late": load("number", [{"text": "x" * 1000, "score": 1}] * 11_000 + [{"text": "", "score": 0.5}]),
    "whole numbers, then 0.5 soon": load("soon", [{"text": "x", "score": 1}, {"text": "", "score": 0.5}]),
}
for what, came in seen.items():
    print(f"{what}: {came}")
failed = "DatasetGenerationError"
assert list(seen.values()) == ["equal", failed, "equal", "equal", failed, "equal"], "the behaviour has changed"
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" "$room" 2>/dev/null
