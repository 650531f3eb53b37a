"""Faults in runs, in sweeps of them, and in the tables and figures of a sweep."""

from __future__ import annotations

from mutant_table import faults

RUN = [
    *faults(
        "schedule.py",
        "test_schedule",
        ("warm-up: off by one", "(step + 1) / (stage.warmup_steps + 1)", "step / (stage.warmup_steps + 1)"),
        ("cosine: counted from the start", "part = (step - stage.warmup_steps)", "part = step"),
        ("beta2: moves away from the target", "kl / control.target - 1.0", "1.0 - kl / control.target"),
        ("data: the order ignores the seed", '(seed, "order"))', '("order",))'),
        ("data: every pass in the same order", "derive(*key, epoch)", "derive(*key)"),
        ("choice: attempt 1 may fall", "holds = first >= base_acc_t1 - train.acc_t1_tolerance", "holds = True"),
    ),
    *faults(
        "run.py",
        "test_run",
        ("resume: metrics are not rewound", "os.truncate(path, size)", "os.truncate(path, path.stat().st_size)"),
    ),
    *faults(
        "train.py",
        "e2e/test_resume",
        ("resume: the optimiser starts anew", "load_optimizer(path, optimizer)", "pass"),
        (
            "resume: dropout depends on what ran before",
            'seed=derive(seed, "dropout", progress.stage, progress.step, *others) & (2**63 - 1),',
            "seed=torch.seed() & (2**63 - 1),",
        ),
    ),
    *faults(
        "parallel.py",
        "e2e/test_two_gradients",
        ("processes: gradients are averaged, not added", "run(batch, float(self.group.size))", "run(batch, 1.0)"),
        ("processes: gradients stay apart", "        self.meet()\n        run(filler, 0.0)\n", "        self.meet()\n"),
        ("processes: some rows go to nobody", "if least == self.group.rank:", "if least == self.group.rank == 0:"),
    ),
    *faults(
        "parallel.py",
        "test_processes",
        ("processes: as many rows, not as many tokens", "loads[least] += len(row.ids)", "loads[least] += 1"),
    ),
    *faults(
        "records.py",
        "test_records",
        (
            "writing: in place",
            "os.replace(partial, path)\n        sync_directory(path.parent)\n    except",
            "path.write_text(text)\n    except",
        ),
    ),
    *faults(
        "settings.py",
        "test_settings",
        ("YAML: 1e-5 is text", "_Loader.add_implicit_resolver(", "(lambda *_: None)("),
    ),
    *faults(
        "stage_schema.py",
        "test_settings",
        (
            "settings: truncated sampling is trained",
            "return self.top_p < 1 or self.top_k is not None or self.min_p > 0",
            "return False",
        ),
    ),
    *faults(
        "strict.py",
        "test_settings",
        ("settings: unknown keys are dropped", 'extra="forbid"', 'extra="ignore"'),
    ),
]

SWEEPS = [
    *faults(
        "sweep.py",
        "test_sweep",
        (
            "order: row by row",
            "for k in range(most) for runs in rows.values() if",
            "for runs in rows.values() for k in range(most) if",
        ),
        (
            "overrides: the sweep's over the row's",
            "[*sweep.overrides, *row.overrides]",
            "[*row.overrides, *sweep.overrides]",
        ),
        ("seeds: all runs alike", 'settings.model_copy(update={"seed": seed}), evaluations', "settings, evaluations"),
        ("budget: stored attempts counted", " - stage.offline_problems * stage.branch[0]", ""),
        (
            "done: with evaluations to come",
            "for name, result in results.items() if name not in lacking}",
            "for name, result in results.items()}",
        ),
        ("done: though its model is gone", "and (last.is_file() or not lacks)", ""),
        ("going on: with a seed less", 'if seed not in after["seeds"]]', "if False]"),
        ("lock: shared", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),
    ),
    *faults(
        "sweep_schema.py",
        "test_sweep",
        ("evaluations: the run's temperature", 'content["sampling"][name] = given.pop(name)', "given.pop(name)"),
    ),
    *faults(
        "sweep_result.py",
        "test_sweep test_selective",
        (
            "outcomes: what nobody can grade is wrong",
            "if attempt.grade is None or attempt.grade.reward is None:",
            "if attempt.grade is None:",
        ),
        ("outcomes: of the model before training", "files[run.labels[-1]]", 'files["base"]'),
        (
            "edits: the marker against the answer",
            "edit_ratio(*episode.texts[:2])",
            "edit_ratio(*(a.text for a in episode.attempts[:2]))",
        ),
    ),
    *faults(
        "sweeping.py",
        "test_sweep",
        ("time: of runs that do not train", "if run.name in results and run.train]", "if run.name in results]"),
        (
            "a crash: takes the worker's other runs along",
            "return [list(worker.names)] if worker.names else []",
            "return []",
        ),
    ),
]

