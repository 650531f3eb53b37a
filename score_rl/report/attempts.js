/* The chosen attempts side by side: with their changes, with their KL, or plain. */
function drawAttempts(row, pair, mode) {
  const chosen = row.attempts.length > 1 ? pair : [0];
  const grid = make('div', chosen.length > 1 ? 'attempts' : 'attempts alone');
  const texts = chosen.map((k) => row.attempts[k][0]);
  const bothWhole = texts.every((text) => typeof text === 'string');
  const sides = mode === 'changes' && bothWhole ? words(texts[0], texts[1]) : null;
  chosen.forEach((k, side) => {
    const nodes = sides && texts[side] ? marked(sides[side], side ? 'ins' : 'del') : null;
    grid.append(attempt(row.attempts[k], k, mode === 'kl' && row.attempts[k][6] ? shaded(row.attempts[k][6]) : nodes));
  });
  if (mode !== 'changes' || sides) {
    if (sides && texts[0] === texts[1]) grid.append(make('p', 'remark', `Attempt ${chosen[1] + 1} is attempt ${chosen[0] + 1}, letter by letter.`));
    return grid;
  }
  grid.append(make('p', 'remark', bothWhole ? 'The two have too little in common to be compared word by word.' : 'Too long to be compared word by word.'));
  return grid;
}

function attempt([text, answer, correct, note, length, finished], k, nodes) {
  const grade = correct === null ? 'not graded' : (correct ? 'right' : 'wrong');
  const element = make('section', `attempt ${grade}`);
  element.setAttribute('aria-label', `Attempt ${k + 1}, ${grade}`);
  const head = make('h4', '', `Attempt ${k + 1}`);
  head.append(make('span', 'grade', grade), make('span', '', `${length.toLocaleString('en')} tokens${finished ? '' : ', cut off'}`));
  const list = make('dl');
  list.append(make('dt', '', 'answer'), answer === null ? make('dd', 'empty', 'none found') : make('dd', '', answer));
  if (note !== null) list.append(make('dt', '', 'note'), make('dd', '', note));
  element.append(head, body(text, nodes), list);
  return element;
}

function marked(pieces, tag) {
  const nodes = [];
  for (const [text, changed, parts] of pieces) {
    if (!changed) { nodes.push(...plain(text)); continue; }
    const element = make(tag);
    for (const [part, strong] of parts) {
      if (strong) element.append(make('b', '', part));
      else element.append(...plain(part));
    }
    nodes.push(element);
  }
  return nodes;
}

function shaded([tokens, nats]) {
  return tokens.map((token, place) => {
    const value = nats[place] / 1000;
    const span = make('span', `kl${[0.01, 0.1, 0.5, 2].filter((bound) => value > bound).length}`, token);
    span.title = `${value.toFixed(3)} nats`;
    return span;
  });
}
