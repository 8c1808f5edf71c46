#!/usr/bin/env bash
# datasets: a column of numbers is written anew by map, under its own name, as strings: 7 -> "007".
#
# Guess before running: the column holds the strings that the function returned.
#
# Seen (datasets 5.2.0): it holds the numbers 7 and 42 of before. A column that keeps its name is cast back to the type
# that it had wherever that works: "007" to 7, "0x10" to 16, "1.50" to 1.5, "true" to True, True to 1, and the int 2 in
# a column of truth values to True. batched and remove_columns do not change it, and lists are cast likewise. Whether it
# works is asked once, of the first rows that are written (1000, unless writer_batch_size says otherwise): where one of
# these cannot be read as the old type ("unknown", 3.5 for an int) the whole column takes the new one; where the first
# such row comes later, map ends in an ArrowInvalid. From strings to numbers a column changes as one would expect. A
# stream (to_iterable_dataset) casts nothing.
#
# So what changes its type goes under a new name, or map is told: features=. (`neuroada` reads its rows without it.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet datasets==5.2.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import datasets
from datasets import Dataset, Features, Value

datasets.disable_progress_bars()
NUMBERS = [7, 42]


def mapped(values, new, **settings):
    return Dataset.from_dict({"x": values}).map(lambda row: {"x": new(row["x"])}, **settings)


def padded(number):
    return f"{number:03d}"


for values, new, found, kind in (
    (NUMBERS, padded, NUMBERS, "int64"),
    ([7], lambda _: "0x10", [16], "int64"),
    ([0.5, 1.5], lambda number: f"{number:.2f}", [0.5, 1.5], "float64"),
    ([True, False], lambda truth: str(truth).lower(), [True, False], "bool"),
    ([True, False], lambda truth: int(truth) + 1, [True, True], "bool"),
    ([1, 0], bool, [1, 0], "int64"),
    ([[1, 2], [3]], lambda row: [padded(number) for number in row], [[1, 2], [3]], "int64"),
    # what the old type cannot hold, and strings
    (NUMBERS, lambda number: "yes" if number > 9 else "no", ["no", "yes"], "string"),
    (NUMBERS, lambda number: number / 2, [3.5, 21.0], "float64"),
    (["007", "42"], int, NUMBERS, "int64"),
):
    came = mapped(values, new)
    print(f"{values} -> {[new(value) for value in values]}: {came['x'][:]}, {came.features['x']}")
    assert came["x"][:] == found and kind in str(came.features["x"])
    assert [type(value) for value in came["x"]] == [type(value) for value in found]
assert mapped(NUMBERS, padded, remove_columns=["x"])["x"][:] == NUMBERS
whole = Dataset.from_dict({"x": NUMBERS})
assert whole.map(lambda rows: {"x": [padded(n) for n in rows["x"]]}, batched=True)["x"][:] == NUMBERS


def or_unknown(number):
    return padded(number) if number >= 0 else "unknown"


many = list(range(1000))
first = mapped([-1, *many], or_unknown)
print("a row that is no number comes first:", first["x"][:2], first.features["x"])
assert first["x"][:2] == ["unknown", "000"]
for values, new in (([*many, -1], or_unknown), ([2 * number for number in [*many, 0.5]], lambda number: number / 2)):
    try:
        late = mapped([int(value) for value in values], new)
    except Exception as error:
        print("it comes after the first 1000:", type(error).__name__, error)
        assert type(error).__name__ == "ArrowInvalid"
    else:
        raise AssertionError(late.features)
told = mapped(NUMBERS, padded, features=Features({"x": Value("string")}))
named = whole.map(lambda row: {"y": padded(row["x"])})
streamed = [row["x"] for row in whole.to_iterable_dataset().map(lambda row: {"x": padded(row["x"])})]
print("told:", told["x"][:], "another name:", named["y"][:], "streamed:", streamed)
assert told["x"][:] == named["y"][:] == streamed == ["007", "042"]
print("datasets", datasets.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
