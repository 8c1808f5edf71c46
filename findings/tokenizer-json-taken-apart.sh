#!/usr/bin/env bash
# transformers: is a tokenizer.json read as it stands when tokenizer_config.json names the class LlamaTokenizer?
#
# Guess before running: yes. tokenizer.json is the whole fast tokenizer, the class only brings methods, and the text
# comes back whole; at worst a class that does not fit is warned of.
#
# Seen: up to transformers 5.21.1 the named class is built from the file's vocabulary and merges alone, with pieces of
# its own around them. Over a byte-level file (Llama 3's kind, which folders that name LlamaTokenizer or
# LlamaTokenizerFast do hold) every space is lost, silently: "a b" becomes the tokens of "a" and "b", where the file
# itself has three. From 5.22.0 on such a folder gets the tokenizer of the file, and a warning.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cat > "$room/seen.py" <<'PY'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

folder = Path(sys.argv[1])
made = Tokenizer(models.BPE(unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
made.decoder = decoders.ByteLevel()
special = ["<unk>", "<s>", "</s>"]
alphabet = pre_tokenizers.ByteLevel.alphabet()
made.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False))
made.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast"}))
loaded = AutoTokenizer.from_pretrained(folder)
ids = loaded("a b", add_special_tokens=False)["input_ids"]
print(type(loaded).__name__, "as the file" if ids == made.encode("a b").ids else "not as the file", repr(loaded.decode(ids)))
PY
for version in 5.17.0 5.21.1 5.22.0; do
  python3 -m venv "$room/$version"
  "$room/$version/bin/pip" install --quiet "transformers==$version" tokenizers==0.23.3 2> /dev/null
  mkdir "$room/model-$version"
  "$room/$version/bin/python" "$room/seen.py" "$room/model-$version" 2> /dev/null | sed "s/^/$version: /"
done | tee "$room/told"
diff "$room/told" - <<'SEEN'
5.17.0: LlamaTokenizer not as the file 'ab'
5.21.1: LlamaTokenizer not as the file 'ab'
5.22.0: TokenizersBackend as the file 'a b'
SEEN
