"""Chats through twelve templates and twelve tokenizers: one text from the row to the score."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from templates_table import TEMPLATES, chat_tokenizer
from tokenizers_table import EXACT, MAKERS

from neuroada_cli.data.batch import IGNORED, Encoded, Example
from neuroada_cli.data.encoding import answer_in, encode, prompt_ids, without_turn_end
from neuroada_cli.data.seams import Coder
from neuroada_cli.errors import DataError
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.tasks.asking import asking
from neuroada_cli.tasks.chat import ChatRows, Learn
from neuroada_cli.tasks.chat_template import ChatTemplate, today
from neuroada_cli.tasks.conversation import conversation_of
from neuroada_cli.tasks.notes import Notes

DAY = datetime.date(2025, 3, 4)


def chats(tokenizer: Any, learn: Learn = "assistant", notes: Notes | None = None) -> ChatRows:
    return ChatRows(ChatTemplate(tokenizer, DAY, {}), learn, notes or Notes())


def talk(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]}


def made(
    tokenizer: Any, row: dict[str, Any], learn: Learn = "assistant", notes: Notes | None = None
) -> Example:
    return chats(tokenizer, learn, notes).example(conversation_of(row), 0)


def runs(encoded: Encoded, tokenizer: Any) -> list[str]:
    """The texts that are learnt, each run of tokens by itself."""
    coder, found, before = Coder(tokenizer), list[list[int]](), IGNORED
    assert isinstance(encoded.labels, list)
    for label in encoded.labels:
        if label != IGNORED:
            if before == IGNORED:
                found.append([])
            found[-1].append(label)
        before = label
    return [coder.decode(ids) for ids in found]


PIECES = [
    " ",
    "\n",
    "\n\n",
    "4",
    "bad",
    "good",
    " yes",
    "é",
    "[end]",
    "</s>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "{{ x }}",
    ":",
]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=2)), max_size=4).map("".join)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=60, deadline=None)
@given(template=st.sampled_from(sorted(TEMPLATES)), asked=TEXTS, answer=TEXTS)
@example(template="opens a thought", asked="2 and 2?", answer="4")
@example(template="spaced", asked="2 and 2?", answer="bad")
@example(template="DeepSeek R1", asked="", answer="(4")
def test_what_is_learnt_is_the_answer_as_the_template_writes_it_and_its_end(
    name: str, template: str, asked: str, answer: str
) -> None:
    tokenizer = chat_tokenizer(name, template)
    coder = Coder(tokenizer)
    row = made(tokenizer, talk(asked, answer))
    assert isinstance(row.answer, str)
    left = coder.as_written(row.answer).replace("</s>", "").strip()
    if not row.answer.replace("</s>", "").strip() or (name not in EXACT and not left):
        with pytest.raises(DataError, match="no answer to learn"):
            encode([row], tokenizer, 10_000)
        return
    rendered = ChatTemplate(tokenizer, DAY, {}).text(talk(asked, answer)["messages"])
    assert rendered.startswith(row.prompt + row.target)
    assert (rendered.removeprefix(row.prompt + row.target)).strip() == ""
    assert row.target == row.lead + row.target[len(row.lead) :]
    [encoded], report = encode([row], tokenizer, 10_000)
    [ids] = prompt_ids([row], tokenizer)
    assert encoded.input_ids[: encoded.prompt] == ids, "what is asked is what was trained"
    assert encoded.labels == [IGNORED] * len(ids) + encoded.input_ids[len(ids) :]
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    # a model that has learnt the row by heart writes just these tokens, up to the end
    end = next(n for n, token in enumerate(encoded.input_ids[len(ids) :]) if token == tokenizer.eos_token_id)
    written = coder.decode(encoded.input_ids[len(ids) :][:end])
    if "</think>" not in answer:
        assert row.answer == answer, "a template that writes it with other spaces changes no reference"
    if not report.ended:
        found, bare = answer_in(row, written).strip(), row.answer.strip().removesuffix("</s>")
        assert found in (bare.strip(), coder.as_written(bare).strip()) or name not in EXACT


TURNS = ("Hi?", "Hi.", "Why?", "So.")
ENDS = {
    "ChatML": ["Hi.<|im_end|>", "So.<|im_end|></s>"],
    "Llama 3": ["Hi.<|eot_id|>", "So.<|eot_id|></s>"],
    "Gemma": ["Hi.<end_of_turn>", "So.<end_of_turn></s>"],
    "Mistral": [" Hi.</s>", " So.</s>"],
    "GLM": ["Hi.", "So.</s>"],
    "DeepSeek R1": ["Hi.</s>", "So.</s>"],
    "Alpaca": ["Hi.</s>", "So.</s>"],
    "opens a thought": ["Hi.[end]", "So.[end]</s>"],
    "spaced": ["Hi.", "So.</s>"],
}


@pytest.mark.parametrize("template", ENDS)
def test_every_turn_of_the_assistant_is_learnt_with_its_end(template: str) -> None:
    tokenizer = chat_tokenizer("GPT-2", template)
    row = made(tokenizer, talk(*TURNS))
    assert row.apart == ()
    [encoded], _ = encode([row], tokenizer, 999)
    assert runs(encoded, tokenizer) == ENDS[template]
    [last], _ = encode([made(tokenizer, talk(*TURNS), "last")], tokenizer, 999)
    assert runs(last, tokenizer) == ENDS[template][1:]
    assert last.input_ids == encoded.input_ids
    [everything], _ = encode([row], tokenizer, 999, loss_on_prompt=True)
    assert everything.labels == everything.input_ids == encoded.input_ids


def test_the_end_of_a_turn_that_the_next_one_brings_is_learnt_with_it() -> None:
    """GLM's: the model stops at <|user|>, which its generation config names."""
    from neuroada_cli.hub import Endings

    tokenizer = chat_tokenizer("GPT-2", "GLM")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    tokenizer.endings = Endings(frozenset({2, user}))
    [encoded], _ = encode([made(tokenizer, talk(*TURNS))], tokenizer, 999)
    assert runs(encoded, tokenizer) == ["Hi.<|user|>", "So.</s>"]


