// What the page of a prompt knows of one model: tokens, numbers and likeliest tokens by layer (l) and position (t).
// `state` is the page's: the lens that is shown, and the numbers of both models.
"use strict";

class PromptSide {
  constructor(role, capture, file, name, state) {
    const {value, arrays} = file;
    Object.assign(this, {
      role,
      capture,
      name,
      state,
      value,
      arrays,
      n: value.tokens,
      layers: value.layers,
      words: value.words,
    });
    const steps = arrays.get("step").values;
    this.atStep = new Map();
    steps.forEach((step, t) => {
      if (step >= 0) this.atStep.set(step, t);
    });
  }
  step(t) {
    return this.arrays.get("step").values[t];
  }
  read(t) {
    return this.words[this.arrays.get("word").values[t]];
  }
  next(t) {
    return t + 1 < this.n ? this.read(t + 1) : "";
  }
  id(t) {
    return this.arrays.get("id").values[t];
  }
  special(t) {
    return (this.arrays.get("flags").values[t] & 1) > 0;
  }
  answer(t) {
    return (this.arrays.get("flags").values[t] & 2) > 0;
  }
  has(key) {
    return key === "js"
      ? Boolean(this.state.pair?.layers.length)
      : this.arrays.has(key === "block_cos" ? key : `${this.state.lens}.${key}`);
  }
  number(key, l, t) {
    if (key === "js") return PromptSide.pairNumber(this.state.pair, "js", this.layers[l], this.step(t));
    if (key === "rank_target" && t + 1 >= this.n) return NaN;
    const array = this.arrays.get(key === "block_cos" ? key : `${this.state.lens}.${key}`);
    return array ? array.values[l * this.n + t] : NaN;
  }
  top(l, t, k = 0) {
    const array = this.arrays.get(`${this.state.lens}.top`);
    return array && k < array.shape[0] ? this.words[array.values[(k * this.layers.length + l) * this.n + t]] : null;
  }
  share(l, t, k) {
    return this.arrays.get(`${this.state.lens}.p`)?.values[(k * this.layers.length + l) * this.n + t];
  }
  get kept() {
    return this.arrays.get(`${this.state.lens}.top`)?.shape[0] || 0;
  }

  // A number of both models at a layer and step, NaN where there is none.
  static pairNumber(pair, key, layer, step) {
    const l = pair ? pair.layers.indexOf(layer) : -1,
      s = pair?.atStep.get(step);
    if (l < 0 || s === undefined || step < 0) return NaN;
    return pair.arrays.get(key).values[l * pair.atStep.size + s];
  }
}

// The numbers that cells and tokens can be coloured by.
PromptSide.METRICS = [
  {
    key: "kl_final_layer",
    label: "KL to the final layer",
    unit: "nats",
    meaning: "KL(final ‖ layer) of the lens' distributions: 0 once a layer says what the model says",
    log: true,
  },
  {key: "entropy", label: "entropy", unit: "nats", meaning: "entropy of the layer's distribution"},
  {
    key: "p_target",
    label: "probability of the next token",
    unit: "",
    meaning: "probability of the token that follows",
    high: 1,
  },
  {
    key: "rank_target",
    label: "rank of the next token",
    unit: "",
    meaning: "1 + number of tokens likelier than the one that follows",
    log: true,
    low: 1,
  },
  {
    key: "js",
    label: "JS between PT and IT",
    unit: "nats",
    meaning: "Jensen-Shannon divergence of the two models' raw lenses at the same layer and step",
    high: Math.log(2),
    both: true,
  },
  {
    key: "cos_final",
    label: "cosine with the final residual",
    unit: "",
    meaning: "cosine of the residual, as the lens reads it, and the last one",
    diverging: true,
    high: 1,
  },
  {
    key: "block_cos",
    label: "δ-cosine of the block",
    unit: "",
    meaning: "cosine of what the block adds and what it reads: below 0 it writes against the residual",
    diverging: true,
    high: 1,
  },
];
