"""The page's plots, made with Bokeh from columns: their data grow with a plan, their glyphs do not."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cappuccino.plan import Objective
from cappuccino.reports.page.colours import NEUTRAL, adapter_colours, stage_colours
from cappuccino.reports.page.contents import LossPoint, PageContents, amount
from cappuccino.reports.page.operations import KINDS, list_works, operation_columns
from cappuccino.simulator import memory_by_operation

ROW, LEAST, MOST = 34, 110, 760
"""Height of a stage's row, and of a whole timeline without its axis, pixels."""
MARGIN = 130
"""Left of every plot's axis, pixels, so that axes of time stand one below the other."""
MOST_IN_LEGEND = 16
_OBJECTIVES = {
    Objective.GPU_TIME: "GPU time (GPU-s)",
    Objective.MAKESPAN: "makespan (s)",
    Objective.COST: "cost (money)",
}
_TIP = """
const i = special_vars.index, d = operations.data, w = works.data, n = d.work[i];
const seconds = (s) => s.toPrecision(4) + " s";
if (format == "operation") return kinds[d.kind[i]] + " of " + w.name[n];
if (format == "stage") return rows[d.stage[i]];
if (format == "time") return seconds(d.left[i]) + " to " + seconds(d.right[i]) +
    ", takes " + seconds(d.right[i] - d.left[i]);
if (format == "tokens") return w.tokens[n] ? String(w.tokens[n]) : "none";
return w.holds[n] || "-";
"""


def make_figures(contents: PageContents) -> dict[str, Any]:
    """Return the plots that there is something for: `predicted`, `measured`, `memory`, `losses`, `search`."""
    from bokeh.models import ColumnDataSource, Range1d  # noqa: PLC0415

    listed, numbers = list_works(contents)
    works = ColumnDataSource(asdict(listed), name="works")
    predicted = [run.timeline for run in contents.simulation.replicas]
    measured = [c.measured for c in contents.measured]
    longest = max((line.makespan for line in [*predicted, *measured]), default=0.0) or 1.0
    # one model for all axes of time: they move together
    shared = Range1d(start=-0.005 * longest, end=1.01 * longest, bounds=(-0.05 * longest, 1.1 * longest))
    plots = {}
    for name, lines in (("predicted", predicted), ("measured", measured)):
        if lines:
            columns = operation_columns(contents, lines, numbers)
            title = f"{name.capitalize()}, {amount(max(line.makespan for line in lines))} s"
            plots[name] = _timeline(contents, (name, title), columns, works, shared)
    plots["memory"] = _memory(contents, shared)
    if contents.losses:
        plots["losses"] = _losses(contents)
    if contents.plan.incumbents:
        plots["search"] = _search(contents)
    return plots


def stage_labels(contents: PageContents) -> list[str]:
    """Return what the rows of a timeline are called."""
    several = len(contents.plan.replicas) > 1
    return [
        f"replica {r.id}, stage {s}" if several else f"stage {s}"
        for r in contents.plan.replicas
        for s in range(r.num_stages)
    ]


def _figure(title: str, x: str, y: str, height: int, **more: Any) -> Any:
    from bokeh.models import WheelZoomTool  # noqa: PLC0415
    from bokeh.plotting import figure  # noqa: PLC0415

    plot = figure(
        title=title,
        x_axis_label=x,
        y_axis_label=y,
        height=height,
        sizing_mode="stretch_width",
        output_backend="webgl",
        tools="xpan,xbox_zoom,xzoom_in,xzoom_out,reset,save",
        active_drag="xpan",
        toolbar_location="above",
        min_border_left=MARGIN,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        **more,
    )
    plot.add_tools(WheelZoomTool(dimensions="width", modifiers={"ctrl": True}))
    plot.toolbar.logo = None
    for axis in (plot.xaxis, plot.yaxis):
        axis.formatter.use_scientific = False
    plot.xgrid.grid_line_alpha = plot.ygrid.grid_line_alpha = 0.35
    return plot


