"""What is said of data that were read, in words."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cappuccino.runtime.data.reading import ReadingReport


def form_and_loss(report: ReadingReport) -> str:
    """Return what the rows are and what of them is learnt."""
    rule = {None: "what the rows say", "all": "all tokens", "completion": "the completion"}
    learnt = rule.get(report.loss_on, "what the assistant says")
    return f"rows of {report.form}, loss on {learnt} ({report.loss_tokens} of {report.tokens} tokens)"


def left_out(report: ReadingReport, longest: int | None = None) -> str:
    """Return how many rows were dropped or left out; empty for none.

    Parameters
    ----------
    longest
        Given, also how many samples were cut to it.
    """
    parts = [
        (report.dropped, "too long and dropped"),
        (report.empty, "empty"),
        (report.unlearnt, "without a token to learn from"),
    ]
    if longest is not None:
        parts.insert(0, (report.cut, f"cut to {longest} tokens"))
    return ", ".join(f"{number} {what}" for number, what in parts if number)


def unused(columns: Sequence[str]) -> str:
    """Return which columns are not used; empty for none."""
    return f"not used: {', '.join(columns)}" if columns else ""


def edges(report: ReadingReport, tokenizer: Any) -> dict[str, dict[str, int]]:
    """Return how many samples begin and end with which special token; white space behind an end does not count.

    Parameters
    ----------
    tokenizer
        Of transformers; a token is special that was added to its vocabulary.
    """
    special = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    begins: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for token, many in report.first.items():
        if token in special:
            begins[tokenizer.convert_ids_to_tokens(token)] += many
    for pair, many in report.last.items():
        token = pair[-1] if len(pair) == 1 or tokenizer.decode([pair[-1]]).strip() else pair[0]
        if token in special:
            ends[tokenizer.convert_ids_to_tokens(token)] += many
    return {"begin": dict(begins.most_common()), "end": dict(ends.most_common())}


def edges_in_words(report: ReadingReport, tokenizer: Any) -> str:
    """Return a sentence on the special tokens at the ends of samples, which teach an adapter where to stop."""
    found, parts = edges(report, tokenizer), []
    for token, many in found["begin"].items():
        parts.append(f"{many} of {report.samples} samples begin with {token}")
    for token, many in found["end"].items():
        parts.append(f"{many} of {report.samples} samples end with {token}")
    if not found["end"] and tokenizer.eos_token is not None:
        parts.append(f"0 of {report.samples} samples end with {tokenizer.eos_token}")
    elif not found["end"]:
        parts.append("the tokenizer has no end-of-sequence token: adapters do not learn where to stop")
    return ", ".join(parts)
