// The page Prompts: a list that can be searched, sorted by any number, and brushed.
"use strict";

explorer.page(
  "prompts",
  (() => {
    const {el, select, get, set, number, address, viewName} = explorer;
    const ROW = 58;
    let data = null,
      shown = [],
      list = null,
      at = 0;

    const place = () => {
      const view = explorer.view();
      if (view) return view.set;
      return Math.max(
        0,
        explorer.index.sets.findIndex(one => one.name === get("set")),
      );
    };
    const viewOf = place => explorer.view() || explorer.index.views.find(view => view.set === place);
    const column = name => data.value.numbers.findIndex(one => one.label === name);
    const values = column =>
      column < 0
        ? null
        : data.arrays
            .get("numbers")
            .values.subarray(column * data.value.ids.length, (column + 1) * data.value.ids.length);

    function chosen() {
      const {ids, categories, texts} = data.value,
        words = get("q").toLowerCase().split(/\s+/).filter(Boolean),
        category = get("category");
      const numbers = values(column(get("number"))),
        low = get("low") === "" ? -Infinity : Number(get("low")),
        high = get("high") === "" ? Infinity : Number(get("high"));
      const narrowed = low > -Infinity || high < Infinity;
      const found = ids
        .map((_, i) => i)
        .filter(i => {
          if (category && categories[i] !== category) return false;
          if (numbers && narrowed && !(numbers[i] >= low && numbers[i] <= high)) return false;
          const text = `${ids[i]} ${categories[i]} ${texts[i]}`.toLowerCase();
          return words.every(word => text.includes(word));
        });
      const order = get("sort");
      if (order === "up" || order === "down") {
        const sign = order === "up" ? 1 : -1,
          key = i => (numbers && Number.isFinite(numbers[i]) ? numbers[i] : sign * Infinity);
        found.sort((a, b) => sign * (key(a) - key(b)) || a - b);
      }
      return found;
    }

    function rows() {
      // only those in view
      const from = Math.max(0, Math.floor(list.scrollTop / ROW) - 4),
        to = Math.min(shown.length, from + Math.ceil(list.clientHeight / ROW) + 8);
      const {ids, categories, texts} = data.value,
        numbers = values(column(get("number"))),
        view = viewOf(place());
      const inner = el("div");
      inner.style.height = `${shown.length * ROW}px`;
      for (let n = from; n < to; n++) {
        const i = shown[n];
        const row = el(
          "a.item",
          {
            href: address("prompt", {view: viewName(view), id: ids[i]}),
            "data-at": n,
            "aria-current": n === at ? "true" : null,
          },
          el("span.id", {}, ids[i]),
          el("span.tag", {}, categories[i]),
          el("span.value", {}, numbers ? number(numbers[i]) : ""),
          el("span.text", {}, texts[i]),
        );
        row.style.top = `${n * ROW}px`;
        inner.append(row);
      }
      list.replaceChildren(inner);
    }

    function filtered() {
      shown = chosen();
      at = Math.min(at, Math.max(0, shown.length - 1));
      document.getElementById("count").textContent =
        `${number(shown.length)} of ${number(data.value.ids.length)} prompts`;
      rows();
    }

    return {
      title: "Prompts",
      async draw() {
        const {index} = explorer;
        if (!index.sets.length)
          return [el("h1", {}, "Prompts"), el("p.note", {}, "No prompts: the lake has no sealed capture yet.")];
        data = await explorer.load(`prompts/${place()}`);
        const view = viewOf(place()),
          categories = [...new Set(data.value.categories)].sort();
        const spec = data.value.numbers[column(get("number"))],
          numbers = values(column(get("number")));
        list = el("div.list", {role: "list", tabindex: 0, "aria-label": "Prompts", scroll: rows});
        const search = el("input", {
          type: "search",
          placeholder: "Search text, id, category   /",
          "aria-label": "Search",
          value: get("q"),
          input: () => {
            set({q: search.value}, {draw: false});
            list.scrollTop = 0;
            filtered();
          },
        });
        const groups = new Map();
        for (const one of data.value.numbers) groups.set(one.table, [...(groups.get(one.table) || []), one]);
        const numberBox = el(
          "select",
          {
            "aria-label": "Number",
            change: () =>
              set({
                number: numberBox.value,
                low: null,
                high: null,
                sort: numberBox.value ? get("sort") || "down" : null,
              }),
          },
          el("option", {value: ""}, "none"),
          [...groups].map(([table, some]) =>
            el(
              "optgroup",
              {label: table},
              some.map(one => el("option", {value: one.label, selected: one.label === get("number")}, one.label)),
            ),
          ),
        );
        const clear = get("low") !== "" || get("high") !== "";
        return [
          el("h1", {}, "Prompts"),
          el(
            "div.bar",
            {},
            index.views.length > 1
              ? select(
                  "Models",
                  index.views.map(one => [viewName(one), `${one.name} · ${one.recipe}`]),
                  viewName(view),
                  value => set({view: value}),
                )
              : null,
            el("label.field.grow", {}, el("span", {}, "Search"), search),
            select("Category", [["", "all"], ...categories.map(name => [name, name])], get("category"), value =>
              set({category: value}),
            ),
            el("label.field", {}, el("span", {}, "Number"), numberBox),
            spec
              ? select(
                  "Order",
                  [
                    ["", "as in the set"],
                    ["down", "largest first"],
                    ["up", "smallest first"],
                  ],
                  get("sort"),
                  value => set({sort: value}),
                )
              : null,
          ),
          spec
            ? el(
                "div.brushed",
                {},
                el(
                  "p.soft",
                  {},
                  `${spec.meaning}${spec.unit ? ` (${spec.unit})` : ""}. Drag over the histogram to choose a range.`,
                ),
                figures.histogram({
                  values: Array.from(numbers),
                  low: clear && get("low") !== "" ? Number(get("low")) : null,
                  high: clear && get("high") !== "" ? Number(get("high")) : null,
                  label: spec.label + (spec.unit ? ` (${spec.unit})` : ""),
                  chosen: (low, high) => set({low, high}),
                }),
                clear
                  ? el(
                      "button.small",
                      {type: "button", click: () => set({low: null, high: null})},
                      `Range ${get("low")} to ${get("high")}: show all`,
                    )
                  : null,
              )
            : null,
          el("p", {id: "count", class: "soft", "aria-live": "polite"}),
          list,
          el("p.soft", {}, "Keys: / search, j and k next and previous, Enter opens."),
        ];
      },
      drawn() {
        if (data && list?.isConnected) filtered();
      },
      resized() {
        if (list) rows();
      },
      keys(event) {
        const step = {j: 1, k: -1, ArrowDown: 1, ArrowUp: -1}[event.key];
        if (step && shown.length) {
          at = Math.max(0, Math.min(shown.length - 1, at + step));
          if (at * ROW < list.scrollTop) list.scrollTop = at * ROW;
          if ((at + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (at + 1) * ROW - list.clientHeight;
          rows();
          event.preventDefault();
        }
        if (event.key === "Enter" && event.target.tagName !== "A") list.querySelector("[aria-current]")?.click();
      },
      order: () => (shown.length && data ? shown.map(i => data.value.ids[i]) : null), // what a prompt's page goes through
    };
  })(),
);
