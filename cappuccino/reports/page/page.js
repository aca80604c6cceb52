"use strict";
(function () {
  const find = (query) => [...document.querySelectorAll(query)];
  const root = document.documentElement;
  const preferred = window.matchMedia("(prefers-color-scheme: dark)");
  const models = () => (window.Bokeh && Bokeh.documents.length ? [...Bokeh.documents[0].all_models] : []);
  let dark = location.hash === "#dark" || (location.hash !== "#light" && preferred.matches);

  function paint() {
    root.classList.toggle("dark", dark);
    document.getElementById("switch").textContent = dark ? "light" : "dark";
    const style = getComputedStyle(root);
    const ink = style.getPropertyValue("--ink").trim();
    const line = style.getPropertyValue("--line").trim();
    const page = style.getPropertyValue("--page").trim();
    for (const model of models()) {
      if (model.type === "LinearAxis") {
        model.setv({ axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: line,
          major_tick_line_color: line, minor_tick_line_color: line });
      } else if (model.type === "Title") model.text_color = ink;
      else if (model.type === "Grid") { if (model.grid_line_color !== null) model.grid_line_color = line; }
      else if (model.type === "Legend") {
        model.setv({ label_text_color: ink, background_fill_color: page, border_line_color: line,
          inactive_fill_color: page });
      }
    }
  }

  function chosen(name) {
    return new Set(find(`input[name=${name}]:checked`).map((box) => Number(box.value)));
  }

  function limit(id, otherwise) {
    const text = document.getElementById(id).value;
    return text === "" ? otherwise : Number(text);
  }

  // which rows are shown: of a kind, adapter, number of adapters, tokens and step that are asked for
  function filter() {
    const all = models();
    const works = all.find((model) => model.name === "works").data;
    const kinds = chosen("kind"), adapters = chosen("adapter"), mix = document.getElementById("mix").value;
    const tokens = [limit("tokens-from", -Infinity), limit("tokens-to", Infinity)];
    const steps = [limit("step-from", -Infinity), limit("step-to", Infinity)];
    const fits = works.name.map((_, n) =>
      works.members[n].some((a) => adapters.has(a)) &&
      (mix === "all" || (mix === "one") === (works.members[n].length === 1)) &&
      works.tokens[n] >= tokens[0] && works.tokens[n] <= tokens[1] &&
      works.last[n] >= steps[0] && works.first[n] <= steps[1]);
    let shown = new Set(), total = new Set();
    for (const name of ["predicted", "measured"]) {
      const source = all.find((model) => model.name === `operations-${name}`);
      if (!source) continue;
      const { kind, work, operation } = source.data;
      const kept = Array.from(kind, (k, i) => kinds.has(k) && fits[work[i]]);
      all.find((model) => model.name === `chosen-${name}`).booleans = kept;
      if (name === "predicted") kept.forEach((keep, i) => { total.add(operation[i]); if (keep) shown.add(operation[i]); });
    }
    document.getElementById("shown").textContent = `${shown.size} of ${total.size} operations shown`;
  }

  function showReplica(id) {
    for (const model of models()) {
      if (typeof model.name === "string" && model.name.startsWith("memory-")) model.visible = model.name === `memory-${id}`;
    }
  }

  function begin() {
    if (!models().length) { setTimeout(begin, 50); return; }
    paint();
    find(".filters input, .filters select").forEach((input) => input.addEventListener("change", filter));
    document.getElementById("every").addEventListener("click", () => {
      find(".filters input[type=checkbox]").forEach((box) => { box.checked = true; });
      find(".filters input[type=number]").forEach((field) => { field.value = ""; });
      document.getElementById("mix").value = "all";
      filter();
    });
    document.getElementById("none").addEventListener("click", () => {
      find(".filters input[name=adapter]").forEach((box) => { box.checked = false; });
      filter();
    });
    const replica = document.getElementById("replica");
    if (replica) replica.addEventListener("change", () => showReplica(replica.value));
    root.dataset.ready = "yes";
  }

  document.getElementById("switch").addEventListener("click", () => { dark = !dark; paint(); });
  preferred.addEventListener("change", (event) => { dark = event.matches; paint(); });
  paint();
  begin();
})();
