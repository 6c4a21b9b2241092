"""Prompts end where the assistant turn begins, with one BOS; answers end with one eos."""

import pytest

from nrt_cli.errors import DataError, ModelError
from nrt_cli.text.prompts import DEFAULT_CHAT_TEMPLATE, closing_id, encode_answer, question_of, render_prompt

QUESTION = [{"role": "user", "content": "What is 3 plus 4?"}]


def test_the_default_template_ends_at_the_assistant_turn(tiny_tokenizer):
    assert (
        tiny_tokenizer.decode(render_prompt(tiny_tokenizer, QUESTION)) == "<|user|>\nWhat is 3 plus 4?\n<|assistant|>\n"
    )


@pytest.mark.parametrize("text", ["What is 3 plus 4?", "<|user|>\nHi\n", "", "\nOne line.\n"])
def test_the_question_is_found_in_its_prompt(text, tiny_tokenizer):
    ids = render_prompt(tiny_tokenizer, [{"role": "user", "content": text}])
    assert question_of(tiny_tokenizer, tiny_tokenizer.decode(ids)) == text
    assert question_of(tiny_tokenizer, f"Another: {text}") == f"Another: {text}"


def test_the_default_template_closes_earlier_assistant_turns_with_eos(tiny_tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        *QUESTION,
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "Why?"},
    ]
    ids = render_prompt(tiny_tokenizer, messages)
    assert tiny_tokenizer.decode(ids) == (
        "<|system|>\nBe brief.\n<|user|>\nWhat is 3 plus 4?\n<|assistant|>\n7<eos>\n<|user|>\nWhy?\n<|assistant|>\n"
    )
    assert ids.count(tiny_tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("template", [DEFAULT_CHAT_TEMPLATE, "{{ bos_token }}{{ messages[0]['content'] }}"])
def test_bos_is_written_once_even_where_the_tokenizer_adds_its_own(make_tiny_tokenizer, template):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tiny_tokenizer(template, bos_token="<bos>")
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    ids = render_prompt(tokenizer, QUESTION)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_no_template_names_the_remedy(make_tiny_tokenizer):
    with pytest.raises(ModelError, match="nrt model prepare"):
        render_prompt(make_tiny_tokenizer(None), QUESTION)


def test_a_template_that_refuses_is_one_sentence(make_tiny_tokenizer):
    tokenizer = make_tiny_tokenizer("{{ raise_exception('System role not supported') }}")
    with pytest.raises(DataError, match="refused the messages: System role not supported"):
        render_prompt(tokenizer, QUESTION)


LLAMA_3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim }}"
    "{{ '<|eot_id|>' }}{% endfor %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
    "{{ m['content'] + '<end_of_turn>\\n' }}{% endfor %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
)
LLAMA_2 = "{% for m in messages %}{{ '[INST] ' + m['content'] if m['role'] == 'user' else ' ' + m['content'] + ' ' + eos_token }}{% endfor %}"  # noqa: E501
NONE = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        (LLAMA_3, "<|eot_id|>"),
        (GEMMA, "<end_of_turn>"),
        (PHI, "<|end|>"),
        (LLAMA_2, "<eos>"),
        (DEFAULT_CHAT_TEMPLATE, "<eos>"),
        (NONE, "<eos>"),
        ("{{ raise_exception('no') }}", "<eos>"),
        (None, "<eos>"),
        # Ends turns with a token that does not end the model's answers.
        (LLAMA_3.replace("eot_id", "im_end"), "<eos>"),
    ],
)
def test_which_token_closes_the_assistants_turn(make_tiny_tokenizer, template, closing):
    tokenizer = make_tiny_tokenizer(template)
    stops = ["<eos>", "<|eot_id|>", "<end_of_turn>", "<|end|>"]
    tokenizer.add_tokens([*stops[1:], "<|im_end|>"], special_tokens=True)
    found = closing_id(tokenizer, tokenizer.convert_tokens_to_ids(stops))
    assert tokenizer.convert_ids_to_tokens(found) == closing


@pytest.mark.parametrize("text", ["7", "7<eos>", "  7\n", ""])
def test_an_answer_ends_with_one_eos(tiny_tokenizer, text):
    ids = encode_answer(tiny_tokenizer, text)
    assert ids.count(tiny_tokenizer.eos_token_id) == 1
    assert ids[-1] == tiny_tokenizer.eos_token_id
    assert tiny_tokenizer.decode(ids[:-1]) == text.removesuffix("<eos>")


def test_special_tokens_in_an_answer_stay_text(tiny_tokenizer):
    tiny_tokenizer.add_tokens(["<|think_end|>"], special_tokens=True)
    end_id = tiny_tokenizer.convert_tokens_to_ids("<|think_end|>")
    text = "a<eos>b<|think_end|>c"
    ids = encode_answer(tiny_tokenizer, text)
    assert end_id not in ids
    assert ids.count(tiny_tokenizer.eos_token_id) == 1
    assert tiny_tokenizer.decode(ids[:-1]) == text
    # and the tokenizer is left as it was
    assert tiny_tokenizer.encode("<|think_end|>", add_special_tokens=False) == [end_id]
