#!/usr/bin/env bash
# A model folder with chat_template.jinja and with a chat_template in tokenizer_config.json, converted to GGUF.
#
# Guess before running: the GGUF gets the template that transformers uses, the file's.
#
# Seen (gguf 0.19.0, by which llama.cpp's converter reads it; transformers 5.23.0): transformers takes the file, gguf the
# entry, and neither says that there are two. A folder whose template was changed by writing chat_template.jinja beside
# an older model's configs is prompted in one way by transformers, and in another by llama.cpp.
#
# So a new template in a file needs the entry taken out. (`neuroada merge` takes it out where a run had a template of its
# own.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet gguf==0.19.0 transformers==5.23.0 tokenizers==0.23.3
cat > "$room/seen.py" <<'PY'
import importlib.metadata
import json
import pathlib
import sys

import transformers
from gguf.vocab import SpecialVocab
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

folder = pathlib.Path(sys.argv[1])
plain = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>").save_pretrained(folder)
stated = json.loads((folder / "tokenizer_config.json").read_text())


def read(entry, file):
    settings = stated | ({"chat_template": "entry"} if entry else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if file:
        (folder / "chat_template.jinja").write_text("file")
    return AutoTokenizer.from_pretrained(folder).chat_template, SpecialVocab(folder).chat_template


for entry, file, wanted in (
    (True, False, ("entry", "entry")), (False, True, ("file", "file")), (True, True, ("file", "entry")),
):
    found = read(entry, file)
    print(f"entry {entry}, file {file}: transformers {found[0]}, gguf {found[1]}")
    assert found == wanted
print("gguf", importlib.metadata.version("gguf"), "transformers", transformers.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" "$room/model" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
