// The page Rows: questions of the experiment index, answered from the lake.
"use strict";

explorer.page(
  "rows",
  (() => {
    const {el, prose, select, get, set, number, table, copyable, address, viewName} = explorer;
    let rows = null,
      at = -1;

    const link = one => address("rows", {pair: one.pair, row: one.row});

    function numbersTable(answer, some, caption) {
      const names = [...new Map(some.flatMap(one => one.lines).map(line => [line.name, line])).values()];
      const order = {pt: 0, it: 1};
      names.sort((a, b) => a.contrast - b.contrast || (order[a.role] ?? 2) - (order[b.role] ?? 2));
      const published = some.some(one => one.lines.some(line => line.published));
      const columns = [
        [
          "measure",
          one =>
            el(
              "span",
              {},
              one.about ? el("abbr", {title: one.about.replace(/`/g, "")}, one.label) : one.label,
              el("code.name", {}, one.measure),
            ),
        ],
      ];
      for (const name of names)
        columns.push([
          name.name || "estimate",
          one => {
            const line = one.lines.find(line => line.name === name.name);
            return line ? line.text : "";
          },
          "n",
        ]);
      if (published)
        columns.push([
          "published",
          one =>
            one.lines
              .filter(line => line.published)
              .map(line => `${line.name ? line.name + " " : ""}${number(line.published[0])}`)
              .join(", "),
          "n",
        ]);
      columns.push(
        ["unit", one => (one.unit === "1" ? "" : one.unit)],
        [
          "n",
          one =>
            [...new Set(one.lines.map(line => (line.n === null ? "" : `${number(line.n)} ${line.of || ""}`)))]
              .filter(Boolean)
              .join(", "),
        ],
      );
      return table(columns, some, caption);
    }

    function drawn(answer) {
      if (!answer.curves.length) return null;
      const chosen = answer.curves.find(one => one.label === get("measure")) || answer.curves[0];
      const off = new Set(get("off").split("|").filter(Boolean));
      const places = values => (values.every(Number.isFinite) ? values : values.map((_, i) => i));
      const texts = chosen.series.some(one => !one.x.every(Number.isFinite));
      const line = one => ({
        name: one.name,
        colour: one.colours[explorer.dark() ? 1 : 0],
        dashed: one.dashed,
        x: places(one.x),
        y: one.estimate.map(y => y ?? NaN),
        low: one.low.map(y => y ?? NaN),
        high: one.high.map(y => y ?? NaN),
      });
      const levels = chosen.series.filter(one => !one.contrast),
        contrasts = chosen.series.filter(one => one.contrast);
      const boxes =
        levels.length > 1
          ? el(
              "p.legend",
              {},
              levels.map(one =>
                el(
                  "label",
                  {},
                  el("input", {
                    type: "checkbox",
                    checked: !off.has(one.name),
                    change: event => {
                      if (event.target.checked) off.delete(one.name);
                      else off.add(one.name);
                      set({off: [...off].join("|")});
                    },
                  }),
                  ` ${one.name}`,
                ),
              ),
            )
          : null;
      const draw = (series, title, points) =>
        figures.curves({
          series: series.map(line),
          x: answer.x,
          y: chosen.unit,
          title,
          whole: answer.x === "layer",
          points,
        });
      return [
        answer.curves.length > 1
          ? el(
              "div.bar",
              {},
              select(
                "Figure",
                answer.curves.map(one => [one.label, one.label]),
                chosen.label,
                value => set({measure: value, off: null}),
              ),
            )
          : null,
        chosen.about ? el("p.soft", {}, prose(chosen.about)) : null,
        chosen.heat ? figures.heat({...chosen.heat, label: chosen.label, unit: chosen.unit, across: answer.x}) : null,
        boxes,
        texts
          ? el(
              "p.soft",
              {},
              `Places: ${[...new Set(chosen.series.flatMap(one => one.x))].map((x, i) => `${i} ${x}`).join(", ")}`,
            )
          : null,
        el(
          "div.charts",
          {},
          levels.length
            ? draw(
                levels.filter(one => !off.has(one.name)),
                `${chosen.label}: estimates with 95 % intervals`,
                chosen.points.map(([x, y]) => ({x, y})),
              )
            : null,
          contrasts.length
            ? draw(
                contrasts,
                `${chosen.label}: difference`,
                levels.length ? null : chosen.points.map(([x, y]) => ({x, y})),
              )
            : null,
        ),
      ];
    }

    function most(answer) {
      if (!answer.most.length) return null;
      const view = explorer.index.views.find(
        one =>
          one.name === answer.pair &&
          Object.values(answer.streams).includes(explorer.index.captures[one.captures.it ?? one.captures.pt].stream),
      );
      return el(
        "details",
        {},
        el("summary", {}, "Prompts that contribute most"),
        answer.most.map(one => [
          el("h3", {}, `${one.measure}${one.of ? `, ${one.of}` : ""}`),
          el(
            "p",
            {},
            one.prompts.map(([id, value], i) => [
              i ? ", " : "",
              view ? el("a", {href: address("prompt", {view: viewName(view), id})}, id) : id,
              ` ${number(value)}`,
            ]),
          ),
        ]),
      );
    }

    function shown(answer) {
      if (answer.error) return [el("p.note", {}, answer.error)];
      const main = answer.numbers.filter(one => answer.main.includes(one.measure)),
        rest = answer.numbers.filter(one => !answer.main.includes(one.measure));
      return [
        el("p.lead.sentence", {}, prose(answer.sentence)),
        main.length ? numbersTable(answer, main, "Main numbers") : null,
        drawn(answer),
        rest.length
          ? el(
              "details",
              {},
              el("summary", {}, `${rest.length} more numbers`),
              numbersTable(answer, rest, "More numbers"),
            )
          : null,
        most(answer),
        answer.published.length
          ? el(
              "details",
              {},
              el("summary", {}, `${answer.published.length} figures of the study`),
              table(
                [
                  ["model", row => row.model],
                  ["quantity", row => row.quantity],
                  [
                    "value",
                    row =>
                      `${number(row.value)}${row.low === null ? "" : ` [${number(row.low)}, ${number(row.high)}]`}`,
                    "n",
                  ],
                  ["where", row => row.source],
                ],
                answer.published,
                "Published",
              ),
            )
          : null,
        el(
          "details",
          {},
          el("summary", {}, "What is measured, where, and what to beware of"),
          answer.description.map(([name, paragraphs, items]) => [
            el(
              "h3",
              {},
              {
                about: "What is computed",
                positions: "Positions",
                pitfalls: "Pitfalls",
                published: "Published",
                source: "Source",
              }[name] || name,
            ),
            paragraphs.map(text => el("p", {}, prose(text))),
            items.length
              ? el(
                  "ul",
                  {},
                  items.map(([text]) => el("li", {}, prose(text))),
                )
              : null,
          ]),
        ),
        el("details", {}, el("summary", {}, "SQL"), copyable(answer.sql)),
        el(
          "p.soft",
          {},
          `Intervals: ${answer.method.join(", ") || "none"}. Streams: ${
            Object.entries(answer.streams)
              .map(([who, stream]) => `${who.toUpperCase()} ${stream}`)
              .join(", ") || "none"
          }. `,
          prose(
            `\`actlake run ${answer.row} --pair ${answer.pair} --lock FILE\` keeps what the answer was made from, by hash; captures are cited as on the page Lake.`,
          ),
        ),
      ];
    }

    return {
      title: "Rows",
      async draw() {
        rows = (await explorer.load("rows")).value.rows;
        if (!rows.length)
          return [
            el("h1", {}, "Rows"),
            el("p.note", {}, prose("No pair of models is in this lake: rows compare two. `actlake demo` makes one.")),
          ];
        const answered = rows.filter(one => one.file !== null);
        const pairs = [...new Set(rows.map(one => one.pair))],
          pair = get("pair") || pairs[0];
        const mine = rows.filter(one => one.pair === pair);
        const words = get("q").toLowerCase();
        const found = mine.filter(one => `${one.row} ${one.title} ${one.group}`.toLowerCase().includes(words));
        const groups = [...new Set(mine.map(one => one.group))];
        const current =
          mine.find(one => one.row === get("row") && one.file !== null) || mine.find(one => one.file !== null);
        at = answered.indexOf(current);
        const answer = current ? (await explorer.load(`rows/${current.file}`)).value : null;
        const search = el("input", {
          type: "search",
          "aria-label": "Search rows",
          placeholder: "Search rows   /",
          value: get("q"),
          input: () => set({q: search.value}),
        });
        const list = el(
          "nav.contents",
          {"aria-label": "Rows"},
          pairs.length > 1
            ? select(
                "Pair",
                pairs.map(name => [name, name]),
                pair,
                value => set({pair: value, row: null}),
              )
            : null,
          search,
          groups.map(group => {
            const some = found.filter(one => one.group === group);
            return some.length
              ? [
                  el("h3", {}, group),
                  el(
                    "ul",
                    {},
                    some.map(one =>
                      el(
                        "li",
                        {},
                        one.file === null
                          ? el("span.soft", {title: one.why}, `${one.row} ${one.title}`)
                          : el(
                              "a",
                              {href: link(one), "aria-current": one === current ? "true" : null},
                              `${one.row} ${one.title}`,
                            ),
                      ),
                    ),
                  ),
                ]
              : null;
          }),
        );
        const missing = mine.filter(one => one.file === null);
        return [
          el(
            "div.with-contents",
            {},
            list,
            el(
              "div.content",
              {},
              answer
                ? [el("h1", {}, `${answer.row} · ${answer.title || current.title}`), shown(answer)]
                : [
                    el("h1", {}, "Rows"),
                    el(
                      "p.note",
                      {},
                      prose(
                        "No row can be answered from what is in the lake. `actlake run ROW` computes what one needs.",
                      ),
                    ),
                  ],
              missing.length
                ? el(
                    "details",
                    {},
                    el("summary", {}, `${missing.length} rows are not answered here`),
                    el(
                      "dl.why",
                      {},
                      missing.map(one => [el("dt", {}, `${one.row} ${one.title}`), el("dd", {}, prose(one.why))]),
                    ),
                  )
                : null,
            ),
          ),
        ];
      },
      keys(event) {
        const step = {j: 1, k: -1}[event.key],
          answered = rows ? rows.filter(one => one.file !== null) : [];
        if (step && answered.length) location.hash = link(answered[(at + step + answered.length) % answered.length]);
      },
    };
  })(),
);
