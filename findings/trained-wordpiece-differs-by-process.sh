#!/usr/bin/env bash
# tokenizers: does training on the same sentences give the same vocabulary in every process?
#
# Guess before running: yes. No trainer takes a seed, the sentences and their order are fixed, and with one thread there
# is nothing left that could vary.
#
# Seen (tokenizers 0.23.3, four processes, one thread, 32 short sentences, room for every word): BPE gives the same tokens
# with the same numbers each time. WordPiece gives other *tokens* in each process, not only other numbers. Unigram gives
# the same tokens in another order, with scores that differ in the fourth digit.
#
# So a model whose WordPiece or Unigram tokenizer is trained again has an embedding whose rows mean something else: the
# tokenizer of a run is a file to be kept, not a recipe to be repeated; and a test that trains one is another test in
# every process.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet tokenizers==0.23.3
cat > "$room/train.py" <<'PY'
import json
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SENTENCES = [
    "a harbour in the morning, and nobody at the quay",
    "the harbourmaster counted boats and wrote the counts down",
    "she mended nets; he was mending sails",
    "boats, sails and nets: nothing else was counted",
] * 8
KINDS = {
    "BPE": (models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)),
    "WordPiece": (
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False),
    ),
    "Unigram": (
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    ),
}
found = {}
for name, (model, trainer) in KINDS.items():
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(SENTENCES, trainer)
    found[name] = tokenizer.get_vocab()
json.dump(found, sys.stdout)
PY
for n in 1 2 3 4; do
    RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false "$room/venv/bin/python" "$room/train.py" > "$room/$n.json"
done
cat > "$room/seen.py" <<'PY'
import json
import sys

runs = [json.load(open(path)) for path in sys.argv[1:]]
for name in runs[0]:
    tokens = len({tuple(sorted(run[name])) for run in runs})
    numbers = len({tuple(sorted(run[name].items())) for run in runs})
    print(f"{name}: {tokens} sets of tokens and {numbers} numberings in {len(runs)} processes")
    assert (tokens > 1) == (name == "WordPiece"), f"{name}: the tokens behave otherwise"
    assert (numbers > 1) == (name != "BPE"), f"{name}: the numbers behave otherwise"
PY
"$room/venv/bin/python" "$room/seen.py" "$room"/[1-4].json
