// The page Texts: what models wrote under edits. For a prompt all conditions, for a condition all prompts.
"use strict";

explorer.page(
  "texts",
  (() => {
    const {el, prose, select, toggles, get, set, number, address, readable} = explorer;
    let data = null,
      file = null;

    // Words and gaps of a text, and which of them are not in the other text (longest common subsequence).
    function marked(text, other) {
      const parts = text.match(/\s+|[\p{L}\p{N}_'’]+|[^\s\p{L}\p{N}_'’]/gu) || [],
        base = other.match(/\s+|[\p{L}\p{N}_'’]+|[^\s\p{L}\p{N}_'’]/gu) || [];
      if (parts.length * base.length > 4e6) return [[text, false]];
      const width = base.length + 1,
        length = new Uint16Array((parts.length + 1) * width);
      for (let i = parts.length - 1; i >= 0; i--)
        for (let j = base.length - 1; j >= 0; j--)
          length[i * width + j] =
            parts[i] === base[j]
              ? length[(i + 1) * width + j + 1] + 1
              : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
      const found = [];
      let i = 0,
        j = 0;
      const add = (part, fresh) => {
        if (found.length && found.at(-1)[1] === fresh) found.at(-1)[0] += part;
        else found.push([part, fresh]);
      };
      while (i < parts.length) {
        if (j < base.length && parts[i] === base[j]) {
          add(parts[i], false);
          i += 1;
          j += 1;
        } else if (j >= base.length || length[(i + 1) * width + j] >= length[i * width + j + 1]) {
          add(parts[i], true);
          i += 1;
        } else j += 1;
      }
      return found;
    }

    const sweeps = () =>
      [...new Set(data.conditions.flatMap(one => one.sweeps.map(([pair, sweep]) => `${pair} · ${sweep}`)))].sort();
    // How a condition is called in the chosen sweep: its arm and dose; null where it is not of it.
    function named(one) {
      const chosen = get("sweep");
      if (!chosen) return [one.edited ? one.arm : "no edit", one.dose];
      const found = one.sweeps.find(([pair, sweep]) => `${pair} · ${sweep}` === chosen);
      return found ? [one.edited ? found[2] : "no edit", one.edited ? found[3] : null] : null;
    }

    const place = () =>
      Math.max(
        0,
        data.sets.findIndex(one => one.name === get("set")),
      );
    const title = one => `${one.model}${one.template === "raw" ? ", raw prompt" : ""}`;
    const score = (line, metric) =>
      file.arrays.get("scores").values[line * data.metrics.length + data.metrics.indexOf(metric)];

    function scores(line, chosen) {
      const known = data.metrics
        .map(metric => [metric, score(line, metric)])
        .filter(([, value]) => Number.isFinite(value));
      if (!known.length) return null;
      const first = known.filter(([metric]) => metric === chosen || metric.startsWith("judge: "));
      return [
        el("p.soft", {}, first.map(([metric, value]) => `${metric} ${number(value)}`).join(" · ")),
        el(
          "details",
          {},
          el("summary", {}, `${known.length} scores`),
          el(
            "dl",
            {},
            known.map(([metric, value]) => [el("dt", {}, metric), el("dd", {}, number(value))]),
          ),
        ),
      ];
    }

    function card(line, base, heading, extra = null) {
      const text = readable(file.value.text[line]);
      const body =
        base === null || base === line
          ? [text]
          : marked(text, readable(file.value.text[base])).map(([part, fresh]) => (fresh ? el("mark", {}, part) : part));
      return el(
        "article.card",
        {},
        el("h3", {}, heading),
        extra,
        el("p.reply", {}, text ? body : el("span.soft", {}, "no text")),
        el("p.soft", {}, `${number(file.value.tokens[line])} tokens${file.value.ended[line] ? "" : ", cut off"}`),
        scores(line, get("metric")),
      );
    }

    async function byPrompt() {
      const one = data.sets[place()],
        at = Math.max(0, one.ids.indexOf(get("id")));
      file = await explorer.load(`texts/${place()}/${at}`);
      const lines = new Map([...file.arrays.get("condition").values].map((condition, line) => [condition, line]));
      const groups = new Map(),
        bases = new Map();
      data.conditions.forEach((condition, number) => {
        const name = lines.has(number) ? named(condition) : null;
        if (!name) return;
        const key = `${title(condition)}\n${name[0]}`;
        if (!condition.edited) bases.set(title(condition), number);
        groups.set(key, [...(groups.get(key) || []), {condition, number, dose: name[1]}]);
      });
      const doses = [
        ...new Set(
          [...groups.values()]
            .flat()
            .map(one => one.dose)
            .filter(dose => dose !== null),
        ),
      ].sort((a, b) => a - b);
      const wanted = get("dose") === "" ? doses[Math.floor(doses.length / 2)] : Number(get("dose"));
      const nearest = group =>
        group.reduce(
          (best, one) => (Math.abs((one.dose ?? 0) - wanted) < Math.abs((best.dose ?? 0) - wanted) ? one : best),
          group[0],
        );
      const cards = [...groups].map(([key, group]) => {
        const chosen = nearest(group),
          base = bases.get(title(chosen.condition)) ?? null,
          [who, arm] = key.split("\n");
        return card(
          lines.get(chosen.number),
          base === null ? null : lines.get(base),
          who,
          el(
            "p.arm",
            {},
            el(
              "a",
              {
                href: address("texts", {
                  by: "condition",
                  set: one.name,
                  condition: chosen.condition.key,
                  sweep: get("sweep"),
                  metric: get("metric"),
                }),
                title: chosen.condition.condition,
              },
              arm,
            ),
            chosen.dose === null ? "" : ` · dose ${number(chosen.dose)}`,
          ),
        );
      });
      const listed = explorer.index.sets.findIndex(set => set.name === one.name);
      const asked =
        listed < 0
          ? null
          : await explorer.load(`prompts/${listed}`).then(
              found => found.value,
              () => null,
            );
      const beside = step =>
        address("texts", {
          ...Object.fromEntries(new URLSearchParams(location.hash.split("?")[1] || "")),
          id: one.ids[(at + step + one.ids.length) % one.ids.length],
        });
      const slider = el("input", {
        type: "range",
        min: 0,
        max: doses.length - 1,
        step: 1,
        value: Math.max(0, doses.indexOf(wanted)),
        "aria-label": "Dose",
        input: () => set({dose: doses[slider.value]}),
      });
      const metric = get("metric"),
        curve =
          metric && doses.length > 1
            ? [...groups]
                .filter(([, group]) => group.length > 1)
                .map(([key, group], i) => ({
                  name: key.replace("\n", " "),
                  colour: figures.hue("", i),
                  x: group.map(one => one.dose),
                  y: group.map(one => score(lines.get(one.number), metric)),
                }))
            : [];
      for (const series of curve) {
        const order = series.x.map((_, i) => i).sort((a, b) => series.x[a] - series.x[b]);
        series.x = order.map(i => series.x[i]);
        series.y = order.map(i => series.y[i]);
      }
      return [
        el(
          "div.title",
          {},
          el("h2", {}, one.ids[at]),
          el("span.tag", {}, one.categories[at]),
          el("span.grow"),
          el("a.button", {href: beside(-1), id: "previous", title: "Previous prompt (k)"}, "←"),
          el("a.button", {href: beside(1), id: "following", title: "Next prompt (j)"}, "→"),
        ),
        asked ? el("p.asked", {}, readable(asked.texts[asked.ids.indexOf(one.ids[at])] || "")) : null,
        doses.length > 1
          ? el(
              "label.field.dose",
              {},
              el("span", {}, `Dose: ${number(wanted)} (of edits that have one, the nearest)`),
              slider,
            )
          : null,
        el("p.soft", {}, "Marked: what the same model does not write without an edit."),
        el("div.cards", {}, cards),
        curve.length
          ? figures.curves({
              series: curve,
              x: "dose",
              y: metric,
              whole: false,
              mark: wanted,
              title: `${metric} of this prompt by dose`,
              picked: dose => set({dose}),
            })
          : null,
      ];
    }

    async function byCondition() {
      const one = data.sets[place()],
        at = Math.max(
          0,
          data.conditions.findIndex(condition => condition.key === get("condition")),
        ),
        condition = data.conditions[at];
      file = await explorer.load(`condition/${place()}/${at}`);
      const metric = get("metric"),
        low = get("low") === "" ? -Infinity : Number(get("low")),
        high = get("high") === "" ? Infinity : Number(get("high"));
      const prompts = [...file.arrays.get("prompt").values],
        values = metric ? prompts.map((_, line) => score(line, metric)) : [];
      let lines = prompts.map((_, line) => line);
      if (metric && (low > -Infinity || high < Infinity))
        lines = lines.filter(line => values[line] >= low && values[line] <= high);
      if (metric) lines.sort((a, b) => (values[b] ?? -Infinity) - (values[a] ?? -Infinity));
      const page = 60,
        from = Math.min(Number(get("from")) || 0, Math.max(0, lines.length - 1)),
        part = lines.slice(from, from + page);
      return [
        el("p.lead", {}, `${title(condition)}: ${condition.edited ? condition.condition : "no edit"}`),
        metric
          ? el(
              "div.brushed",
              {},
              figures.histogram({
                values,
                low: low === -Infinity ? null : low,
                high: high === Infinity ? null : high,
                label: metric,
                chosen: (a, b) => set({low: a, high: b, from: null}),
              }),
            )
          : el("p.soft", {}, "Choose a score to sort and filter by it."),
        el(
          "p.soft",
          {id: "count"},
          `${number(lines.length)} of ${number(prompts.length)} texts`,
          lines.length > page ? `, ${from + 1} to ${from + part.length}` : "",
          " ",
          get("low") !== "" || get("high") !== ""
            ? el("button.small", {type: "button", click: () => set({low: null, high: null})}, "show all")
            : null,
        ),
        el(
          "div.cards",
          {},
          part.map(line =>
            card(
              line,
              null,
              el(
                "a",
                {href: address("texts", {set: one.name, id: one.ids[prompts[line]], sweep: get("sweep"), metric})},
                one.ids[prompts[line]],
              ),
              el("span.tag", {}, one.categories[prompts[line]]),
            ),
          ),
        ),
        lines.length > page
          ? el(
              "div.bar",
              {},
              el("button", {type: "button", click: () => set({from: Math.max(0, from - page)})}, "←"),
              el(
                "button",
                {type: "button", click: () => set({from: from + page < lines.length ? from + page : 0})},
                "→",
              ),
            )
          : null,
      ];
    }

    return {
      title: "Texts",
      async draw() {
        data = (await explorer.load("texts")).value;
        if (!data.sets.length)
          return [
            el("h1", {}, "Texts"),
            el(
              "p.note",
              {},
              prose(
                "No texts: models have written nothing in this lake yet. `actlake generate NAME --edit ...` or a row such as `actlake run A1` makes some.",
              ),
            ),
          ];
        if (get("metric") && !data.metrics.includes(get("metric"))) set({metric: null}, {draw: false});
        const one = data.sets[place()],
          by = get("by", "prompt"),
          every = sweeps();
        const shown = data.conditions
          .map((condition, number) => [condition, number])
          .filter(([condition]) => named(condition));
        return [
          el("h1", {}, "Texts"),
          el(
            "div.bar",
            {},
            toggles(
              "Show",
              [
                ["prompt", "one prompt, all conditions"],
                ["condition", "one condition, all prompts"],
              ],
              by,
              value => set({by: value, from: null, low: null, high: null}),
            ),
            data.sets.length > 1
              ? select(
                  "Prompt set",
                  data.sets.map(one => [one.name, one.name]),
                  one.name,
                  value => set({set: value, id: null}),
                )
              : null,
            every.length
              ? select("Sweep", [["", "all conditions"], ...every.map(name => [name, name])], get("sweep"), value =>
                  set({sweep: value, dose: null}),
                )
              : null,
            by === "prompt"
              ? select(
                  "Prompt",
                  one.ids.map(id => [id, id]),
                  get("id") || one.ids[0],
                  value => set({id: value}),
                )
              : select(
                  "Condition",
                  shown.map(([condition]) => [
                    condition.key,
                    `${title(condition)}: ${named(condition)[0]}${named(condition)[1] === null ? "" : `, dose ${number(named(condition)[1])}`}`,
                  ]),
                  get("condition") || data.conditions[0].key,
                  value => set({condition: value, from: null}),
                ),
            data.metrics.length
              ? select("Score", [["", "none"], ...data.metrics.map(name => [name, name])], get("metric"), value =>
                  set({metric: value, low: null, high: null}),
                )
              : null,
          ),
          data.metrics.length
            ? null
            : el("p.note", {}, prose("No scores: `actlake score PAIR --sweep NAME` reads them off the texts.")),
          await (by === "condition" ? byCondition() : byPrompt()),
        ];
      },
      keys(event) {
        if (event.key === "j") document.getElementById("following")?.click();
        if (event.key === "k") document.getElementById("previous")?.click();
      },
      marked, // for tests
    };
  })(),
);
