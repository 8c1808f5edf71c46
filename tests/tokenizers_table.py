"""Twelve tokenizers of the kinds that models bring, each made in milliseconds from a few sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "the soup was cold and the chair broke. Label: bad", "a lovely warm place. Label: good",
    "Below is an instruction that describes a task.", "  two  spaces\n\nline",
    "### Instruction:\nHow many?\n\n### Response:\nIt is 42.",
    "user assistant system model Answer yes no true false the correct answer is answer1",
    "What is 2 and 2? It is 4, not 1500 or -3.", "Good day, dear guest; welcome! (Ahoy) [end] <turn>",
] * 4  # fmt: skip
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
SIZE = 420
LLAMA3 = (  # splits digits by threes and takes a space in front of a word, as Llama 3 and Qwen do
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _made(tokenizer: Tokenizer, trainer: object) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False,
        unk_token="<unk>", bos_token="<s>", eos_token="</s>",
    )  # fmt: skip


def _with_start(tokenizer: Tokenizer, ended: bool = False) -> None:
    """A start token (and an end token) around every text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if ended else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )


def sentencepiece(scheme: str, start: bool = True, words: bool = True) -> PreTrainedTokenizerFast:
    """BPE over ▁ with bytes for the rest; scheme: where a space is put in front ("always", "first", "never").

    words  no token reaches into the next word
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=words)
    strip = [decoders.Strip(" ", 1, 0)] if scheme != "never" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    letters = [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE + 256, special_tokens=SPECIAL + letters, show_progress=False,
        initial_alphabet=["▁"],
    )  # fmt: skip
    made = _made(tokenizer, trainer)
    # the bytes are no special tokens, they only had to be in the vocabulary
    made = _without_added(made, letters)
    if start:
        _with_start(made.backend_tokenizer)
    return made


def _without_added(made: PreTrainedTokenizerFast, tokens: list[str]) -> PreTrainedTokenizerFast:
    state = json.loads(made.backend_tokenizer.to_str())
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["content"] not in tokens]
    return _wrapped(Tokenizer.from_str(json.dumps(state)))


def _in_order(made: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A unigram tokenizer with its tokens sorted.

    The library's trainer gives them in another order in every process, with scores that differ a little.
    """
    state = json.loads(made.backend_tokenizer.to_str())
    pieces = state["model"]["vocab"]
    state["model"]["vocab"] = pieces[: len(SPECIAL)] + sorted(
        [piece, round(score, 2)] for piece, score in pieces[len(SPECIAL) :]
    )
    return _wrapped(Tokenizer.from_str(json.dumps(state)))


def byte_level(
    prefix: bool = False,
    split: str | None = None,
    digits: bool = False,
    merges: int = SIZE,
    start: bool = False,
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    steps: list[object] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if split is not None:
        steps.append(pre_tokenizers.Split(Regex(split), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=merges, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made = _made(tokenizer, trainer)
    if start:
        _with_start(made.backend_tokenizer)
    return made


def wordpiece(lowercase: bool) -> PreTrainedTokenizerFast:
    """BERT's: drops spaces, and an uncased one also case and accents.

    Its vocabulary is written down (every letter, then every word of more than one), since the library's
    trainer finds other tokens in every process.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = {
        word for text in SENTENCES for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    }
    letters = sorted({letter for word in words for letter in word})
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *sorted(words - set(letters))]
    tokenizer = Tokenizer(
        models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    made = _wrapped(tokenizer)
    _with_start(made.backend_tokenizer, ended=True)
    return made


def unigram(ended: bool, normalised: bool = False) -> PreTrainedTokenizerFast:
    """T5's and ALBERT's kind; normalised: NFKC, and one space for many."""
    tokenizer = Tokenizer(models.Unigram())
    if normalised:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    made = _in_order(_made(tokenizer, trainer))
    if ended:
        _with_start(made.backend_tokenizer, ended=True)
    return made


MAKERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "SentencePiece, a space before every text": lambda: sentencepiece("always"),
    "SentencePiece, a space at the start": lambda: sentencepiece("first", words=False),
    "SentencePiece, no space in front": lambda: sentencepiece("never", start=False),
    "GPT-2": lambda: byte_level(),
    "RoBERTa": lambda: byte_level(prefix=True, start=True),
    "Llama 3": lambda: byte_level(split=LLAMA3, start=True),
    "SmolLM": lambda: byte_level(digits=True),
    "bytes": lambda: byte_level(merges=len(SPECIAL) + 256, start=True),
    "BERT uncased": lambda: wordpiece(lowercase=True),
    "BERT cased": lambda: wordpiece(lowercase=False),
    "Unigram": lambda: unigram(ended=False),
    "Unigram, normalised and ended": lambda: unigram(ended=True, normalised=True),
}
# those that give a text back as it was, letter by letter
EXACT = [name for name in MAKERS if not name.startswith(("BERT", "Unigram"))]


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    return MAKERS[name]()
