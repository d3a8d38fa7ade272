// A heat map with a word in each cell. Only the cells in view are drawn, on a canvas as large as the view, so that 34 layers x
// 512 tokens scroll as smoothly as 6 x 20. Rows go up: the first one is at the bottom.
"use strict";

class HeatMap {
  // columns, rows: counts; word(r, c), value(r, c); scale; rowName(r); heads: lines above the columns, each {name, text(c),
  // strong(c)}; marks: Map column -> label, a line before it; over(cell or null), pick(cell) with cell = [row, column].
  constructor(given) {
    Object.assign(this, {cell: null, hover: null, width: 62, height: 21, marks: new Map()}, given);
    const {el} = explorer;
    this.left = Math.max(46, ...Array.from({length: this.rows}, (_, r) => 9 + 7 * this.rowName(r).length));
    this.head = this.heads.length * 18 + 6;
    this.canvas = el("canvas");
    this.wide = el("div", {}, this.canvas);
    this.element = el(
      "div.map",
      {
        tabindex: 0,
        role: "application",
        "aria-label": this.label,
        keydown: event => this.keys(event),
        scroll: () => this.scrolled(),
      },
      this.wide,
    );
    this.wide.style.width = `${this.left + this.columns * this.width}px`;
    this.wide.style.height = `${this.head + this.rows * this.height + 1}px`;
    this.canvas.addEventListener("pointermove", event => this.moved(this.under(event)));
    this.canvas.addEventListener("pointerleave", () => this.moved(null));
    this.canvas.addEventListener("click", event => {
      const cell = this.under(event);
      if (cell) this.pick(cell);
    });
  }

  under(event) {
    const column = Math.floor((event.offsetX - this.left + this.element.scrollLeft) / this.width);
    const row = this.rows - 1 - Math.floor((event.offsetY - this.head) / this.height);
    const inside = event.offsetX >= this.left && column >= 0 && column < this.columns && row >= 0 && row < this.rows;
    return inside ? [row, column] : null;
  }

  moved(cell) {
    if (String(cell) === String(this.hover)) return;
    this.hover = cell;
    this.over(cell);
    this.draw();
  }

  keys(event) {
    const step = {
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
      ArrowUp: [1, 0],
      ArrowDown: [-1, 0],
      Home: [0, -1e9],
      End: [0, 1e9],
    }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const [row, column] = this.cell || [this.rows - 1, 0],
      within = (x, count) => Math.max(0, Math.min(count - 1, x));
    this.pick([within(row + step[0], this.rows), within(column + step[1], this.columns)]);
  }

  scrolled() {
    this.draw();
    this.scrolledTo?.(this.element.scrollLeft);
  }

  // Mark a cell and bring it into view.
  select(cell, reveal = true) {
    this.cell = cell;
    if (cell && reveal) {
      const x = cell[1] * this.width,
        room = this.element.clientWidth - this.left,
        from = this.element.scrollLeft;
      if (x < from || x + this.width > from + room) this.element.scrollLeft = Math.max(0, x - room / 2);
    }
    this.draw();
  }

  // What a cell can hold of a text.
  fit(brush, text, room) {
    if (brush.measureText(text).width <= room) return text;
    let cut = Math.min(text.length, 14);
    while (cut > 0 && brush.measureText(text.slice(0, cut) + "…").width > room) cut -= 1;
    return text.slice(0, cut) + "…";
  }

