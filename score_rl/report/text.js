/* What models wrote enters the page as text nodes and in no other way. */
const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]+|(?:[\ud800-\udbff](?![\udc00-\udfff]))+|(?:(?<![\ud800-\udbff])[\udc00-\udfff])+/g;
const NAMES = {
  0x061c: 'ALM', 0x200b: 'ZWSP', 0x200e: 'LRM', 0x200f: 'RLM', 0x2028: 'LS', 0x2029: 'PS', 0x202a: 'LRE', 0x202b: 'RLE',
  0x202c: 'PDF', 0x202d: 'LRO', 0x202e: 'RLO', 0x2060: 'WJ', 0x2066: 'LRI', 0x2067: 'RLI', 0x2068: 'FSI', 0x2069: 'PDI', 0xfeff: 'BOM',
};
const MOST_CONTROLS = 40;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.append(...plain(text));
  return element;
}

/* Text with what cannot be seen spelled out. */
function plain(text) {
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(HIDDEN)) {
    if (found.index > from) nodes.push(document.createTextNode(text.slice(from, found.index)));
    const names = Array.from(found[0].slice(0, MOST_CONTROLS), (c) => NAMES[c.codePointAt(0)] || `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}`);
    if (found[0].length > MOST_CONTROLS) names.push(`and ${found[0].length - MOST_CONTROLS} more`);
    const span = document.createElement('span');
    span.className = 'control';
    span.textContent = names.map((name) => `⟦${name}⟧`).join('');
    nodes.push(span);
    from = found.index + found[0].length;
  }
  if (from < text.length) nodes.push(document.createTextNode(text.slice(from)));
  return nodes;
}

/* A text, of a cut one what is left of it. */
const whole = (text) => (typeof text === 'string' ? text : text[0] + text[2]);

function block(name, text, className) {
  const section = make('div', `block ${className}`);
  section.append(make('h4', '', name), body(text));
  return section;
}

/* A text, a cut one with a word on what is missing. */
function body(text, nodes) {
  const pre = make('div', 'text');
  pre.dir = 'auto';
  if (nodes) pre.append(...nodes);
  else if (typeof text === 'string') pre.append(...(text ? plain(text) : [make('span', 'empty', '(nothing)')]));
  else pre.append(...plain(text[0]), make('span', 'cut', `${text[1].toLocaleString('en')} characters are left out here`), ...plain(text[2]));
  return pre;
}