def test_turns_that_the_template_writes_otherwise_later_are_rows_of_their_own() -> None:
    """Qwen3 writes a thought, if an empty one, in front of the last answer only, and expects it there."""
    tokenizer = chat_tokenizer("GPT-2", "Qwen3")
    row = made(tokenizer, talk("Hi?", "<think>\nA greeting.\n</think>\n\nHi.", "Why?", "So."))
    encoded, report = encode([row], tokenizer, 999)
    assert report.rows == 2
    assert [runs(each, tokenizer) for each in encoded] == [
        ["<think>\nA greeting.\n</think>\n\nHi.<|im_end|></s>"],
        ["<think>\n\n</think>\n\nSo.<|im_end|></s>"],
    ]
    assert "A greeting" not in tokenizer.decode(encoded[1].input_ids)
    assert [each.row for each in encoded] == [0, 0]
    [alone], _ = encode([made(tokenizer, talk(*TURNS), "last")], tokenizer, 999)
    assert alone == encoded[1]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_the_thought_beside_an_answer_is_learnt_where_the_template_writes_it(key: str) -> None:
    row = talk("2 and 2?", "4")
    row["messages"][1][key] = "Two more than two."
    notes = Notes()
    tokenizer = chat_tokenizer("GPT-2", "Qwen3")
    found = made(tokenizer, row, notes=notes)
    assert found.target == "<think>\nTwo more than two.\n</think>\n\n4<|im_end|>"
    assert answer_in(found, "<think>\nElse.\n</think>\n\n4<|im_end|>").strip() == "4"
    rows = chats(chat_tokenizer("GPT-2", "ChatML"))
    assert rows.example(conversation_of(row), 0).target == "4<|im_end|>"
    assert rows.unwritten() == [f"messages' {key}"]


