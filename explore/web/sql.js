// The page SQL: a console with the local server; in a static site the tables, and queries to copy.
"use strict";

explorer.page(
  "sql",
  (() => {
    const {el, prose, get, set, table, copyable, number, quoted} = explorer;
    let field = null,
      shown = null,
      running = false;

    function examples() {
      const {index} = explorer,
        view = index.views.find(one => one.captures.it !== undefined),
        one = view && index.captures[view.captures.it];
      const found = [["What was captured", "SELECT * FROM captures"]];
      if (!one) return found;
      const here = `model = ${quoted(one.model)} AND stream = ${quoted(one.stream)}`;
      found.push(
        [
          "Mean KL and entropy by layer",
          `SELECT lens, layer, avg(kl_final_layer) AS kl, avg(entropy) AS entropy\nFROM lens WHERE ${here} AND step >= 0\nGROUP BY ALL ORDER BY ALL`,
        ],
        [
          "Prompts whose answer surprises the model most",
          `SELECT prompt_id, avg(-ln(p_target)) AS nats\nFROM lens WHERE ${here} AND lens = 'raw' AND step >= 0\n  AND layer = (SELECT max(layer) FROM lens)\nGROUP BY ALL ORDER BY nats DESC LIMIT 20`,
        ],
        [
          "Where the two models differ most",
          "SELECT pair, prompt_id, step, layer, js\nFROM pair_lens WHERE history = 'shared'\nORDER BY js DESC LIMIT 20",
        ],
        ["What models wrote under edits", "SELECT model, condition, prompt_id, text FROM outputs LIMIT 20"],
      );
      return found;
    }

    async function ask() {
      if (running || !field.value.trim()) return;
      running = true;
      set({q: field.value}, {draw: false});
      shown.replaceChildren(el("p.soft", {}, "Asking …"));
      try {
        const answer = await (
          await fetch("sql", {
            method: "POST",
            headers: {"Content-Type": "application/json"},
            body: JSON.stringify({sql: field.value}),
          })
        ).json();
        if (answer.error) shown.replaceChildren(el("p.note", {}, answer.error));
        else {
          const cell = value =>
            value === null
              ? "–"
              : Array.isArray(value)
                ? JSON.stringify(value)
                : typeof value === "number"
                  ? number(value, 6)
                  : explorer.readable(String(value));
          const columns = answer.columns.map((name, at) => [
            name,
            row => cell(row[at]),
            typeof answer.rows[0]?.[at] === "number" ? "n" : null,
          ]);
          shown.replaceChildren(
            el(
              "p.soft",
              {},
              `${number(answer.rows.length)} row${answer.rows.length === 1 ? "" : "s"}${answer.more ? ", and there are more: narrow the question" : ""}. `,
              el(
                "button.small",
                {
                  type: "button",
                  click: () =>
                    explorer.save(
                      "answer.csv",
                      new Blob([explorer.csv(answer.columns, answer.rows)], {type: "text/csv"}),
                    ),
                },
                "CSV",
              ),
            ),
            table(columns, answer.rows, "Answer"),
          );
        }
      } catch (error) {
        shown.replaceChildren(
          el("p.note", {}, `The server does not answer (${error.message}). Is \`actlake explore\` still running?`),
        );
      }
      running = false;
    }

    return {
      title: "SQL",
      async draw() {
        const {index} = explorer;
        const tables = el(
          "details",
          {},
          el("summary", {}, "Tables and columns"),
          index.tables
            .filter(one => one.files)
            .map(one =>
              el(
                "details",
                {},
                el("summary", {}, `${one.table}: ${one.about}`),
                table(
                  [
                    ["column", row => row[0]],
                    ["type", row => row[1]],
                    ["unit", row => (row[2] === "1" ? "" : row[2])],
                    ["meaning", row => row[3]],
                  ],
                  index.columns[one.table],
                  one.table,
                ),
              ),
            ),
        );
        if (!index.server)
          return [
            el("h1", {}, "SQL"),
            el(
              "p",
              {},
              prose(
                'These pages are a copy without a database. With the lake, `actlake sql "SELECT ..."` answers any question, and `actlake explore` has a console here.',
              ),
            ),
            examples().map(([name, text]) => [el("h2", {}, name), copyable(text)]),
            tables,
          ];
        field = el("textarea", {
          rows: 7,
          "aria-label": "Question in SQL",
          spellcheck: "false",
          keydown: event => {
            if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
              event.preventDefault();
              ask();
            }
          },
        });
        field.value = get("q") || examples()[Math.min(1, examples().length - 1)][1];
        shown = el("div", {"aria-live": "polite"});
        return [
          el("h1", {}, "SQL"),
          el(
            "p.soft",
            {},
            prose(
              "One SELECT over the lake's tables; nothing is computed or changed. Ctrl+Enter asks. The same on the command line: `actlake sql`.",
            ),
          ),
          field,
          el(
            "div.bar",
            {},
            el("button", {type: "button", id: "ask", click: ask}, "Ask"),
            examples().map(([name, text]) =>
              el(
                "button.small",
                {
                  type: "button",
                  click: () => {
                    field.value = text;
                    ask();
                  },
                },
                name,
              ),
            ),
          ),
          shown,
          tables,
        ];
      },
      drawn() {
        if (explorer.index.server && get("q")) ask();
      },
    };
  })(),
);
