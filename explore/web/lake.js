// The page Lake: what is there, and what can be asked.
"use strict";

explorer.page("lake", {
  title: "Lake",
  async draw() {
    const {el, prose, table, number, bytes, index, address, copyable, viewName} = explorer;
    const views = index.views.map(view => {
      const models = Object.entries(view.captures).map(
        ([role, at]) => `${view.pair ? role.toUpperCase() + " " : ""}${index.captures[at].model}`,
      );
      const how = {own: "each model reads its own answer", shared: "both models read one answer", "": ""}[view.history];
      return el(
        "li",
        {},
        el("a", {href: address("prompts", {view: viewName(view)})}, `${view.name} · ${view.recipe}`),
        ` ${models.join(" and ")} on ${index.sets[view.set].name}${how ? ": " + how : ""}`,
      );
    });
    const tokens = index.captures.reduce((sum, one) => sum + one.tokens, 0);
    const size = index.captures.reduce((sum, one) => sum + one.bytes, 0);
    const filled = index.tables.filter(one => one.files),
      empty = index.tables.filter(one => !one.files);
    const many = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
    return [
      el("h1", {}, index.lake),
      el(
        "p.lead",
        {},
        `${many(index.models.length, "model")}, ${many(index.captures.length, "capture")}, ${number(tokens)} tokens, ` +
          `${bytes(size)}. `,
        index.unfinished ? `${many(index.unfinished, "capture")} not sealed and not shown. ` : "",
        index.limit ? `Of each prompt set the first ${index.limit} prompts are shown.` : "",
      ),
      el(
        "section",
        {},
        el("h2", {}, "What can be looked at"),
        views.length
          ? el("ul", {}, views)
          : el("p.note", {}, prose("There is no sealed capture in this lake yet. `actlake capture NAME` makes one.")),
      ),
      el(
        "section",
        {},
        el("h2", {}, "Models"),
        table(
          [
            ["model", row => row.model],
            ["class", row => row.class],
            ["blocks", row => number(row.blocks), "n"],
            ["width", row => number(row.width), "n"],
            ["vocabulary", row => number(row.vocabulary), "n"],
            ["parameters", row => number(row.parameters), "n"],
            ["dtype", row => row.dtype],
          ],
          index.models,
          "Models",
        ),
        Object.entries(index.chains).map(([name, models]) => el("p", {}, `Chain ${name}: ${models.join(" → ")}`)),
      ),
      el(
        "section",
        {},
        el("h2", {}, "Captures"),
        table(
          [
            ["model", row => row.model],
            ["stream", row => row.stream],
            ["prompts", row => number(row.prompts), "n"],
            ["tokens", row => number(row.tokens), "n"],
            ["on disk", row => bytes(row.bytes), "n"],
            [
              "cite as",
              row =>
                el(
                  "details",
                  {},
                  el("summary", {}, "reference"),
                  copyable(row.cite.map(([name, value]) => `${name}: ${value}`).join("\n"), "citation"),
                ),
            ],
          ],
          index.captures,
          "Captures",
        ),
      ),
      el(
        "section",
        {},
        el("h2", {}, "Tables"),
        el("p.soft", {}, "What SQL can ask. Point at a name for its columns."),
        filled.length
          ? table(
              [
                ["table", row => el("abbr", {title: columns(row.table)}, row.table)],
                ["what it holds", row => row.about],
                ["rows", row => number(row.rows), "n"],
                ["bytes", row => bytes(row.bytes), "n"],
              ],
              filled,
              "Tables",
            )
          : el("p.note", {}, "No table is computed yet; pages compute what they show from stored residuals."),
        empty.length
          ? el(
              "p.soft",
              {},
              prose(
                `Not computed yet: ${empty.map(one => one.table).join(", ")}. ` +
                  "`actlake sql` and `actlake run` compute what they need.",
              ),
            )
          : null,
      ),
      el(
        "section",
        {},
        el("h2", {}, "Questions"),
        el("p.soft", {}, prose("Rows of the experiment index. `actlake run ROW` answers one.")),
        table(
          [
            ["row", row => row.row],
            ["question", row => row.title],
            [
              "takes",
              row =>
                ({
                  offline: "the store alone",
                  generate: "texts that models write",
                  replay: "late blocks run again",
                  weights: "both checkpoints",
                })[row.how] || row.how,
            ],
            ["streams", row => row.streams.join(", ")],
          ],
          index.rows,
          "Questions",
        ),
      ),
    ];

    function columns(name) {
      return index.columns[name]
        .map(([column, , unit, meaning]) => `${column}${unit && unit !== "1" ? ` (${unit})` : ""}: ${meaning}`)
        .join("\n");
    }
  },
});
