#!/usr/bin/env bash
# transformers and tokenizers: does one call with truncation change what save_pretrained writes?
#
# Guess before running: no. `tokenizer(text, truncation=True, max_length=2)` is an argument of that call; the saved
# tokenizer.json holds the tokenizer as it was loaded, and reading the folder again cuts nothing.
#
# Seen (transformers 5.23.0, tokenizers 0.23.2): the call leaves its settings in the tokenizer behind, and
# save_pretrained writes them: "truncation": {"max_length": 2, ...} and "padding": {"Fixed": 2} stand in
# tokenizer.json. Whoever reads that file with the tokenizers library, as servers and engines outside Python do,
# cuts every text to the last length a training script happened to use, without a word. AutoTokenizer does not: it
# sets both anew in every call. Calling it once more without the arguments before saving takes them out again.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.2
cat > "$room/seen.py" <<'PY'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

folder = Path(sys.argv[1]) / "saved"
words = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "blue": 2, "[PAD]": 3}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
text = "red blue red blue"


def saved_after(**arguments):
    """What the file says, and how many tokens three readers make of the text."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer(text)
    if arguments:
        tokenizer(text, **arguments)
    tokenizer.save_pretrained(folder)
    written = json.loads((folder / "tokenizer.json").read_text())
    raw = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text)
    length = written["truncation"] and written["truncation"]["max_length"]
    return length, len(raw.ids), len(AutoTokenizer.from_pretrained(folder)(text)["input_ids"])


plain = saved_after()
cut = saved_after(truncation=True, max_length=2)
padded = saved_after(padding="max_length", max_length=6)
print("no arguments:             ", plain)
print("truncation, max_length=2: ", cut)
print("padding to max_length=6:  ", padded)
assert plain == (None, 4, 4)
assert cut == (2, 2, 4), "a call's truncation is no longer saved"
assert padded == (None, 6, 4), "a call's padding is no longer saved"
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" "$room" 2>/dev/null
