"""Tokenizers of letters with chat templates, and rows whose tokens are known beforehand."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] }}<|im_end|>{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_WITHOUT_END = MARKED_CHATML.replace(
    "{{ message['content'] }}<|im_end|>{% endgeneration %}", "{{ message['content'] }}{% endgeneration %}<|im_end|>"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
WITHOUT_REASONING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
    "{% if loop.last %}{{ message['content'] }}{% else %}{{ message['content'].split('</think>')[-1] }}{% endif %}"
    "<|im_end|>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EMPTY_THOUGHT_LAST = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}<think></think>{% endif %}{{ message['content'] }}"
    "<|im_end|>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_COUNT = "{{ messages | length }} " + CHATML  # as a date does, it changes what stands before everything
WITHOUT_PROMPT = CHATML.replace("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "")
WITHOUT_END = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MARKED_NO_END = (
    "{% for message in messages %}{{ message['role'] + ': ' }}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '\n' }}{% endgeneration %}{% else %}{{ message['content'] + '\n' }}{% endif %}{% endfor %}"
)
MARKED_IN_PARTS = MARKED_CHATML.replace(
    "{{ message['content'] }}<|im_end|>{% endgeneration %}",
    "{{ message['content'] }}{% endgeneration %}.{% generation %}<|im_end|>{% endgeneration %}",
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
WITH_TOOLS = "{% if tools %}{{ tools | length }} tools\n{% endif %}" + CHATML

SPECIAL = (
    "<s>",
    "</s>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
CHARACTERS = "\n !#,.:/0123456789?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz{}<>|'\""


def save_chat_tokenizer(path: Path, template: str | None, *, end: str | None = "</s>", merges: bool = False) -> Path:
    """Save a tokenizer with a token for every character, and for every special token.

    With `merges`, a space and the letter behind it are one token.
    """
    pieces = [*SPECIAL, *CHARACTERS]
    pairs = [(" ", letter) for letter in CHARACTERS if letter.isalpha()] if merges else []
    pieces += [a + b for a, b in pairs]
    core = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=pairs, unk_token="<pad>"))
    core.add_special_tokens(list(SPECIAL))
    if not merges:
        core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    marks = {"bos_token": "<s>", "eos_token": end, "pad_token": "<pad>", "unk_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=core, **marks)
    fast.chat_template = template
    fast.save_pretrained(path)
    return path


def words(ids: list[int], learnt: list[bool]) -> list[tuple[bool, str]]:
    """Return the text of tokens in runs that are learnt or not."""
    pieces = [*SPECIAL, *CHARACTERS]
    runs: list[tuple[bool, str]] = []
    for token, kept in zip(ids, learnt, strict=True):
        if runs and runs[-1][0] == kept:
            runs[-1] = (kept, runs[-1][1] + pieces[token])
        else:
            runs.append((kept, pieces[token]))
    return runs
