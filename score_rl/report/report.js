/* The reader of transcripts: unpacks, filters, lists and shows them; keys, links and the theme. */
(() => {
  const ROW = 52;
  const KINDS = [
    ['all', 'all', ''], ['won', 'i→c corrected', 'wrong, then right'], ['lost', 'c→i broken', 'right, then wrong'],
    ['miss', 'i→i', 'wrong both times'], ['keep', 'c→c', 'right both times'], ['unknown', 'not graded', 'no grade'],
  ];
  const MARKS = { won: 'i→c', lost: 'c→i', miss: 'i→i', keep: 'c→c', unknown: '?', right: 'c', wrong: 'i' };
  const get = (id) => document.getElementById(id);
  const index = JSON.parse(get('index').textContent);
  const loaded = new Map();
  const state = { evaluation: -1, rows: [], shown: [], at: -1, kind: 'all', mode: 'changes', pair: [0, 1] };

  /* ---- data ---- */

  async function unpack(place) {
    if (!loaded.has(place)) {
      const bytes = Uint8Array.from(atob(get(`episodes-${place}`).textContent), (c) => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate-raw'));
      const lines = (await new Response(stream).text()).split('\n');
      const problems = new Map();
      const rows = [];
      for (const line of lines) {
        if (!line) continue;
        const [problem, sample, attempts, told] = JSON.parse(line);
        if (told) problems.set(problem, told);
        const [id, question, gold, fields] = problems.get(problem);
        rows.push({ problem, sample, attempts, id, question, gold, fields, kind: kindOf(attempts) });
      }
      rows.sort((a, b) => a.problem - b.problem || a.sample - b.sample);
      loaded.set(place, rows);
    }
    return loaded.get(place);
  }

  function kindOf(attempts) {
    const [first, second] = [attempts[0][2], attempts.length > 1 ? attempts[1][2] : undefined];
    if (attempts.some((attempt) => attempt[2] === null)) return 'unknown';
    if (second === undefined) return first ? 'right' : 'wrong';
    return first ? (second ? 'keep' : 'lost') : (second ? 'won' : 'miss');
  }

  async function choose(place, wanted) {
    state.evaluation = place;
    get('evaluation').value = String(place);
    if (!loaded.has(place)) get('status').textContent = 'Unpacking …';
    const rows = await unpack(place);
    if (state.evaluation !== place) return;
    state.rows = rows;
    const most = rows.reduce((sum, row) => Math.max(sum, row.attempts.length), 1);
    if (state.pair[1] >= most) state.pair = [0, Math.min(1, most - 1)];
    get('length-name').textContent = most > 1 ? 'Tokens of attempt 2' : 'Tokens';
    const notes = get('left-out');
    notes.hidden = index[place].notes.length === 0;
    notes.textContent = index[place].notes.join(' ');
    offerFields();
    offerKinds();
    filter(wanted);
  }

  /* ---- filters ---- */

  function offerFields() {
    const values = new Map();
    for (const row of state.rows) {
      for (const [name, value] of Object.entries(row.fields)) {
        if (!values.has(name)) values.set(name, new Set());
        values.get(name).add(value);
      }
    }
    const chosen = new Map(fieldSelects().map((select) => [select.dataset.field, select.value]));
    const labels = [];
    for (const [name, found] of values) {
      if (found.size < 2 || found.size > 300) continue;
      const label = make('label', 'field', `${name[0].toUpperCase()}${name.slice(1)} `);
      const select = make('select');
      select.dataset.field = name;
      select.append(new Option('any', ''));
      const sorted = [...found].sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
      for (const value of sorted) select.append(new Option(plain(value).map((node) => node.textContent).join(''), value));
      if (found.has(chosen.get(name))) select.value = chosen.get(name);
      select.addEventListener('change', () => filter());
      label.append(select);
      labels.push(label);
    }
    get('fields').replaceChildren(...labels);
  }

  const fieldSelects = () => [...get('fields').querySelectorAll('select')];

  function offerKinds() {
    const counts = { all: state.rows.length };
    for (const row of state.rows) counts[row.kind] = (counts[row.kind] || 0) + 1;
    const kinds = state.rows.some((row) => row.attempts.length > 1)
      ? KINDS.filter(([kind]) => kind !== 'unknown' || counts.unknown)
      : [['all', 'all', ''], ['right', 'right', ''], ['wrong', 'wrong', '']];
    if (!kinds.some(([kind]) => kind === state.kind)) state.kind = 'all';
    get('kinds').replaceChildren(...kinds.map(([kind, name, hint]) => {
      const button = make('button', '', name);
      button.type = 'button';
      button.dataset.kind = kind;
      button.title = hint;
      button.setAttribute('aria-pressed', String(kind === state.kind));
      button.append(make('small', '', (counts[kind] || 0).toLocaleString('en')));
      button.addEventListener('click', () => {
        state.kind = kind;
        for (const other of get('kinds').children) other.setAttribute('aria-pressed', String(other === button));
        filter();
      });
      return button;
    }));
  }

  function filter(wanted) {
    const kept = wanted || state.shown[state.at];
    const query = get('search').value.trim();
    const pattern = query ? new RegExp(query.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'), 'iu') : null;
    const least = Number(get('least').value || 0);
    const most = get('most').value === '' ? Infinity : Number(get('most').value);
    const fields = fieldSelects().filter((select) => select.value).map((select) => [select.dataset.field, select.value]);
    const fits = (row) => {
      if (state.kind !== 'all' && row.kind !== state.kind) return false;
      const length = row.attempts[Math.min(1, row.attempts.length - 1)][4];
      if (length < least || length > most) return false;
      if (!fields.every(([name, value]) => row.fields[name] === value)) return false;
      if (!pattern) return true;
      return pattern.test(row.id) || pattern.test(whole(row.question)) || pattern.test(row.gold)
        || row.attempts.some((attempt) => pattern.test(whole(attempt[0])) || (attempt[1] !== null && pattern.test(attempt[1])));
    };
    state.shown = state.rows.filter(fits);
    const same = kept ? state.shown.findIndex((row) => row.id === kept.id && row.sample === kept.sample) : -1;
    tellCount();
    get('list').scrollTop = 0;
    select(same >= 0 ? same : (state.shown.length ? 0 : -1), false);
  }

  function tellCount() {
    const name = index[state.evaluation].samples > 1 ? 'samples' : 'problems';
    const [shown, all] = [state.shown.length, state.rows.length].map((n) => n.toLocaleString('en'));
    get('status').textContent = `Showing ${shown} of ${all} ${name}`;
  }

  /* ---- list: only the rows in sight are in the page ---- */

  function drawList() {
    const list = get('list');
    if (!list.firstChild) list.append(make('div'));
    const sheet = list.firstChild;
    sheet.setAttribute('role', 'presentation');
    sheet.style.height = `${Math.max(1, state.shown.length) * ROW}px`;
    if (!state.shown.length) {
      sheet.replaceChildren(make('p', 'none', 'No problem fits these filters.'));
      sheet.firstChild.setAttribute('role', 'option');
      sheet.firstChild.setAttribute('aria-disabled', 'true');
      list.removeAttribute('aria-activedescendant');
      return;
    }
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
    const places = [];
    for (let place = first; place < last; place += 1) places.push(place);
    if (state.at >= 0 && (state.at < first || state.at >= last)) places.push(state.at);
    sheet.replaceChildren(...places.map(drawRow));
    if (state.at >= 0) list.setAttribute('aria-activedescendant', `row-${state.at}`);
  }

  function drawRow(place) {
    const row = state.shown[place];
    const option = make('div', 'row');
    option.id = `row-${place}`;
    option.style.top = `${place * ROW}px`;
    option.setAttribute('role', 'option');
    option.setAttribute('aria-selected', String(place === state.at));
    option.setAttribute('aria-posinset', String(place + 1));
    option.setAttribute('aria-setsize', String(state.shown.length));
    const top = make('div');
    top.append(make('b', 'who', label(row)), make('span', `move ${row.kind}`, MARKS[row.kind]));
    const under = make('div');
    under.append(make('span', 'what', whole(row.question).slice(0, 90) || ' '));
    option.append(top, under);
    option.addEventListener('click', () => select(place, true));
    return option;
  }

  const label = (row) => (index[state.evaluation].samples > 1 ? `${row.id} · sample ${row.sample + 1}` : row.id);

  function select(place, byHand) {
    state.at = place;
    const list = get('list');
    if (place >= 0) {
      const top = place * ROW;
      if (top < list.scrollTop) list.scrollTop = top;
      if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    }
    drawList();
    drawDetail();
    if (byHand && place >= 0) history.replaceState(null, '', `#${linkOf(state.shown[place])}`);
  }

  function linkOf(row) {
    const parts = [index[state.evaluation].key, row.id];
    if (index[state.evaluation].samples > 1) parts.push(String(row.sample + 1));
    return parts.map((part) => encodeURIComponent(part.toWellFormed ? part.toWellFormed() : part)).join('/');
  }

  function step(by) {
    if (state.shown.length) select(Math.min(state.shown.length - 1, Math.max(0, state.at + by)), true);
  }

  /* ---- one transcript ---- */

  function drawDetail() {
    const detail = get('detail');
    const row = state.shown[state.at];
    if (!row) {
      detail.replaceChildren();
      return;
    }
    const header = make('header');
    header.append(make('h3', '', label(row)), button('‹ Previous', () => step(-1)), button('Next ›', () => step(1)));
    const facts = [`${(state.at + 1).toLocaleString('en')} of ${state.shown.length.toLocaleString('en')}`];
    for (const [name, value] of Object.entries(row.fields)) facts.push(`${name} ${value}`);
    const parts = [header, make('p', 'facts', facts.join(' · ')), block('Question', row.question, 'question'), block('Accepted answer', row.gold, 'gold')];
    parts.push(modes(row), drawAttempts(row, state.pair, current(row)));
    detail.replaceChildren(...parts);
    highlight(detail);
  }

  function button(name, act) {
    const element = make('button', '', name);
    element.type = 'button';
    element.addEventListener('click', act);
    return element;
  }

  function modes(row) {
    const line = make('div', 'modes');
    if (row.attempts.length > 2) line.append(...pairSelects(row.attempts.length));
    const choices = offered(row);
    if (choices.length > 1) {
      const set = make('fieldset');
      set.append(make('legend', 'unseen', 'Show'));
      for (const [mode, name] of choices) {
        const radio = make('input');
        radio.type = 'radio';
        radio.name = 'mode';
        radio.value = mode;
        radio.checked = mode === current(row);
        radio.addEventListener('change', () => { state.mode = mode; drawDetail(); document.querySelector(`.modes input[value="${mode}"]`).focus(); });
        const wrap = make('label');
        wrap.append(radio, name);
        set.append(wrap);
      }
      line.append(set);
    }
    if (current(row) === 'kl') {
      const scale = make('span', 'scale', 'nats ');
      ['0.01', '0.1', '0.5', '2'].forEach((bound, place) => scale.append(make('i', `kl${place + 1}`, `> ${bound}`)));
      line.append(scale);
    }
    return line;
  }

  function pairSelects(many) {
    return ['Compare attempt', 'with'].map((name, side) => {
      const wrap = make('label', '', `${name} `);
      const select = make('select');
      for (let k = 0; k < many; k += 1) select.append(new Option(String(k + 1), String(k)));
      select.value = String(state.pair[side]);
      select.dataset.side = String(side);
      select.addEventListener('change', () => {
        state.pair[side] = Number(select.value);
        drawDetail();
        document.querySelector(`.modes select[data-side="${side}"]`).focus();
      });
      wrap.append(select);
      return wrap;
    });
  }

  const offered = (row) => [
    ...(row.attempts.length > 1 ? [['changes', 'changes']] : []),
    ...(row.attempts.some((attempt) => attempt[6]) ? [['kl', 'KL to the reference']] : []),
    ['plain', 'plain text'],
  ];

  function current(row) {
    const choices = offered(row).map(([mode]) => mode);
    return choices.includes(state.mode) ? state.mode : choices[0];
  }

  function highlight(root) {
    if (!('highlights' in CSS)) return;
    CSS.highlights.delete('found');
    const query = get('search').value.trim().toLowerCase();
    if (!query) return;
    const ranges = [];
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walker.nextNode() && ranges.length < 500) {
      const text = walker.currentNode.data.toLowerCase();
      if (text.length !== walker.currentNode.data.length) continue;
      for (let at = text.indexOf(query); at >= 0 && ranges.length < 500; at = text.indexOf(query, at + query.length)) {
        const range = new Range();
        range.setStart(walker.currentNode, at);
        range.setEnd(walker.currentNode, at + query.length);
        ranges.push(range);
      }
    }
    CSS.highlights.set('found', new Highlight(...ranges));
  }

  /* ---- links, keys, theme ---- */

  async function follow() {
    const parts = location.hash.slice(1).split('/');
    if (parts.length < 2) return false;
    const decode = (part) => { try { return decodeURIComponent(part); } catch { return part; } };
    const [key, id, sample] = parts.map(decode);
    const place = index.findIndex((evaluation) => evaluation.key === key);
    if (place < 0) return false;
    Object.assign(state, { kind: 'all' });
    for (const name of ['search', 'least', 'most']) get(name).value = '';
    get('fields').replaceChildren();
    await choose(place, { id, sample: sample ? Number(sample) - 1 : 0 });
    const row = state.shown[state.at];
    if (!row || row.id !== id) get('status').textContent = `${id} is not in this page. ${get('status').textContent}`;
    get('transcripts').scrollIntoView();
    return true;
  }

  function sideways(by) {
    const place = state.evaluation + by;
    const row = state.shown[state.at];
    if (place >= 0 && place < index.length) choose(place, row).then(() => select(state.at, true));
  }

  function typing(target) {
    return target instanceof Element && (target.matches('select, textarea') || (target.matches('input') && !target.matches('[type=radio], [type=checkbox]')));
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || get('keys').open) return;
    if (event.target === get('search') && event.key === 'Escape') { get('list').focus(); return; }
    if (typing(event.target)) return;
    const inList = event.target === get('list');
    const arrows = { ArrowDown: () => step(1), ArrowUp: () => step(-1), ArrowRight: () => sideways(1), ArrowLeft: () => sideways(-1), Home: () => step(-Infinity), End: () => step(Infinity), PageDown: () => step(10), PageUp: () => step(-10) };
    const letters = { j: () => reveal(1), k: () => reveal(-1), '/': () => get('search').focus(), d: turn, t: theme, '?': () => get('keys').showModal() };
    const act = inList && Object.hasOwn(arrows, event.key) ? arrows[event.key] : (get('single').checked && Object.hasOwn(letters, event.key) ? letters[event.key] : null);
    if (!act) return;
    event.preventDefault();
    act();
  }

  function reveal(by) {
    step(by);
    const box = get('detail').getBoundingClientRect();
    if (box.top > innerHeight * 0.8 || box.top < 0) get('detail').scrollIntoView({ block: 'start' });
  }

  function turn() {
    const row = state.shown[state.at];
    if (!row) return;
    const choices = offered(row).map(([mode]) => mode);
    state.mode = choices[(choices.indexOf(current(row)) + 1) % choices.length];
    drawDetail();
  }

  const THEMES = ['auto', 'light', 'dark'];
  function theme() {
    const now = THEMES.indexOf(document.documentElement.dataset.theme || 'auto');
    setTheme(THEMES[(now + 1) % THEMES.length]);
  }

  function setTheme(name) {
    document.documentElement.dataset.theme = name;
    get('theme').textContent = `Theme: ${name}`;
    try { localStorage.setItem('score-report-theme', name); } catch { /* a page from a file may have no storage */ }
  }

  function start() {
    let stored = 'auto';
    try { stored = localStorage.getItem('score-report-theme'); } catch { /* as above */ }
    setTheme(THEMES.includes(stored) ? stored : 'auto');
    get('theme').hidden = false;
    get('theme').addEventListener('click', theme);
    document.addEventListener('keydown', onKey);
    get('help').addEventListener('click', () => get('keys').showModal());
    get('close').addEventListener('click', () => get('keys').close());
    if (!index.length || !('DecompressionStream' in window)) return;
    get('unread').hidden = true;
    get('reader').hidden = false;
    index.forEach((evaluation, place) => get('evaluation').append(new Option(plain(evaluation.title).map((node) => node.textContent).join(''), String(place))));
    get('evaluation').addEventListener('change', (event) => choose(Number(event.target.value), state.shown[state.at]));
    let waiting = 0;
    get('search').addEventListener('input', () => { clearTimeout(waiting); waiting = setTimeout(() => filter(), 120); });
    for (const name of ['least', 'most']) get(name).addEventListener('input', () => filter());
    get('list').addEventListener('scroll', () => requestAnimationFrame(drawList), { passive: true });
    addEventListener('hashchange', follow);
    follow().then((done) => {
      if (!done) choose(Math.max(0, index.findIndex((evaluation) => evaluation.chosen)));
    });
  }

  start();
})();
