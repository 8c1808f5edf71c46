"""Prompts with pictures: the processor's own tokens and pixels, whatever a row stands beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pictures import PROCESSORS, WRITERS, pixel_tokenizer, tiny_writer_folder
from tiny_run import one_thread  # noqa: F401
from torch.testing import assert_close

from neuroada_cli import hub
from neuroada_cli.data.batch import IGNORED, Batch, Example, collate
from neuroada_cli.data.image_text import features_of_rows, joined
from neuroada_cli.data.images import Picture, decoded
from neuroada_cli.data.inputs import encode_for, features_for, prompts_for
from neuroada_cli.data.made_pictures import make_pictures
from neuroada_cli.errors import DataError
from neuroada_cli.hub.reader import Reader
from neuroada_cli.tasks import image_text
from neuroada_cli.tasks.instruct import habits_of
from neuroada_cli.tasks.notes import Notes
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.tasks.task import PROTOCOLS, Task, examples_of

ROWS = make_pictures("train", 3)


@pytest.fixture(scope="module", params=sorted(PROCESSORS))
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tiny_writer_folder(tmp_path_factory.mktemp("models") / request.param, request.param)
    return hub.load_reader(folder, "image-text-to-text", pictures=True)


def own(tokenizer: Any) -> Task:
    return image_text.shaped(get_task("image_text"), tokenizer, habits_of(None, PROTOCOLS["reft"]))


def examples(reader: Reader, rows: list[dict[str, Any]] = ROWS) -> list[Example]:
    return examples_of(own(reader.tokenizer), rows, "reft", "rows of a test")


def whole(reader: Reader, asked: str, answer: str, picture: Any) -> dict[str, Any]:
    """A row as the model's processor makes it for training; some take the answer apart."""
    if type(reader.processor).__name__ == "PaliGemmaProcessor":
        return dict(reader.processor(text=[asked], suffix=[answer], images=[[picture]]))
    return dict(reader.processor(text=[f"{asked}{answer}</s>"], images=[[picture]]))


def test_tokens_are_the_processors_and_only_the_answer_is_learnt(reader: Reader) -> None:
    found, report = encode_for(reader, examples(reader), 256)
    for row, encoded in zip(ROWS, found, strict=True):
        theirs = whole(
            reader, str(encoded.asked), f"{row['answer']}<end_of_utterance>", decoded(row["image"])
        )
        assert encoded.input_ids == list(theirs["input_ids"][0])
        learnt = [label for label in encoded.labels if label != IGNORED]  # type: ignore[union-attr]
        assert reader.tokenizer.decode(learnt) == f"{row['answer']}<end_of_utterance></s>"
        assert encoded.labels[: encoded.prompt] == [IGNORED] * int(encoded.prompt or 0)  # type: ignore[index]
        for name, values in encoded.told.items():
            assert values == list(theirs[name][0])
    assert report.targets == sum(len(row["answer"]) + 2 for row in ROWS)
    asked = prompts_for(reader, examples(reader))
    assert [row.input_ids for row in asked] == [row.input_ids[: row.prompt] for row in found]


def test_a_batch_has_the_pixels_that_the_processor_makes_of_it(reader: Reader) -> None:
    found, _ = encode_for(reader, examples(reader), 256)
    batch = collate(found, 0, features_for(reader))
    whole = [str(row.asked) for row in found]
    reader.tokenizer.pad_token = "<unk>"
    theirs = reader.processor(
        text=whole, images=[[decoded(row["image"])] for row in ROWS], return_tensors="pt", padding=True
    )
    texts = ("input_ids", "attention_mask", "labels")
    pixels = {name for name in theirs if name not in texts and not name.endswith("token_type_ids")}
    assert pixels == {name for name in batch.features if not name.endswith("token_type_ids")}
    for name in pixels:
        assert torch.equal(batch.features[name], theirs[name]), name