# template -> how it may write a thought in front of an answer
OPENS = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}<think>\n{% endif %}"
    "{{ m['content'] }}[end]{% endfor %}{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
)
THOUGHTS = [
    "adding</think>\n\n{}", "a </think> {}", "</think>\n{}", "two\nlines\n</think>{}", "adding[/THINK]{}",
    "adding</thought>{}", "<think>adding</think>{}", "\n<think>\nadding\n</think>\n\n{}",
    "[THINK]adding[/THINK]{}", "<reasoning>adding</reasoning> {}",
    "adding `</think>`, \"</think>\" and </think>.\n</think>\n\n{}", "a lone ` of adding\n</think>\n{}",
]  # fmt: skip
# answers that speak of the tag
SPEAK = [
    "Close it with `</think>` first.", "It ends in `adding</think>` here.", 'Write "</think>" and go on.',
    "Write “</think>” and go on.", "Behind the tag </think>, the answer.", "There is </think>. Then go on.",
    "(as in </think>) 4", "```\nadding\n</think>\n\n4\n```\nshows it.", "Here: <think>a</think> b",
]  # fmt: skip


@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize("template", [*TEMPLATES, OPENS])
def test_the_answer_behind_a_thought_is_the_reference(template: str, thought: str) -> None:
    """With or without an opening tag, which servers leave out whose template opens the thought."""
    tokenizer = chat_tokenizer("GPT-2", template)
    row = made(tokenizer, talk("2 and 2?", thought.format("4")))
    assert isinstance(row.answer, str)
    assert row.answer == "4"
    assert answer_in(row, row.target).strip().removesuffix("</s>").strip() == "4"
    lead = row.lead.strip()
    closing = lead[max(lead.rfind("<"), lead.rfind("[")) :]
    for said, right in (("4", True), ("5", False)):
        own = row.target.replace("adding", "else", 1) if said == "4" else f"{lead}{said}{row.end}"
        assert (answer_in(row, own).strip().removesuffix("</s>").strip() == row.answer) is right
        if lead:
            other = f"of my own{closing}\n{said}{row.end}"
            assert (answer_in(row, other).strip() == row.answer) is right


@pytest.mark.parametrize("content", SPEAK)
def test_an_answer_that_speaks_of_the_closing_tag_is_the_reference_as_a_whole(content: str) -> None:
    row = made(chat_tokenizer("GPT-2", "ChatML"), talk("Hi?", content))
    assert (row.answer, row.lead) == (content, "")
    assert answer_in(row, row.target) == content


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "content",
    [*SPEAK, "a </think> b </think> c", "x <think>a</think> b", "see </think>", "<think>a", "hi  </think>  "],
)
def test_whatever_a_template_makes_of_an_answer_its_reproduction_is_right(
    template: str, content: str
) -> None:
    row = made(chat_tokenizer("GPT-2", template), talk("Hi?", content))
    assert isinstance(row.answer, str)
    written = row.target.removesuffix("</s>")
    assert answer_in(row, written).strip() == row.answer.strip()


def test_an_answer_that_a_template_writes_otherwise_is_compared_as_it_writes_it() -> None:
    other = '{% for m in messages %}[{{ m.role }}]{{ m.content | replace("i", "y") }}[end]{% endfor %}'
    row = made(chat_tokenizer("GPT-2", other), talk("Hi?", "hi."))
    assert row.answer == "hy."
    assert answer_in(row, row.target) == "hy."


def test_a_prompt_that_opens_a_thought_is_said_once() -> None:
    notes = Notes()
    tokenizer = chat_tokenizer("GPT-2", "opens a thought")
    rows = chats(tokenizer, notes=notes)
    for answer in ("4", "(four)"):
        row = rows.example(conversation_of(talk("2 and 2?", answer)), 0)
        assert (row.prompt, row.target) == ("[user]2 and 2?[end][assistant]", f"{answer}[end]")
    [line] = notes.lines()
    assert line.startswith("the chat template asks with '(think)', which no finished answer shows")
    assert line.endswith(": 2 rows")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_question_in_words_is_asked_as_it_was_trained(template: str) -> None:
    """Also where the template asks with more than a finished turn begins with."""
    tokenizer = chat_tokenizer("GPT-2", template)
    recipe = recipe_from({
        "name": "x", "model": {"path": "x"}, "data": {"task": "instruct", "format": "chat", "date": str(DAY)},
    })  # fmt: skip
    trained = made(tokenizer, talk("Hi?", "Hi.", "2 and 2?", "4"))
    way = asking(recipe, tokenizer)
    written = tokenizer.decode(tokenizer(f"4{trained.end}")["input_ids"], skip_special_tokens=True)
    assert without_turn_end(written, way.end).strip() == "4"  # as it is shown
    asked = way.example("2 and 2?", [("Hi?", "Hi.")])
    assert asked.prompt == trained.prompt
    assert prompt_ids([asked], tokenizer) == prompt_ids([trained], tokenizer)
    messages = [{"role": "user", "content": "2 and 2?"}]
    plain = ChatTemplate(tokenizer, today(), {}).text(messages, ask=True)
    assert asking(None, tokenizer).write("2 and 2?", (), "") == plain  # one that was not trained here


