// The token explorer: unpacks what explorer_data.py packed, and draws one example at a time. Inserts text only as text.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const root = $("explorer");
  const VIEWS = { u4: Uint32Array, u1: Uint8Array, f2: Uint16Array };
  let header, column, example, spans = [];
  const state = { by: "loss", ablation: 0, step: 0, left: 0, right: 1, token: -1 };

  async function unpack() {
    const text = atob($("explorer-data").textContent);
    const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = await new Response(stream).arrayBuffer();
    const size = new DataView(buffer).getUint32(0, true);
    header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
    column = {};
    for (const [name, [kind, offset, length]] of Object.entries(header.columns)) {
      column[name] = new VIEWS[kind](buffer, 4 + size + offset, length);
    }
    // The first alternative of each token that has any.
    header.choices = new Map();
    column.choice_of.forEach((token, row) => header.choices.has(token) || header.choices.set(token, row));
  }

  function half(bits) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits & 0x8000 ? -1 : 1;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  }

  const number = (value) => value.toPrecision(3);
  const signed = (value) => (value < 0 ? "−" : "+") + number(Math.abs(value));
  const nats = (value, show = number) => (Number.isFinite(value) ? `${show(value)} nats` : "—");
  const measured = (name, i) => half(column[name][example.first + i]);
  const shownText = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "∅";

  function element(kind, text, className) {
    const made = document.createElement(kind);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function fill(select, entries, chosen) {
    select.replaceChildren(
      ...entries.map(([value, text]) => {
        const option = element("option", text);
        option.value = value;
        option.selected = value === chosen;
        return option;
      }),
    );
  }

  const passes = (model) => header.passes.filter((pass) => pass[0] === model && pass[1] === state.example);

  // Returns a model's loss on a token of the example, and where it was measured; null if it was not measured.
  function lossUnder(model) {
    if (model === 0) return { of: (i) => measured("base_loss", i), where: "" };
    if (model === 1) return { of: (i) => measured("loss", i), where: "" };
    const scored = header.scored.find((entry) => entry[0] === model && entry[1] === state.example);
    if (scored) return { of: (i) => half(column.student_loss[scored[2] + i]), where: "" };
    const last = passes(model).at(-1);
    return last ? { of: (i) => half(column.pass_loss[last[3] + i]), where: ` at step ${last[2]}` } : null;
  }

  function percentile(values, share) {
    const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
    return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : 0;
  }

  // Returns the chosen colouring: a shade from -1 to 1 for each token, a legend, and lines of the tooltip.
  function colouring() {
    if (state.by === "selected") {
      const pass = passes(state.ablation).find((one) => one[2] === state.step);
      if (!pass) {
        const why = example.split === "train" ? "this ablation did not train on it" : "choose a train example";
        return { shade: () => 0, legend: [`Nothing was selected from this ${example.split} example: ${why}.`], lines: () => [] };
      }
      const selected = (i) => column.pass_selected[pass[3] + i] === 1;
      const count = Array.from({ length: example.count }, (_, i) => selected(i)).filter(Boolean).length;
      return {
        shade: (i) => (selected(i) ? 0.8 : 0),
        legend: [`${count} of ${example.count} tokens were selected at step ${state.step}; they are coloured.`],
        lines: (i) => [
          [`at step ${state.step}`, selected(i) ? "selected" : "not selected"],
          ["loss at that step", nats(half(column.pass_loss[pass[3] + i]))],
        ],
      };
    }
    if (state.by === "difference") {
      const [left, right] = [lossUnder(state.left), lossUnder(state.right)];
      const names = [header.models[state.left], header.models[state.right]];
      if (!left || !right) {
        const missing = names[left ? 1 : 0];
        return { shade: () => 0, legend: [`Not measured: the loss of ${missing} on this ${example.split} example.`], lines: () => [] };
      }
      const values = Array.from({ length: example.count }, (_, i) => left.of(i) - right.of(i));
      const top = Math.max(percentile(values.map(Math.abs), 0.95), 0.01);
      const mean = values.filter(Number.isFinite).reduce((sum, value) => sum + value, 0) / values.length;
      return {
        shade: (i) => values[i] / top,
        legend: [`≤ −${number(top)}`, "cold hot", `≥ +${number(top)} nats. Mean ${signed(mean)}: blue where ${names[0]}${left.where} has the lower loss, red where ${names[1]}${right.where} has.`],
        lines: (i) => [
          ...[[state.left, names[0], left], [state.right, names[1], right]]
            .filter(([model]) => model > 1)
            .map(([, name, loss]) => [`loss, ${name}${loss.where}`, nats(loss.of(i))]),
          ["difference", nats(values[i], signed)],
        ],
      };
    }
    const top = header.tops[state.by];
    return {
      shade: (i) => measured(state.by, i) / top,
      legend: ["0", "hot", `≥ ${number(top)} nats (the 95th percentile of these examples)`],
      lines: () => [],
    };
  }

  function paint() {
    const { shade, legend } = colouring();
    spans.forEach((span, i) => {
      const value = Math.max(-1, Math.min(1, shade(i)));
      const colour = value < 0 ? "--cold" : "--heat";
      span.style.backgroundColor = Number.isFinite(value) && value ? `rgba(var(${colour}),${Math.abs(value) * 0.75})` : "";
    });
    $("x-legend").replaceChildren(
      ...legend.map((part) => (part === "hot" || part === "cold hot" ? element("span", undefined, `bar ${part}`) : element("span", part))),
    );
    document.querySelectorAll("#explorer .by button").forEach((button) => {
      button.setAttribute("aria-pressed", button.dataset.by === state.by);
    });
    $("x-selected").hidden = state.by !== "selected";
    $("x-difference").hidden = state.by !== "difference";
    if (state.token >= 0) show(state.token);
  }

  function draw() {
    example = header.examples[state.example];
    spans = Array.from({ length: example.count }, (_, i) => {
      const text = header.texts[column.text[example.first + i]];
      const span = element("span", text.replaceAll("\n", "↵\n") || "∅");
      span.dataset.i = i;
      return span;
    });
    const rest = example.tokens - example.count;
    const cut = rest ? [element("small", ` … ${rest.toLocaleString("en")} more tokens`)] : [];
    $("x-tokens").replaceChildren(...spans, ...cut);
    $("x-prompt").textContent = example.prompt;
    $("x-prompt").hidden = !example.prompt;
    hide();
    steps();
    paint();
  }

  function steps() {
    const found = passes(state.ablation).map((pass) => [pass[2], `step ${pass[2]}`]);
    if (!found.some(([step]) => step === state.step)) state.step = found.length ? found[0][0] : 0;
    fill($("x-step"), found, state.step);
  }

  function show(i) {
    state.token = i;
    spans.forEach((span) => span.classList.toggle("at", Number(span.dataset.i) === i));
    const at = example.first + i, tip = $("x-tip");
    const rows = [
      [`loss, ${header.scored_by}`, nats(measured("loss", i))],
      ["loss, base model", nats(measured("base_loss", i))],
      ["entropy", nats(measured("entropy", i))],
      ["BALD", nats(measured("bald", i))],
      ["likelier tokens", column.rank[at].toLocaleString("en")],
      ...colouring().lines(i),
    ];
    const list = element("dl");
    for (const [name, value] of rows) list.append(element("dt", name), element("dd", value));
    const title = element("p", undefined, "title");
    title.append(element("code", shownText(header.texts[column.text[at]])));
    title.append(element("small", ` ${header.categories[column.category[at]]}, position ${column.position[at]}`));
    tip.replaceChildren(title, list, ...alternatives(at));
    tip.hidden = false;
    // Below the token if there is room, and within the width of the page.
    const box = spans[i].getClientRects()[0], width = tip.offsetWidth;
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8));
    const below = box.bottom + 6 + tip.offsetHeight < window.innerHeight || box.top < tip.offsetHeight;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${window.scrollY + (below ? box.bottom + 6 : box.top - tip.offsetHeight - 6)}px`;
  }

  function alternatives(at) {
    const first = header.choices.get(at);
    if (first === undefined) return [];
    const list = element("ol", undefined, "choices");
    for (let row = first; column.choice_of[row] === at; row += 1) {
      const share = half(column.choice_probability[row]);
      const item = element("li");
      const same = column.choice_text[row] === column.text[at];
      item.append(element("code", shownText(header.texts[column.choice_text[row]]), same ? "same" : ""));
      const bar = element("i");
      bar.style.width = `${share * 100}%`;
      item.append(bar, element("span", `${(share * 100).toFixed(1)}%`));
      list.append(item);
    }
    return [element("p", `Likeliest tokens here, by ${header.scored_by}`, "title"), list];
  }

  function hide() {
    state.token = -1;
    $("x-tip").hidden = true;
    spans.forEach((span) => span.classList.remove("at"));
  }

  function listExamples() {
    const groups = new Map();
    header.examples.forEach((one, index) => {
      if (!groups.has(one.split)) groups.set(one.split, element("optgroup"));
      const option = element("option", `${one.example_id} (loss ${number(one.loss)}${one.bald === null ? "" : `, BALD ${number(one.bald)}`})`);
      option.value = index;
      groups.get(one.split).label = one.split;
      groups.get(one.split).append(option);
    });
    $("x-example").replaceChildren(...groups.values());
  }

  function go(index) {
    const count = header.examples.length;
    state.example = (index + count) % count;
    $("x-example").value = state.example;
    draw();
  }

  function listen() {
    $("x-example").addEventListener("change", (event) => go(Number(event.target.value)));
    $("x-previous").addEventListener("click", () => go(state.example - 1));
    $("x-next").addEventListener("click", () => go(state.example + 1));
    document.querySelectorAll("#explorer .by button").forEach((button) =>
      button.addEventListener("click", () => {
        state.by = button.dataset.by;
        paint();
      }),
    );
    for (const [id, name] of [["x-ablation", "ablation"], ["x-step", "step"], ["x-left", "left"], ["x-right", "right"]]) {
      $(id).addEventListener("change", (event) => {
        state[name] = Number(event.target.value);
        if (name === "ablation") steps();
        paint();
      });
    }
    const tokens = $("x-tokens");
    const tokenOf = (event) => (event.target.dataset && event.target.dataset.i !== undefined ? Number(event.target.dataset.i) : -1);
    for (const kind of ["pointerover", "pointerdown"]) {
      tokens.addEventListener(kind, (event) => (tokenOf(event) < 0 ? hide() : show(tokenOf(event))));
    }
    tokens.addEventListener("pointerleave", hide);
    tokens.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!move || !spans.length) return;
      event.preventDefault();
      show((Math.max(state.token + move, -1) + spans.length) % spans.length);
    });
  }

  async function start() {
    await unpack();
    const models = header.models.map((name, index) => [index, name]);
    const trained = models.filter(([index]) => header.passes.some((pass) => pass[0] === index));
    const known = models.filter(([index]) => index < 2 || [...header.passes, ...header.scored].some((entry) => entry[0] === index));
    state.by = header.by;
    // Start with an ablation that leaves tokens out, if there is one.
    const leavesOut = ([, index, , first]) => column.pass_selected.subarray(first, first + header.examples[index].count).includes(0);
    state.ablation = (header.passes.find(leavesOut) || header.passes[0] || [0])[0];
    [state.left, state.right] = [state.ablation || 1, state.ablation ? 1 : 0];
    fill($("x-ablation"), trained, state.ablation);
    fill($("x-left"), known, state.left);
    fill($("x-right"), known, state.right);
    // What was not measured has no button: BALD, a difference to the base model, selections.
    const differs = known.length > 2 || column.loss.some((bits, i) => bits !== column.base_loss[i]);
    for (const [by, has] of [["selected", trained.length], ["bald", header.examples.some((one) => one.bald !== null)], ["difference", differs]]) {
      document.querySelector(`#explorer [data-by="${by}"]`).hidden = !has;
    }
    listExamples();
    listen();
    root.hidden = false;
    const first = state.by === "selected" ? header.examples.findIndex((one) => one.split === "train") : 0;
    if (header.examples.length) go(Math.max(first, 0));
  }

  // Unpack only when the explorer comes into view, so that the rest of the page opens first.
  if (root && !window.DecompressionStream) {
    root.before(element("p", "This browser is too old for the token explorer: it cannot unpack the numbers.", "dim"));
  } else if (root) {
    const watch = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      start();
    }, { rootMargin: "1000px" });
    watch.observe(root.parentElement);
  }
})();
