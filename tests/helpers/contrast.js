// Returns the contrast (WCAG 2.2) of each text that is seen, lowest first: [ratio, least allowed, text, colours].
() => {
  const parse = (text) => {
    const parts = (text.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
    const scale = text.startsWith("color(srgb") ? 255 : 1;
    return [parts[0] * scale, parts[1] * scale, parts[2] * scale, parts[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const luminance = (color) => {
    const [r, g, b] = color.map((part) => part / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join(" ").trim();
    const value = element.matches("input:not([type=range], [type=checkbox], [type=radio], [type=file])") ? element.value : "";
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (!(text || value) || !box.width || !box.height || !element.checkVisibility({ visibilityProperty: true })) continue;
    if (element.closest("[disabled], [aria-disabled=true], script, style, noscript")) continue;
    const parents = [];
    for (let at = element; at; at = at.parentElement) parents.push(at);
    let background = [255, 255, 255, 1], alpha = 1;
    for (const at of parents.slice().reverse()) background = over(parse(getComputedStyle(at).backgroundColor), background);
    for (const at of parents) alpha *= +getComputedStyle(at).opacity;
    const own = parse(style.color);
    const color = over([...own.slice(0, 3), own[3] * alpha], background);
    if (alpha === 0) continue;
    const [light, dark] = [luminance(color), luminance(background)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize), isLarge = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700);
    found.push([(light + 0.05) / (dark + 0.05), isLarge ? 3 : 4.5, (text || value).slice(0, 40), `${style.color} on ${background.map(Math.round)}`]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}
