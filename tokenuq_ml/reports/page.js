// What every page can do: save its tables as CSV, copy its summary, and compare two families. Inserts text only as text.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);

  function element(kind, text, className) {
    const made = document.createElement(kind);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  const heading = (node) => {
    const section = node.closest("section");
    return section ? section.querySelector("h2").textContent : document.title;
  };

  // What a cell says, in a table that is collapsed too; a line break is a space.
  const words = (node) =>
    [...node.childNodes].map((one) => (one.nodeName === "BR" ? " " : one.nodeType === Node.TEXT_NODE ? one.data : words(one))).join("");

  // A cell that spans columns is repeated, so that every row has as many cells. A minus is what programs read as one.
  function csv(table) {
    const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const rows = [...table.rows].map((row) =>
      [...row.cells].flatMap((cell) => Array(cell.colSpan).fill(quoted(words(cell).replace(/\s+/g, " ").replaceAll("−", "-").trim()))).join(","),
    );
    return rows.join("\n") + "\n";
  }

  function save(name, text) {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // A table that is wider or higher than its box is scrolled by the arrow keys once it has the focus.
  const wide = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });

  // A table may be drawn again in its box, which keeps its button.
  function offerCsv() {
    const names = new Map();
    document.querySelectorAll("table").forEach((table) => {
      const title = heading(table).toLowerCase().replace(/[^a-z0-9]+/g, "_").replace(/^_|_$/g, "");
      const number = (names.get(title) || 0) + 1;
      names.set(title, number);
      const box = table.closest(".scroll");
      const button = element("button", "CSV", "csv");
      button.title = "Save this table as CSV";
      button.addEventListener("click", () => save(`${title}${number > 1 ? `_${number}` : ""}.csv`, csv(box.querySelector("table"))));
      box.before(button);
      wide.observe(box);
    });
  }

  function offerCopy() {
    const button = $("summary-copy"), text = $("summary-text");
    if (!button) return;
    button.addEventListener("click", async () => {
      text.select();
      try {
        await navigator.clipboard.writeText(text.value);
      } catch {
        document.execCommand("copy");
      }
      button.textContent = "Copied";
    });
  }

  // A cell whose text may break after an underscore.
  function breakable(text) {
    const made = element("td");
    text.split(/(?<=_)/).forEach((part, place) => made.append(...(place ? [element("wbr"), part] : [part])));
    return made;
  }

  const fixed = (value) => value.toFixed(3);
  const signed = (value) => (value < 0 ? "−" : "+") + fixed(Math.abs(value));

  function verdict(metric, value, low, high) {
    if (metric.n < 2 || (low <= 0 && high >= 0)) return ["not distinguishable", "same"];
    if (metric.higher_is_better === null) return [value > 0 ? "higher" : "lower", ""];
    return value > 0 === metric.higher_is_better ? ["better", "better"] : ["worse", "worse"];
  }

  function pairs() {
    const data = JSON.parse($("pairs-data").textContent), root = $("pairs");
    const [left, right] = [$("p-left"), $("p-right")];
    for (const select of [left, right]) {
      data.families.forEach((name, index) => {
        const option = element("option", name);
        option.value = index;
        select.append(option);
      });
    }
    left.value = data.families.length - 1;
    right.value = Math.max(0, data.families.length - 2);

    function draw() {
      const [i, j] = [Number(left.value), Number(right.value)];
      const table = element("table"), head = table.createTHead().insertRow();
      const names = ["dataset", "metric", "examples", data.families[i], data.families[j], "difference", "interval", ""];
      for (const name of names) head.append(element("th", name));
      head.childNodes.forEach((cell) => cell.setAttribute("scope", "col"));
      const body = table.createTBody();
      for (const metric of data.metrics) {
        if (!(i in metric.values) || !(j in metric.values)) continue;
        const arrow = { true: " ↑", false: " ↓", null: "" }[metric.higher_is_better];
        const turned = i < j ? 1 : -1;
        const found = i === j ? [0, 0, 0] : metric.pairs[`${Math.min(i, j)},${Math.max(i, j)}`];
        const [value, a, b] = found.map((one) => one * turned);
        const [low, high] = [Math.min(a, b), Math.max(a, b)];
        const [word, kind] = verdict(metric, value, low, high);
        const cells = [`${metric.dataset} (${metric.split})`, metric.metric + arrow, metric.n.toLocaleString("en")];
        cells.push(fixed(metric.values[i]), fixed(metric.values[j]), signed(value), `[${signed(low)}, ${signed(high)}]`, word);
        const row = body.insertRow();
        cells.forEach((text, place) => row.append(place < 2 ? breakable(text) : element("td", text, place === cells.length - 1 ? kind : "")));
      }
      $("p-table").replaceChildren(table);
    }

    left.addEventListener("change", draw);
    right.addEventListener("change", draw);
    draw();
    root.hidden = false;
  }

  if ($("pairs-data")) pairs();
  offerCsv();
  offerCopy();
})();