def _timeline(
    contents: PageContents, names: tuple[str, str], columns: dict[str, np.ndarray], works: Any, shared: Any
) -> Any:
    from bokeh.models import (  # noqa: PLC0415
        BooleanFilter,
        CDSView,
        ColumnDataSource,
        CustomJSHover,
        HoverTool,
        LinearColorMapper,
        Range1d,
    )

    rows = stage_labels(contents)
    height = min(MOST, max(LEAST, ROW * len(rows))) + 90
    limits = Range1d(start=len(rows) - 0.4, end=-0.6)
    name, title = names
    plot = _figure(title, "time (s)", "", height, x_range=shared, y_range=limits)
    plot.yaxis.ticker = list(range(len(rows)))
    plot.yaxis.major_label_overrides = dict(enumerate(rows))
    plot.yaxis.minor_tick_line_color = None
    plot.ygrid.grid_line_color = None
    source = ColumnDataSource(columns, name=f"operations-{name}")
    count = len(contents.adapters)
    mapper = LinearColorMapper(palette=adapter_colours(count), low=-0.5, high=count - 0.5)
    drawn = plot.quad(
        left="left",
        right="right",
        top="top",
        bottom="bottom",
        fill_color={"field": "adapter", "transform": mapper},
        fill_alpha="alpha",
        line_color=NEUTRAL,
        line_alpha="edge",
        source=source,
        view=CDSView(filter=BooleanFilter(name=f"chosen-{name}")),
    )
    given = {"operations": source, "works": works, "kinds": list(KINDS.values()), "rows": rows}
    tip = CustomJSHover(args=given, code=_TIP)
    lines = [(word, f"@left{{{word}}}") for word in ("operation", "stage", "time", "tokens", "holds")]
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=lines, formatters={"@left": tip}))
    return plot


