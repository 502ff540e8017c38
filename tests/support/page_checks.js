// What a page does wrong for its readers: too wide, too pale, too small, out of order. Returns one sentence per fault.
(() => {
  const faults = [];
  const shown = (node) => node.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true }) && node.getClientRects().length;
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, below) => {
    const mix = (name) => top[name] * top.a + below[name] * (1 - top.a);
    return { r: mix("r"), g: mix("g"), b: mix("b"), a: 1 };
  };
  // The colour behind a node: its own background over those of its ancestors, over white.
  const behind = (node) =>
    node ? over(parse(getComputedStyle(node).backgroundColor), behind(node.parentElement)) : { r: 255, g: 255, b: 255, a: 1 };
  // WCAG 2.2, relative luminance and contrast ratio.
  const linear = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ({ r, g, b }) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };

  if (document.documentElement.scrollWidth > innerWidth) faults.push(`the page is ${document.documentElement.scrollWidth} wide`);

  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    if (!text || /^(SCRIPT|STYLE|NOSCRIPT|OPTION|OPTGROUP)$/.test(node.nodeName) || !shown(node)) continue;
    texts += 1;
    const style = getComputedStyle(node), size = parseFloat(style.fontSize);
    const needed = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    const back = behind(node), found = contrast(over(parse(style.color), back), back);
    if (found < needed) faults.push(`contrast ${found.toFixed(2)} of ${JSON.stringify(text.slice(0, 40))}`);
    if (size < 10.5) faults.push(`${size} pixels: ${JSON.stringify(text.slice(0, 40))}`);
  }
  if (texts < 5) faults.push(`only ${texts} texts are shown`);

  for (const control of document.querySelectorAll("button, select")) {
    const { width, height } = control.getBoundingClientRect();
    if (shown(control) && Math.min(width, height) < 24) faults.push(`${width} x ${height}: ${control.id || control.textContent}`);
    if (shown(control) && !(control.textContent.trim() || control.ariaLabel || control.labels?.length)) faults.push(`no name: ${control.outerHTML}`);
  }

  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map((one) => Number(one.nodeName[1]));
  levels.forEach((level, i) => {
    if (level > (i ? levels[i - 1] : 0) + 1) faults.push(`heading ${level} after ${levels[i - 1]}`);
  });
  for (const image of document.images) if (!image.alt) faults.push("a picture without a text");
  return faults;
})()