  draw() {
    const {canvas, element, left, head, width, height, rows} = this,
      {css} = figures;
    const w = element.clientWidth,
      h = head + rows * height + 1,
      ratio = devicePixelRatio || 1;
    if (!w) return;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(h * ratio);
      canvas.style.width = `${w}px`;
      canvas.style.height = `${h}px`;
    }
    const brush = canvas.getContext("2d"),
      from = element.scrollLeft;
    const ink = css("--ink"),
      soft = css("--soft"),
      accent = css("--accent"),
      paper = css("--paper");
    brush.setTransform(ratio, 0, 0, ratio, 0, 0);
    brush.fillStyle = paper;
    brush.fillRect(0, 0, w, h);
    brush.textBaseline = "middle";
    const first = Math.max(0, Math.floor(from / width)),
      last = Math.min(this.columns, Math.ceil((from + w - left) / width));
    for (let c = first; c < last; c++) {
      const x = left + c * width - from;
      this.heads.forEach((line, i) => {
        brush.font = `${line.strong?.(c) ? "600 " : ""}12px ${this.font}`;
        brush.fillStyle = line.strong?.(c) ? ink : soft;
        brush.fillText(this.fit(brush, line.text(c), width - 6), x + 3, 10 + 18 * i);
      });
      brush.font = `12px ${this.font}`;
      for (let r = 0; r < rows; r++) {
        const y = head + (rows - 1 - r) * height,
          [back, front] = this.scale.colour(this.value(r, c));
        brush.fillStyle = back;
        brush.fillRect(x, y, width - 1, height - 1);
        brush.fillStyle = front;
        brush.fillText(this.fit(brush, this.word(r, c), width - 6), x + 3, y + height / 2);
      }
      if (this.marks.has(c)) {
        brush.fillStyle = accent;
        brush.fillRect(x - 2, 0, 3, h);
      }
    }
    for (const [cell, line] of [
      [this.hover, 1.5],
      [this.cell, 2.5],
    ])
      if (cell) {
        brush.strokeStyle = accent;
        brush.lineWidth = line;
        brush.strokeRect(left + cell[1] * width - from, head + (rows - 1 - cell[0]) * height, width - 1, height - 1);
      }
    brush.fillStyle = paper;
    brush.fillRect(0, 0, left - 1, h);
    brush.fillStyle = soft;
    brush.font = `11px ${this.font}`;
    brush.textAlign = "right";
    this.heads.forEach((line, i) => brush.fillText(line.name, left - 6, 10 + 18 * i));
    for (let r = 0; r < rows; r++)
      brush.fillText(this.rowName(r), left - 6, head + (rows - 1 - r) * height + height / 2);
    brush.textAlign = "left";
  }

  get font() {
    return "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
  }

  // All of it as an SVG group at a height, with its title; returns [group, width, height].
  svg(title) {
    const {svg, css} = figures,
      {left, head, width, height, rows} = this,
      top = 24,
      group = svg("g");
    const brush = document.createElement("canvas").getContext("2d");
    const put = (text, x, y, properties) =>
      group.append(svg("text", {x, y, "font-size": 12, "dominant-baseline": "central", ...properties}, text));
    brush.font = `12px ${this.font}`;
    put(title, 0, 10, {fill: css("--ink"), "font-weight": 600});
    this.heads.forEach((line, i) =>
      put(line.name, left - 6, top + 10 + 18 * i, {fill: css("--soft"), "text-anchor": "end", "font-size": 11}),
    );
    for (let r = 0; r < rows; r++)
      put(this.rowName(r), left - 6, top + head + (rows - 1 - r) * height + height / 2, {
        fill: css("--soft"),
        "text-anchor": "end",
        "font-size": 11,
      });
    for (let c = 0; c < this.columns; c++) {
      const x = left + c * width;
      this.heads.forEach((line, i) =>
        put(this.fit(brush, line.text(c), width - 6), x + 3, top + 10 + 18 * i, {
          fill: css(line.strong?.(c) ? "--ink" : "--soft"),
          "font-weight": line.strong?.(c) ? 600 : null,
        }),
      );
      for (let r = 0; r < rows; r++) {
        const y = top + head + (rows - 1 - r) * height,
          [back, front] = this.scale.colour(this.value(r, c));
        group.append(svg("rect", {x, y, width: width - 1, height: height - 1, fill: back}));
        put(this.fit(brush, this.word(r, c), width - 6), x + 3, y + height / 2, {fill: front});
      }
      if (this.marks.has(c))
        group.append(svg("rect", {x: x - 2, y: top, width: 3, height: head + rows * height, fill: css("--accent")}));
    }
    return [group, left + this.columns * width, top + head + rows * height + 12];
  }
}