def _memory(contents: PageContents, shared: Any) -> Any:
    from bokeh.models import ColumnDataSource, HoverTool, Legend, LegendItem, Range1d  # noqa: PLC0415

    limits = [contents.memory_limit(r) for r in contents.plan.replicas]
    peaks = [max(run.peak_memory_gib) for run in contents.simulation.replicas]
    top = 1.08 * max(*limits, *peaks) if len(limits) > 1 else 1.08 * max(limits[0], peaks[0])
    plot = _figure(
        "Predicted memory", "time (s)", "memory of a GPU (GiB)", 360, x_range=shared, y_range=Range1d(0, top)
    )
    items, drawn = [], []
    for k, (replica, run) in enumerate(zip(contents.plan.replicas, contents.simulation.replicas, strict=True)):
        line, shown = run.timeline, k == 0
        found = memory_by_operation(replica.programs, contents.workloads[k])
        colours = stage_colours(replica.num_stages)
        for stage, (running, behind) in enumerate(found):
            times, memory = memory_steps(line.starts[stage], line.ends[stage], running, behind)
            source = ColumnDataSource({"time": times, "memory": memory})
            look = {"line_color": colours[stage], "line_width": 1.5, "name": f"memory-{replica.id}", "visible": shown}
            drawn.append(plot.step(x="time", y="memory", mode="after", source=source, **look))
            if replica.num_stages <= MOST_IN_LEGEND:
                label, name = f"stage {stage}", f"memory-{replica.id}"
                items.append(LegendItem(label=label, renderers=[drawn[-1]], name=name, visible=shown))
        ends = [0.0, line.makespan]
        look = {"line_color": "#d64f5f", "line_dash": "dashed", "line_width": 2}
        limit = plot.line(ends, [limits[k]] * 2, name=f"memory-{replica.id}", visible=shown, **look)
        label = f"limit, {amount(limits[k])} GiB"
        items.append(LegendItem(label=label, renderers=[limit], name=f"memory-{replica.id}", visible=shown))
    columns = max(2, len(items) // len(limits))
    legend = Legend(items=items, click_policy="hide", orientation="horizontal", ncols=columns, spacing=18)
    plot.add_layout(legend, "above")  # beside the plot it would make its axis of time shorter than the others
    plot.add_tools(HoverTool(renderers=drawn, tooltips=[("time", "@time{0.000} s"), ("memory", "@memory{0.00} GiB")]))
    return plot


def memory_steps(
    starts: np.ndarray, ends: np.ndarray, running: np.ndarray, behind: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return when a stage's memory changes, and to what: moments of no length, between operations, are left out."""
    times = np.column_stack([starts, ends]).ravel()
    memory = np.column_stack([running, behind]).ravel()
    kept = np.append(np.diff(times) > 0, True)[: len(times)]
    return times[kept], memory[kept]


def _losses(contents: PageContents) -> Any:
    from bokeh.models import ColumnDataSource, HoverTool, Legend, LegendItem  # noqa: PLC0415

    plot = _figure("Losses of the adapters", "optimizer step", "loss (mean cross-entropy, nats a token)", 360)
    drawn, items = [], []
    for name, colour in zip(contents.adapters, adapter_colours(len(contents.adapters)), strict=True):
        mine = [p for p in contents.losses if p.adapter == name]
        if not mine:
            continue
        last = float("nan")
        looks: list[Any] = []
        for kind in ("train", "eval"):
            points = sorted((p for p in mine if p.kind == kind and p.loss is not None), key=lambda p: p.step)
            if not points:
                continue
            source = ColumnDataSource(_loss_columns(points))
            dash = {"line_dash": "solid" if kind == "train" else "dashed"}
            looks.append(plot.line("step", "loss", source=source, line_color=colour, line_width=1.5, **dash))
            marker, size = ("circle", 4) if kind == "train" else ("diamond", 10)
            looks.append(plot.scatter("step", "loss", source=source, color=colour, marker=marker, size=size))
            drawn.append(looks[-1])
            last = points[-1].loss if kind == "train" and points[-1].loss is not None else last
        stops = [p for p in mine if p.kind == "stop"]
        if stops:
            columns = _loss_columns(stops)
            columns["loss"] = [last if p.loss is None else p.loss for p in stops]
            source = ColumnDataSource(columns)
            style = {"marker": "x", "size": 14, "line_width": 3, "color": colour, "name": "stops"}
            looks.append(plot.scatter("step", "loss", source=source, **style))
            drawn.append(looks[-1])
        items.append(LegendItem(label=name, renderers=looks))
    plot.add_layout(Legend(items=items, click_policy="hide"), "right")
    tips = [("adapter", "@adapter"), ("kind", "@kind"), ("step", "@step"), ("loss", "@loss{0.0000}")]
    plot.add_tools(HoverTool(renderers=drawn, tooltips=[*tips, ("stopped", "@reason")]))
    return plot


def _search(contents: PageContents) -> Any:
    from bokeh.models import ColumnDataSource, HoverTool, Legend, LegendItem  # noqa: PLC0415

    found = contents.plan.incumbents
    plot = _figure("Best plan so far", "seconds of the search", _OBJECTIVES[contents.plan.objective], 300)
    columns = {name: [getattr(x, name) for x in found] for name in ("time_s", "objective", "bound", "method")}
    source = ColumnDataSource(columns, name="incumbents")
    look = {"mode": "after", "source": source, "line_color": NEUTRAL}
    best = plot.step("time_s", "objective", line_width=1.5, **look)
    bound = plot.step("time_s", "bound", line_dash="dashed", **look)
    items = [LegendItem(label="best plan", renderers=[best]), LegendItem(label="proven bound", renderers=[bound])]
    methods = list(dict.fromkeys(x.method for x in found))
    drawn = []
    for method, colour in zip(methods, adapter_colours(len(methods)), strict=True):
        mine = ColumnDataSource(
            {k: [v for v, m in zip(c, columns["method"], strict=True) if m == method] for k, c in columns.items()}
        )
        drawn.append(plot.scatter("time_s", "objective", source=mine, color=colour, size=8))
        items.append(LegendItem(label=method.replace("_", " "), renderers=[drawn[-1]]))
    plot.add_layout(Legend(items=items, click_policy="hide"), "right")
    tips = [("found by", "@method"), ("after", "@time_s{0.00} s"), ("objective", "@objective"), ("bound", "@bound")]
    plot.add_tools(HoverTool(renderers=drawn, tooltips=tips))
    return plot


def _loss_columns(points: Sequence[LossPoint]) -> dict[str, list[Any]]:
    return {
        "step": [p.step for p in points],
        "loss": [p.loss for p in points],
        "adapter": [p.adapter for p in points],
        "kind": [p.kind for p in points],
        "reason": [p.reason or "-" for p in points],
    }