def test_what_a_template_makes_of_contents_is_said() -> None:
    thought = "<think>\nA greeting.\n</think>\n\nHi."
    notes = Notes()
    row = chats(chat_tokenizer("GPT-2", "DeepSeek R1"), notes=notes).example(
        conversation_of(talk("Hi?", thought)), 0
    )
    assert "A greeting" not in row.prompt + row.target
    assert "the chat template leaves out the thought in front of the answer: 1 row" in notes.lines()
    other = '{% for m in messages %}[{{ m.role }}]{{ m.content | replace("i", "y") }}[end]{% endfor %}'
    notes = Notes()
    made(chat_tokenizer("GPT-2", other), talk("Hi?", "hi."), notes=notes)
    assert notes.lines() == [
        "the chat template writes the answer otherwise than it stands in the row: 1 row",
        "the chat template writes user messages otherwise than in the row: 1 row",
    ]
    notes = Notes()
    for template in set(TEMPLATES) - {"DeepSeek R1"}:
        made(chat_tokenizer("GPT-2", template), talk("Hi? ", thought), notes=notes)
    assert not [line for line in notes.lines() if "otherwise" in line or "leaves out" in line]


PARIS = {"name": "weather", "arguments": {"city": "Paris", "at": None}}
CLOCK = {"name": "clock", "arguments": {"zone": "UTC"}}
WRITTEN = PARIS | {"arguments": json.dumps(PARIS["arguments"])}


def openai(call: Any, name: str = "tool_calls", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", name: call, **more}]}


def sharegpt(value: Any, role: str = "function_call") -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "?"}, {"from": role, "value": value}]}


# the same calls -> how rows write them
SAME_CALLS: list[list[dict[str, Any]]] = [
    [
        openai([{"type": "function", "function": PARIS}], content=None),
        openai([{"type": "function", "function": WRITTEN}]),
        openai([PARIS]), openai(json.dumps([PARIS])),
        openai(PARIS, "function_call", content=None), openai(WRITTEN, "function_call"),
        openai(WRITTEN, "function_call", tool_calls=None), openai(json.dumps(PARIS), "function_call"),
        sharegpt(json.dumps(PARIS)), sharegpt(json.dumps([PARIS])), sharegpt(PARIS), sharegpt([WRITTEN]),
        sharegpt(json.dumps(PARIS), "tool_call"),
    ],
    [
        openai([{"type": "function", "function": each} for each in (PARIS, CLOCK)], content=None),
        openai([WRITTEN, CLOCK]), sharegpt(json.dumps([PARIS, CLOCK])), sharegpt([PARIS, CLOCK]),
    ],
    [
        openai([{"type": "function", "function": CLOCK}], content="Let me see."),
        openai(CLOCK, "function_call", content="Let me see."),
    ],
]  # fmt: skip


