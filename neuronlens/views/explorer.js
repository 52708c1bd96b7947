// The explorer of a study. Every number comes with the page or is counted from float32 values that do; text only ever becomes text.
(() => {
  "use strict";
  const fill = (e, props, kids) => {
    for (const [k, v] of Object.entries(props)) if (!(e instanceof SVGElement) && k in e) e[k] = v; else e.setAttribute(k, v);
    e.append(...kids);
    return e;
  };
  const el = (tag, props = {}, ...kids) => fill(document.createElement(tag), props, kids);
  const svg = (tag, props = {}, ...kids) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, kids);
  const bytes = s => Uint8Array.from(atob(s), c => c.charCodeAt(0)).buffer;
  const fixed = digits => { // Rounded as Python rounds
    const f = new Intl.NumberFormat("en", {minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: false,
      roundingMode: "halfEven"});
    return v => v === null ? "" : f.format(v);
  };
  const [whole, , two, three] = [0, 1, 2, 3].map(fixed);
  const percent = (k, n) => n ? whole(100*(k/n)) + " %" : "none";
  const count = n => n.toLocaleString("en");
  const span = ([a, b]) => (a > -Infinity ? "[" + two(a) : "(−∞") + ", " + (b < Infinity ? two(b) + "]" : "∞)");
  const within = (x, ends) => ends.some(([a, b]) => x >= a && x <= b);

  // Rows in the range, nearest to the mean of the class first, and rows just outside it; in float32, as the library has it
  const around = (v, labels, c, ends, middle) => {
    const m = Math.fround(middle), rows = [...v.keys()], held = rows.map(i => within(v[i], ends));
    const by = key => { const k = rows.map(key); return rows.slice().sort((i, j) => k[i]-k[j]); };
    const near = by(i => Math.abs(Math.fround(v[i]-m))).filter(i => held[i]);
    const out = ends.length ? by(i => Math.min(...ends.map(([a, b]) => Math.max(Math.fround(a-v[i]), Math.fround(v[i]-b))))) : [];
    return {own: near.filter(i => labels[i] === c), others: near.filter(i => labels[i] !== c), outside: out.filter(i => !held[i])};
  };

  // The axis of a neuron: where all but one text in a hundred lie; ticks at round numbers
  const axis = v => {
    const s = [...v].sort((a, b) => a-b), at = q => s[Math.min(s.length-1, Math.round(q*(s.length-1)))];
    let lo = at(.005), hi = at(.995);
    if (!(hi > lo)) [lo, hi] = [lo-1, hi+1];
    const pad = .06*(hi-lo), step = [1, 2, 5].map(k => k*10**Math.floor(Math.log10((hi-lo)/3))).reverse().find(k => (hi-lo)/k >= 3);
    [lo, hi] = [lo-pad, hi+pad];
    const ticks = [];
    for (let t = Math.ceil(lo/step); t*step <= hi; t++) ticks.push(t*step);
    return {lo, hi, ticks, digits: Math.max(0, -Math.floor(Math.log10(step)+1e-9)), beyond: s.filter(x => x < lo || x > hi).length};
  };

  const BINS = 60, W = 600, H = 36;
  const histogram = (v, own, ax) => {
    const n = new Array(BINS).fill(0);
    for (const i of own) { const b = Math.floor((v[i]-ax.lo)/(ax.hi-ax.lo)*BINS); if (b >= 0 && b < BINS) n[b]++; }
    return n.map(k => k/Math.max(1, own.length));
  };
  const bars = (heights, top, ax, ends) => { // One path; with ends, only what lies in them
    const x = t => (t-ax.lo)/(ax.hi-ax.lo)*W, parts = [];
    heights.forEach((h, b) => {
      if (!h) return;
      const y = (H-(H-3)*h/top).toFixed(1), left = b*W/BINS, right = (b+1)*W/BINS;
      for (const [a, z] of ends ?? [[-Infinity, Infinity]]) {
        const l = Math.max(left, x(a)), r = Math.min(right, x(z));
        if (r > l) parts.push(`M${l.toFixed(1)} ${H}V${y}H${r.toFixed(1)}V${H}Z`);
      }
    });
    return parts.join("");
  };

  const KINDS = {range: "ranges", random: "random neurons", full: "whole neurons", base: "no edit"};
  const chart = (name, lines, labels, now, near, unit) => { // Lines over the numbers of a kind of range; one number: dots
    const [w, h, left, right, low] = [340, 178, 34, 328, 136], n = labels.length, all = Object.values(lines).flat().filter(v => v !== null);
    const most = Math.max(...all, 0), top = most > .5 ? 1 : Math.max(.05, Math.ceil(most*20)/20);
    const x = i => n > 1 ? left+14+(right-left-28)*i/(n-1) : (left+right)/2, y = v => low-(low-10)*v/top;
    const g = svg("svg", {viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `${name} over ${unit}`});
    for (const t of [0, top/2, top]) g.append(svg("path", {d: `M${left} ${y(t)}H${right}`, class: "nlx-grid"}),
      svg("text", {x: left-5, y: y(t)+4, "text-anchor": "end"}, String(+t.toFixed(3))));
    const each = Math.ceil(n/8);
    labels.forEach((s, i) => { if (i === now || i%each === 0 && Math.abs(i-now) >= each) g.append(
      svg("text", {x: x(i), y: low+17, "text-anchor": "middle", class: i === now ? "nlx-now" : ""}, s)); });
    g.append(svg("text", {x: (left+right)/2, y: h-6, "text-anchor": "middle"}, unit),
      svg("path", {d: `M${x(now)} 8V${low}`, class: "nlx-here"}));
    for (const [k, v] of Object.entries(lines)) {
      const at = v.map((q, i) => q === null ? null : [x(i), y(q)]).filter(Boolean), flat = k === "base" || k === "full";
      if (flat && at.length) g.append(svg("path", {d: `M${left} ${at[0][1]}H${right}`, class: `nlx-line nlx-${k}`}));
      else if (at.length > 1) g.append(svg("path", {d: "M" + at.map(p => p.join(" ")).join("L"), class: `nlx-line nlx-${k}`}));
      if (!flat) at.forEach(([a, b]) => g.append(svg("circle", {cx: a, cy: b, r: Math.abs(a-x(near)) < .1 ? 5 : 2.5, class: `nlx-dot nlx-${k}`})));
    }
    return el("figure", {}, el("figcaption", {}, name), g);
  };

  const explore = root => {
    const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    const labels = new Uint16Array(bytes(data.labels)), N = labels.length, values = new Float32Array(bytes(data.values)), E = data.effects;
    const ends = data.kinds.map(k => new Float32Array(bytes(k.ends))), axes = new Map();
    const rows = data.classes.map(() => []);
    labels.forEach((c, i) => rows[c].push(i));
    const now = {concept: 0, neuron: 0, kind: 0, at: data.kinds.map(k => k.at), fraction: E ? E.at : 0};
    const column = j => values.subarray(j*N, (j+1)*N);
    const endsOf = (kind, number, concept, neuron) => {
      const K = data.kinds[kind].K, k = data.concepts[0].neurons.length, out = [];
      let p = ((number*data.concepts.length+concept)*k+neuron)*K*2;
      for (let i = 0; i < K; i++, p += 2) if (ends[kind][p] <= ends[kind][p+1]) out.push([ends[kind][p], ends[kind][p+1]]);
      return out;
    };
    const id = "nlx" + [...document.querySelectorAll(".nlx")].indexOf(root);
    const labelled = (name, text, control, more = []) =>
      el("div", {className: "nlx-control nlx-" + name}, el("label", {htmlFor: control.id}, text), control, ...more);
    const select = (name, text, options) => {
      const s = el("select", {id: `${id}-${name}`}, ...options.map((o, i) => el("option", {value: i}, o)));
      s.addEventListener("input", () => { now[name] = +s.value; changed(name); });
      return [s, labelled(name, text, s)];
    };
    const slider = (name, set) => {
      const s = el("input", {type: "range", id: `${id}-${name}`, min: 0, step: 1}), out = el("output", {htmlFor: s.id});
      s.addEventListener("input", () => { set(+s.value); changed(name); });
      const box = labelled(name, "", s, [out]);
      const show = (what, names, at, hidden) => {
        box.firstChild.textContent = what;
        box.hidden = hidden;
        put(s, {max: names.length-1, value: at, disabled: names.length < 2}, {"aria-valuetext": `${what} ${names[at]}`});
        out.textContent = names[at];
      };
      return [show, box];
    };
    const put = (e, props, attrs) => { Object.assign(e, props); for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v); };

    const [conceptBox, concept] = select("concept", "Concept", data.concepts.map(c => data.classes[c.c]));
    const [neuronBox, neuron] = select("neuron", "Neuron", data.concepts[0].neurons.map(() => ""));
    const [, kind] = select("kind", "Kind of range", data.kinds.map(k => k.name + (k.about ? ": " + k.about : "")));
    const [showNumber, number] = slider("number", v => { now.at[now.kind] = v; });
    const [showFraction, fraction] = slider("fraction", v => { now.fraction = v; });
    const said = el("p", {className: "nlx-said"}), firing = el("div"), effect = el("div"), texts = el("div", {className: "nlx-texts"});
    said.setAttribute("aria-live", "polite");

    const shown = () => { // All classes, or of many the concept and those most in the range that the study has
      const {c, neurons} = data.concepts[now.concept], C = data.classes.length;
      if (C <= 14) return [...Array(C).keys()];
      const own = endsOf(0, data.kinds[0].at, now.concept, now.neuron), v = column(neurons[now.neuron].col);
      const rate = d => rows[d].length ? rows[d].filter(i => within(v[i], own)).length/rows[d].length : -1;
      return [c, ...[...Array(C).keys()].filter(d => d !== c).map(d => [rate(d), d]).sort((a, b) => b[0]-a[0] || a[1]-b[1]).slice(0, 11).map(p => p[1])];
    };

    const drawFiring = (c, v, own) => {
      const key = now.concept + "," + now.neuron;
      if (!axes.has(key)) axes.set(key, axis(v));
      const ax = axes.get(key), list = shown(), of = list.map(d => histogram(v, rows[d], ax)), top = Math.max(...of.flat(), 1e-9);
      const pos = t => (100*(t-ax.lo)/(ax.hi-ax.lo)).toFixed(2) + "%";
      const shade = () => own.map(([a, b]) => [Math.max(a, ax.lo), Math.min(b, ax.hi)]).filter(([a, b]) => b > a).map(([a, b]) =>
        svg("rect", {x: (a-ax.lo)/(ax.hi-ax.lo)*W, y: 0, width: Math.max(1, (b-a)/(ax.hi-ax.lo)*W), height: H, class: "nlx-band"}));
      const body = list.map((d, i) => {
        const k = rows[d].filter(j => within(v[j], own)).length, mine = d === c ? " nlx-own" : "";
        const plot = svg("svg", {viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", "aria-hidden": "true"}, ...shade(),
          svg("path", {d: bars(of[i], top, ax), class: "nlx-out"}), svg("path", {d: bars(of[i], top, ax, own), class: "nlx-in" + mine}));
        const bar = el("span", {className: "nlx-bar" + mine});
        bar.style.width = rows[d].length ? 100*k/rows[d].length + "%" : "0";
        return el("tr", {className: mine.trim()}, el("th", {scope: "row", title: data.classes[d]}, data.classes[d]), el("td", {className: "nlx-plot"}, plot),
          el("td", {className: "nlx-share"}, bar), el("td", {className: "nlx-n"}, percent(k, rows[d].length)),
          el("td", {className: "nlx-n"}, `${count(k)} of ${count(rows[d].length)}`));
      });
      const ticks = el("div", {className: "nlx-axis"}, ...ax.ticks.map(t => { const s = el("span", {}, fixed(ax.digits)(t)); s.style.left = pos(t); return s; }));
      const more = data.classes.length-list.length;
      firing.style.setProperty("--nlx-row", `${Math.min(3.4, Math.max(2, 18/list.length)).toFixed(2)}rem`);
      const head = ["Texts of", "Activation, as a histogram", "", "In range", "Texts"].map((s, i) => el(s ? "th" : "td", s ? {scope: "col"} : {className: "nlx-share"}, s));
      firing.replaceChildren(el("h3", {}, "Firing: texts inside the range"),
        el("table", {className: "nlx-firing"}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body),
          el("tfoot", {ariaHidden: "true"}, el("tr", {}, el("td"), el("td", {className: "nlx-plot"}, ticks), el("td", {className: "nlx-share"}), el("td"), el("td")))),
        el("p", {className: "nlx-note"}, el("i", {className: "nlx-key nlx-own"}), `${data.classes[c]} inside `, el("i", {className: "nlx-key"}),
          "others inside ", el("i", {className: "nlx-key nlx-out"}), "outside ", el("i", {className: "nlx-key nlx-band"}), "the range.",
          (ax.beyond ? ` ${count(ax.beyond)} of ${count(N)} texts lie beyond the ends of the axis; they are counted.` : "") +
          (more ? ` ${count(more)} more classes not shown.` : "")));
    };

    const drawEffect = c => {
      const name = data.classes[c], k = data.kinds[now.kind], i = now.at[now.kind], list = E.rows[`${now.kind},${now.fraction}`];
      const tried = list ? [...list.keys()].filter(t => list[t]) : [], near = tried.sort((a, b) => Math.abs(a-i)-Math.abs(b-i))[0] ?? i;
      const state = list && list[near], full = E.full[now.fraction]?.[now.concept], base = E.base[now.concept];
      const f = E.fractions[now.fraction];
      const what = `Edited (${E.edit}) are the ${count(f.k)} neurons most salient for ${name}, ${whole(100*f.share)} % of ${count(E.of)}, together: not the one above alone. `;
      const rowsOf = {base, full, ...(state ? {range: state[0][now.concept], random: state[1][now.concept]} : {})};
      const order = ["base", "range", "random", "full"].filter(q => rowsOf[q]);
      const table = el("table", {className: "nlx-measures"},
        el("thead", {}, el("tr", {}, el("th", {scope: "col"}, "Edited"), ...E.measures.map(m => el("th", {scope: "col"}, m.replace("fid", "fi\u00add").replace("rb", "r\u00adb"))))),
        el("tbody", {}, ...order.map(q => el("tr", {className: q === "range" ? "nlx-own" : ""}, el("th", {scope: "row"}, el("i", {className: `nlx-swatch nlx-${q}`}), KINDS[q]),
          ...rowsOf[q].map(v => el("td", {className: "nlx-n"}, three(v)))))));
      const line = (q, m) => list.map(s => s ? s[q][now.concept][m] : null), flat = (r, m) => r ? list.map(() => r[m]) : [];
      const charts = list ? E.charts.map(m => chart(E.measures[m], {base: flat(base, m), full: flat(full, m), random: line(1, m), range: line(0, m)}, k.labels, i, near, k.unit || k.name)) : [];
      const lost = !state ? `Ranges of kind ${k.name} were not tried at this share for this page; nl.explore(study) tries them. ` :
        near !== i ? `Shown is ${k.unit} ${k.labels[near]}, the nearest that was tried. ` : "";
      effect.replaceChildren(table, el("p", {className: "nlx-note"}, lost + what + E.note),
        ...(charts.length ? [el("div", {className: "nlx-charts"}, ...charts)] : []));
    };

    const drawTexts = (c, v, own, n) => {
      const found = around(v, labels, c, own, n.middle), name = data.classes[c];
      const part = (title, list, none) => el("div", {}, el("h3", {}, title), list.length ? el("ul", {}, ...list.slice(0, 4).map(i =>
        el("li", {}, el("span", {className: "nlx-n"}, two(v[i])), " ", el("b", {}, data.classes[labels[i]]), " ", el("bdi", {}, data.texts[i])))) :
        el("p", {className: "nlx-note"}, none));
      texts.replaceChildren(part(`Inside, ${name}: ${count(found.own.length)}, nearest to their mean`, found.own, "None."),
        part(`Inside, other classes: ${count(found.others.length)}, nearest to that mean`, found.others, "None."),
        part(`Outside: ${count(found.outside.length)}, nearest to the range`, found.outside, "None."));
    };

    const changed = what => {
      const now_c = data.concepts[now.concept];
      if (what === "concept" || !what) {
        now.neuron = 0; // The strongest
        [...neuronBox.options].forEach((o, i) => { const n = now_c.neurons[i]; o.textContent = `${n.j}: ${i ? "rank " + (i+1) : "the strongest"} of ${count(data.neurons)}`; });
        neuronBox.value = 0;
      }
      const n = now_c.neurons[now.neuron], v = column(n.col), k = data.kinds[now.kind], i = now.at[now.kind], c = now_c.c;
      const own = endsOf(now.kind, i, now.concept, now.neuron), held = [...v.keys()].filter(t => within(v[t], own));
      const mine = held.filter(t => labels[t] === c).length, name = data.classes[c];
      showNumber(k.unit || "number", k.labels.length ? k.labels : [""], i, !k.unit);
      if (E) showFraction("Share of the neurons that is edited", E.fractions.map(f => `${whole(100*f.share)} %`), now.fraction, false);
      said.replaceChildren("Range of ", el("b", {}, name), ` on neuron ${n.j} (${k.name}${k.unit ? `, ${k.unit} ${k.labels[i]}` : ""}): `,
        el("b", {}, own.map(span).join(" and ") || "empty"), ". Inside are ", el("b", {}, `${count(mine)} of ${count(rows[c].length)}`),
        ` texts of ${name} and `, el("b", {}, `${count(held.length-mine)} of ${count(N-rows[c].length)}`), " others.");
      drawFiring(c, v, own);
      if (E) drawEffect(c);
      if (data.texts) drawTexts(c, v, own, n);
    };
    const controls = el("div", {className: "nlx-controls"}, concept, neuron, kind, number);
    const kept = root.querySelector("script[type='application/json']");
    root.replaceChildren(kept, controls, said, el("div", {className: "nlx-main"}, firing, ...(E ? [el("div", {className: "nlx-effect"}, el("h3", {}, "Effect of the edit"), fraction, effect)] : [])), ...(data.texts ? [texts] : []),
      ...data.notes.map(s => el("p", {className: "nlx-note"}, s)));
    changed();
    root.dataset.on = "1";
  };
  for (const root of document.querySelectorAll(".nlx:not([data-on])")) explore(root);
})();
