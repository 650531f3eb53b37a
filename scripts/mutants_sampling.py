"""Faults in what is sampled and how it is graded and counted."""

from __future__ import annotations

from mutant_table import faults

ROLLOUT = [
    *faults(
        "chat.py",
        "test_chat test_chat_settings test_chat_templates",
        (
            "bridge: the end token twice",
            "skipped = self._closed[place].get(token_ids[-1], 0) if token_ids else 0",
            "skipped = 0",
        ),
        (
            "bridge: a cut-off attempt stays open",
            "self._bridges[place][skipped:]",
            "self._bridges[place][max(1, skipped) :]",
        ),
        ("bridge: templates that rewrite are taken", "not in shared or not head.startswith(shared)", "not in shared"),
        ("bridge: a word in front of its first word", "if whole[: len(front)] == front else", "if False else"),
        ("end: gpt-oss stops behind its thoughts", "final[0] if final and ends and final[0] != ends[0] else", ""),
        ("history: thoughts that nobody opened", "return self.prefix + text", "return text"),
        (
            "limit: prompts as long as it are dropped",
            "            if length > limit:",
            "            if length >= limit:",
        ),
    ),
    *faults(
        "chat_schema.py",
        "test_chat_settings test_selective test_self_refine",
        ("instruction: always the first", '"little") % len(self.instructions)', '"little") % 1'),
        ("keep: a marker in thoughts", 'text.rpartition("</think>")[2].strip()', "text.strip()"),
        (
            "keep: the marker in place of the answer",
            "[n for n in numbers if not self.keeps(n, attempts[n - 1].text)][-self",
            "numbers[-self",
        ),
        ("critiques: of the attempt before", "else attempts[number].critique", "else attempts[number - 1].critique"),
    ),
    *faults(
        "episodes.py",
        "test_selective test_self_refine",
        ("keep: counts as a text of its own", "found[-1] if attempt.keeps and found else attempt.text", "attempt.text"),
        (
            "critiques: cost nothing",
            "return self.length + (self.critique.length if self.critique else 0)",
            "return self.length",
        ),
    ),
    *faults(
        "template.py",
        "test_chat test_chat_settings test_chat_templates",
        ("tokens: special ones added again", "add_special_tokens=False, **options", "**options"),
        ("tokens: letters become special ones", '{"split_special_tokens": True} if number % 2 else {}', "{}"),
        ("day: today's", "pinned = _TODAY.sub(lambda call: repr(found.strftime(call[2])), text)", "return text"),
        ("thoughts: left in what is said", "found is None or not any(map(", "True or not any(map("),
    ),
    *faults(
        "decode.py",
        "test_decode",
        (
            "temperature: ignored in sampling",
            "log_p = (logits / sampling.temperature).log_softmax(dim=-1)",
            "log_p = logits.log_softmax(dim=-1)",
        ),
        ("sample: without its end token", "length[row[ended]] = position + 1", "length[row[ended]] = position"),
        (
            "sample: cut off counts as ended",
            "finished = torch.zeros(len(contexts)",
            "finished = torch.ones(len(contexts)",
        ),
        ("cache: finished rows are fed on", "[mask, running[:, None]]", "[mask, torch.ones_like(running)[:, None]]"),
        ("cache: claims the last token", "context + sample.token_ids[:-1]", "context + sample.token_ids"),
        ("cache: left padding seen", "t >= width - len(s) for t in range(width)", "True for t in range(width)"),
        (
            "cache: rows that left early change places",
            "index_copy_(0, row, _gather(",
            "index_copy_(0, row.flip(0), _gather(",
        ),
        ("draw: the token below", "target, right=True)[:, 0]", "target, right=True)[:, 0].sub(1).clamp(min=0)"),
        ("top-p: leaves out the token that reaches it", "- probability >= sampling.top_p", ">= sampling.top_p"),
        ("top-k: one more", "drop[:, sampling.top_k :]", "drop[:, sampling.top_k + 1 :]"),
        ("log-probs: before truncation", "truncate(log_p, sampling).log_softmax(dim=-1)", "truncate(log_p, sampling)"),
        ("dropout: on while sampling", "    model.eval()\n    try:\n        yield\n", "    try:\n        yield\n"),
    ),
    *faults(
        "draws.py",
        "test_draws",
        ("draws: the same at every position", "(position + 1) * _GOLDEN", "_GOLDEN"),
        ("draws: sign bits shifted in", "(z >> bits) & (2 ** (64 - bits) - 1)", "z >> bits"),
    ),
    *faults(
        "rollout.py",
        "test_rollout",
        ("draws: siblings alike", "[(*purpose, nodes[n][0], path)", "[(*purpose, nodes[n][0], path[:-1])"),
        ("draws: the purpose ignored", "[(*purpose, nodes[n][0], path)", "[(nodes[n][0], path)"),
        ("stored attempts: taken for own", "dataclasses.replace(a, sampled=False)", "a"),
        (
            "limits: the first for all",
            "plan.max_new_tokens[depth],\n            last=last",
            "plan.max_new_tokens[0],\n            last=last",
        ),
        ("grades: by another problem", "[e.problem for _, e in own])", "[nodes[0][1].problem for _, e in own])"),
        ("place in the list: forgotten", "range(first + part.start, first + part.stop)", "part"),
    ),
    *faults(
        "rollout.py",
        "test_selective test_self_refine",
        ("keep: graded by the marker", "if not keeps(len(e.attempts), e.attempts[-1].text)]", "]"),
        ("keep: always attempt 1", "_grade_of(done[i, episode.path[: k - 1]])", "_grade_of(done[i, episode.path[:1]])"),
        ("critiques: drawn as the attempt behind them", 'derive(*place, "critique")', "derive(*place)"),
        (
            "critiques: the first one for all",
            "self.chat.context(e.problem.question, e.attempts, critique) for",
            "self.chat.context(e.problem.question, e.attempts, critiques[0]) for",
        ),
    ),
]