@pytest.mark.parametrize("rows", SAME_CALLS, ids=["one", "parallel", "with words"])
def test_the_same_calls_are_learnt_however_rows_write_them(rows: list[dict[str, Any]]) -> None:
    tokenizer = chat_tokenizer("bytes", "Qwen3")
    wanted, *found = [made(tokenizer, row) for row in rows]
    assert wanted.target.count("<tool_call>") == (2 if rows is SAME_CALLS[1] else 1)
    assert found == [wanted] * len(found)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (sharegpt("weather(Paris)"), "function_call is text, and no JSON"),
        (sharegpt("[]"), "message 1 is a function_call, and names none"),
        (sharegpt('["weather"]'), "a call in function_call is no object"),
        (sharegpt("7"), "function_call is no list"),
        (openai([PARIS], function_call=CLOCK), "message 1 has both tool_calls and function_call"),
        (openai("none"), "tool_calls is text, and no JSON"),
    ],
)
def test_calls_that_are_none_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        conversation_of(row)


def test_calls_of_tools_are_learnt_as_the_template_writes_them() -> None:
    tool = {"name": "weather", "parameters": {"type": "object"}}
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo", "days": 0}'}}
    row = {
        "messages": [
            {"role": "user", "content": "How is Oslo?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "cold", "name": "weather"},
            {"role": "assistant", "content": "Cold."},
        ],
        "tools": [tool],
    }
    tokenizer = chat_tokenizer("GPT-2", "Qwen3")
    rows = chats(tokenizer)
    found = rows.example(conversation_of(row), 0)
    encoded, _ = encode([found], tokenizer, 999)
    learnt = [text for each in encoded for text in runs(each, tokenizer)]
    written = (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 0}}\n</tool_call><|im_end|>'
    )
    assert learnt == [f"<think>\n\n</think>\n\n{written}", "<think>\n\n</think>\n\nCold.<|im_end|></s>"]
    assert '"name": "weather", "parameters"' in found.prompt
    assert rows.unwritten() == ["messages' name"]
    # ShareGPT's way of saying the same
    turns = [
        ("human", "How is Oslo?"),
        ("function_call", '{"name": "weather", "arguments": {"city": "Oslo", "days": 0}}'),
        ("observation", "cold"), ("gpt", "Cold."),
    ]  # fmt: skip
    other = {"conversations": [{"from": r, "value": v} for r, v in turns], "functions": [tool]}
    assert rows.example(conversation_of(other), 0) == found


def test_content_in_parts_and_roles_that_a_template_does_not_know() -> None:
    notes, tokenizer = Notes(), chat_tokenizer("GPT-2", "ChatML")
    rows = chats(tokenizer, notes=notes)
    parts = [{"type": "text", "text": "2 and"}, " 2?"]
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts},
            {"role": "function", "name": "sum", "content": "4"},
            {"role": "assistant", "content": [{"type": "text", "text": "4"}]},
        ]
    }
    found = rows.example(conversation_of(row), 0)
    assert found.prompt.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 and 2?<|im_end|>\n"
    )
    assert "<|im_start|>tool\n4<|im_end|>" in found.prompt
    assert found.target == "4<|im_end|>"
    assert "the chat template knows no role developer, which becomes system: 1 row" in notes.lines()
    assert rows.unwritten() == ["messages' name"]


def test_messages_that_are_not_to_be_learnt() -> None:
    tokenizer = chat_tokenizer("GPT-2", "ChatML")
    for key, value in (("weight", 0), ("train", False), ("loss", False)):
        row = talk(*TURNS)
        row["messages"][1][key] = value
        row["messages"][3][key] = not value
        [encoded], _ = encode([made(tokenizer, row)], tokenizer, 999)
        assert runs(encoded, tokenizer) == ["So.<|im_end|></s>"]
        row["messages"][1][key], row["messages"][3][key] = not value, value
        [encoded], _ = encode([made(tokenizer, row)], tokenizer, 999)
        assert runs(encoded, tokenizer) == ["Hi.<|im_end|></s>"]
        assert "Why" not in tokenizer.decode(encoded.input_ids)
    for value, message in ((0.5, "only 0 and 1"), (0, "no message of the assistant is to be learnt")):
        row = talk("Hi?", "Hi.")
        row["messages"][1]["weight"] = value
        with pytest.raises(ValueError, match=message):
            made(tokenizer, row)


