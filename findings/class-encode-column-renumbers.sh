#!/usr/bin/env bash
# datasets: class_encode_column on labels that are the numbers 0 to 10 already.
#
# Guess before running: the column becomes a ClassLabel and its numbers stay.
#
# Seen (datasets 5.2.0): numbers are made text and sorted as such, "10" before "2": 2 becomes 3, 9 becomes 10, 10
# becomes 2; of 100 classes 88 have another number. Up to ten classes from 0 on nothing moves; -1, as an unlabelled row
# has it, or labels from 1 on move all. And numbers are those of the values that are there: a test split that lacks
# class 1 of three encodes 2 as 1, by itself or within a DatasetDict, where the splits' features then differ.
#
# So a model trained on raw labels, or a file of predictions, is scored against other numbers, or one split against
# another. cast_column("label", ClassLabel(num_classes=11)) keeps numbers; strings are encoded by a
# ClassLabel(names=...) that is the same for all splits. (`neuroada` numbers classes itself, the same for every split.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet datasets==5.2.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import datasets
from datasets import ClassLabel, Dataset, DatasetDict

datasets.disable_progress_bars()


def labelled(values):
    return Dataset.from_dict({"label": values})


def encoded(values):
    return labelled(values).class_encode_column("label")["label"][:]


eleven = list(range(11))
print("0 to 10 ->", encoded(eleven), labelled(eleven).class_encode_column("label").features["label"].names)
assert encoded(eleven) == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 2]
moved = sum(number != came for number, came in enumerate(encoded(list(range(100)))))
print("of 100 classes with another number:", moved)
assert moved == 88
assert encoded(list(range(10))) == list(range(10))
print("[0, 1, 2, -1] ->", encoded([0, 1, 2, -1]), " [1, 2, 3] ->", encoded([1, 2, 3]))
assert encoded([0, 1, 2, -1]) == [1, 2, 3, 0] and encoded([1, 2, 3]) == [0, 1, 2]
both = DatasetDict(train=labelled([0, 1, 2]), test=labelled([0, 2])).class_encode_column("label")
print("train [0, 1, 2] ->", both["train"]["label"][:], " test [0, 2] ->", both["test"]["label"][:])
assert both["train"]["label"][:] == [0, 1, 2] and both["test"]["label"][:] == encoded([0, 2]) == [0, 1]
assert both["train"].features != both["test"].features
cast = labelled(eleven).cast_column("label", ClassLabel(num_classes=11))["label"][:]
print("cast_column ->", cast)
assert cast == eleven
print("datasets", datasets.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