def test_rows_with_more_pictures_stand_beside_rows_with_fewer(reader: Reader) -> None:
    """One, two and none in a row: each row's logits are those that it has alone."""
    rows: list[dict[str, Any]] = [
        {"image": ROWS[0]["image"], "prompt": "What?", "completion": "red"},
        {"image": [ROWS[1]["image"], ROWS[2]["image"]], "prompt": "Same?", "completion": "no"},
    ]
    found, _ = encode_for(reader, examples(reader, rows), 256)
    features = features_of_rows(reader.processor)
    together = collate(found, 0, features)
    name = type(reader.processor).__name__
    model = WRITERS[
        next(kind for kind, (_, told, _) in PROCESSORS.items() if told["processor_class"] == name)
    ]()

    def logits(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return model(
                input_ids=batch.tokens_BS, attention_mask=batch.attention_BS, **batch.features
            ).logits

    at_once = logits(together)
    for at, row in enumerate(found):
        alone = logits(collate([row], 0, features))[0]
        assert_close(at_once[at, : len(row)], alone, rtol=1e-4, atol=1e-4)


def test_pixels_are_filled_up_with_zeros() -> None:
    found = joined([torch.ones(1, 2, 3), torch.ones(2, 1, 4)])
    assert found.shape == (3, 2, 4)
    assert float(found.sum()) == 6 + 8


def test_what_cannot_be_encoded_is_told(reader: Reader, tmp_path: Path) -> None:
    made = examples(reader)
    longest = max(len(row) for row in encode_for(reader, made, 256)[0])
    _, report = encode_for(reader, made, longest - 1)
    assert report.truncated >= 1
    kept, report = encode_for(reader, made, longest - 1, too_long="drop")
    assert len(kept) + report.dropped == 3
    with pytest.raises(DataError, match=r"3 of 3 rows have nothing to learn within data\.max_length=8"):
        encode_for(reader, made, 8)
    with pytest.raises(DataError, match="all 3 rows are longer"):
        encode_for(reader, made, 8, too_long="drop")
    broken = Example(made[0].prompt, "x", "x", 0, pictures=(Picture(b"no picture", None, "f.jsonl:3"),))
    with pytest.raises(DataError, match=r"f\.jsonl:3: image is none of"):
        encode_for(reader, [made[1], broken], 256)


def test_a_picture_that_changes_while_training_stops_the_run(reader: Reader, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(ROWS[0]["image"])
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"image": "a.png", "question": "What?", "answer": "red"}\n')
    made = examples_of(
        own(reader.tokenizer),
        [{"image": "a.png", "question": "What?", "answer": "red"}],
        "reft",
        str(rows),
        [1],
    )
    found, _ = encode_for(reader, made, 256)
    collate(found, 0, features_for(reader))
    file.write_bytes(ROWS[1]["image"])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: image has changed since it was checked"):
        collate(found, 0, features_for(reader))


# ---------------------------------------------------------------------------------------------------
# Talks


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{% for p in m['content'] %}"
    "{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def shaped(row: dict[str, Any]) -> Example:
    tokenizer = pixel_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return examples_of(own(tokenizer), [row], "reft", "f", [1])[0]


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"image": b"x", "question": "What?", "answer": "red"}, "user:<image>What?;assistant:", "red"),
        ({"image": [b"x", b"y"], "prompt": "P", "completion": "C"}, "user:<image><image>P;assistant:", "C"),
        (
            {"image": b"x", "conversations": [{"from": "human", "value": "<image>\nWhat?"},
                                              {"from": "gpt", "value": "red"}]},
            "user:<image>What?;assistant:", "red",
        ),
        (
            {"image": b"x", "conversations": [{"from": "human", "value": "What is\n<image>?"},
                                              {"from": "gpt", "value": "red"},
                                              {"from": "human", "value": "Sure?"},
                                              {"from": "gpt", "value": "yes"}]},
            "user:What is<image>?;assistant:red;user:Sure?;assistant:", "yes",
        ),
        (
            {"image": b"x", "messages": [{"role": "system", "content": "S"},
                                         {"role": "user", "content": "What?"},
                                         {"role": "assistant", "content": "red"}]},
            "system:S;user:<image>What?;assistant:", "red",
        ),
        (
            {"image": b"x", "messages": [
                {"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "image"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "red"}]}]},
            "user:What <image>;assistant:", "red",
        ),
        ({"images": [b"x"], "prompt": "P", "completion": "C"}, "user:<image>P;assistant:", "C"),
        ({"image": None, "prompt": "P", "completion": "C"}, "user:P;assistant:", "C"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
         "user:Hi;assistant:", "Ho"),
    ],
)  # fmt: skip
def test_rows_of_ones_own(row: dict[str, Any], prompt: str, answer: str) -> None:
    found = shaped(row)
    assert (found.prompt, found.answer) == (prompt, answer)
    assert (found.target, found.lead, found.end) == (f"{answer};", "", ";")
    assert len(found.pictures) == prompt.count("<image>")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": b"x", "label": "cat"}, "has no field 'question, prompt, messages or conversations'"),
        ({"image": b"x", "question": "What?"}, "has no field 'answer'"),
        ({"image": b"x", "question": "What?", "answers": []}, "answers holds something that is no text"),
        (
            {"image": b"x", "conversations": [{"from": "human", "value": "<image><image>?"},
                                              {"from": "gpt", "value": "no"}]},
            "places for 2 pictures, and it has 1",
        ),
        ({"image": b"x", "conversations": [{"from": "human", "value": "?"}]}, "last message is not"),
        ({"image": b"x", "messages": [{"role": "robot", "content": "?"}]}, "unknown role 'robot'"),
        (
            {"image": b"x", "messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "a message has a part of type 'video'",
        ),
        (
            {"image": b"x", "messages": [{"role": "user", "content": "?"},
                                         {"role": "assistant", "content": "<image>"}]},
            "the answer has a place for a picture",
        ),
    ],
)  # fmt: skip
def test_rows_that_are_no_talk_are_told(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"f:1: .*{said}"):
        shaped(row)


def test_a_prompt_that_opens_a_thought_is_learnt_and_asked_as_the_turn_is_written() -> None:
    tokenizer, notes = pixel_tokenizer(), Notes()
    tokenizer.chat_template = TEMPLATE.replace("%}assistant:{%", "%}assistant:(think){%")
    task = image_text.shaped(get_task("image_text"), tokenizer, habits_of(None, PROTOCOLS["reft"], notes))
    row = {"image": b"x", "question": "What?", "answer": "red"}
    [found] = examples_of(task, [row], "reft", "f", notes=notes)
    assert (found.prompt, found.target) == ("user:<image>What?;assistant:", "red;")
    assert any(line.startswith("the chat template asks with '(think)'") for line in notes.lines())


@pytest.mark.parametrize("answer", ["", " ", "</s>"])
def test_an_empty_answer_is_none_whatever_ends_the_turn(reader: Reader, answer: str) -> None:
    rows = [*ROWS, {"image": ROWS[0]["image"], "prompt": "What?", "completion": answer}]
    with pytest.raises(DataError, match=r"1 of 4 rows have no answer to learn \(the first is row 3\)"):
        encode_for(reader, examples(reader, rows), 256)


def test_a_processor_without_a_template_is_refused() -> None:
    with pytest.raises(DataError, match="has no chat template"):
        own(pixel_tokenizer())
