"""A page that shows which tokens are learnt; one file, nothing is loaded from elsewhere."""

from collections.abc import Sequence
from html import escape

from cappuccino.errors import counted
from cappuccino.runtime.data.inspection import InspectedDataset, ShownToken

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: .1em 1.2em .1em 0; text-align: left; }
.sample { font: 13px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  border: 1px solid #ccc; border-radius: 4px; padding: .6em; }
.t { border-radius: 3px; box-shadow: 0 0 0 1px #ddd; color: #666; }
.l { background: #cdeac0; color: #111; box-shadow: 0 0 0 1px #7fb069; font-weight: 600; }
""".strip()


def inspection_page(title: str, datasets: Sequence[InspectedDataset]) -> str:
    """Return a page of HTML with the counts of every data set and its samples, token by token.

    Parameters
    ----------
    title
        What was looked at.
    """
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        '<p><span class="t l">green</span> is learnt, <span class="t">grey</span> is only read. '
        "Point at a token to see its id.</p>",
    ]
    for dataset in datasets:
        parts.append(f"<h2>{escape(dataset.name)}</h2><p>{escape(dataset.source)}<br>{escape(dataset.ends)}</p><table>")
        for name, value in dataset.counts.items():
            parts.append(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>")
        parts.append("</table>")
        for number, sample in enumerate(dataset.samples):
            learnt = sum(token.learnt for token in sample)
            parts.append(f"<h3>Sample {number}: {counted(len(sample), 'token')}, {learnt} learnt</h3>")
            parts.append(f'<div class="sample">{"".join(map(_token, sample))}</div>')
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _token(token: ShownToken) -> str:
    text = escape(visible(token.text))
    return f'<span class="t{" l" if token.learnt else ""}" title="{token.id}">{text}</span>' + (
        "\n" if "\n" in token.text else ""
    )


def visible(text: str) -> str:
    """Return the text of a token with what cannot be seen replaced: line breaks, tabs, control characters, nothing."""
    if not text:
        return "∅"
    named = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in named)
