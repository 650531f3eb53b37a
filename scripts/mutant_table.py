"""Faults that someone could really make, each with the tests that are there to notice it."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault: in `file` of the package, `old` (found exactly once) becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _faults(file: str, tests: str, *rows: tuple[str, str, str]) -> list[Mutant]:
    paths = tuple(f"tests/{name}.py" for name in tests.split())
    return [Mutant(name, file, old, new, paths) for name, old, new in rows]


OBJECTIVES = _faults(
    "objectives.py",
    "test_objectives",
    ("policy term: descends", "total = -(weights.policy", "total = (weights.policy"),
    ("KL term: pushes away", "return total if kl is None else total + (", "return total if kl is None else total - ("),
    ("policy term: another attempt's weight", "weights.policy[episode, turn - 1]", "weights.policy[episode, turn - 2]"),
    ("KL: k2 in place of k3", "return d.exp() - d - 1", "return d**2 / 2"),
    ("KL: k3 in place of k2", "return d**2 / 2", "return d.exp() - d - 1"),
    ("KL: k1 upside down", "        return -d\n", "        return d\n"),
    ("bonus: on attempt 1 too", "prepend=progress[:, :1])", "prepend=0 * progress[:, :1])"),
    ("bonus: sign of the change", "change = progress.diff", "change = -progress.diff"),
    (
        "bonus: breaking is rewarded",
        "- objective.alpha_break * (-change).clamp(min=0)",
        "+ objective.alpha_break * (-change).clamp(min=0)",
    ),
    ("bonus: fixing and breaking swapped", "objective.alpha_fix * change", "objective.alpha_break * change"),
    ("bonus: replaces the reward", "new_tensor(objective.reward) + bonus", "new_tensor(objective.reward) * 0 + bonus"),
    (
        "credit: the whole return to every attempt",
        "credit[:, k] += objective.gamma * credit[:, k + 1]",
        "credit[:, k] += credit[:, k + 1]",
    ),
    ("stage I: beta1 and beta2 swapped", "(0.0, 1.0), beta=(beta2, beta1)", "(0.0, 1.0), beta=(beta1, beta2)"),
    ("stage I: rewards attempt 1", "Objective(reward=(0.0, 1.0)", "Objective(reward=(1.0, 1.0)"),
    ("sub-stage: pins attempt 1 only", "beta=(beta2,) * j + (beta1,)", "beta=(beta2,) + (beta1,) * j"),
    (
        "baseline: own reward not left out",
        "others = _sum_by(group, values * counted) - _sum_by(unit, values * counted)\n"
        "    number = _sum_by(group, counted) - _sum_by(unit, counted)",
        "others = _sum_by(group, values * counted)\n    number = _sum_by(group, counted)",
    ),
    (
        "baseline: a shared attempt compared with itself",
        "leave_out(values, group, nodes[:, k], valid)",
        "leave_out(values, group, torch.arange(len(values)), valid)",
    ),
    ("baseline: siblings of any parent", '"sibling": parent}', '"sibling": problem}'),
    ("baseline: rloo across questions", '"rloo": problem, ', '"rloo": torch.zeros_like(problem), '),
    (
        "baseline: stored attempts counted",
        "    counted = valid.to(values.dtype)\n    others",
        "    counted = torch.ones_like(values)\n    others",
    ),
    ("baseline: asked for where nothing is earned", "not values[valid].any()", "not valid.any()"),
    ("length norm: all attempts alike", '"sequence": lengths.clamp(min=1)', '"sequence": lengths.mean().clamp(min=1)'),
    ("length norm: by episodes, not tokens", "/ lengths.sum().clamp(min=1)", "/ lengths.shape[0]"),
)

UPDATE = [
    *_faults(
        "update.py",
        "test_update test_invariants",
        (
            "divisor of the micro-batch",
            "batch.token_turn, scores.logprobs, kl, ratio)\n",
            "batch.token_turn, scores.logprobs, kl, ratio) / len(batch.row_episode)\n",
        ),
        (
            "KL in the reward: added",
            "credit = credit - beta * _kl_in_reward",
            "credit = credit + beta * _kl_in_reward",
        ),
        ("KL in the reward: of all attempts", "    return sums\n", "    return sums.sum(1, keepdim=True) + 0 * sums\n"),
        ("bonus: always on the reward", 'table.correct if stage.bonus_on == "correct" else None', "None"),
        (
            "length norm: limits of the wrong attempt",
            "tuple(stage.max_new_tokens)",
            "tuple(stage.max_new_tokens)[::-1]",
        ),
        (
            "tree: paths without their question",
            "node.setdefault((label, e.path[:k])",
            "node.setdefault((0, e.path[:k])",
        ),
        ("tree: a question drawn twice is one", "if (label, episode.path) in seen:", "if False:"),
        ("KL that is logged: of stored attempts too", "kl_sums[own, k].mean()", "kl_sums[:, k].mean()"),
        (
            "memory: what a failed pass left counts",
            "        policy.zero_grad()\n        torch.manual_seed(seed)",
            "        torch.manual_seed(seed)",
        ),
        ("memory: halved from a budget nobody reached", "max_tokens = split // 2", "max_tokens //= 2"),
        ("memory: every error is a lack of it", "if not is_out_of_memory(error):", "if False:"),
        ("memory: another dropout the second time", "        torch.manual_seed(seed)\n", ""),
    ),
    *_faults(
        "batch.py",
        "test_batch test_update",
        ("mask: one place early", "return self.turn[:, 1:] > 0", "return self.turn[:, :-1] > 0"),
        (
            "mask: contexts are trained",
            "turn += (0,) * (len(attempt.context_ids)",
            "turn += (k,) * (len(attempt.context_ids)",
        ),
        ("mask: stored attempts are trained", "turn += (k if attempt.sampled else 0,)", "turn += (k,)"),
        (
            "mask: padding is trained",
            "turn=padded([row.turn for row in part], 0)",
            "turn=padded([row.turn for row in part], 1)",
        ),
        ("rows: a rewritten history is kept in one", "if ids and attempt.context_ids[: len(ids)] != ids:", "if False:"),
        (
            "micro-batches: over the budget",
            "(len(batches[-1]) + 1) * len(batches[-1][0].ids)",
            "len(batches[-1]) * len(batches[-1][0].ids)",
        ),
        ("reference: not shown the last token", "nonzero().max()) + 1", "nonzero().max())"),
    ),
]

POLICY = [
    *_faults(
        "logprobs.py",
        "test_logprobs test_policy",
        ("temperature: ignored in chunks", "        logits = logits / temperature\n", "        pass\n"),
        ("temperature: ignored by the kernel", "        hidden / temperature,\n", "        hidden,\n"),
        ("temperature: the kernel's bias is not divided", "else bias / temperature", "else bias"),
        ("exact KL: the other direction", "(log_p.exp() * (log_p - log_q)).sum", "(log_q.exp() * (log_q - log_p)).sum"),
        ("chunks: as many tokens as logits", "max(1, chunk // (copies * head.vocabulary))", "max(1, chunk)"),
        ("cap: forgotten", "    if head.cap:\n", "    if False:\n"),
        ("kernel: a cap is passed over", "            not self.cap\n            and type", "            type"),
        ("kernel: an adapter is passed over", "and type(module) is nn.Linear", "and True"),
        ("kernel: a hook is passed over", "            and not module._forward_hooks\n", ""),
        ("bfloat16: summed up as it is", "logits = head.module(hidden).float()", "logits = head.module(hidden)"),
    ),
    *_faults(
        "policy.py",
        "test_policy test_logprobs test_invariants test_update",
        (
            "temperature: ignored in the reference",
            "token_logprobs(states, targets, head_of(model), temperature, self.chunk)",
            "token_logprobs(states, targets, head_of(model), 1.0, self.chunk)",
        ),
        (
            "padding: attended",
            "input_ids=input_ids, attention_mask=attention_mask, position",
            "input_ids=input_ids, attention_mask=torch.ones_like(attention_mask), position",
        ),
        ("scores: of the place itself", "return states[:, :-1][predicts]", "return states[:, 1:][predicts]"),
        ("reference: not frozen", "copy.deepcopy(self.model) if source is None", "self.model if source is None"),
        (
            "reference: the given one ignored",
            "copy.deepcopy(self.model) if source is None else source",
            "copy.deepcopy(self.model)",
        ),
        ("reference: adapter on", "with self.model.disable_adapter():  # type: ignore[operator]", "if True:"),
        (
            "reference: adapter stays off",
            '                finally:\n                    self.model.set_adapter("default")',
            "                finally:\n                    self.model.set_adapter(REFERENCE_ADAPTER)",
        ),
        ("reference: saved as a second adapter", '"selected_adapters": ["default"], ', ""),
        (
            "reference: training mode lost",
            "            self.model.train(was_training)\n\n    def frozen",
            "            pass\n\n    def frozen",
        ),
        (
            "exact KL: the policy's own head for both",
            "            return head_of(self._frozen[0])",
            "            return head_of(self.model)",
        ),
        ("exact KL: the adapter on for both", "return head._replace(module=inner)", "return head"),
        ("end: the model's own tokens forgotten", "[found] if isinstance(found, int) else found or ()", "()"),
    ),
    *_faults(
        "loading.py",
        "test_loading test_policy",
        (
            "check: any logits will do",
            "if not torch.allclose(ours, theirs",
            "if False and not torch.allclose(ours, theirs",
        ),
        (
            "dtype: a whole model trains in bfloat16",
            'if trains and settings.lora is None and settings.dtype == "auto":',
            "if False:",
        ),
        ("dropout: of the pretrained model on", "            module.p = 0.0\n", "            pass\n"),
        ("hub: any revision", "settings.path, revision=settings.revision, allow", "settings.path, allow"),
        (
            "code of a model: runs unasked",
            '"trust_remote_code": settings.trust_remote_code',
            '"trust_remote_code": True',
        ),
    ),
    *_faults(
        "adapters.py",
        "test_policy test_loading",
        ("adapter: another scale is taken", '(("rank", "r"), ("alpha", "lora_alpha"))', '(("rank", "r"),)'),
        (
            "adapter: a missing part is taken",
            "odd = sorted((stored.keys() - known) | (wanted.keys() - stored.keys()))",
            "odd = []",
        ),
    ),
]

ROLLOUT = [
    *_faults(
        "chat.py",
        "test_chat test_chat_settings test_chat_templates",
        (
            "bridge: the end token twice",
            "skipped = self._closed[place].get(token_ids[-1], 0) if token_ids else 0",
            "skipped = 0",
        ),
        (
            "bridge: a cut-off attempt stays open",
            "self.bridges[place][skipped:]",
            "self.bridges[place][max(1, skipped) :]",
        ),
        ("bridge: templates that rewrite are taken", "not in shared or not head.startswith(shared)", "not in shared"),
        ("bridge: a word in front of its first word", "if whole[: len(front)] == front else", "if False else"),
        ("end: gpt-oss stops behind its thoughts", "final[0] if final and ends and final[0] != ends[0] else", ""),
        ("instruction: always the first", '"little") % len(self.instructions)', '"little") % 1'),
        ("history: thoughts that nobody opened", "return self.prefix + text", "return text"),
        (
            "limit: prompts as long as it are dropped",
            "            if length > limit:",
            "            if length >= limit:",
        ),
    ),
    *_faults(
        "template.py",
        "test_chat test_chat_settings test_chat_templates",
        ("tokens: special ones added again", "add_special_tokens=False, **options", "**options"),
        ("tokens: letters become special ones", '{"split_special_tokens": True} if number % 2 else {}', "{}"),
        ("day: today's", "pinned = _TODAY.sub(lambda call: repr(found.strftime(call[2])), text)", "return text"),
        ("thoughts: left in what is said", "found is None or not any(map(", "True or not any(map("),
    ),
    *_faults(
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
    *_faults(
        "draws.py",
        "test_draws",
        ("draws: the same at every position", "(position + 1) * _GOLDEN", "_GOLDEN"),
        ("draws: sign bits shifted in", "(z >> bits) & (2 ** (64 - bits) - 1)", "z >> bits"),
    ),
    *_faults(
        "rollout.py",
        "test_rollout",
        ("draws: siblings alike", "derive(*purpose, nodes[n][0], path)", "derive(*purpose, nodes[n][0], path[:-1])"),
        ("draws: the purpose ignored", "derive(*purpose, nodes[n][0], path)", "derive(nodes[n][0], path)"),
        ("stored attempts: taken for own", "dataclasses.replace(a, sampled=False)", "a"),
        ("limits: the first for all", "plan.max_new_tokens[depth]", "plan.max_new_tokens[0]"),
        (
            "grades: by another problem",
            "[episode.problem for _, episode in nodes])",
            "[nodes[0][1].problem for _, episode in nodes])",
        ),
        ("place in the list: forgotten", "range(first + part.start, first + part.stop)", "part"),
    ),
]

EVALUATION = [
    *_faults(
        "scaling.py",
        "test_scaling",
        ("votes: answers tied for the lead all win", "/ np.maximum(won.sum(axis=2), 1)", "/ 1"),
        ("mixed: the last attempts alone", "for attempt in episode.attempts:", "for attempt in episode.attempts[-1:]:"),
        ("sequential: the first attempts", "votes[attempts].most_right(c)", "votes[1].most_right(c)"),
        ("tokens: of one episode", "= c * chain", "= chain"),
        ("samples that were not graded: counted", "if len(group) == samples]", "]"),
    ),
    *_faults(
        "results.py",
        "test_evaluation",
        ("resume: half a part kept", "done // at_once * at_once", "done"),
        ("resume: other settings taken", "            if changed:", "            if False:"),
        ("fingerprint: names alone", "digest.update(content.read(PLACE_BYTES))", "content.read(0)"),
    ),
    *_faults(
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
        (
            "identical: to the first attempt",
            "e.attempts[k - 1].text == e.attempts[k].text",
            "e.attempts[0].text == e.attempts[k].text",
        ),
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
    *_faults(
        "stats.py",
        "test_stats",
        ("delta: sign", "Interval((gained - lost) / trials", "Interval((lost - gained) / trials"),
        ("interval: 90% for 95%", "Z95 = 1.959963984540054", "Z95 = 1.6448536269514722"),
        ("interval: Wald in place of Wilson", "(share + z2 / (2 * trials)) / (1 + z2 / trials)", "share"),
    ),
    *_faults(
        "rewards/text.py",
        "test_rewards_text",
        ("grade: no answer equals no answer", "if found is None:", "if False:"),
    ),
    *_faults(
        "rewards/qa.py",
        "test_rewards_qa",
        ("qa: the first marker", 'marker, "last")', 'marker, "first")'),
    ),
    *_faults(
        "rewards/symbolic.py",
        "test_rewards_math",
        ("math: variables have no case", "lowercase_symbols=False", "lowercase_symbols=True"),
    ),
    *_faults(
        "rewards/math.py",
        "test_rewards_math",
        ("math: a part is matched twice", "del left[match]", "pass"),
    ),
    *_faults(
        "extract.py",
        "test_extract",
        ("gsm8k_hash: two numbers hold one", "if len(numbers) != 1:", "if not numbers:"),
    ),
    *_faults(
        "grading.py",
        "test_grading",
        ("grader: equal pairs are graded again", "if (prediction, id(problem)) in started:", "if False:"),
        ("grader: the extra reward decides", "first = grades[0]", "first = grades[-1]"),
        ("grader: what nobody can grade is wrong", "if any(grade.reward is None for grade in grades):", "if False:"),
    ),
    *_faults(
        "pool.py",
        "test_pool",
        ("pool: a hung worker is not killed", "for send in (os.killpg, os.kill):", "for send in ():"),
    ),
]

RUN = [
    *_faults(
        "schedule.py",
        "test_schedule",
        ("warm-up: off by one", "(step + 1) / (stage.warmup_steps + 1)", "step / (stage.warmup_steps + 1)"),
        ("cosine: counted from the start", "part = (step - stage.warmup_steps)", "part = step"),
        ("beta2: moves away from the target", "kl / control.target - 1.0", "1.0 - kl / control.target"),
        ("data: the order ignores the seed", 'derive(seed, "order", epoch)', 'derive("order", epoch)'),
        ("data: every pass in the same order", 'derive(seed, "order", epoch)', 'derive(seed, "order")'),
        ("choice: attempt 1 may fall", "holds = first >= base_acc_t1 - train.acc_t1_tolerance", "holds = True"),
    ),
    *_faults(
        "run.py",
        "test_run",
        ("resume: metrics are not rewound", "os.truncate(path, size)", "os.truncate(path, path.stat().st_size)"),
    ),
    *_faults(
        "train.py",
        "e2e/test_resume",
        ("resume: the optimiser starts anew", "load_optimizer(path, optimizer)", "pass"),
        (
            "resume: dropout depends on what ran before",
            'seed=derive(seed, "dropout", progress.stage, progress.step, *others) & (2**63 - 1),',
            "seed=torch.seed() & (2**63 - 1),",
        ),
    ),
    *_faults(
        "parallel.py",
        "e2e/test_two_gradients",
        ("processes: gradients are averaged, not added", "run(batch, float(self.group.size))", "run(batch, 1.0)"),
        ("processes: gradients stay apart", "        self.meet()\n        run(filler, 0.0)\n", "        self.meet()\n"),
        ("processes: some rows go to nobody", "if least == self.group.rank:", "if least == self.group.rank == 0:"),
    ),
    *_faults(
        "records.py",
        "test_records",
        (
            "writing: in place",
            "os.replace(partial, path)\n        sync_directory(path.parent)\n    except",
            "path.write_text(text)\n    except",
        ),
    ),
    *_faults(
        "settings.py",
        "test_settings",
        ("YAML: 1e-5 is text", "_Loader.add_implicit_resolver(", "(lambda *_: None)("),
    ),
    *_faults(
        "schema.py",
        "test_settings",
        (
            "settings: truncated sampling is trained",
            "return self.top_p < 1 or self.top_k is not None or self.min_p > 0",
            "return False",
        ),
        ("settings: unknown keys are dropped", 'extra="forbid"', 'extra="ignore"'),
    ),
]

MUTANTS = [*OBJECTIVES, *UPDATE, *POLICY, *ROLLOUT, *EVALUATION, *RUN]