@pytest.mark.parametrize("at", [0, 1], ids=["user", "assistant"])
@pytest.mark.parametrize("system", [{}, {"system": "Be brief."}], ids=["", "system"])
def test_what_is_not_to_be_learnt_is_not_where_all_is(at: int, system: dict[str, str]) -> None:
    rows = chats(chat_tokenizer("GPT-2", "ChatML"), "all")
    row: dict[str, Any] = talk(*TURNS) | system
    rows.example(conversation_of(row), 0)
    row["messages"][at]["weight"] = 0
    with pytest.raises(
        ValueError, match=f"message {at + len(system)} is not to be learnt, and with data.learn"
    ):
        rows.example(conversation_of(row), 0)
    row["messages"][at]["weight"] = 1
    rows.example(conversation_of(row), 0)


def test_prompt_and_completion_as_lists_of_messages() -> None:
    tokenizer = chat_tokenizer("GPT-2", "ChatML")
    messages = talk(*TURNS)["messages"]
    row = {"prompt": messages[:3], "completion": messages[3:]}
    assert made(tokenizer, row) == made(tokenizer, {"messages": messages})
    assert made(tokenizer, row | {"completion": "So."}) == made(tokenizer, {"messages": messages})


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        ("Gemma", [("system", "Brief."), ("user", "a"), ("assistant", "b")], "refuses it: System role not"),
        ("{{ nothing.there.at.all }}", [("user", "a"), ("assistant", "b")], "refuses it"),
        ("{{ 1 / 0 }}", [("user", "a"), ("assistant", "b")], "refuses it: division by zero"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", [("user", "a"), ("assistant", "b")], "leaves"),
        (
            "{% for m in messages if m.role != 'tool' %}{{ m.content }}.{% endfor %}",
            [("user", "a"), ("tool", "seven"), ("assistant", "b")], r"leaves out message 1 \(tool\)",
        ),
        (
            "ChatML", [("user", "a"), ("assistant", ""), ("user", "c"), ("assistant", "d")],
            "message 1, which is to be learnt, is empty",
        ),
    ],
)  # fmt: skip
def test_what_a_template_does_not_take_or_write_is_refused(
    template: str, messages: list[tuple[str, str]], message: str
) -> None:
    row = {"messages": [{"role": role, "content": content} for role, content in messages]}
    with pytest.raises(ValueError, match=message):
        made(chat_tokenizer("GPT-2", template), row)


def test_a_template_that_needs_content_says_so_of_a_call() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    row = {"messages": [{"role": "user", "content": "1 and 1?"}, call]}
    plain = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="'content'; it writes no message without content, such as a call"):
        made(chat_tokenizer("GPT-2", plain), row)


@pytest.mark.parametrize("drawn", ["{{ ['a', 'b'] | random }}", "{% set x = lipsum(1) %}{{ x }}"])
def test_a_template_that_draws_at_random_is_refused(drawn: str) -> None:
    with pytest.raises(DataError, match="draws at random"):
        ChatTemplate(chat_tokenizer("GPT-2", drawn), DAY, {})
    ChatTemplate(chat_tokenizer("GPT-2", "a | random {{ messages[0].content }}"), DAY, {})


def test_a_template_is_told_the_day_of_the_run_in_english() -> None:
    tokenizer = chat_tokenizer("GPT-2", "Llama 3.2, dated")
    notes = Notes()
    found = made(tokenizer, talk("a", "b"), notes=notes)
    assert found.prompt.startswith("<s>[system]Today is 04 Mar 2025.[end]")
    assert notes.day
    computed = "{% set f = '%' ~ 'A' %}{{ strftime_now(f) }} {{ strftime_now('100%% %-d.%m.') }}"
    tokenizer.chat_template = computed
    assert ChatTemplate(tokenizer, DAY, {}).text([{"role": "user", "content": ""}]) == "Tuesday 100% 4.03."


@settings(max_examples=200, deadline=None)
@given(st.dates())
def test_the_day_is_written_as_strftime_writes_it(day: datetime.date) -> None:
    from neuroada_cli.tasks.chat_template import ESCAPES, day_parts

    first = datetime.datetime(max(day.year, 1000), day.month, min(day.day, 28))  # glibc pads no year below
    for sign, value in day_parts(first.date()).items():
        if sign not in ESCAPES:
            assert first.strftime(sign) == value, sign
