// The page Directions: the words that a direction raises and lowers, where it is strongest, how stable it is.
"use strict";

explorer.page(
  "directions",
  (() => {
    const {el, prose, select, get, set, number, signed, table, address, visible, viewName} = explorer;
    let file = null,
      map = null,
      listed = [];
    const name = one => `${one.pair} · ${one.name} · ${one.streams.it || ""}`;
    const key = one => `${one.pair}/${one.key}/${one.name}`;

    const at = () =>
      Math.max(
        0,
        listed.findIndex(one => key(one) === get("direction")),
      );
    const row = () => {
      const found = file.value.layers.indexOf(Number(get("layer", "NaN")));
      return found < 0 ? file.value.layers.length - 1 : found;
    };

    function words(l) {
      const {values, shape} = file.arrays.get("words"),
        effects = file.arrays.get("effects").values,
        count = shape[1],
        half = count / 2;
      const part = (from, to, back) => {
        const found = Array.from({length: to - from}, (_, i) => [
          file.value.texts[values[l * count + from + i]],
          effects[l * count + from + i],
        ]);
        return back ? found.reverse() : found;
      };
      const largest = Math.max(...Array.from({length: count}, (_, i) => Math.abs(effects[l * count + i]))) || 1;
      const list = (some, title, colour) =>
        el(
          "section",
          {},
          el("h3", {}, title),
          el(
            "ol.likely.bars",
            {},
            some.map(([word, value]) => {
              const bar = el("i");
              bar.style.width = `${(Math.abs(value) / largest) * 100}%`;
              bar.style.background = colour;
              return el("li", {}, bar, el("span.word", {}, visible(word)), el("span.n", {}, signed(value)));
            }),
          ),
        );
      return el(
        "div.two",
        {},
        list(part(0, half, false), "raised most (towards IT)", figures.role("it")),
        list(part(half, count, true), "lowered most (towards PT)", figures.role("pt")),
      );
    }

    function strongest(l) {
      if (!file.arrays.has("along")) return null;
      const {shape} = file.arrays.get("along"),
        get_ = key => file.arrays.get(key).values,
        {index} = explorer,
        value = file.value;
      const view = value.view === null || value.view === undefined ? null : index.views[value.view];
      const lines = Array.from({length: shape[1]}, (_, i) => l * shape[1] + i);
      const link = i => {
        const id = value.prompts[get_("prompt")[i]];
        return view
          ? el(
              "a",
              {
                href: address("prompt", {
                  view: viewName(view),
                  id,
                  at: `it.${get_("position")[i]}`,
                  layer: value.layers[l],
                }),
              },
              id,
            )
          : id;
      };
      return table(
        [
          ["projection", i => signed(get_("along")[i]), "n"],
          ["prompt", link],
          ["position", i => number(get_("position")[i]), "n"],
          ["reads", i => el("q.word", {}, visible(value.texts[get_("reads")[i]]))],
          ["next", i => el("q.word", {}, visible(value.texts[get_("next")[i]]))],
        ],
        lines,
        "Tokens with the largest projections",
      );
    }

    return {
      title: "Directions",
      async draw() {
        listed = (await explorer.load("directions")).value.directions;
        map = null;
        if (!listed.length)
          return [
            el("h1", {}, "Directions"),
            el(
              "p.note",
              {},
              prose("No directions are in this lake yet. `lake.directions(PAIR)` or the rows 0A and 0B make them."),
            ),
          ];
        const one = listed[at()];
        file = await explorer.load(`directions/${at()}`);
        const {value} = file,
          l = row(),
          layers = value.layers,
          cosines = file.arrays.get("cosines").values;
        map = new HeatMap({
          columns: layers.length,
          rows: layers.length,
          width: 52,
          scale: figures.scale({diverging: true, high: 1}),
          label: "Cosines between the directions of two layers",
          rowName: r => String(layers[r]),
          word: (r, c) => number(cosines[r * layers.length + c], 2),
          value: (r, c) => cosines[r * layers.length + c],
          heads: [{name: "layer", text: c => String(layers[c])}],
          over: () => {},
          pick: ([r]) => set({layer: layers[r]}),
        });
        map.cell = [l, l];
        const others = value.others.map((other, i) => ({
          name: other.name,
          colour: figures.hue("", i),
          x: layers,
          y: [...file.arrays.get(`with.${i}`).values],
        }));
        return [
          el("h1", {}, "Directions"),
          el(
            "div.bar",
            {},
            select(
              "Direction",
              listed.map(one => [key(one), name(one)]),
              key(one),
              value => set({direction: value}),
            ),
            select(
              "Layer",
              layers.map(layer => [String(layer), String(layer)]),
              String(layers[l]),
              value => set({layer: value}),
            ),
          ),
          el(
            "p",
            {},
            `${one.name}: ${value.about}. `,
            el("span.soft", {}, "A unit vector a layer, in the space of MLP outputs."),
          ),
          ...value.notes.map(note => el("p.note", {}, note)),
          el("h2", {}, `Words, layer ${layers[l]}`),
          el(
            "p.soft",
            {},
            "What a unit of the direction adds to a word's logit through the head's norm weights and unembedding, relative to the mean word; the norm's scale is left out.",
          ),
          words(l),
          el("h2", {}, `Where the projection is largest and smallest, layer ${layers[l]}`),
          strongest(l) || el("p.soft", {}, "No projections here."),
          el("h2", {}, "Cosines between layers"),
          el("figure", {}, map.element),
          el("div.under", {}, figures.key(map.scale, "cosine")),
          el(
            "div.charts",
            {},
            value.stability.length
              ? figures.curves({
                  series: [
                    {
                      name: "mean of resamples",
                      colour: figures.hue("", 0),
                      x: value.stability.map(one => one[0]),
                      y: value.stability.map(one => one[1]),
                      low: value.stability.map(one => one[2]),
                      high: value.stability.map(one => one[1]),
                    },
                  ],
                  x: "layer",
                  y: "cosine with all records",
                  title: "Stability: resamples of the records, down to the lowest 5 %",
                  mark: layers[l],
                  picked: layer => set({layer}),
                })
              : null,
            others.length
              ? figures.curves({
                  series: others,
                  x: "layer",
                  y: `cosine with ${one.name}`,
                  title: "Agreement with the other directions of these captures",
                  mark: layers[l],
                  picked: layer => set({layer}),
                })
              : null,
          ),
          value.stability.length
            ? null
            : el(
                "p.soft",
                {},
                prose(`Stability is not computed here: row 0A does (\`actlake run 0A --pair ${one.pair}\`).`),
              ),
          el("p.soft", {}, "Keys: j and k next and previous layer."),
        ];
      },
      drawn() {
        map?.draw();
      },
      resized() {
        map?.draw();
      },
      keys(event) {
        const step = {j: 1, k: -1}[event.key];
        if (step && file)
          set({layer: file.value.layers[Math.max(0, Math.min(file.value.layers.length - 1, row() + step))]});
      },
    };
  })(),
);
