// The page of one prompt: what each layer would say next, both models side by side or their difference.
"use strict";

explorer.page(
  "prompt",
  (() => {
    const {el, prose, select, toggles, get, set, number, signed, address, viewName, visible, copyable} = explorer;
    const METRICS = PromptSide.METRICS;
    const NAMES = {pt: "PT", it: "IT"};
    const state = {lens: "raw", pair: null};
    let sides = [],
      maps = [],
      view = null,
      metric = null,
      split = null,
      readout = null,
      below = null,
      syncing = false;

    const pairNumber = (key, layer, step) => PromptSide.pairNumber(state.pair, key, layer, step);

    const layerName = layer => (layer === -1 ? "in" : String(layer));
    const whole = () => get("tokens") === "all" || !sides.some(side => side.atStep.size);
    const columnsOf = side => (whole() ? Array.from({length: side.n}, (_, t) => t) : [...side.atStep.values()]);
    const difference = () => get("show") === "difference" && sides.length === 2 && comparable();
    const comparable = () => sides[0].layers.length === sides[1].layers.length;

    // The step at which the two continuations first differ, null where they never do.
    function firstDifference() {
      if (sides.length < 2) return null;
      const [a, b] = sides,
        sameWords = a.capture.model === b.capture.model;
      for (const [step, t] of a.atStep) {
        const other = b.atStep.get(step);
        if (other === undefined) return step;
        if (a.next(t) !== b.next(other) || (sameWords && a.id(t + 1) !== b.id(other + 1))) return step;
      }
      return null;
    }

    function scaleOf(key) {
      const spec = METRICS.find(one => one.key === key);
      let high = spec.high;
      if (high === undefined) {
        high = 0;
        for (const side of sides)
          for (let l = 0; l < side.layers.length; l++)
            for (let t = 0; t < side.n; t++) {
              const value = side.number(key, l, t);
              if (value > high) high = value;
            }
        high = high || 1;
      }
      return figures.scale({low: spec.low || 0, high, log: spec.log, diverging: spec.diverging});
    }

    function differenceScale() {
      let high = 0;
      const [a, b] = sides;
      for (const step of common())
        for (let l = 0; l < a.layers.length; l++) {
          const value = Math.abs(
            b.number(metric.key, l, b.atStep.get(step)) - a.number(metric.key, l, a.atStep.get(step)),
          );
          if (Number.isFinite(value) && value > high) high = value;
        }
      return figures.scale({diverging: true, high: high || 1});
    }

    const common = () => [...sides[0].atStep.keys()].filter(step => sides[1].atStep.has(step));

    // --- the selected cell ------------------------------------------------------------------------------------------------

    // Where the address points: role, position, row of the layer.
    function selected() {
      const [role, place] = get("at").split("."),
        side = sides.find(one => one.role === role) || sides.at(-1);
      const layer = get("layer") === "" ? NaN : Number(get("layer"));
      let row = side.layers.indexOf(layer);
      if (row < 0) row = Math.max(0, side.layers.length - 2);
      let t = place === undefined || place === "" ? NaN : Number(place);
      if (!(t >= 0 && t < side.n))
        t = split !== null && side.atStep.has(split) ? side.atStep.get(split) : (side.atStep.get(0) ?? 0);
      return {side, t, row};
    }

    // The same place in another side: by step, and by position where both read the same tokens up to there.
    function place(side, from, t) {
      if (side === from) return t;
      const step = from.step(t);
      return step >= 0 ? side.atStep.get(step) : undefined;
    }

    function pick(side, t, row) {
      set({at: `${side.role}.${t}`, layer: side.layers[row]}, {draw: false});
      mark(true);
    }

    function mark(reveal) {
      const {side, t, row} = selected();
      for (const map of maps) {
        const here = map.side ? place(map.side, side, t) : t;
        const column = map.side ? map.at.indexOf(here) : map.at.indexOf(side.step(t));
        map.select(column >= 0 && here !== undefined ? [row, column] : null, reveal);
      }
      tell(side, t, row);
      coloured();
      drawCurves();
    }

    // --- what is said of a cell -------------------------------------------------------------------------------------------

    function tell(side, t, row) {
      const layer = side.layers[row],
        step = side.step(t);
      const blocks = (sides.length === 2 ? sides : [side]).map(one => {
        const here = place(one, side, t);
        if (here === undefined)
          return el(
            "div.cell",
            {},
            el("h3", {}, role(one)),
            el("p.soft", {}, step < 0 ? "reads another prompt here" : "its answer is over"),
          );
        const numbers = METRICS.filter(spec => one.has(spec.key) && !spec.both).map(spec => [
          spec,
          one.number(spec.key, row, here),
        ]);
        const likely = el(
          "ol.likely",
          {},
          Array.from({length: one.kept}, (_, k) => {
            const share = one.share(row, here, k),
              word = one.top(row, here, k);
            const bar = el("i");
            bar.style.width = `${share === undefined ? 0 : Math.max(0, Math.min(1, share)) * 100}%`;
            return el(
              "li",
              {class: word === one.next(here) && here + 1 < one.n ? "next" : null},
              bar,
              el("span.word", {}, visible(word)),
              el("span.n", {}, share === undefined ? "" : number(share)),
            );
          }),
        );
        return el(
          "div.cell",
          {},
          el("h3", {}, role(one)),
          el(
            "p",
            {},
            "reads ",
            word(one.read(here)),
            here + 1 < one.n ? [", next is ", word(one.next(here))] : ", the last token",
          ),
          one.kept > 1 ? likely : el("p", {}, "most likely ", word(one.top(row, here) ?? "–")),
          el(
            "dl",
            {},
            numbers.map(([spec, value]) => [
              el("dt", {title: spec.meaning}, spec.label),
              el("dd", {}, number(value, 4) + (spec.unit ? ` ${spec.unit}` : "")),
            ]),
          ),
        );
      });
      const js = pairNumber("js", layer, step);
      readout.replaceChildren(
        el(
          "p.where",
          {},
          el("b", {}, layer === -1 ? "Input of block 0" : `Layer ${layer}`),
          step >= 0 ? ` · step ${step}` : "",
          ` · position ${t} of ${side.name}`,
          Number.isFinite(js) ? ` · JS between PT and IT ${number(js, 4)} nats (raw lens)` : "",
          sides.length === 2 && step >= 0 && split === step ? " · here the answers first differ" : "",
        ),
        el("div.cells", {}, blocks),
      );
    }

    const word = text => el("q.word", {}, visible(text));
    function role(side) {
      const name = el("span", {}, side.name);
      name.style.color = view.pair ? figures.role(side.role) : "";
      return el(
        "span",
        {},
        name,
        side.name === side.capture.model ? "" : el("span.soft", {}, ` ${side.capture.model}`),
      );
    }

    // --- tokens in colour -------------------------------------------------------------------------------------------------

    function paragraph(side) {
      const box = el("p.tokens", {"aria-label": `Tokens of ${side.name}`});
      for (let t = 0; t < side.n; t++) {
        const text = side.read(t),
          kind = side.special(t) ? "special" : side.answer(t) ? "answer" : "asked";
        const token = el(
          `span.token.${kind}`,
          {"data-t": t, click: () => pick(side, t, selected().row)},
          side.special(t) ? visible(text) : explorer.readable(text.replace(/\n/g, "⏎\n")),
        );
        box.append(token);
        if (split !== null && side.atStep.get(split) === t - 1) token.classList.add("differs");
      }
      box.addEventListener("pointerover", event => {
        const t = event.target.dataset?.t;
        if (t !== undefined) tell(side, Number(t), selected().row);
      });
      box.addEventListener("pointerleave", () => {
        const {side, t, row} = selected();
        tell(side, t, row);
      });
      side.box = box;
      return box;
    }

    // Colour the tokens by the number at the selected layer.
    function coloured() {
      const {row, side: chosen, t: at} = selected(),
        scale = scaleOf(metric.key);
      for (const side of sides)
        for (const token of side.box?.children || []) {
          if (token.dataset.t === undefined) continue;
          const t = Number(token.dataset.t),
            value = row < side.layers.length ? side.number(metric.key, row, t) : NaN;
          const [back, front] = Number.isFinite(value) ? scale.colour(value) : ["", ""];
          token.style.backgroundColor = back;
          token.style.color = front;
          token.title = `${metric.label} ${number(value)}`;
          token.classList.toggle("chosen", place(side, chosen, at) === t);
        }
      const note = document.getElementById("tokens-note");
      if (note)
        note.textContent = `A token has the colour of the position that reads it, at ${row < chosen.layers.length && chosen.layers[row] === -1 ? "the input of block 0" : `layer ${chosen.layers[row]}`}: ${metric.label}${metric.unit ? ` (${metric.unit})` : ""}. Underlined: control tokens. Bold: the answer.`;
    }

    // --- maps ---------------------------------------------------------------------------------------------------------------

    function mapOf(side) {
      const at = columnsOf(side),
        scale = scaleOf(metric.key),
        marks = new Map();
      if (split !== null && side.atStep.has(split)) marks.set(at.indexOf(side.atStep.get(split)), "first difference");
      const map = new HeatMap({
        columns: at.length,
        rows: side.layers.length,
        scale,
        marks,
        label: `${side.name}: likeliest token by layer and position, coloured by ${metric.label}`,
        rowName: r => layerName(side.layers[r]),
        word: (r, c) => visible(side.top(r, at[c]) ?? ""),
        value: (r, c) => side.number(metric.key, r, at[c]),
        heads: [
          {name: "reads", text: c => visible(side.read(at[c]))},
          {name: "next", text: c => visible(side.next(at[c])), strong: c => side.step(at[c]) >= 0},
        ],
        over: cell => {
          if (cell) tell(side, at[cell[1]], cell[0]);
          else {
            const now = selected();
            tell(now.side, now.t, now.row);
          }
        },
        pick: ([row, column]) => pick(side, at[column], row),
        scrolledTo: x => scrollOthers(map, x),
      });
      return Object.assign(map, {side, at});
    }

    function differenceMap() {
      const [a, b] = sides,
        at = common(),
        marks = new Map();
      if (split !== null && at.includes(split)) marks.set(at.indexOf(split), "first difference");
      const here = (side, c) => side.atStep.get(at[c]);
      const map = new HeatMap({
        columns: at.length,
        rows: b.layers.length,
        scale: differenceScale(),
        marks,
        width: 84,
        label: `IT − PT: ${metric.label} by layer and step`,
        rowName: r => layerName(b.layers[r]),
        word: (r, c) => {
          const [x, y] = [a.top(r, here(a, c)), b.top(r, here(b, c))];
          return x === y ? visible(x ?? "") : `${visible(x ?? "")}→${visible(y ?? "")}`;
        },
        value: (r, c) =>
          metric.key === "js"
            ? b.number("js", r, here(b, c))
            : b.number(metric.key, r, here(b, c)) - a.number(metric.key, r, here(a, c)),
        heads: [
          {name: "PT", text: c => visible(a.next(here(a, c))), strong: () => true},
          {name: "IT", text: c => visible(b.next(here(b, c))), strong: () => true},
        ],
        over: cell => {
          const now = selected();
          if (cell) tell(b, here(b, cell[1]), cell[0]);
          else tell(now.side, now.t, now.row);
        },
        pick: ([row, column]) => pick(b, here(b, column), row),
      });
      return Object.assign(map, {side: null, at});
    }

    function scrollOthers(from, x) {
      if (syncing) return;
      syncing = true;
      for (const map of maps)
        if (map !== from && map.side) {
          const shift = whole() ? ((map.side.atStep.get(0) ?? 0) - (from.side.atStep.get(0) ?? 0)) * map.width : 0;
          map.element.scrollLeft = x + shift;
          map.draw();
        }
      requestAnimationFrame(() => {
        syncing = false;
      });
    }

    function drawCurves() {
      const {side, t, row} = selected(),
        layer = side.layers[row],
        byLayer = [],
        bySteps = [];
      for (const one of sides) {
        const here = place(one, side, t),
          colour = view.pair ? figures.role(one.role) : figures.hue("", 0);
        if (here !== undefined)
          byLayer.push({
            name: one.name,
            colour,
            x: one.layers,
            y: one.layers.map((_, l) => one.number(metric.key, l, here)),
          });
        const at = columnsOf(one),
          r = one.layers.indexOf(layer);
        if (r >= 0)
          bySteps.push({
            name: one.name,
            colour,
            x: at.map(p => (whole() ? p : one.step(p))),
            y: at.map(p => one.number(metric.key, r, p)),
          });
      }
      if (metric.both) {
        byLayer.splice(1);
        bySteps.splice(1);
        for (const one of [...byLayer, ...bySteps]) one.name = "";
      }
      const y = metric.label + (metric.unit ? ` (${metric.unit})` : "");
      below.replaceChildren(
        figures.curves({
          series: byLayer,
          x: "layer",
          y,
          mark: layer,
          title: `Through the layers at ${side.step(t) >= 0 ? `step ${side.step(t)}` : `position ${t}`}`,
          picked: value => pick(side, t, Math.max(0, side.layers.indexOf(value))),
        }),
        figures.curves({
          series: bySteps,
          x: whole() ? "position" : "step",
          y,
          mark: whole() ? t : side.step(t),
          title: layer === -1 ? "Along the tokens at the input of block 0" : `Along the tokens at layer ${layer}`,
          picked: value => {
            const here = whole() ? value : side.atStep.get(value);
            if (here !== undefined) pick(side, here, row);
          },
        }),
      );
    }

    // What is seen, for files and SQL.
    const seen = () => ({
      id: get("id"),
      view,
      lens: state.lens,
      metric,
      sides,
      maps,
      columnsOf,
      difference: difference(),
    });

    // --- the page -------------------------------------------------------------------------------------------------------------

    async function read() {
      const {index} = explorer,
        list = (await explorer.load(`prompts/${view.set}`)).value,
        at = list.ids.indexOf(get("id"));
      if (at < 0) throw new Error(`The prompt ${get("id")} is not in this view of the lake.`);
      const files = await Promise.all(
        Object.entries(view.captures).map(async ([name, number]) => {
          try {
            return new PromptSide(
              name,
              index.captures[number],
              await explorer.load(`cells/${number}/${at}`),
              view.pair ? NAMES[name] : index.captures[number].model,
              state,
            );
          } catch {
            return null;
          } // this capture has fewer prompts
        }),
      );
      sides = files.filter(Boolean).sort((a, b) => (a.role === "pt" ? 0 : 1) - (b.role === "pt" ? 0 : 1));
      state.pair = null;
      if (sides.length === 2) {
        try {
          const file = await explorer.load(`pair/${index.views.indexOf(view)}/${at}`);
          state.pair = {layers: file.value.layers, notes: file.value.notes, arrays: file.arrays, atStep: new Map()};
          file.arrays.get("step")?.values.forEach((step, i) => state.pair.atStep.set(step, i));
        } catch {
          state.pair = null;
        }
      }
      return {list, at};
    }

    return {
      title: "Prompt",
      under: "prompts",
      heading: () => get("id"),
      async draw() {
        const {index} = explorer;
        view = explorer.view() || index.views[0];
        maps = [];
        if (!view) return [el("h1", {}, "Prompt"), el("p.note", {}, "No prompts: the lake has no sealed capture yet.")];
        if (!get("id")) set({id: (await explorer.load(`prompts/${view.set}`)).value.ids[0]}, {draw: false});
        const {list, at} = await read();
        const head = [
          el(
            "div.title",
            {},
            el("h1", {}, get("id")),
            el("span.tag", {}, list.categories[at]),
            el("span.grow"),
            el("a.button", {href: beside(list, at, -1), title: "Previous prompt (k)", id: "previous"}, "←"),
            el("a.button", {href: beside(list, at, 1), title: "Next prompt (j)", id: "following"}, "→"),
            el("a.button", {href: address("prompts", {view: viewName(view)})}, "All prompts"),
          ),
          el("p.asked", {}, list.texts[at]),
        ];
        if (!sides.length) return [...head, el("p.note", {}, "No capture of this view holds the prompt.")];
        const lenses = [...new Set(sides.flatMap(side => side.value.lenses))];
        state.lens = lenses.includes(get("lens")) ? get("lens") : lenses[0] || "raw";
        const offered = METRICS.filter(spec => sides.some(side => side.has(spec.key)));
        metric = offered.find(spec => spec.key === get("colour")) || offered[0] || METRICS[0];
        split = firstDifference();
        const shown = get("show", "both"),
          two = sides.length === 2,
          every = sides;
        const notes = [
          ...new Set([
            ...sides.flatMap(side => side.value.notes.map(note => `${side.name}: ${note}`)),
            ...(state.pair?.notes || []),
          ]),
        ];
        if (view.pair && sides.length < 2)
          notes.push(`One model only: ${sides[0].capture.model} is captured on this prompt, its partner is not.`);
        if (!lenses.includes("tuned") && lenses.length)
          notes.push(`No tuned lens: \`actlake fit-lens ${sides.at(-1).capture.model}\` trains one from the capture.`);
        for (const side of sides)
          if (lenses.length && !side.value.lenses.includes(state.lens))
            notes.push(`The ${state.lens} lens of ${side.capture.model} is not in this lake.`);
        if (two && !comparable())
          notes.push(
            "The two models have different numbers of layers: they are shown side by side, not as a difference.",
          );
        if (shown === "difference" && difference()) maps = [differenceMap()];
        else
          maps = every
            .filter(
              side =>
                side.value.lenses.includes(state.lens) &&
                ((shown !== "pt" && shown !== "it") || side.role === shown || !two),
            )
            .map(mapOf);
        readout = el("div.readout", {"aria-live": "polite"});
        below = el("div.charts");
        const visibleSides =
          shown === "pt" || shown === "it" ? sides.filter(side => side.role === shown || !two) : sides;
        const keyed = maps.length
          ? figures.key(
              maps[0].scale,
              `${metric.label}${difference() && metric.key !== "js" ? ", IT − PT" : ""}${metric.unit ? ` (${metric.unit})` : ""}`,
            )
          : null;
        return [
          ...head,
          el(
            "div.bar",
            {},
            index.views.filter(one => one.set === view.set).length > 1
              ? select(
                  "Models",
                  index.views
                    .filter(one => one.set === view.set)
                    .map(one => [viewName(one), `${one.name} · ${one.recipe}`]),
                  viewName(view),
                  value => set({view: value, at: null}),
                )
              : null,
            two
              ? toggles(
                  "Show",
                  [
                    ["both", "side by side"],
                    ["difference", "difference", "IT − PT at the same step (d)"],
                    ["pt", "PT"],
                    ["it", "IT"],
                  ],
                  shown,
                  value => set({show: value}),
                )
              : null,
            lenses.length > 1
              ? toggles(
                  "Lens",
                  lenses.map(name => [name, name]),
                  state.lens,
                  value => set({lens: value}),
                )
              : null,
            select(
              "Colour",
              offered.map(spec => [spec.key, spec.label]),
              metric.key,
              value => set({colour: value}),
            ),
            sides.some(side => side.atStep.size) && !difference()
              ? toggles(
                  "Tokens",
                  [
                    ["", "answer"],
                    ["all", "prompt and answer"],
                  ],
                  whole() ? "all" : "",
                  value => set({tokens: value}),
                )
              : null,
          ),
          ...notes.map(note => el("p.note", {}, prose(note))),
          lenses.length
            ? [
                el(
                  "div.tokens-of",
                  {class: visibleSides.length > 1 ? "two" : null},
                  visibleSides.map(side => el("section", {}, el("h2", {}, role(side)), paragraph(side))),
                ),
                el("p.soft", {id: "tokens-note"}),
                two
                  ? el(
                      "p",
                      {},
                      split === null
                        ? "Both answers are the same as far as they go. "
                        : [
                            "The answers first differ at ",
                            el(
                              "button.link",
                              {
                                type: "button",
                                click: () =>
                                  pick(sides[1], sides[1].atStep.get(split) ?? sides[1].n - 1, selected().row),
                              },
                              `step ${split}`,
                            ),
                            "; a line marks it. ",
                          ],
                      view.history === "shared"
                        ? "Both models read the same answer here."
                        : "Each model reads its own answer here.",
                    )
                  : null,
                el(
                  "div.maps",
                  {class: maps.length > 1 ? "two" : null},
                  maps.map(map =>
                    el(
                      "figure",
                      {},
                      el(
                        "figcaption",
                        {},
                        map.side
                          ? role(map.side)
                          : `IT − PT: ${metric.label}; where the likeliest tokens differ, PT's → IT's`,
                      ),
                      map.element,
                    ),
                  ),
                ),
                el(
                  "div.under",
                  {},
                  keyed,
                  el("span.grow"),
                  el(
                    "button.small",
                    {
                      type: "button",
                      click: () =>
                        figures
                          .pngFile(promptFiles.drawing(seen()))
                          .then(file => explorer.save(promptFiles.name(seen(), "png"), file)),
                    },
                    "PNG",
                  ),
                  el(
                    "button.small",
                    {
                      type: "button",
                      click: () =>
                        explorer.save(promptFiles.name(seen(), "svg"), figures.svgFile(promptFiles.drawing(seen()))),
                    },
                    "SVG",
                  ),
                  el(
                    "button.small",
                    {
                      type: "button",
                      click: () =>
                        explorer.save(
                          promptFiles.name(seen(), "csv"),
                          new Blob([promptFiles.table(seen())], {type: "text/csv"}),
                        ),
                    },
                    "CSV",
                  ),
                ),
                readout,
                below,
                el(
                  "details",
                  {},
                  el("summary", {}, "SQL of these numbers"),
                  promptFiles.statements(seen()).map(text => copyable(text)),
                  sides.some(side => side.kept > 1)
                    ? el(
                        "p.soft",
                        {},
                        "The likeliest tokens beyond the first, and their probabilities, are computed from the stored residuals: no table holds them. Numbers on this page are within 0.002 % of those.",
                      )
                    : null,
                ),
                el(
                  "p.soft",
                  {},
                  "Keys: j and k next and previous prompt, d difference, arrows move in a heat map, t theme.",
                ),
              ]
            : null,
        ];
      },
      drawn() {
        if (maps.length) {
          for (const map of maps) map.draw();
          mark(true);
        }
      },
      resized() {
        for (const map of maps) map.draw();
      },
      keys(event) {
        if (event.key === "j") document.getElementById("following")?.click();
        if (event.key === "k") document.getElementById("previous")?.click();
        if (event.key === "d" && sides.length === 2) set({show: get("show") === "difference" ? "both" : "difference"});
      },
      table: () => promptFiles.table(seen()), // for tests: what the CSV holds
    };

    function beside(list, at, step) {
      const next = list.ids[(at + step + list.ids.length) % list.ids.length];
      return address("prompt", {
        ...Object.fromEntries(new URLSearchParams(location.hash.split("?")[1] || "")),
        id: next,
        at: null,
      });
    }
  })(),
);
