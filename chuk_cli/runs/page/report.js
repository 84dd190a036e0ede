"use strict";
(() => {
  const run = JSON.parse(document.getElementById("run-data").textContent);
  const colours = ["train", "eval", "third", "fourth", "fifth", "sixth"].map((name) => `var(--${name})`);
  const longest = Math.max(0, ...run.charts.flatMap((chart) => chart.lines.map((line) => line.values.length)));
  const state = { smooth: longest >= 60 ? 0.6 : 0, log: false, axis: "steps", zoom: null };
  const charts = [];

  // Numbers

  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

  function figure(value) {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(3).replace(/\.?0+e/, "e");
    return String(Number(value.toPrecision(4)));
  }

  function bytes(value) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let index = 0;
    while (Math.abs(value) >= 1000 && index < units.length - 1) { value /= 1024; index += 1; }
    return `${Number(value.toPrecision(3))} ${units[index]}`;
  }

  function clock(seconds) {
    const total = Math.round(seconds);
    const parts = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
    if (total < 60) return `${Number(seconds.toFixed(1))} s`;
    return parts.slice(parts[0] ? 0 : 1).map((part, index) => (index ? String(part).padStart(2, "0") : part)).join(":");
  }

  const units = {
    "": figure,
    bytes,
    share: (value) => `${Number((value * 100).toFixed(2))} %`,
    count: (value) => compact.format(value),
  };
  const places = { steps: (value) => whole.format(value), tokens: (value) => compact.format(value), seconds: clock };
  const words = { steps: (text) => `step ${text}`, tokens: (text) => `${text} tokens`, seconds: (text) => text };

  function ticks(low, high, count, base = 10) {
    const span = high - low;
    if (!(span > 0)) return [low];
    const factors = base === 60 ? [1, 2, 5, 10, 15, 30, 60] : [1, 2, 5, 10];
    const power = base ** Math.floor(Math.log(span / count) / Math.log(base));
    const step = power * (factors.find((factor) => power * factor >= span / count) ?? base);
    const found = [];
    for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) found.push(index * step);
    return found;
  }

  function powers(low, high) {
    if (high - low < 1) return ticks(10 ** low, 10 ** high, 5).filter((value) => value > 0).map(Math.log10);
    const found = [];
    for (let power = Math.floor(low); power <= high; power += 1) {
      for (const factor of high - low < 2.5 ? [1, 2, 5] : [1]) {
        const value = power + Math.log10(factor);
        if (value >= low && value <= high) found.push(value);
      }
    }
    return found;
  }

  // Curves

  function smoothed(values, weight) {
    if (!weight) return values;
    let mean = 0;
    let total = 0;
    return values.map((value) => {
      mean = mean * weight + value * (1 - weight);
      total = total * weight + (1 - weight);
      return mean / total;
    });
  }

  function nearest(sorted, wanted) {
    let low = 0;
    let high = sorted.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < wanted) low = middle + 1; else high = middle;
    }
    return low > 0 && wanted - sorted[low - 1] <= sorted[low] - wanted ? low - 1 : low;
  }

  function element(name, attributes = {}, parent = null) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (parent) parent.append(node);
    return node;
  }

  function block(name, className, text, parent) {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text) node.textContent = text;
    parent.append(node);
    return node;
  }

  class Chart {
    constructor(data, index, parent) {
      this.data = data;
      this.id = `clip-${index}`;
      this.wide = index === 0;
      this.show = units[data.unit] ?? figure;
      this.node = block("figure", "chart", "", parent);
      const caption = block("figcaption", "", "", this.node);
      this.caption = caption;
      block("span", "", data.title, caption);
      data.lines.forEach((line, number) => {
        line.colour = colours[number % colours.length];
        line.dash = number < colours.length ? "none" : "6 4";
        if (data.lines.length < 2) return;
        const key = block("span", line.sparse ? "key sparse" : "key", "", caption);
        key.style.setProperty("--colour", line.colour);
        block("i", "", "", key);
        block("span", "", line.name, key);
      });
      this.svg = element("svg", { tabindex: 0, role: "img", "aria-label": `${data.title} over ${run.steps ?? "all"} steps` }, this.node);
      this.tip = block("div", "tip", "", this.node);
      this.tip.hidden = true;
      this.listen();
    }

    /** Points on the chosen axis; lines without tokens fall back to steps. */
    places(line) {
      const found = line[state.axis];
      return found.some((value) => value === null) ? line.steps : found;
    }

    draw() {
      const box = this.node.getBoundingClientRect();
      this.width = Math.max(260, Math.round(box.width));
      this.height = this.wide ? Math.max(240, Math.min(340, Math.round(this.width * 0.32))) : 210;
      this.edge = { left: 58, right: 12, top: 10, bottom: 28 };
      this.lines = this.data.lines.map((line) => {
        const raw = line.values;
        return { ...line, xs: this.places(line), raw, ys: line.exact ? raw : smoothed(raw, state.smooth) };
      });
      this.measure();
      this.svg.replaceChildren();
      this.tip.hidden = true;
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
      const clip = element("clipPath", { id: this.id }, element("defs", {}, this.svg));
      const area = { x: this.edge.left - 5, y: this.edge.top - 5, width: this.width - this.edge.left - this.edge.right + 10, height: this.height - this.edge.top - this.edge.bottom + 5 };
      element("rect", area, clip);
      this.drawAxes();
      const inside = element("g", { "clip-path": `url(#${this.id})` }, this.svg);
      for (const line of this.lines) this.drawLine(line, inside);
      this.overlay = element("g", {}, this.svg);
    }

    /** The ranges: x from the zoom or all data, y from what is visible, without rare peaks unless zoomed. */
    measure() {
      const all = this.lines.flatMap((line) => [line.xs[0], line.xs[line.xs.length - 1]]);
      const [low, high] = state.zoom ?? [Math.min(...all), Math.max(...all)];
      this.x = { low, high: high > low ? high : low + 1 };
      const seen = this.lines.map((line) => line.raw.filter((_, index) => line.xs[index] >= low && line.xs[index] <= high)).filter((values) => values.length);
      const values = seen.flat();
      this.isLog = state.log && values.length > 0 && values.every((value) => value > 0);
      const tops = seen.map((part) => {
        const sorted = [...part].sort((a, b) => a - b);
        const top = sorted[sorted.length - 1];
        const most = sorted[Math.floor((sorted.length - 1) * 0.98)];
        return this.isLog || state.zoom || top <= most * 1.3 ? top : most;
      });
      let bottom = this.scale(Math.min(...values));
      let top = this.scale(Math.max(...tops));
      if (!values.length) [bottom, top] = [0, 1];
      const margin = (top - bottom) * 0.06 || Math.abs(top) * 0.1 || 0.5;
      const floor = this.data.unit && !this.isLog && bottom >= 0 ? 0 : -Infinity;
      this.y = { low: Math.max(bottom - margin, floor), high: top + margin };
    }

    scale(value) { return this.isLog ? Math.log10(value) : value; }

    across(x) {
      return this.edge.left + ((x - this.x.low) / (this.x.high - this.x.low)) * (this.width - this.edge.left - this.edge.right);
    }

    down(value) {
      const height = this.height - this.edge.top - this.edge.bottom;
      return this.edge.top + ((this.y.high - this.scale(value)) / (this.y.high - this.y.low)) * height;
    }

    drawAxes() {
      const { left, right, bottom } = this.edge;
      const base = this.height - bottom;
      const base2 = this.data.unit === "bytes" ? 1024 ** Math.floor(Math.log(this.y.high) / Math.log(1024)) : 1;
      const plain = () => ticks(this.y.low / base2, this.y.high / base2, this.wide ? 6 : 4).map((level) => level * base2);
      const levels = this.isLog ? powers(this.y.low, this.y.high) : plain();
      const labels = this.labels(levels.map((level) => Number((this.isLog ? 10 ** level : level).toPrecision(9))));
      for (const [index, level] of levels.entries()) {
        const value = this.isLog ? 10 ** level : level;
        const y = this.down(value);
        element("line", { class: "grid", x1: left, x2: this.width - right, y1: y, y2: y }, this.svg);
        element("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, this.svg).textContent = labels[index];
      }
      element("line", { class: "base", x1: left, x2: this.width - right, y1: base, y2: base }, this.svg);
      const marks = ticks(this.x.low, this.x.high, this.width / 110, state.axis === "seconds" ? 60 : 10);
      for (const mark of marks.filter((value) => state.axis !== "steps" || Number.isInteger(value))) {
        const label = element("text", { x: this.across(mark), y: base + 19, "text-anchor": "middle" }, this.svg);
        label.textContent = places[state.axis](mark);
      }
    }

    /** Texts of tick values in as many digits as tell them apart. */
    labels(values) {
      const short = values.map((value) => this.show(Number(value.toPrecision(6))));
      if (new Set(short).size === short.length) return short;
      const scaled = this.data.unit === "share" ? values.map((value) => value * 100) : values;
      const end = this.data.unit === "share" ? " %" : "";
      for (let digits = 5; digits < 10; digits += 1) {
        const longer = scaled.map((value) => `${Number(value.toPrecision(digits))}${end}`);
        if (new Set(longer).size === longer.length) return longer;
      }
      return short;
    }

    drawLine(line, parent) {
      const path = (values) => values.map((value, index) => `${index ? "L" : "M"}${this.across(line.xs[index]).toFixed(1)} ${this.down(value).toFixed(1)}`).join("");
      const group = element("g", { style: `--colour:${line.colour};stroke-dasharray:${line.dash}` }, parent);
      if (line.ys !== line.raw) element("path", { class: "curve raw", d: path(line.raw) }, group);
      element("path", { class: "curve", d: path(line.ys) }, group);
      if (!line.sparse || line.xs.length > 60) return;
      line.ys.forEach((value, index) => element("circle", { class: "mark", cx: this.across(line.xs[index]), cy: this.down(value), r: 3.5 }, group));
    }

    /** The cursor at `x` in data units; the chart that is pointed at also has the numbers. */
    point(x, isHere) {
      this.overlay.replaceChildren();
      this.tip.hidden = true;
      if (x === null || x < this.x.low || x > this.x.high) return;
      const rows = this.lines.map((line) => ({ line, index: nearest(line.xs, x) })).filter(({ line, index }) => this.isNear(line, index, x));
      element("line", { class: "cursor", x1: this.across(x), x2: this.across(x), y1: this.edge.top, y2: this.height - this.edge.bottom }, this.overlay);
      for (const { line, index } of rows) {
        const dot = { class: "at", cx: this.across(line.xs[index]), cy: Math.max(this.edge.top, this.down(line.ys[index])), r: 5 };
        element("circle", dot, element("g", { style: `--colour:${line.colour}` }, this.overlay));
      }
      if (isHere && rows.length) this.tell(rows, x);
    }

    /** Sparse lines only speak at their points; a line that is logged at each step does at the nearest. */
    isNear(line, index, x) {
      return line.xs[index] === x || !line.sparse;
    }

    tell(all, x) {
      const rows = all.filter(({ line, index }) => line.xs[index] === x);
      const place = x;
      this.tip.replaceChildren();
      block("b", "", words[state.axis](places[state.axis](place)), this.tip);
      for (const { line, index } of rows) {
        const row = block("div", "", "", this.tip);
        row.style.setProperty("--colour", line.colour);
        block("i", "", "", row);
        block("span", "", line.name, row);
        block("span", "", this.show(line.raw[index]), row);
      }
      this.tip.hidden = false;
      const ratio = this.node.clientWidth / this.width;
      const at = this.across(x) * ratio;
      const flip = at + this.tip.offsetWidth + 18 > this.node.clientWidth;
      this.tip.style.left = `${flip ? Math.max(0, at - this.tip.offsetWidth - 14) : at + 14}px`;
      this.tip.style.top = `${this.caption.offsetHeight + 14}px`;
    }

    dataX(event) {
      const box = this.svg.getBoundingClientRect();
      const share = ((event.clientX - box.left) * (this.width / box.width) - this.edge.left) / (this.width - this.edge.left - this.edge.right);
      return this.x.low + Math.min(1, Math.max(0, share)) * (this.x.high - this.x.low);
    }

    /** The nearest point of any line, so that the cursor snaps to what was measured. */
    snapped(x) {
      const found = this.lines.map((line) => line.xs[nearest(line.xs, x)]);
      return found.reduce((best, other) => (Math.abs(other - x) < Math.abs(best - x) ? other : best));
    }

    listen() {
      let from = null;
      this.svg.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        from = this.dataX(event);
        this.pointed = true;
        this.svg.classList.remove("keyed");
        if (event.pointerType !== "mouse") pointAll(this.snapped(from), this);
        if (event.pointerType === "mouse") this.svg.setPointerCapture(event.pointerId);
      });
      this.svg.addEventListener("pointermove", (event) => {
        const x = this.dataX(event);
        pointAll(this.snapped(x), this);
        if (from === null || event.pointerType !== "mouse") return;
        const [left, right] = [this.across(Math.min(from, x)), this.across(Math.max(from, x))];
        element("rect", { class: "drag", x: left, y: this.edge.top, width: right - left, height: this.height - this.edge.top - this.edge.bottom }, this.overlay);
      });
      this.svg.addEventListener("pointerup", (event) => {
        const to = this.dataX(event);
        if (from !== null && event.pointerType === "mouse" && Math.abs(this.across(to) - this.across(from)) > 8) zoom([Math.min(from, to), Math.max(from, to)]);
        from = null;
      });
      this.svg.addEventListener("pointercancel", () => { from = null; });
      this.svg.addEventListener("pointerleave", (event) => { if (from === null && event.pointerType === "mouse") pointAll(null, this); });
      this.svg.addEventListener("dblclick", () => zoom(null));
      this.svg.addEventListener("focus", () => { if (!this.pointed) this.svg.classList.add("keyed"); });
      this.svg.addEventListener("blur", () => { this.pointed = false; this.svg.classList.remove("keyed"); pointAll(null, this); });
      this.svg.addEventListener("keydown", (event) => this.key(event));
    }

    key(event) {
      const line = this.lines[0];
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
      if (event.key === "Escape") zoom(null);
      if (!move) return;
      event.preventDefault();
      const index = this.index === undefined ? line.xs.length - 1 : this.index + move;
      this.index = Math.min(line.xs.length - 1, Math.max(0, index));
      pointAll(line.xs[this.index], this);
    }
  }

  function pointAll(x, here) { for (const chart of charts) chart.point(x, chart === here); }

  function drawAll() { for (const chart of charts) chart.draw(); }

  function zoom(range) {
    state.zoom = range;
    document.getElementById("reset").disabled = range === null;
    drawAll();
  }

  // Controls

  function connect() {
    const smooth = document.getElementById("smooth");
    const told = document.getElementById("smooth-value");
    smooth.value = String(state.smooth);
    told.textContent = state.smooth ? state.smooth.toFixed(2) : "off";
    smooth.addEventListener("input", () => {
      state.smooth = Number(smooth.value);
      told.textContent = state.smooth ? state.smooth.toFixed(2) : "off";
      drawAll();
    });
    document.getElementById("log").addEventListener("change", (event) => { state.log = event.target.checked; drawAll(); });
    document.getElementById("reset").addEventListener("click", () => zoom(null));
    const axis = document.getElementById("axis");
    axis.addEventListener("click", (event) => {
      if (!event.target.dataset.axis) return;
      state.axis = event.target.dataset.axis;
      for (const button of axis.children) button.setAttribute("aria-pressed", String(button === event.target));
      zoom(null);
    });
    const theme = document.getElementById("theme");
    theme.hidden = false;
    theme.addEventListener("click", () => {
      const root = document.documentElement;
      const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = isDark ? "light" : "dark";
    });
  }

  if (!run.charts.length) return;
  document.getElementById("curves").hidden = false;
  connect();
  const place = document.getElementById("charts");
  const grouped = new Set(run.charts.map((chart) => chart.group)).size > 1;
  run.charts.forEach((chart, index) => {
    if (grouped && index && chart.group !== run.charts[index - 1].group) block("h3", "group", chart.group, place);
    charts.push(new Chart(chart, index, place));
  });
  drawAll();
  let waiting = 0;
  new ResizeObserver(() => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(drawAll); }).observe(document.getElementById("charts"));
  addEventListener("beforeprint", drawAll);
})();
