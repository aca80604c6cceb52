"""Chats as tokens: rendered by the tokenizer's chat template, with what the assistant says found in them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cappuccino.runtime.encoding.forms import Chat, LossOn, RowError

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ASSISTANT = "assistant"
_TEMPLATE = "give a tokenizer whose chat template"
_PLAIN_KEYS = {"role", "content", "weight", "name"}


@dataclass(frozen=True)
class EncodedChat:
    """The tokens of a chat."""

    ids: list[int]
    learnt: list[bool]
    """By token."""
    ended: bool
    """Whether nothing is missing at the end: what the assistant says last has an end, or it says nothing there."""


@dataclass(frozen=True)
class _Rendered:
    text: str
    ids: list[int]


class ChatTemplate:
    """Renders chats by a tokenizer's chat template and finds the tokens of the assistant.

    Where the template marks them (`{% generation %}`), its word counts. Elsewhere a turn begins where the messages
    before it, rendered with the prompt for an answer, end, and this rendering must begin that of the whole chat, token
    by token. Either way a turn is learnt up to its end token, and what the template writes behind that is not.

    Parameters
    ----------
    tokenizer
        Of transformers, with a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        templates = template.values() if isinstance(template, dict) else [template]
        self.marks_the_assistant = any(_MARKS.search(t) for t in templates)
        """Whether the template says itself what the assistant generates."""
        self.reads_tools = isinstance(template, dict) or any("tools" in t for t in templates)
        """Whether the template has a place for descriptions of tools."""
        self.tells_the_date = any("strftime_now" in t for t in templates)
        """Whether samples depend on the day they are rendered."""
        self._added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}

    def encode(self, chat: Chat, loss_on: LossOn) -> EncodedChat:
        """Return the tokens of a chat, and which are learnt.

        Raises
        ------
        RowError
            When the template refuses the chat, or what the assistant says cannot be told from the rest.
        """
        if chat.tools and not self.reads_tools:
            raise RowError("tools are given, and the chat template has no place for them", f"{_TEMPLATE} reads tools")
        last_is_assistant = chat.messages[-1]["role"] == _ASSISTANT
        whole = self._render(chat, len(chat.messages))
        ended = not last_is_assistant or self._end(whole.ids) is not None
        if loss_on is LossOn.ALL:
            return EncodedChat(whole.ids, [True] * len(whole.ids), ended)
        turns = [i for i, message in enumerate(chat.messages) if message["role"] == _ASSISTANT]
        wanted = [i for i in turns if i >= chat.first and chat.messages[i].get("weight", 1)]
        spans = self._marked(chat, whole, turns, wanted) if self.marks_the_assistant else None
        if spans is None:
            spans = [self._span(chat, whole, i) for i in wanted]
        learnt = [False] * len(whole.ids)
        for begin, end in spans:
            learnt[begin:end] = [True] * (end - begin)
        return EncodedChat(whole.ids, learnt, ended)

    def _render(self, chat: Chat, count: int, prompt: bool = False) -> _Rendered:
        """Return the first messages, where asked for with the prompt for an answer."""
        text = self._applied(chat, count, tokenize=False, add_generation_prompt=prompt)
        return _Rendered(text, list(self._tokenizer(text, add_special_tokens=False)["input_ids"]))

    def _applied(self, chat: Chat, count: int, **how: Any) -> Any:
        messages = [{k: v for k, v in m.items() if k != "weight"} for m in chat.messages[:count]]
        try:
            return self._tokenizer.apply_chat_template(messages, tools=chat.tools, **how, **chat.options)
        except Exception as error:  # templates and their engine raise whatever they like
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            roles = ", ".join(m["role"] for m in messages[:6]) + (", ..." if count > 6 else "")
            problem = f"the chat template refuses the messages ({roles}): {reason}"
            raise RowError(problem, "correct the row, or give a tokenizer with a template that takes it") from error

    def _end(self, ids: Sequence[int]) -> int | None:
        """Return the position of the token that ends a rendering, white space behind it left aside; None for none."""
        for k in range(len(ids) - 1, -1, -1):
            if self._tokenizer.decode([ids[k]]).strip():
                return k if ids[k] in self._added else None
        return None

    def _span(self, chat: Chat, whole: _Rendered, turn: int) -> tuple[int, int]:
        """Return where the tokens of an assistant message begin, and where behind its end token they end."""
        if turn == 0:
            problem = "begins with an assistant message, and nothing says where the template begins it"
            raise RowError(problem, "put a system or user message before it")
        before = self._render(chat, turn, prompt=True)
        if not _begins(whole.ids, before.ids):
            raise self._unstable(turn, whole.ids, before.ids)
        begin, last = len(before.ids), turn == len(chat.messages) - 1
        content = str(chat.messages[turn].get("content", "")).strip()
        if not whole.text[len(before.text) :].lstrip().startswith(content):
            unasked = self._render(chat, turn)
            if unasked.text == before.text:
                problem = f"the chat template knows no add_generation_prompt: where message {turn} begins is not known"
                raise RowError(problem, f"{_TEMPLATE} has one, or marks the assistant by {{% generation %}}")
        until = whole if last else self._render(chat, turn + 1)
        end = self._end(until.ids)
        if end is None or end < begin:
            if last:
                return begin, len(whole.ids)  # an end-of-sequence token is put behind it
            raise _no_end(turn)
        if _begins(whole.ids, until.ids[: end + 1]):
            return begin, end + 1
        later = self._later_end(chat, whole, before, turn, until.ids[end])
        if later is None:
            raise self._unstable(turn, whole.ids, until.ids)
        return begin, later + 1

    def _later_end(self, chat: Chat, whole: _Rendered, before: _Rendered, turn: int, end: int) -> int | None:
        """Return the end of a message that is rendered otherwise once others follow, but with all that it says.

        So some templates put an empty line of thought before the last answer only. The content must stand in the
        rendering, and hold no end token itself: then the first one behind its beginning is its own.
        """
        message = chat.messages[turn]
        content, mark = message.get("content", "").strip(), self._tokenizer.convert_ids_to_tokens(end)
        if not content or mark in content or not message.keys() <= _PLAIN_KEYS:
            return None
        said, found, _ = whole.text[len(before.text) :].partition(mark)
        if not whole.text.startswith(before.text) or not found or content not in said:
            return None
        return whole.ids.index(end, len(before.ids))

    def _unstable(self, turn: int, whole: Sequence[int], part: Sequence[int]) -> RowError:
        at = next((k for k, (a, b) in enumerate(zip(whole, part, strict=False)) if a != b), min(len(whole), len(part)))
        shown = self._tokenizer.decode(list(part[max(0, at - 2) : at + 3]))
        problem = (
            f"the chat template does not render the messages up to message {turn} alike alone and in the whole chat "
            f"(token {at}, near {shown!r}): which tokens the assistant says is not known"
        )
        remedy = (
            "give a tokenizer whose template marks them by {% generation %} ... {% endgeneration %}, make every answer "
            "the last message of a row of its own, or set loss_on to all"
        )
        return RowError(problem, remedy)

    def _marked(
        self, chat: Chat, whole: _Rendered, turns: Sequence[int], wanted: Sequence[int]
    ) -> list[tuple[int, int]] | None:
        """Return the spans that the template marks, each with its end token; None where it marks none of any turn."""
        found = self._applied(chat, len(chat.messages), return_dict=True, return_assistant_tokens_mask=True)
        if list(found["input_ids"]) != whole.ids:
            raise RowError("the chat template renders the messages otherwise each time", f"{_TEMPLATE} does not")
        runs = _runs(found["assistant_masks"])
        if not runs and wanted:
            return None
        if len(wanted) < len(turns):
            if len(runs) != len(turns):
                problem = f"the chat template marks {len(runs)} parts of {len(turns)} assistant messages"
                raise RowError(problem, f"{_TEMPLATE} marks each, or learn all of them")
            runs = [run for run, turn in zip(runs, turns, strict=True) if turn in wanted]
        if not runs:
            return []
        until = self._render(chat, turns[0] + 1)
        at = self._end(until.ids)
        mark = None if at is None else until.ids[at]
        following = [*(begin for begin, _ in runs[1:]), len(whole.ids)]
        return [
            self._with_end(run, whole.ids, mark, until_next) for run, until_next in zip(runs, following, strict=True)
        ]

    def _with_end(self, run: tuple[int, int], ids: Sequence[int], mark: int | None, following: int) -> tuple[int, int]:
        """Return a span with its end token, which some templates leave outside of their mark.

        Parameters
        ----------
        following
            Where the next span begins, or the chat ends.
        """
        begin, end = run
        inside = self._end(ids[begin:end])
        if mark is not None and inside is not None and ids[begin + inside] == mark:
            return begin, begin + inside + 1
        behind = end
        while behind < len(ids) and ids[behind] != mark and not self._tokenizer.decode([ids[behind]]).strip():
            behind += 1
        if behind < len(ids) and ids[behind] == mark:
            return begin, behind + 1
        same_turn = mark is not None and following < len(ids) and mark not in ids[end:following]
        if behind == len(ids) or same_turn:
            return run  # an end-of-sequence token is put behind it, or the next span goes on with the turn
        raise _no_end(None)


def _no_end(turn: int | None) -> RowError:
    which = "a message of the assistant" if turn is None else f"assistant message {turn}"
    problem = f"the chat template puts no end token behind {which}: the adapter would not learn where to stop"
    return RowError(problem, f"{_TEMPLATE} ends every turn with a special token, or set loss_on to all")


def _begins(ids: Sequence[int], part: Sequence[int]) -> bool:
    return list(ids[: len(part)]) == list(part)


def _runs(mask: Sequence[int]) -> list[tuple[int, int]]:
    """Return where runs of ones begin and end."""
    edges = [0, *(1 if m else 0 for m in mask), 0]
    changes = [k for k in range(len(edges) - 1) if edges[k] != edges[k + 1]]
    return list(zip(changes[::2], changes[1::2], strict=True))
