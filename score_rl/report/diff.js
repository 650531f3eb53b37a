'use strict';
/* A word-level comparison of two texts (Myers 1986), with the changed letters of changed words. */
const words = (() => {
  const PIECES = /\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu;
  const MOST_CHANGES = 1200;

  /* Longest common subsequence of two lists as a list of [kept, beginA, endA, beginB, endB], or null if too different. */
  function compare(a, b, most) {
    let head = 0;
    while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
    let tail = 0;
    while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
    const n = a.length - head - tail;
    const m = b.length - head - tail;
    const pairs = trace(a, b, head, n, m, most);
    if (pairs === null) return null;
    const steps = [];
    let x = 0;
    let y = 0;
    const push = (kept, toX, toY) => {
      if (toX > x || toY > y) steps.push([kept, x, toX, y, toY]);
      x = toX;
      y = toY;
    };
    push(true, head, head);
    for (const [px, py, length] of pairs) {
      push(false, head + px, head + py);
      push(true, head + px + length, head + py + length);
    }
    push(false, head + n, head + m);
    push(true, a.length, b.length);
    return steps;
  }

  function trace(a, b, head, n, m, most) {
    const limit = Math.min(n + m, most);
    const history = [];
    let furthest = new Int32Array(2 * limit + 3);
    for (let d = 0; d <= limit; d += 1) {
      history.push(furthest.slice(limit - d, limit + d + 3));
      for (let k = -d; k <= d; k += 2) {
        const at = k + limit + 1;
        let x = k === -d || (k !== d && furthest[at - 1] < furthest[at + 1]) ? furthest[at + 1] : furthest[at - 1] + 1;
        let y = x - k;
        while (x < n && y < m && a[head + x] === b[head + y]) { x += 1; y += 1; }
        furthest[at] = x;
        if (x >= n && y >= m) return walk(history, d, n, m);
      }
    }
    return null;
  }

  function walk(history, depth, n, m) {
    const pairs = [];
    let x = n;
    let y = m;
    for (let d = depth; d >= 0; d -= 1) {
      const before = history[d];
      const at = (k) => before[k + d + 1];
      const k = x - y;
      const from = k === -d || (k !== d && at(k - 1) < at(k + 1)) ? k + 1 : k - 1;
      const startX = d === 0 ? 0 : (from === k + 1 ? at(from) : at(from) + 1);
      const length = x - startX;
      if (length > 0) pairs.push([startX, startX - k, length]);
      x = d === 0 ? 0 : at(from);
      y = x - from;
    }
    return pairs.reverse();
  }

  /* Changes that only blanks keep apart are one change. */
  function joined(steps, a) {
    const found = [];
    for (const step of steps) {
      const last = found[found.length - 1];
      const before = found[found.length - 2];
      if (last && before && !step[0] && last[0] && !before[0] && a.slice(last[1], last[2]).every((word) => /^\s+$/.test(word))) {
        found.splice(-2, 2, [false, before[1], step[2], before[3], step[4]]);
      } else found.push(step);
    }
    return found;
  }

  /* [text, strong] pieces of both sides of a change: strong is what differs within words that resemble each other. */
  function refined(left, right) {
    const whole = [[[left, false]], [[right, false]]];
    if (!left || !right || left.length > 200 || right.length > 200) return whole;
    const a = Array.from(left);
    const b = Array.from(right);
    const steps = compare(a, b, 200);
    const kept = (steps || []).reduce((sum, step) => sum + (step[0] ? step[2] - step[1] : 0), 0);
    if (!steps || 2 * kept < Math.max(a.length, b.length)) return whole;
    return [
      steps.filter((s) => s[2] > s[1]).map((s) => [a.slice(s[1], s[2]).join(''), !s[0]]),
      steps.filter((s) => s[4] > s[3]).map((s) => [b.slice(s[3], s[4]).join(''), !s[0]]),
    ];
  }

  /* For each side a list of [text, changed, pieces]; null where the texts have too little in common. */
  return function diff(before, after) {
    const a = before.match(PIECES) || [];
    const b = after.match(PIECES) || [];
    const steps = compare(a, b, MOST_CHANGES);
    if (steps === null) return null;
    const sides = [[], []];
    for (const [kept, a0, a1, b0, b1] of joined(steps, a)) {
      const left = a.slice(a0, a1).join('');
      const right = b.slice(b0, b1).join('');
      const pieces = kept ? [null, null] : refined(left, right);
      if (left) sides[0].push([left, !kept, pieces[0]]);
      if (right) sides[1].push([right, !kept, pieces[1]]);
    }
    return sides;
  };
})();
