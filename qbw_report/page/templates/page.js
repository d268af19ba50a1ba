"use strict";
// Without this script the page says and shows the same of the last epoch; it adds the other epochs and costs,
// the names of configurations, sorting and the choice between light and dark.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const make = (name, attributes, parent) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent.append(element);
    return element;
  };
  const html = (name, text, parent, look) => {
    const element = document.createElement(name);
    element.textContent = text;
    if (look) element.className = look;
    parent.append(element);
    return element;
  };

  class Explorer {
    constructor(root) {
      this.root = root;
      this.data = JSON.parse(document.getElementById(root.dataset.cloud).textContent);
      this.find = (selector) => root.querySelector(selector);
      this.area = this.find(".area");
      this.svg = this.find("svg.axes");
      this.cost = this.find(".cost");
      this.slider = this.find(".epoch");
      this.hold = this.find(".hold");
      this.told = this.find(".hovered");
      this.canvas = document.createElement("canvas");
      this.canvas.setAttribute("aria-hidden", "true");
      this.area.append(this.canvas);
      this.tip = html("div", "", this.area, "tip");
      this.ring = html("div", "", this.area, "ring");
      this.find(".controls").hidden = false;
      this.told.hidden = false;
      this.area.tabIndex = 0;
      this.area.setAttribute("role", "group");
      this.area.setAttribute("aria-label", "Configurations; the left and right arrow keys step through them");
      this.chosen = -1;
      for (const control of [this.cost, this.slider, this.hold]) control.addEventListener("input", () => this.draw());
      for (const kind of ["pointerdown", "pointermove"]) this.area.addEventListener(kind, (event) => this.hover(event));
      // A finger leaves as soon as it has tapped; what it chose stays until it taps elsewhere.
      this.area.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") this.choose(-1); });
      this.area.addEventListener("blur", () => this.choose(-1));
      this.area.addEventListener("keydown", (event) => this.step(event));
      new ResizeObserver(() => {
        this.paint();
        this.choose(this.chosen);
      }).observe(this.area);
      this.draw();
    }

    get epoch() { return this.data.epochs[Number(this.slider.value)]; }

    draw() {
      const { data, epoch } = this;
      this.x = data.costs[this.cost.value];
      this.y = this.hold.checked ? data.accuracy : epoch.accuracy;
      this.across = (value) => (value - this.x.low) / (this.x.high - this.x.low);
      this.down = (value) => 1 - (value - this.y.low) / (this.y.high - this.y.low);
      this.points = epoch.points
        .map(([config, accuracy]) => ({ config, accuracy, cost: data.configs[this.cost.value][config] }))
        .filter((point) => point.cost !== null && point.accuracy !== null)
        .sort((a, b) => a.cost - b.cost || a.accuracy - b.accuracy);
      this.find(".epoch-number").textContent = `${epoch.epoch + 1} of ${data.epochs.at(-1).epoch + 1}`;
      this.slider.setAttribute("aria-valuetext", `epoch ${epoch.epoch + 1}`);
      this.find(".x-label").textContent = this.x.label;
      const some = this.points.length < epoch.configs ? ` (${this.points.length} of ${epoch.configs} configurations)` : "";
      this.find("figcaption").textContent = `Accuracy and cost, epoch ${epoch.epoch + 1}${some}`;
      this.svg.setAttribute("aria-label", `Accuracy against ${this.x.label}, epoch ${epoch.epoch + 1}, ${epoch.configs} configurations`);
      this.axes();
      this.marks();
      this.paint();
      this.choose(-1);
    }

    axes() {
      const [grid, left, below] = ["g.grid", "g.ticks.y", "g.ticks.x"].map(this.find);
      for (const group of [grid, left, below]) group.replaceChildren();
      for (const [place, text] of this.y.ticks) {
        make("line", { x1: 0, x2: "100%", y1: `${100 - place}%`, y2: `${100 - place}%` }, grid);
        make("text", { x: -8, y: `${100 - place}%`, dy: "0.35em" }, left).textContent = text;
      }
      for (const [place, text] of this.x.ticks) {
        make("text", { x: `${place}%`, y: "100%", dy: "1.6em" }, below).textContent = text;
      }
    }

    marks() {
      const group = this.find("g.marks");
      group.replaceChildren();
      // Bins are of average bitwidth; against another cost the points speak for themselves.
      if (this.cost.value !== "avg_bitwidth") return;
      const at = (x, y) => `${100 * this.across(x)},${100 * this.down(y)}`;
      const stretched = () => make("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", class: "mark" }, group);
      const rods = (look, ends) => {
        const parent = make("g", { class: `rods ${look}` }, group);
        for (const [x, low, high] of ends) {
          const across = `${100 * this.across(x)}%`;
          const [y1, y2] = [low, high].map((end) => `${100 * Math.min(Math.max(this.down(end), 0), 1)}%`);
          make("line", { x1: across, x2: across, y1, y2 }, parent);
        }
      };
      const bins = this.epoch.bins;
      const [several, sure] = [2, this.data.least_for_interval].map((least) => bins.filter((bin) => bin[7] >= least));
      rods("sure", sure.filter((bin) => bin[2] !== null).map((bin) => [bin[0], bin[2], bin[3]]));
      rods("range", several.map((bin) => [bin[0], bin[5], bin[6]]));
      rods("mean", several.map((bin) => [bin[0], bin[1] - bin[4], bin[1] + bin[4]]));
      make("polyline", { class: "line mean", points: bins.map((bin) => at(bin[0], bin[1])).join(" ") }, stretched());
      const [bits, accuracy] = this.epoch.enough;
      if (bits === null) return;
      const rule = make("g", { class: "rule enough" }, group);
      const [x, y] = [`${100 * this.across(bits)}%`, `${100 * this.down(accuracy)}%`];
      make("line", { x1: x, x2: x, y1: y, y2: "100%" }, rule);
      make("circle", { cx: x, cy: y, r: 8 }, rule);
      make("text", { x, y: "100%", dx: 6, dy: -7 }, rule).textContent = "Enough";
    }

    paint() {
      const { area } = this;
      // A fresh one: where one is painted again for paper, Chromium hides behind it what it should let through.
      const canvas = this.canvas.cloneNode();
      this.canvas.replaceWith(canvas);
      this.canvas = canvas;
      const [width, height, scale] = [area.clientWidth, area.clientHeight, window.devicePixelRatio || 1];
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      const context = canvas.getContext("2d");
      context.scale(scale, scale);
      const colour = (name) => getComputedStyle(area).getPropertyValue(name).trim();
      const [fill, paper, ink, picked] = ["--point", "--paper", "--ink", "--picked"].map(colour);
      const many = this.points.length > 1500;
      const radius = many ? 2.5 : 4.5;
      for (const point of this.points) {
        const kind = this.data.configs.kind[point.config];
        context.beginPath();
        context.arc(width * this.across(point.cost), height * this.down(point.accuracy), radius, 0, 2 * Math.PI);
        context.globalAlpha = kind > 0 ? 1 : many ? 0.4 : 0.62;
        context.fillStyle = kind === 1 ? paper : fill;
        if (kind < 2) context.fill();
        // Many points' outlines would paint their neighbours away, and the more the denser they are.
        if (kind === 0 && many) continue;
        context.lineWidth = kind === 0 ? 0.8 : 2;
        context.strokeStyle = [paper, ink, picked][kind];
        context.globalAlpha = 1;
        context.stroke();
      }
    }

    hover(event) {
      const box = this.area.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      let [nearest, least] = [-1, 24 ** 2];
      this.points.forEach((point, index) => {
        const distance = (x - box.width * this.across(point.cost)) ** 2 + (y - box.height * this.down(point.accuracy)) ** 2;
        if (distance < least) [nearest, least] = [index, distance];
      });
      this.choose(nearest);
    }

    step(event) {
      const moves = { ArrowRight: this.chosen + 1, ArrowLeft: this.chosen - 1, Home: 0, End: this.points.length - 1 };
      if (event.key === "Escape") this.choose(-1);
      if (!(event.key in moves)) return;
      event.preventDefault();
      this.choose(Math.min(Math.max(moves[event.key], 0), this.points.length - 1));
    }

    choose(index) {
      this.chosen = index;
      this.tip.hidden = this.ring.hidden = index < 0;
      if (index < 0) {
        this.told.textContent = "Point at a configuration, or step through them with the arrow keys, to see its layers' bits.";
        return;
      }
      const point = this.points[index];
      const { id, bits } = this.data.configs;
      const number = Number.isInteger(point.cost) && this.x.unit !== "bits" ? point.cost.toLocaleString("en") : point.cost.toFixed(2);
      const cost = `${number} ${this.x.unit || this.x.label.replace(/ \(.*/, "").toLowerCase()}`;
      const head = `Configuration ${id[point.config]}: ${(100 * point.accuracy).toFixed(2)}% at ${cost}`;
      this.tip.replaceChildren();
      html("p", "", this.tip).append(html("b", head, this.tip));
      const list = html("ul", "", this.tip);
      bits[point.config].split(" ").forEach((each, layer) => {
        html("li", `${this.data.layers[layer] ?? `layer ${layer}`}: ${each}`, list);
      });
      this.told.textContent = `${head}; bits of its layers: ${bits[point.config]}.`;
      const [x, y] = [this.area.clientWidth * this.across(point.cost), this.area.clientHeight * this.down(point.accuracy)];
      const left = Math.min(Math.max(x - this.tip.offsetWidth / 2, -50), this.area.clientWidth - this.tip.offsetWidth + 10);
      const above = y - this.tip.offsetHeight - 14;
      this.ring.style.left = `${x}px`;
      this.ring.style.top = `${y}px`;
      this.tip.style.left = `${left}px`;
      this.tip.style.top = `${above < -60 ? y + 14 : above}px`;
    }
  }

  const explorers = [...document.querySelectorAll(".explorer")].map((root) => new Explorer(root));

  for (const table of document.querySelectorAll("table.sortable")) {
    const [heads, body] = [[...table.tHead.rows[0].cells], table.tBodies[0]];
    const key = (row, column) => {
      const cell = row.cells[column];
      const exact = cell.querySelector("data");
      return exact ? Number(exact.value) : cell.textContent;
    };
    heads.forEach((head, column) => {
      const button = html("button", head.textContent, head);
      head.replaceChildren(button);
      button.type = "button";
      button.addEventListener("click", () => {
        const rising = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const rows = [...body.rows].map((row) => [key(row, column), row]);
        // What does not exist comes last, however it is sorted.
        const missing = ([value]) => value === "–";
        rows.sort((a, b) => missing(a) - missing(b)
          || (rising ? 1 : -1) * (typeof a[0] === "number" && typeof b[0] === "number" ? a[0] - b[0] : String(a[0]).localeCompare(String(b[0]))));
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  const [button, dark] = [document.getElementById("theme"), matchMedia("(prefers-color-scheme: dark)")];
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const themed = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show the page in ${isDark() ? "light" : "dark"} colours`);
    for (const explorer of explorers) explorer.paint();
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    themed();
  });
  for (const change of [dark, matchMedia("print")]) change.addEventListener("change", themed);
  themed();

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
