// The explorer's core: data files, elements, addresses, numbers as text.
//
// The scripts are plain ones, loaded in order, since a page opened from a disk may load no modules and fetch nothing. A data
// file is a script of one call, explorer.put(NAME, TEXT); explore/packing.py says what TEXT is. Data reach the page as text
// nodes and on canvases only, never as markup.
"use strict";

const explorer = (() => {
  const waiting = new Map(),
    loaded = new Map(),
    pages = new Map();
  const KEPT = 60; // data files kept in memory
  let index = null,
    state = {page: "lake", values: new URLSearchParams()},
    current = null;

  // --- data files -----------------------------------------------------------------------------------------------------

  async function unpack(text) {
    const packed = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const raw = await new Response(stream).arrayBuffer();
    const size = new DataView(raw).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(raw, 4, size)));
    const arrays = new Map();
    let at = (4 + size + 3) & ~3;
    for (const [name, kind, shape] of header.arrays) {
      const count = shape.reduce((product, length) => product * length, 1);
      const [values, bytes] = read(raw, at, kind, count);
      arrays.set(name, {values, shape});
      at += (bytes + 3) & ~3;
    }
    return {value: header.value, arrays};
  }

  function read(raw, at, kind, count) {
    if (kind === "f3") {
      // floats without their lowest byte: all first bytes, all second, all third
      const bytes = new Uint8Array(raw, at, 3 * count),
        bits = new Uint32Array(count);
      for (let i = 0; i < count; i++)
        bits[i] = (bytes[i] << 24) | (bytes[count + i] << 16) | (bytes[2 * count + i] << 8);
      return [new Float32Array(bits.buffer), 3 * count];
    }
    const types = {u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array, i4: Int32Array, f4: Float32Array};
    const values = new types[kind](raw, at, count);
    return [values, values.byteLength];
  }

  // The data file of a name, from memory or by a script element.
  function load(name) {
    if (loaded.has(name)) {
      const found = loaded.get(name);
      loaded.delete(name);
      loaded.set(name, found); // the one used last is kept longest
      return found;
    }
    const found = new Promise((done, fail) => {
      const script = document.createElement("script");
      waiting.set(name, done);
      script.src = `data/${name}.js`;
      script.onload = () => script.remove();
      script.onerror = () => {
        loaded.delete(name);
        fail(new Error(`data/${name}.js is not there`));
      };
      document.head.append(script);
    }).then(unpack);
    loaded.set(name, found);
    if (loaded.size > KEPT) loaded.delete(loaded.keys().next().value);
    return found;
  }

  function put(name, text) {
    const done = waiting.get(name);
    waiting.delete(name);
    if (done) done(text);
  }

  // --- elements -------------------------------------------------------------------------------------------------------

  // An element; properties are set as attributes, functions as listeners; children are elements or texts.
  function el(tag, properties = {}, ...children) {
    const [name, ...classes] = tag.split(".");
    const made = document.createElement(name || "div");
    if (classes.length) made.className = classes.join(" ");
    for (const [key, value] of Object.entries(properties)) {
      if (value === undefined || value === null || (value === false && !key.startsWith("aria-"))) continue;
      if (typeof value === "function") made.addEventListener(key, value);
      else made.setAttribute(key, value === true && !key.startsWith("aria-") ? "" : String(value));
    }
    made.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
    return made;
  }

  // A text with its `names` in code marks.
  const prose = text => text.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));

  // A choice among values with labels: [value, label, title].
  function select(label, choices, chosen, changed) {
    const box = el(
      "select",
      {"aria-label": label, change: () => changed(box.value)},
      choices.map(([value, text]) => el("option", {value, selected: value === chosen}, text)),
    );
    return el("label.field", {}, el("span", {}, label), box);
  }

  // A row of buttons of which one is pressed.
  function toggles(label, choices, chosen, changed) {
    const group = el("div.toggles", {role: "group", "aria-label": label});
    for (const [value, text, title] of choices)
      group.append(
        el("button", {type: "button", "aria-pressed": value === chosen, title, click: () => changed(value)}, text),
      );
    return el("div.field", {}, el("span", {}, label), group);
  }

  function copyable(text, name = "SQL") {
    const said = el(
      "button.small",
      {
        type: "button",
        click: async () => {
          try {
            await navigator.clipboard.writeText(text);
          } catch (error) {
            const area = el("textarea", {}, text); // pages from a disk have no clipboard everywhere
            document.body.append(area);
            area.select();
            document.execCommand("copy");
            area.remove();
          }
          said.textContent = "Copied";
          setTimeout(() => {
            said.textContent = `Copy ${name}`;
          }, 1500);
        },
      },
      `Copy ${name}`,
    );
    return el("div.code", {}, el("pre", {tabindex: 0}, text), said);
  }

  // A table of rows; columns are [heading, function of a row, class, title].
  function table(columns, rows, caption) {
    const head = el(
      "tr",
      {},
      columns.map(([name, , kind, title]) => el("th", {class: kind, title, scope: "col"}, name)),
    );
    const body = rows.map(row =>
      el(
        "tr",
        {},
        columns.map(([, cell, kind]) => {
          const found = cell(row);
          return el(
            "td",
            {class: kind},
            found === null || found === undefined ? "–" : found instanceof Node ? found : String(found),
          );
        }),
      ),
    );
    return el(
      "div.scroll",
      {tabindex: 0, role: "region", "aria-label": caption},
      el("table", {}, el("thead", {}, head), el("tbody", {}, body)),
    );
  }

  function save(name, blob) {
    const link = el("a", {href: URL.createObjectURL(blob), download: name});
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // --- addresses ------------------------------------------------------------------------------------------------------

  function parse(hash) {
    const text = hash.replace(/^#/, ""),
      cut = text.indexOf("?");
    const page = cut < 0 ? text : text.slice(0, cut);
    return {page: pages.has(page) ? page : "lake", values: new URLSearchParams(cut < 0 ? "" : text.slice(cut + 1))};
  }

  function address(page, values = {}) {
    const query = new URLSearchParams();
    for (const [key, value] of Object.entries(values))
      if (value !== null && value !== undefined && value !== "") query.set(key, value);
    return `#${page}${query.size ? "?" + query : ""}`;
  }

  const get = (key, otherwise = "") => state.values.get(key) ?? otherwise;

  // Change what the address says; with `draw` the page is drawn anew, with `step` the browser's Back returns.
  function set(changes, {draw = true, step = false} = {}) {
    for (const [key, value] of Object.entries(changes)) {
      if (value === null || value === undefined || value === "") state.values.delete(key);
      else state.values.set(key, value);
    }
    const hash = `#${state.page}${state.values.size ? "?" + state.values : ""}`;
    history[step ? "pushState" : "replaceState"](null, "", hash);
    if (draw) return show();
  }

  async function show() {
    const main = document.getElementById("main"),
      page = pages.get(state.page),
      turn = (current = {});
    for (const link of document.querySelectorAll("#pages a"))
      link.toggleAttribute("aria-current", link.dataset.page === (page.under || state.page));
    const slow = setTimeout(() => main.setAttribute("aria-busy", "true"), 250);
    let made;
    try {
      made = await page.draw();
    } catch (error) {
      made = [el("p.note", {}, error.message)];
      console.warn(error.message);
    }
    clearTimeout(slow);
    if (current !== turn) return; // another page was opened meanwhile
    const focused = document.activeElement?.getAttribute?.("aria-label");
    main.replaceChildren(...made.flat(Infinity).filter(Boolean));
    main.removeAttribute("aria-busy");
    if (focused) main.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus({preventScroll: true});
    page.drawn?.();
    document.title = `${page.heading ? page.heading() : page.title} · actlake`;
    explorer.shown += 1;
    explorer.times.first ??= performance.now();
  }

  function opened() {
    const before = state.page;
    state = parse(location.hash);
    return show().then(() => {
      if (state.page !== before) scrollTo(0, 0);
    });
  }

  // --- numbers as text ------------------------------------------------------------------------------------------------

  const minus = text => text.replace(/^-/, "−");

  function number(value, digits = 3) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (Number.isInteger(value) && size < 1e15) return minus(value.toLocaleString("en"));
    if (size >= 0.001 && size < 1e6) return minus(String(Number(value.toPrecision(digits))));
    return minus(value.toExponential(digits - 1));
  }

  const signed = (value, digits = 3) => (value > 0 ? "+" : "") + number(value, digits);

  function bytes(value) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let at = 0;
    while (value >= 1000 && at < units.length - 1) {
      value /= 1000;
      at += 1;
    }
    return `${at && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[at]}`;
  }

  // A token as one line of text, with its spaces and breaks to be seen.
  const visible = text => text.replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "·").replace(CONTROLS, control);
  // Control characters, and those that turn a line around, by number.
  const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
  const control = letter => `<${letter.codePointAt(0).toString(16).toUpperCase().padStart(2, "0")}>`;
  const readable = text => text.replace(CONTROLS, control);

  const quoted = text => `'${String(text).replace(/'/g, "''")}'`; // as SQL writes it

  function csv(columns, rows) {
    const cell = value => {
      const text = value === null || value === undefined || Number.isNaN(value) ? "" : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
    };
    return [columns, ...rows].map(row => row.map(cell).join(",")).join("\n") + "\n";
  }

  // --- theme ----------------------------------------------------------------------------------------------------------

  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };

  function theme(next) {
    const order = ["system", "light", "dark"];
    let stored = "system";
    try {
      stored = localStorage.getItem("actlake-theme") || "system";
    } catch {
      /* no storage: as the system */
    }
    const chosen = next ? order[(order.indexOf(stored) + 1) % 3] : order.includes(stored) ? stored : "system";
    try {
      localStorage.setItem("actlake-theme", chosen);
    } catch {
      /* it holds for this page only */
    }
    if (chosen === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    document.getElementById("theme").textContent = `Theme: ${chosen}`;
    if (next && current) show();
  }

  // --- start ----------------------------------------------------------------------------------------------------------

  // A page: title, draw() -> elements, drawn() once they are in place, keys(event), under: the page it belongs to.
  const page = (name, made) => pages.set(name, made);

  async function start() {
    theme(false);
    document.getElementById("theme").onclick = () => theme(true);
    index = (await load("index")).value;
    const links = [...pages]
      .filter(([, made]) => !made.under)
      .map(([name, made]) => el("a", {href: `#${name}`, "data-page": name}, made.title));
    document.getElementById("pages").replaceChildren(...links);
    document
      .getElementById("foot")
      .replaceChildren(
        `actlake ${index.version} · ${index.lake} · the study that the rows reproduce: `,
        el("a", {href: index.study, rel: "noreferrer"}, "PT/IT model differences"),
      );
    addEventListener("hashchange", opened);
    addEventListener("popstate", opened);
    addEventListener("resize", () => pages.get(state.page).resized?.());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show());
    addEventListener("keydown", event => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
      if (typing && event.key === "Escape") return event.target.blur();
      if (typing) return;
      if (event.key === "t") return theme(true);
      if (event.key === "/") {
        const field = document.querySelector("main input[type=search], main textarea");
        if (field) {
          field.focus();
          event.preventDefault();
        }
        return;
      }
      pages.get(state.page).keys?.(event);
    });
    await opened();
  }

  return {
    shown: 0,
    times: {},
    put,
    load,
    el,
    prose,
    select,
    toggles,
    copyable,
    table,
    save,
    address,
    get,
    set,
    show,
    number,
    signed,
    bytes,
    visible,
    readable,
    quoted,
    csv,
    dark,
    page,
    start,
    get index() {
      return index;
    },
    pageOf: name => pages.get(name),
    // A view of the lake by its name in addresses.
    viewName: view => [view.name, view.recipe, index.sets[view.set].name].join("/"),
    view() {
      return index.views.find(view => explorer.viewName(view) === get("view")) || null;
    },
  };
})();
