// What the page of a prompt gives away: the view as SVG and CSV, and the SQL behind it. `seen` is what the page shows.
"use strict";

const promptFiles = (() => {
  const name = ({id, lens, metric}, ending) => `${id.replace(/[^\w.-]+/g, "_")}-${lens}-${metric.key}.${ending}`;

  // The heat maps as one SVG.
  function drawing({id, view, lens, metric, maps, difference}) {
    const {svg, css} = figures;
    let top = 30,
      wide = 300;
    const whole = svg("svg", {xmlns: "http://www.w3.org/2000/svg", "font-family": "system-ui, sans-serif"});
    const body = svg("g", {transform: "translate(14 10)"});
    body.append(
      svg(
        "text",
        {x: 0, y: 12, "font-size": 14, "font-weight": 600, fill: css("--ink")},
        `${id} · ${view.name} · ${lens} lens · ${metric.label}${metric.unit ? ` (${metric.unit})` : ""}${difference ? ", IT − PT" : ""}`,
      ),
    );
    for (const map of maps) {
      const [group, width, height] = map.svg(map.side ? `${map.side.name} ${map.side.capture.model}` : "IT − PT");
      group.setAttribute("transform", `translate(0 ${top})`);
      body.append(group);
      top += height + 10;
      wide = Math.max(wide, width);
    }
    whole.setAttribute("width", wide + 28);
    whole.setAttribute("height", top + 20);
    whole.append(svg("rect", {width: "100%", height: "100%", fill: css("--paper")}), body);
    return whole;
  }

  // Every shown cell as CSV.
  function table({id, lens, sides, columnsOf}) {
    const rows = [];
    for (const side of sides)
      for (const t of columnsOf(side))
        side.layers.forEach((layer, l) =>
          rows.push([
            side.capture.model,
            side.capture.stream,
            id,
            lens,
            t,
            side.step(t),
            layer,
            side.read(t),
            side.next(t),
            side.top(l, t),
            ...PromptSide.METRICS.filter(spec => side.has(spec.key)).map(spec => side.number(spec.key, l, t)),
          ]),
        );
    const numbers = PromptSide.METRICS.filter(spec => sides[0].has(spec.key)).map(spec => spec.key);
    return explorer.csv(
      ["model", "stream", "prompt_id", "lens", "position", "step", "layer", "reads", "next", "top1", ...numbers],
      rows,
    );
  }

  // The SQL that gives these numbers.
  function statements({id, view, lens, sides}) {
    const {quoted} = explorer,
      prompt = quoted(id);
    const found = sides.map(
      side =>
        `-- ${side.name}: numbers and likeliest token of each position and layer\nSELECT position, step, layer, top1, kl_final_layer, entropy, p_target, rank_target, cos_final\nFROM lens\nWHERE model = ${quoted(side.capture.model)} AND stream = ${quoted(side.capture.stream)}\n  AND lens = ${quoted(lens)} AND prompt_id = ${prompt}\nORDER BY layer, position;`,
    );
    if (sides.length === 2)
      found.push(
        `-- both models at the same step and layer\nSELECT step, layer, js, kl_pt_it, kl_it_pt, top1_agree\nFROM pair_lens\nWHERE pair = ${quoted(view.name)} AND stream = ${quoted(sides.find(one => one.role === "it").capture.stream)}\n  AND stream_pt = ${quoted(sides.find(one => one.role === "pt").capture.stream)} AND prompt_id = ${prompt}\nORDER BY layer, step;`,
      );
    return found;
  }

  return {name, drawing, table, statements};
})();
