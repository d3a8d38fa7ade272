// Colours, scales, and the small figures: curves, histograms, colour keys. All are drawn as SVG from the theme's own colours.
"use strict";

const figures = (() => {
  const {el, number} = explorer;
  const NS = "http://www.w3.org/2000/svg";
  // One colour for one thing on every page, as in the figures of answers.
  const ROLES = {pt: {light: "#0072b2", dark: "#5fb3e6"}, it: {light: "#c75000", dark: "#f2915a"}};
  const OTHERS = {
    light: ["#00795a", "#a8518a", "#5b4b9a", "#8a6500", "#3a7ca5", "#7d3c3c"],
    dark: ["#3fcf9f", "#e29ac7", "#a99be8", "#e0b84a", "#86c5ea", "#e09a9a"],
  };
  // From "nothing to see" to "much", and from PT's colour over nothing to IT's.
  const RAMPS = {
    light: [
      [250, 250, 247],
      [222, 233, 242],
      [168, 201, 226],
      [99, 157, 203],
      [38, 107, 168],
      [13, 58, 107],
    ],
    dark: [
      [27, 30, 36],
      [28, 52, 74],
      [31, 83, 122],
      [48, 123, 179],
      [112, 177, 223],
      [211, 233, 251],
    ],
  };
  const DIVERGING = {
    light: [
      [0, 96, 152],
      [104, 165, 205],
      [247, 247, 244],
      [233, 150, 96],
      [177, 66, 0],
    ],
    dark: [
      [95, 179, 230],
      [40, 92, 128],
      [30, 32, 37],
      [138, 70, 32],
      [246, 150, 92],
    ],
  };

  const mode = () => (explorer.dark() ? "dark" : "light");
  const role = name => ROLES[name]?.[mode()];
  const hue = (name, at) => role(name) || OTHERS[mode()][at % OTHERS[mode()].length];
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function mixed(stops, share) {
    const x = Math.min(1, Math.max(0, share)) * (stops.length - 1),
      at = Math.min(stops.length - 2, Math.floor(x));
    return stops[at].map((low, i) => Math.round(low + (stops[at + 1][i] - low) * (x - at)));
  }

  // A scale: share(value) from 0 to 1, colour(value) -> [background, ink], ticks for its key.
  function scale({low = 0, high = 1, log = false, diverging = false}) {
    const stops = (diverging ? DIVERGING : RAMPS)[mode()];
    const forward = log ? Math.log1p : value => value;
    const share = value => (diverging ? 0.5 + value / (2 * high) : forward(value - low) / (forward(high - low) || 1));
    const cache = new Map();
    const none = [css("--wash"), css("--soft")];
    function colour(value) {
      if (value === null || value === undefined || Number.isNaN(value)) return none;
      const key = Math.round(Math.min(1, Math.max(0, share(value))) * 100);
      if (!cache.has(key)) {
        const [r, g, b] = mixed(stops, key / 100);
        cache.set(key, [`rgb(${r},${g},${b})`, 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#15171a" : "#f4f5f7"]);
      }
      return cache.get(key);
    }
    return {low: diverging ? -high : low, high, log, diverging, share, colour};
  }

  // Round numbers between two ends.
  function ticks(low, high, count = 5) {
    if (!(high > low)) return [low];
    const raw = (high - low) / count,
      power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map(x => x * power).find(x => x >= raw);
    const found = [];
    for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-6; x += step)
      found.push(Math.abs(x) < step * 1e-9 ? 0 : x);
    return found;
  }

  // --- SVG ------------------------------------------------------------------------------------------------------------

  function svg(tag, properties = {}, ...children) {
    const made = document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(properties))
      if (value !== null && value !== undefined) made.setAttribute(key, value);
    made.append(...children.flat());
    return made;
  }

  // The colours of a scale with its ends and what it measures.
  function key(scaled, label) {
    const width = 200,
      made = svg("svg", {width: width + 30, height: 30, class: "key", role: "img", "aria-label": `Colours: ${label}`});
    const forward = scaled.log ? Math.log1p : value => value;
    const back = scaled.log ? Math.expm1 : value => value;
    for (let x = 0; x < width; x += 4) {
      const value = scaled.diverging
        ? (x / width - 0.5) * 2 * scaled.high
        : scaled.low + back((x / width) * forward(scaled.high - scaled.low));
      made.append(svg("rect", {x: 15 + x, y: 0, width: 4, height: 11, fill: scaled.colour(value)[0]}));
    }
    const marks = scaled.log
      ? [0, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 1e4, 1e5]
          .filter(x => x <= scaled.high && (scaled.low === 0 || Number.isInteger(x)))
          .map(x => x + scaled.low)
      : ticks(scaled.low, scaled.high, 6);
    let last = -99;
    for (const mark of marks) {
      const x = 15 + width * scaled.share(mark);
      if (x - last < 22) continue;
      last = x;
      made.append(
        svg("line", {x1: x, x2: x, y1: 11, y2: 15, stroke: "currentColor"}),
        svg("text", {x, y: 26, "text-anchor": "middle"}, number(mark)),
      );
    }
    return el("span.keyed", {}, el("span", {}, label), made);
  }

  // Lines over a shared x axis. series: {name, colour, x, y, low, high}; mark: an x that is marked; picked(x) on a click.
  function curves({
    series,
    x,
    y,
    width = innerWidth < 600 ? 360 : 560,
    height = 240,
    mark = null,
    picked = null,
    whole = true,
    title,
    zero = false,
    points = null,
  }) {
    const left = 46,
      right = 12,
      top = 10,
      bottom = 34;
    const shown = series.filter(one => one.y.some(Number.isFinite));
    const caption = el("figcaption", {}, title);
    if (!shown.length) return el("figure.chart", {}, caption, el("p.soft", {}, "No numbers here."));
    const xs = shown.flatMap(one => one.x),
      all = shown.flatMap(one => [...one.y, ...(one.low || []), ...(one.high || [])]).filter(Number.isFinite);
    let [x0, x1] = [Math.min(...xs), Math.max(...xs)],
      [y0, y1] = [Math.min(...all), Math.max(...all)];
    for (const point of points || []) {
      y0 = Math.min(y0, point.y);
      y1 = Math.max(y1, point.y);
    }
    if (zero || (y0 > 0 && y0 < y1 / 3)) y0 = Math.min(0, y0);
    if (y0 === y1) {
      y0 -= 0.5;
      y1 += 0.5;
    }
    const pad = (y1 - y0) * 0.04;
    y1 += pad;
    if (y0 !== 0) y0 -= pad;
    if (x0 === x1) {
      x0 -= 0.5;
      x1 += 0.5;
    }
    const px = value => left + ((value - x0) / (x1 - x0)) * (width - left - right);
    const py = value => top + (1 - (value - y0) / (y1 - y0)) * (height - top - bottom);
    const made = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title, class: "curves"});
    for (const tick of ticks(y0, y1, 4))
      made.append(
        svg("line", {x1: left, x2: width - right, y1: py(tick), y2: py(tick), class: tick === 0 ? "zero" : "grid"}),
        svg("text", {x: left - 6, y: py(tick) + 4, "text-anchor": "end"}, number(tick)),
      );
    for (const tick of ticks(x0, x1, 7).filter(tick => !whole || Number.isInteger(tick)))
      made.append(
        svg(
          "text",
          {x: px(tick), y: height - bottom + 16, "text-anchor": "middle"},
          tick === -1 && x === "layer" ? "in" : number(tick),
        ),
      );
    made.append(svg("text", {x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle", class: "name"}, x));
    made.append(
      svg(
        "text",
        {transform: `translate(11 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "name"},
        y,
      ),
    );
    if (mark !== null && mark >= x0 && mark <= x1)
      made.append(svg("line", {x1: px(mark), x2: px(mark), y1: top, y2: height - bottom, class: "mark"}));
    for (const one of shown) {
      if (one.low) {
        const at = one.x.map((_, i) => i).filter(i => Number.isFinite(one.low[i]) && Number.isFinite(one.high[i]));
        const ring = [...at.map(i => [one.x[i], one.high[i]]), ...at.reverse().map(i => [one.x[i], one.low[i]])];
        if (ring.length > 3)
          made.append(
            svg("polygon", {
              points: ring.map(([a, b]) => `${px(a)},${py(b)}`).join(" "),
              fill: one.colour,
              opacity: 0.16,
            }),
          );
        else
          for (const i of at)
            made.append(
              svg("line", {
                x1: px(one.x[i]),
                x2: px(one.x[i]),
                y1: py(one.low[i]),
                y2: py(one.high[i]),
                stroke: one.colour,
                "stroke-width": 2,
              }),
            );
      }
      let path = "",
        open = false;
      one.y.forEach((value, i) => {
        if (!Number.isFinite(value)) {
          open = false;
          return;
        }
        path += `${open ? "L" : "M"}${px(one.x[i]).toFixed(1)} ${py(value).toFixed(1)}`;
        open = true;
      });
      made.append(
        svg("path", {
          d: path,
          fill: "none",
          stroke: one.colour,
          "stroke-width": 2,
          "stroke-dasharray": one.dashed ? "5 4" : null,
        }),
      );
      if (one.x.length < 40)
        one.y.forEach((value, i) => {
          if (Number.isFinite(value))
            made.append(svg("circle", {cx: px(one.x[i]), cy: py(value), r: 2.6, fill: one.colour}));
        });
    }
    for (const point of points || [])
      made.append(
        svg(
          "path",
          {
            d: `M${px(point.x) - 5} ${py(point.y)}h10M${px(point.x)} ${py(point.y) - 5}v10`,
            stroke: "currentColor",
            "stroke-width": 1.6,
          },
          svg("title", {}, `published: ${number(point.y)}`),
        ),
      );
    const says = el("p.says", {"aria-live": "polite"}, "\u00a0");
    const every = [...new Set(xs)].sort((a, b) => a - b);
    const near = event => {
      const box = made.getBoundingClientRect(),
        at = x0 + ((((event.clientX - box.left) / box.width) * width - left) / (width - left - right)) * (x1 - x0);
      return every.reduce((best, value) => (Math.abs(value - at) < Math.abs(best - at) ? value : best), every[0]);
    };
    made.addEventListener("pointermove", event => {
      const at = near(event);
      says.textContent =
        `${x} ${at === -1 && x === "layer" ? "in" : number(at)}: ` +
        shown
          .map(one => {
            const i = one.x.indexOf(at);
            if (i < 0 || !Number.isFinite(one.y[i])) return null;
            const band =
              one.low && Number.isFinite(one.low[i]) ? ` [${number(one.low[i])}, ${number(one.high[i])}]` : "";
            return `${one.name} ${number(one.y[i])}${band}`;
          })
          .filter(Boolean)
          .join(", ");
    });
    made.addEventListener("pointerleave", () => {
      says.textContent = "\u00a0";
    });
    if (picked) {
      made.addEventListener("click", event => picked(near(event)));
      made.classList.add("picked");
    }
    const names = el(
      "p.legend",
      {},
      shown.map(one => el("span", {}, swatch(one.colour), one.name)),
    );
    return el("figure.chart", {}, caption, shown.length > 1 || shown[0].name ? names : null, made, says);
  }

  function swatch(colour) {
    const made = svg("svg", {width: 14, height: 10, "aria-hidden": "true"});
    made.append(svg("rect", {width: 14, height: 10, rx: 2, fill: colour}));
    return made;
  }

  // Values on two axes: values[y][x]; the value under the pointer is named.
  function heat({x, y, values, label, unit, across}) {
    const all = values.flat().filter(Number.isFinite),
      most = Math.max(...all.map(Math.abs)) || 1;
    const scaled = scale({low: 0, high: most, diverging: all.some(value => value < 0)});
    const width = innerWidth < 600 ? 360 : 560,
      left = 40,
      tall = Math.min(26, Math.max(8, 320 / y.length)),
      wide = (width - left) / x.length;
    const made = svg("svg", {viewBox: `0 0 ${width} ${tall * y.length + 36}`, role: "img", "aria-label": label, class: "curves"});
    const says = el("p.says", {"aria-live": "polite"}, "\u00a0");
    values.forEach((row, down) =>
      row.forEach((value, at) => {
        const top = (y.length - 1 - down) * tall,
          place = {x: left + at * wide, y: top, width: wide, height: tall, fill: scaled.colour(value)[0]};
        const cell = svg("rect", place);
        cell.addEventListener("pointerenter", () => {
          says.textContent = `${number(x[at])}, ${number(y[down])}: ${number(value)} ${unit}`;
        });
        made.append(cell);
      }),
    );
    const every = count => Math.max(1, Math.ceil(count / 12));
    x.forEach((value, at) => {
      if (at % every(x.length) === 0)
        made.append(
          svg("text", {x: left + (at + 0.5) * wide, y: tall * y.length + 14, "text-anchor": "middle"}, number(value)),
        );
    });
    y.forEach((value, down) => {
      if (down % every(y.length) === 0)
        made.append(
          svg("text", {x: left - 6, y: (y.length - 0.5 - down) * tall + 4, "text-anchor": "end"}, number(value)),
        );
    });
    made.append(svg("text", {x: width / 2, y: tall * y.length + 32, "text-anchor": "middle", class: "name"}, across));
    return el("figure.chart", {}, el("figcaption", {}, label), key(scaled, unit), made, says);
  }

  // A histogram of numbers; dragging over it chooses a range, a double click lets it go. chosen(low, high).
  function histogram({
    values,
    low = null,
    high = null,
    label,
    chosen,
    width = innerWidth < 600 ? 360 : 560,
    height = 130,
  }) {
    const known = values.filter(Number.isFinite);
    if (!known.length) return el("p.soft", {}, "No numbers here.");
    const left = 30,
      right = 10,
      top = 6,
      bottom = 32;
    let [x0, x1] = known.reduce(
      ([least, most], value) => [Math.min(least, value), Math.max(most, value)],
      [known[0], known[0]],
    );
    if (x0 === x1) {
      x0 -= 0.5;
      x1 += 0.5;
    }
    const bins = Math.max(8, Math.min(40, Math.round(Math.sqrt(known.length) * 2))),
      counts = new Array(bins).fill(0);
    for (const value of known) counts[Math.min(bins - 1, Math.floor(((value - x0) / (x1 - x0)) * bins))] += 1;
    const most = Math.max(...counts),
      wide = (width - left - right) / bins;
    const px = value => left + ((value - x0) / (x1 - x0)) * (width - left - right);
    const made = svg("svg", {
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `Histogram of ${label}`,
      class: "histogram",
    });
    counts.forEach((count, i) => {
      const tall = (count / most) * (height - top - bottom),
        from = x0 + ((x1 - x0) * i) / bins,
        to = x0 + ((x1 - x0) * (i + 1)) / bins;
      const inside = (low === null || to > low) && (high === null || from < high);
      made.append(
        svg(
          "rect",
          {
            x: left + i * wide + 0.5,
            y: height - bottom - tall,
            width: Math.max(1, wide - 1),
            height: tall,
            class: inside ? "bar" : "bar out",
          },
          svg("title", {}, `${number(from)} to ${number(to)}: ${number(count)}`),
        ),
      );
    });
    made.append(svg("line", {x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "zero"}));
    for (const tick of ticks(x0, x1, 6))
      made.append(svg("text", {x: px(tick), y: height - bottom + 14, "text-anchor": "middle"}, number(tick)));
    made.append(
      svg("text", {x: left - 4, y: top + 8, "text-anchor": "end"}, number(most)),
      svg("text", {x: width / 2, y: height - 3, "text-anchor": "middle", class: "name"}, label),
    );
    const brush = svg("rect", {y: top, height: height - top - bottom, class: "brush", width: 0});
    made.append(brush);
    const at = event => {
      const box = made.getBoundingClientRect(),
        share = (((event.clientX - box.left) / box.width) * width - left) / (width - left - right);
      return x0 + Math.min(1, Math.max(0, share)) * (x1 - x0);
    };
    let from = null;
    made.addEventListener("pointerdown", event => {
      from = at(event);
      made.setPointerCapture(event.pointerId);
    });
    made.addEventListener("pointermove", event => {
      if (from === null) return;
      const [a, b] = [from, at(event)].sort((p, q) => p - q);
      brush.setAttribute("x", px(a));
      brush.setAttribute("width", Math.max(0, px(b) - px(a)));
    });
    made.addEventListener("pointerup", event => {
      const [a, b] = [from, at(event)].sort((p, q) => p - q);
      from = null;
      if (b - a > (x1 - x0) / 100) chosen(Number(a.toPrecision(4)), Number(b.toPrecision(4)));
      else brush.setAttribute("width", 0);
    });
    made.addEventListener("dblclick", () => chosen(null, null));
    return el("figure.chart", {}, made);
  }

  // An SVG element as a file, with the colours that it has here.
  function svgFile(element) {
    return new Blob(['<?xml version="1.0" encoding="UTF-8"?>\n', new XMLSerializer().serializeToString(element)], {
      type: "image/svg+xml",
    });
  }

  async function pngFile(element, times = 2) {
    const url = URL.createObjectURL(svgFile(element)),
      image = new Image();
    await new Promise((done, fail) => {
      image.onload = done;
      image.onerror = fail;
      image.src = url;
    });
    const canvas = el("canvas"),
      width = Number(element.getAttribute("width")),
      height = Number(element.getAttribute("height"));
    const scaled = Math.min(times, 16000 / width, 16000 / height);
    canvas.width = Math.round(width * scaled);
    canvas.height = Math.round(height * scaled);
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(url);
    return new Promise(done => canvas.toBlob(done, "image/png"));
  }

  return {role, hue, css, scale, ticks, svg, key, curves, heat, histogram, swatch, svgFile, pngFile};
})();
