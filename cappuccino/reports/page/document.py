"""The page as a whole: one file of HTML with its styles, scripts and data inside."""

from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from cappuccino.reports.page import figures, summary
from cappuccino.reports.page.colours import adapter_colours
from cappuccino.reports.page.contents import PageContents
from cappuccino.reports.page.operations import KINDS

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$style</style>
$resources
</head>
<body>
<header><h1>$title</h1><button id="switch" title="light or dark">dark</button></header>
$body
$data
<script>$script</script>
</body>
</html>
""")
_KEYS = {
    "F": "opacity:.5",
    "B": "",
    "E": "opacity:.9;background:#3b82c438;border-color:#888",
    "S": "border-color:#888;width:8px",
}
"""How the kinds of operations look beside their names."""


def report_page(contents: PageContents) -> str:
    """Return the page as HTML; it loads nothing from anywhere.

    Raises
    ------
    ModuleNotFoundError
        Without the package bokeh.
    """
    from bokeh.embed import components  # noqa: PLC0415
    from bokeh.resources import Resources  # noqa: PLC0415

    plots = figures.make_figures(contents)
    data, places = components(plots)
    here = files(__package__)
    return _PAGE.substitute(
        title=f"Plan of {escape(contents.plan.instance.name)}",
        style=(here / "page.css").read_text(encoding="utf-8"),
        script=(here / "page.js").read_text(encoding="utf-8"),
        resources=Resources(mode="inline", components=["bokeh", "bokeh-gl"]).render(),
        body=_body(contents, places),
        data=data,
    )


def _body(contents: PageContents, places: dict[str, Any]) -> str:
    parts = ["<h2>What was asked</h2>", summary.asked(contents)]
    parts += ["<h2>What came out</h2>", summary.outcome(contents)]
    parts += ["<h2>Who shares which GPUs</h2>", _ALLOCATION_HINT, summary.allocation(contents)]
    hint = _SAVINGS_HINT if summary.knows_savings(contents) else ""
    parts += ["<h2>Adapters</h2>", hint, summary.adapter_table(contents)]
    parts += ["<h2>Every stage over time</h2>", _TIMELINE_HINT, _filters(contents), places["predicted"]]
    if "measured" in places:
        parts.append(places["measured"])
    parts += ["<h2>Memory over time</h2>", _memory_choice(contents), places["memory"]]
    parts += ["<h2>Bubble, memory and padding by stage</h2>", summary.stage_table(contents)]
    if "losses" in places:
        parts += ["<h2>Losses</h2>", _LOSSES_HINT, places["losses"]]
    if "search" in places:
        parts += ["<h2>How the plan was found</h2>", _SEARCH_HINT, places["search"]]
    return "\n".join(parts)


_ALLOCATION_HINT = (
    '<p class="hint">A box is a GPU with one pipeline stage, filled as far as its memory is at the peak. The bar below '
    "shows the adapters that share the replica, each as wide as its part of the tokens.</p>"
)
_SAVINGS_HINT = (
    '<p class="hint">Alone: the best separate run that was found. What an adapter adds is its replica less the best '
    "one found for the others; savings of single adapters do not add up to that of all.</p>"
)
_TIMELINE_HINT = (
    '<p class="hint">An operation has the colours of its adapters, each as high as its part of the tokens. Drag to '
    "move along, Ctrl and wheel to zoom, or take box zoom, + and - above the plot; hover for details. All axes of "
    "time move together.</p>"
)
_LOSSES_HINT = (
    '<p class="hint">Solid with dots: training. Dashed with diamonds: evaluation. A cross: the adapter was stopped. '
    "A click on a name hides or shows an adapter.</p>"
)


_SEARCH_HINT = (
    '<p class="hint">Every dot is a plan that was the best one for a while, in the colour of what found it; no plan '
    "is below the dashed line.</p>"
)


def _filters(contents: PageContents) -> str:
    counted = zip(contents.adapters, adapter_colours(len(contents.adapters)), strict=True)
    adapters = "".join(
        f'<label><input type="checkbox" name="adapter" value="{i}" checked> '
        f'<span class="swatch" style="background:{colour}"></span>{escape(name)}</label>'
        for i, (name, colour) in enumerate(counted)
    )
    kinds = "".join(
        f'<label><input type="checkbox" name="kind" value="{k}" checked> '
        f'<span class="key" style="{_KEYS[kind]}"></span>{kind}: {word}</label>'
        for k, (kind, word) in enumerate(KINDS.items())
        if kind != "E" or any(r.evaluations for r in contents.plan.replicas)
    )
    total = sum(len(p) for r in contents.plan.replicas for p in r.programs)

    def between(name: str) -> str:
        ends = [
            f'<input type="number" id="{name}-{end}" min="0" placeholder="any" aria-label="{name} {end}">'
            for end in ("from", "to")
        ]
        return " to ".join(ends)

    return (
        f'<div class="filters"><div class="row"><b>adapters</b>{adapters}<button id="none">none</button></div>'
        f'<div class="row"><b>kinds</b>{kinds}</div>'
        '<div class="row"><b>mix</b><select id="mix"><option value="all">any number of adapters</option>'
        '<option value="one">one adapter</option><option value="several">several adapters</option></select>'
        f"<span>tokens {between('tokens')}</span><span>step {between('step')}</span>"
        f'<button id="every">show all</button><span class="soft" id="shown">{total} of {total} operations shown</span>'
        "</div></div>"
    )


def _memory_choice(contents: PageContents) -> str:
    replicas = contents.plan.replicas
    if len(replicas) == 1:
        return ""
    options = "".join(
        f'<option value="{r.id}">replica {r.id}: {r.num_stages} x {escape(r.gpu)}</option>' for r in replicas
    )
    return f'<p><select id="replica">{options}</select></p>'