EVALUATION = [
    *faults(
        "scaling.py",
        "test_scaling",
        ("votes: answers tied for the lead all win", "/ np.maximum(won.sum(axis=2), 1)", "/ 1"),
        ("mixed: the last attempts alone", "for attempt in episode.attempts:", "for attempt in episode.attempts[-1:]:"),
        ("sequential: the first attempts", "votes[attempts].most_right(c)", "votes[1].most_right(c)"),
        ("tokens: of one episode", "= c * chain", "= chain"),
        ("samples that were not graded: counted", "if len(group) == samples]", "]"),
    ),
    *faults(
        "results.py",
        "test_evaluation",
        ("resume: half a part kept", "done // at_once * at_once", "done"),
        ("resume: other settings taken", "            if changed:", "            if False:"),
        ("fingerprint: names alone", "digest.update(content.read(PLACE_BYTES))", "content.read(0)"),
    ),
    *faults(
        "metrics.py",
        "test_metrics test_invariants_metrics",
        (
            "unchanged: no answer equals no answer",
            "if before.grade.answer is None and after.grade.answer is None:",
            "if False:",
        ),
        ("unchanged: counts the changed", "[is_unchanged(e, k + 1) for", "[not is_unchanged(e, k + 1) for"),
        ("fix rate: of all episodes", 'tally.rate("rate/fix", right[1], wrong[0])', 'tally.rate("rate/fix", right[1])'),
        (
            "break rate: right ones that stay",
            'tally.rate("rate/break", wrong[1],',
            'tally.rate("rate/break", right[1],',
        ),
        ("identical: to the first attempt", "return texts[attempt - 2] ==", "return texts[0] =="),
        (
            "samples: each a problem of its own",
            "labels.setdefault(e.problem.id, len(labels))",
            "labels.setdefault(id(e), len(labels))",
        ),
        (
            "transitions: i -> c and c -> i swapped",
            "return sum(not a and b for a, b in pairs), sum(a and not b for a, b in pairs)",
            "return sum(a and not b for a, b in pairs), sum(not a and b for a, b in pairs)",
        ),
        ("transitions: stayed right counts as fixed", "sum(not a and b for", "sum(b for"),
        (
            "accuracy: from the reward",
            "fmean(e.attempts[k - 1].correct for e in group)",
            "fmean(_reward(e, k) for e in group)",
        ),
        (
            "own and stored first attempts together",
            "own = [e for e in episodes if e.attempts[0].sampled]",
            "own = list(episodes)",
        ),
        ("truncated: counts the finished", "fmean(not a.finished for", "fmean(a.finished for"),
    ),
    *faults(
        "stats.py",
        "test_stats",
        ("delta: sign", "Interval((gained - lost) / trials", "Interval((lost - gained) / trials"),
        ("interval: 90% for 95%", "Z95 = 1.959963984540054", "Z95 = 1.6448536269514722"),
        ("interval: Wald in place of Wilson", "(share + z2 / (2 * trials)) / (1 + z2 / trials)", "share"),
    ),
    *faults(
        "rewards/text.py",
        "test_rewards_text",
        ("grade: no answer equals no answer", "if found is None:", "if False:"),
    ),
    *faults(
        "rewards/qa.py",
        "test_rewards_qa",
        ("qa: the first marker", 'marker, "last")', 'marker, "first")'),
    ),
    *faults(
        "rewards/symbolic.py",
        "test_rewards_math",
        ("math: variables have no case", "lowercase_symbols=False", "lowercase_symbols=True"),
    ),
    *faults(
        "rewards/math.py",
        "test_rewards_math",
        ("math: a part is matched twice", "del left[match]", "pass"),
    ),
    *faults(
        "extract.py",
        "test_extract",
        ("gsm8k_hash: two numbers hold one", "if len(numbers) != 1:", "if not numbers:"),
    ),
    *faults(
        "grading.py",
        "test_grading",
        ("grader: equal pairs are graded again", "if (prediction, id(problem)) in started:", "if False:"),
        ("grader: the extra reward decides", "first = grades[0]", "first = grades[-1]"),
        ("grader: what nobody can grade is wrong", "if any(grade.reward is None for grade in grades):", "if False:"),
    ),
    *faults(
        "pool.py",
        "test_pool",
        ("pool: a hung worker is not killed", "for send in (os.killpg, os.kill):", "for send in ():"),
    ),
]

SAMPLING = [*ROLLOUT, *EVALUATION]