TABLES = [
    *faults(
        "table.py",
        "test_table",
        (
            "pairs: by place, not by seed",
            "return [(_of_seed(theirs, seed), _of_seed(ours, seed)) for seed in seeds]",
            "return list(zip(theirs.values(), ours.values(), strict=False))",
        ),
        ("pairs: an untrained model beside its own seed alone", "if not row.trained and ours:", "if False:"),
        ("difference: the reference less the row", "compare(before, after,", "compare(after, before,"),
        (
            "difference: of the reference from itself",
            "if reference is None or row is reference else",
            "if reference is None else",
        ),
        ("p: not corrected", "._replace(p_holm=p)", "._replace(p_holm=lines[place].differences[key].p)"),
        (
            "verdict: by the p that is not corrected",
            'if self.p_holm >= LEVEL:\n            return "can\'t tell"\n        return "better"',
            'if self.p >= LEVEL:\n            return "can\'t tell"\n        return "better"',
        ),
        ("paper: its accuracy for its delta", "(t2 - t1) - (r2 - r1)", "t2 - r2"),
        ("problems: the reference's are not looked at", "[*rows, *([] if reference is None else [reference])]", "rows"),
        ("over seeds: the spread of one run", "for seed in seeds) / sqrt(len(seeds))", "for seed in seeds)"),
        ("tables: samples counted as if each were alone", "if any(len(samples) > 1 for samples in only):", "if False:"),
        ("budget: of somebody else's first attempts", 'if "first_attempts" not in metrics]', "]"),
    ),
    *faults(
        "table_text.py",
        "test_table test_table_text",
        ("CSV: the p that is not corrected", "(d.p, d.p_holm, d.verdict", "(d.p, d.p, d.verdict"),
        ("CSV: a title is run as a formula", 'if title[:1] in tuple("=+-@") else title', "if False else title"),
        ("corrections: own ones in the columns of fixed ones", "getattr(line, side).get(key)", "line.own.get(key)"),
    ),
    *faults(
        "table_source.py",
        "test_table",
        ("samples: of neighbouring problems", "str(place // size)", "str(place % (len(self.first) // size))"),
        ("failures: an old one beside a result", "if s not in results and (path", "if (path"),
        (
            "evaluations: a row's own not looked for",
            "extra = [*settings.evaluations, *row.evaluations]",
            "extra = [*settings.evaluations]",
        ),
    ),
    *faults(
        "figures.py",
        "test_figures",
        ("edits: identical texts in two bars", "max(0, bins[0] - same)", "bins[0]"),
        (
            "curves: of the first seed",
            "[(step, fmean(values)) for step, values in found]",
            "[(step, values[0]) for step, values in found]",
        ),
        ("answers: the unchanged ones", "lambda unchanged: 1 - unchanged", "lambda unchanged: unchanged"),
        ("panels: a scale for each", "y_least=(min(ys), max(ys)) if ys else None", "y_least=None"),
        (
            "corrections: own ones for fixed ones",
            "marks = measured(seeds, ",
            "marks = measured([result.final for result in row.results.values()], ",
        ),
    ),
]

DATA = faults(
    "data/walk.py",
    "test_data_walk",
    (
        "walk: around the end, not to the wall",
        "min(PLACES - 1, max(0, place + STEPS[step]))",
        "(place + STEPS[step]) % PLACES",
    ),
    (
        "walk: test questions train too",
        'start = {"test": 0, "validation": test, "train": test + validation}',
        'start = {"test": 0, "validation": test, "train": test}',
    ),
)

RUNS = [*RUN, *SWEEPS, *TABLES, *DATA]
