"""Every number of the page "The paper repeated: every table", and the equal votes of "every block": `make paper DATA=folder` (or
`make paper DATA=folder PARTS="emotion smollm2"`).

DATA holds one folder a data set with CSV files `text,label`. A part is a study file beside this one, `<part>.toml`: which texts, which
model, how it is trained or asked. The settings that are tried on every part stand in `tables.toml`. Each step of a part replaces the rows
of that part in <table>.csv, so that parts may be run by themselves, or side by side. Settings are chosen on validation texts; the test
texts are read once, at the end.
"""
from __future__ import annotations

import json
import os
import sys
import time
import tomllib
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from sklearn.ensemble import RandomForestClassifier

from neuronlens.arrays.distributions import fit_distributions
from neuronlens.arrays.firing import firing_matrix
from neuronlens.arrays.matching import ranking_agreement
from neuronlens.arrays.overlap import set_overlap
from neuronlens.arrays.ranges import fit_ranges
from neuronlens.arrays.saliency import rank
from neuronlens.arrays.statistics import class_statistics
from neuronlens.edits.ablation import ablate, edited_acts
from neuronlens.edits.attribution import ATTRIBUTIONS, MODEL_RANKINGS, attribute
from neuronlens.edits.choice import MATCHED, choose, trade_off
from neuronlens.edits.edit import linear_edit
from neuronlens.edits.effects import Effects, measure_effects
from neuronlens.edits.erasure import fresh_scores, information_left, leace, unedited
from neuronlens.edits.evidence import compare, intervals, over_seeds, shuffled_labels
from neuronlens.edits.language import firing_by_position
from neuronlens.edits.planning import plan
from neuronlens.edits.presets import PRESETS, preset_grid
from neuronlens.edits.questions import read_questions
from neuronlens.edits.reading import language_effects
from neuronlens.edits.sweeps import effects_on, grid
from neuronlens.ground.data import balance, distinct, read_texts, take
from neuronlens.ground.files import atomic
from neuronlens.ground.setting import setting_keys
from neuronlens.models.anatomy import anatomy
from neuronlens.models.batches import encode
from neuronlens.records.calibration import calibrated
from neuronlens.records.given import correct_only, recording_frame
from neuronlens.records.provenance import versions
from neuronlens.records.recording import record, vocabulary_confidence
from neuronlens.records.tokens import record_tokens
from neuronlens.studies.spec import read_study
from neuronlens.studies.study import study_model, study_prompt, study_texts

HERE = Path(__file__).resolve().parent
SEED = 0
PARTS = ("ag_news", "emotion", "dbpedia14", "sst2", "imdb", "smollm2")
TABLES = tomllib.loads((HERE/"tables.toml").read_text(encoding="utf-8"))


def plain(t): return " ".join(t.split())


def texts_of(spec):
    "(train, validation, test) of a study: distinct, disjoint texts with the same classes; without a validation file some are held back."
    (train, test, _), folder = study_texts(spec), Path(spec.data.train).parent
    pool = distinct(read_texts(spec.data.train))
    if own := [f for f in (folder/"val.csv", folder/"dev.csv") if f.exists()]:
        seen, given = {plain(t) for t in (*pool.texts, *test.texts)}, distinct(read_texts(own[0]))
        validation = take(given, np.array([plain(t) not in seen for t in given.texts]))
    else:
        rest = np.random.default_rng(SEED).permutation(len(pool))[spec.data.most:]
        validation = take(pool, np.sort(rest[:2000 if folder.name == "ag_news" else 999]))
    assert train.classes == validation.classes == test.classes
    return train, validation, test


# --- tables


def store(table, part, frame, same=()):
    "Put the rows of one part into results/<table>.csv, in the order of the parts; other parts stay, and rows that differ in `same`."
    (HERE.parent/"build").mkdir(exist_ok=True)
    path = HERE/f"{table}.csv"
    frame = frame.copy()
    frame.insert(0, "dataset", part)
    with FileLock(HERE.parent/"build"/"results.lock"):
        if path.exists():
            old = pd.read_csv(path, keep_default_na=False, na_values={c: [""] for c in frame.select_dtypes("number")})
            mine = old.dataset == part
            for c in same: mine &= old[c] == frame[c].iloc[0]
            frame = pd.concat([old[~mine], frame], ignore_index=True)
        frame["dataset"] = pd.Categorical(frame.dataset, PARTS, ordered=True)
        frame = frame.sort_values("dataset", kind="stable")
        if "seed" in frame: frame["seed"] = pd.to_numeric(frame.seed).astype("Int64") # Also where some rows have none
        floats = frame.select_dtypes("float").columns
        frame[floats] = frame[floats].round(5)
        with atomic(path) as p: frame.to_csv(p, index=False)
    print(f"{part}: {table}, {int((frame.dataset == part).sum())} rows", flush=True)


class Part:
    "A study of the file `name`.toml: its model, its texts, and what was recorded of it; `sites`: whether below the last block, too."

    def __init__(self, name, seed=SEED, sites=True):
        spec = read_study(HERE/f"{name}.toml")
        train, validation, test = texts_of(spec)
        prompt, train = study_prompt(spec, train)
        if prompt: train, validation, test = (balance(t, n, seed=SEED) for t, n in ((train, 150), (validation, 60), (test, 80)))
        self.clf = study_model(replace(spec, seed=seed), train, False, prompt)
        if spec.prompt.calibrate: self.clf = calibrated(self.clf, balance(train, 25, seed=SEED))
        self.name, self.title = name, spec.title.replace("MiniLM on", "MiniLM fine-tuned on")
        self.texts = dict(train=train, validation=validation, test=test)
        below = len(anatomy(self.clf.model))-1
        self.site = last = f"residual.{below}"
        every = [last, *(f"residual.{b}" for b in range(below))] if sites else last
        self.rec = {k: record(self.clf, t, every if k == "train" else last, progress=False, cache=True) for k, t in self.texts.items()}
        # What rankings and ranges are fitted on
        self.fit = correct_only(self.rec["train"]) if spec.method.correct_only else self.rec["train"]
        self.statistics = class_statistics(self.fit.at(last), self.fit.labels, self.fit.classes)
        self.C, self.known = len(self.clf.classes), {}

    def rankings(self, names):
        "Rankings by name, fitted at the last block; each once."
        acts, labels = self.fit.at(self.site), self.fit.labels
        for n in names:
            if n in self.known: continue
            if n in ATTRIBUTIONS:
                kw = dict(recording=self.rec["train"], progress=False)
                self.known[n] = attribute(self.clf, self.texts["train"], self.site, n, **kw)
            else: self.known[n] = rank(acts, labels, n, statistics=self.statistics, seed=SEED)
        return [self.known[n] for n in names]

    def plan(self, rankings, ranges, fractions, edit, vote=0., keep=("full", "range"), seed=SEED):
        "Interventions at the last block of some conditions; `seed` draws the random neurons."
        acts, labels = self.fit.at(self.site), self.fit.labels
        fitted = [fit_ranges(acts, labels, r, statistics=self.statistics) for r in ranges]
        ivs = plan(self.statistics, self.rankings(rankings), fitted, self.site, fraction=fractions, edit=edit, vote=vote, seed=seed,
                   acts=acts, labels=labels)
        return [iv for iv in ivs if iv.condition in keep]

    def effects(self, ivs, on="test"):
        return effects_on(self.clf, self.texts[on], ivs, recording=self.rec[on], progress=False)


def sweeps(p, tables=("fractions", "taus", "ranges", "edits")):
    "Tables of `tables.toml`: one setting at a time; every row on test texts, nothing chosen by them."
    for table in tables: store(table, p.name, p.effects([iv for g in TABLES[table] for iv in p.plan(**g)]).frame)


DRAWS = 5 # How many sets of random neurons stand beside the salient ones


def controls(p):
    "Neurons drawn at random, five times: at every fraction, tested against the salient ones, and as a preset chosen for each draw."
    each, matched, both = [], [], p.plan(["dprime"], ["posterior"], [.3, .5, .8], "mean", .5, keep=("range",))
    for draw in range(DRAWS):
        kw = dict(keep=("random",), seed=draw)
        each.append(p.effects([iv for g in TABLES["fractions"] for iv in p.plan(**g | kw)]))
        some = p.plan(["dprime"], ["posterior"], [.3, .5, .8], "mean", .5, **kw)
        both += [replace(iv, condition=f"random {draw}") for iv in some]
        ivs, row, _ = settled(p, "random", preset_grid(p.fit, "random", site=p.site, seed=draw))
        frame = p.effects(ivs).frame
        matched.append(frame[frame.condition != "base"].assign(preset="random", draw=draw, reached=row.reached))
    outcome = ablate(p.clf, p.texts["test"], both, recording=p.rec["test"], progress=False)
    few = dict(measures=("target_accuracy", "disturbance", "broken"), on=["fraction"])
    tests = [compare(outcome, "range", f"random {draw}", seed=SEED, **few).frame.assign(draw=draw) for draw in range(DRAWS)]
    spread = over_seeds(each, ("target_accuracy", "auxiliary_accuracy", "disturbance", "broken"))
    store("controls", p.name, spread[spread.condition != "base"])
    store("control_tests", p.name, pd.concat(tests, ignore_index=True))
    store("control_matched", p.name, pd.concat(matched, ignore_index=True))


def by_ranking(p):
    "Every ranking with the same ranges and edits, and how much they agree."
    sweeps(p, ["rankings"])
    scores = {r.name: r.scores for r in p.rankings(MODEL_RANKINGS)}
    store("agreement", p.name, ranking_agreement(scores, p.clf.classes, fractions=(.1, .3, .5)).to_frame())


# --- matched erasure


def candidates(p):
    "The interventions of every preset, from which one setting of each is chosen."
    out = {name: preset_grid(p.fit, name, site=p.site, seed=SEED) for name in PRESETS if name != 'erase'}
    maps = [leace(p.fit.at(p.site), p.fit.labels, c) for c in range(p.C)]
    out["leace"] = [linear_edit(p.clf.classes[m.concept], "leace", p.site, m.matrix, m.bias) for m in maps]
    return out


def settled(p, name, ivs, effects=None):
    "(the interventions of the chosen setting, what was chosen and how well it did on validation texts)."
    effects = effects or p.effects(ivs, "validation")
    row = choose(effects, at=.05, margin=.015, presets={name: {}}).frame.iloc[0]
    rows = effects.frame[effects.frame.condition != "base"].reset_index(drop=True)
    said = lambda r: tuple(str(r[k]) for k in setting_keys(rows))
    mine = [i for i, r in rows.iterrows() if said(r) == said(row)]
    assert len(mine) == p.C, (name, len(mine))
    return [ivs[i] for i in mine], row, effects


def matching(p):
    "The presets side by side: chosen on validation texts, measured on test texts, with intervals, tests and what a fresh probe reads."
    chosen, settings, curves = {}, [], []
    for name, ivs in candidates(p).items():
        chosen[name], row, effects = settled(p, name, ivs)
        p.chosen = chosen
        settings.append(dict(preset=name) | row.drop("preset").to_dict())
        curves.append(trade_off(effects, presets={name: {}}))
    store("settings", p.name, pd.DataFrame(settings))
    store("tradeoff", p.name, pd.concat([t.points[t.points.envelope] for t in curves], ignore_index=True))
    store("areas", p.name, pd.concat([t.areas for t in curves], ignore_index=True))
    named = [replace(iv, condition=name) for name, ivs in chosen.items() for iv in ivs]
    outcome = ablate(p.clf, p.texts["test"], named, recording=p.rec["test"], progress=False)
    frame = measure_effects(outcome).frame
    base = frame[frame.condition == "base"].drop_duplicates("concept").set_index("concept")
    rows = frame[frame.condition != "base"].copy()
    for m in ("target_accuracy", "target_confidence", "auxiliary_accuracy", "auxiliary_confidence"):
        rows[f"base_{m}"] = rows.concept.map(base[m])
    rows = rows.assign(preset=rows.condition, model=p.title)
    store("matched", p.name, rows[[c for c in MATCHED if c != "dataset"]])
    sure = intervals(outcome, draws=1000, seed=SEED).frame
    store("intervals", p.name, sure[(sure.condition != "base")])
    tests = [compare(outcome, "recommended", other, on=["concept"], seed=SEED).frame.assign(a="recommended", b=other)
             for other in ("full", "gaussian", "random")]
    store("tests", p.name, pd.concat(tests, ignore_index=True))
    information(p)


def forest(train, y, test):
    "Log-odds by a random forest, a probe that is not linear."
    p = RandomForestClassifier(200, min_samples_leaf=2, random_state=SEED).fit(train, y).predict_proba(test)[:, 1].clip(.001, .999)
    return np.log(p/(1-p))


def information(p):
    """What fresh probes read after the chosen edits. They learn from validation texts, on which nothing was fitted, and are tested on
    test texts: a linear probe, a forest, and a linear probe that learned from shuffled labels, which has nothing to read."""
    chosen, out, learn, test = settle(p), [], p.rec["validation"], p.rec["test"]
    ways = dict(linear=(fresh_scores, learn.labels), forest=(forest, learn.labels),
                shuffled=(fresh_scores, shuffled_labels(learn.labels, SEED)))
    for name, ivs in {"base": chosen["full"], **chosen}.items():
        for iv in ivs:
            x, z = (a if name == "base" else edited_acts(iv, a) for a in (learn.at(p.site), test.at(p.site)))
            for way, (probe, labels) in ways.items():
                c = p.clf.classes.index(iv.concept)
                r = information_left(unedited, x, labels, z, test.labels, c, probe=probe, draws=500, seed=SEED,
                                     classes=p.clf.classes)
                out.append(r.to_frame().assign(preset=name, probe=way))
    frame = pd.concat(out, ignore_index=True)
    store("information", p.name, frame[["preset", "probe", *[c for c in frame if c not in ("preset", "probe")]]])


# --- blocks


def some(texts, tokens_each, budget, least=4):
    "A few texts, equally many of every class and at least so many, that make about so many tokens."
    return balance(texts, min(max(int(least), int(budget/tokens_each/len(texts.classes))), int(texts.counts().min())), seed=SEED)


# What is tried at a block that is not the last: (condition, ranges, edits, votes), fitted at the readout and at every token
WAYS = {
    "readout": {"full": ("full", "gaussian(2.5)", ["mean", "zero"], 0.), "gaussian": ("range", "gaussian(2.5)", "mean", 0.),
                "recommended": ("range", "posterior", "mean", [.5, .6])},
    "tokens": {"full": ("full", "gaussian(2.5)", ["mean", "transport"], 0.), "gaussian": ("range", "gaussian(2.5)", "mean", 0.),
               "recommended": ("range", "posterior", "mean", [.5, .55, .6, .65])}}
# The same with a setting each, but for one choice: of SmolLM2
LEAN = {
    "readout": {"full": ("full", "gaussian(2.5)", "mean", 0.), "gaussian": ("range", "gaussian(2.5)", "mean", 0.),
                "recommended": ("range", "posterior", "mean", .5)},
    "tokens": {"full": ("full", "gaussian(2.5)", "mean", 0.), "gaussian": ("range", "gaussian(2.5)", "mean", 0.),
               "recommended": ("range", "posterior", "mean", [.5, .6])}}
# These are on all neurons, for which there is no random control; a half of them, and halves drawn at random:
HALVES = {"tokens": {"half": ("range", "posterior", "mean", [.5, .6]), "random": ("random", "posterior", "mean", [.5, .6])}}


def ways(p, site, tokens, fitted_at, how, fraction, draw):
    "The interventions of one way at a block; random neurons by the number of the draw."
    condition, ranges, edit, vote = how
    every = grid(p.fit, ranking="dprime", fraction=fraction, range=ranges, edit=edit, vote=vote, site=site, fitted_at=fitted_at,
                 tokens=tokens, seed=SEED+draw)
    return [iv for iv in every if iv.condition == condition]


def measured(p, texts, lists):
    "Effects of several lists of interventions, each with the base rows, from one run."
    frame = effects_on(p.clf, texts, [iv for ivs in lists for iv in ivs], progress=False).frame
    base, rows = frame[frame.condition == "base"].drop_duplicates("concept"), frame[frame.condition != "base"]
    ends = np.cumsum([0, *map(len, lists)])
    return [Effects(pd.concat([base, rows[a:b]], ignore_index=True)) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def blocks(p, which, tokens_each, of=WAYS, fraction=1., budget=5000, least=6):
    "What each way reaches at every other block: settled on some validation texts, measured on some test texts."
    few, sites = some(p.texts["train"], tokens_each, 4*budget, 4*least), [f"residual.{b}" for b in which]
    trial, texts = some(p.texts["validation"], tokens_each, budget, least), some(p.texts["test"], tokens_each, 1.5*budget, 1.5*least)
    tokens = record_tokens(p.clf, few, sites, seed=SEED, progress=False)
    names = [(at, n, draw) for at in of for n in of[at] for draw in range(DRAWS if n == "random" else 1)]
    for site in sites:
        tried = [ways(p, site, tokens, at, of[at][n], fraction, draw) for at, n, draw in names]
        choice = [i for i, ivs in enumerate(tried) if len(ivs) > p.C]
        kept = dict.fromkeys(range(len(names)))
        for i, effects in zip(choice, measured(p, trial, [tried[i] for i in choice]), strict=True):
            kept[i] = settled(p, names[i][1], tried[i], effects)
        found, out = measured(p, texts, [tried[i] if k is None else k[0] for i, k in kept.items()]), []
        for i, effects in enumerate(found):
            frame = effects.frame[effects.frame.condition != "base"]
            at, n, draw, reached = *names[i], None if kept[i] is None else bool(kept[i][1].reached)
            out.append(frame.assign(preset=n, fitted_at=at, reached=reached, texts=len(texts), draw=draw))
        base = found[0].frame[found[0].frame.condition == "base"]
        out.append(base.assign(preset="base", fitted_at="none", site=site, texts=len(texts), draw=0))
        for _, rows in pd.concat(out, ignore_index=True).groupby("preset", sort=False):
            store("blocks", p.name, rows, same=("preset", "site"))
        print(f"{p.name}: {site} done", flush=True)


# --- distributions and overlap


FEW = 40 # Texts of every class on which normality is tested once more: with more texts, smaller departures are found


def shapes(p):
    "What the activations look like, and what the classes share."
    acts, labels, classes = p.fit.at(p.site), p.fit.labels, p.fit.classes
    few = np.sort(np.concatenate([np.flatnonzero(labels == c)[:FEW] for c in range(p.C)]))
    same = fit_distributions(acts[few], labels[few], classes).summary().set_index("class").gaussian
    whole = fit_distributions(acts, labels, classes).summary()
    store("distributions", p.name, whole.assign(**{f"gaussian_of_{FEW}": whole["class"].map(same)}))
    names, rows, fires = ("max_activation", "dprime", "probeless", "probe"), [], []
    for r in p.rankings(names):
        for f in (.1, .3, .5):
            o = set_overlap(r.salient(f), acts.shape[1], classes).to_frame()
            rows.append(o.assign(between="classes", ranking=r.name, fraction=f))
    for c, name in enumerate(classes):
        o = set_overlap([r.salient(.3)[c] for r in p.rankings(names)], acts.shape[1], names).to_frame()
        rows.append(o.assign(between="rankings", ranking=name, fraction=.3))
    store("overlap", p.name, pd.concat(rows, ignore_index=True))
    test, salient = p.rec["test"], p.rankings(["dprime"])[0].salient(.8)
    for kind in ("gaussian(2.5)", "posterior"):
        m = firing_matrix(test.at(p.site), test.labels, fit_ranges(acts, labels, kind, statistics=p.statistics), salient, classes)
        fires.append(m.to_frame().assign(range=kind))
    store("firing", p.name, pd.concat(fires, ignore_index=True))


def base_table(p):
    "What the model answers before any edit."
    rows = [recording_frame(p.rec[k]).assign(texts_of=k, model=p.title) for k in ("train", "validation", "test")]
    store("base", p.name, pd.concat(rows, ignore_index=True))


def seeds(p, more=(1, 2)):
    "The same with classifiers that other seeds trained: settings chosen anew, and how many salient neurons they share."
    out, salient = [], {}
    for seed in (SEED, *more):
        q = p if seed == SEED else Part(p.name, seed, sites=False)
        salient[f"seed {seed}"] = q.rankings(["dprime"])[0].salient(.3)
        for name in ("full", "gaussian", "recommended", "random"):
            ivs, row, _ = settled(q, name, preset_grid(q.fit, name, site=q.site, seed=SEED))
            frame = q.effects(ivs).frame
            out.append(frame[frame.condition != "base"].assign(preset=name, training_seed=seed, reached=row.reached))
    store("seeds", p.name, pd.concat(out, ignore_index=True))
    D = p.fit.at(p.site).shape[1]
    shared = [set_overlap([s[c] for s in salient.values()], D, tuple(salient)).to_frame().assign(concept=name)
              for c, name in enumerate(p.clf.classes)]
    store("seeds_overlap", p.name, pd.concat(shared, ignore_index=True))


# --- the parts


def each_tokens(p):
    "About how many tokens a text has."
    some = p.texts["test"].texts[:200]
    return sum(map(len, encode(p.clf, some).ids))/len(some)


LOWER, CLOSELY = range(29), (14, 24) # Blocks of SmolLM2 below the last of 30, and those at which halves are tried, too


def language(p):
    "What the presets do to SmolLM2 as a language model: perplexity on WikiText-2, accuracy on MMLU."
    data = Path(os.environ["NEURONLENS_DATA"])
    questions = read_questions(data/"mmlu"/"test", per_subject=2, seed=SEED)
    text = (data/"wikitext2"/"raw_wiki.test.raw").read_text(encoding="utf-8")
    named = {f"{n}/{iv.concept}": [iv] for n, ivs in settle(p).items() for iv in ivs}
    res = language_effects(p.clf.model, p.clf.tokenizer, named, text, questions, window=512, most_tokens=8192, seed=SEED)
    store("language", p.name, res.frame)


def vocabulary(p):
    "Confidence of SmolLM2 in the right answer's first token, in the whole vocabulary, before and after the presets."
    x, y, rows = p.rec["test"].at(p.site), p.rec["test"].labels, []
    base = vocabulary_confidence(p.clf, x, y)
    for name, ivs in settle(p).items():
        for iv in ivs:
            after, own = vocabulary_confidence(p.clf, edited_acts(iv, x), y), y == p.clf.classes.index(iv.concept)
            rows.append(dict(preset=name, concept=iv.concept, base_target_confidence=base[own].mean(),
                             target_confidence=after[own].mean(), base_auxiliary_confidence=base[~own].mean(),
                             auxiliary_confidence=after[~own].mean()))
    store("vocabulary", p.name, pd.DataFrame(rows))


def settle(p):
    "The chosen interventions of every preset, found once."
    if not hasattr(p, "chosen"): p.chosen = {n: settled(p, n, ivs)[0] for n, ivs in candidates(p).items()}
    return p.chosen


def positions(p):
    "How often ranges that were fitted at the readout fire there and at all other tokens."
    ivs = [replace(iv, condition=n) for n, own in settle(p).items() if n not in ("full", "leace") for iv in own]
    store("positions", p.name, firing_by_position(p.clf, some(p.texts["test"], each_tokens(p), 10_000), ivs))


def block_step(p):
    if p.name != "smollm2": return blocks(p, range(5), each_tokens(p))
    blocks(p, LOWER, 300, of=LEAN)


def halves(p):
    small = p.name == "smollm2"
    blocks(p, CLOSELY if small else range(5), 300 if small else each_tokens(p), of=HALVES, fraction=.5)


STEPS = dict(base=base_table, shapes=shapes, sweeps=sweeps, controls=controls, matching=matching, rankings=by_ranking,
             blocks=block_step, halves=halves, positions=positions, language=language, vocabulary=vocabulary, seeds=seeds)


def main(asked):
    if strange := [x for x in asked if x not in PARTS and x not in STEPS]:
        raise SystemExit(f"nothing is called {strange[0]!r}; there are the parts {', '.join(PARTS)} and the steps {', '.join(STEPS)}")
    for part in [x for x in asked if x in PARTS] or PARTS:
        p = Part(part)
        for step in [x for x in asked if x in STEPS] or STEPS:
            if step in ("language", "vocabulary") and part != "smollm2" or step == "seeds" and part == "smollm2": continue
            start = time.perf_counter()
            STEPS[step](p)
            about = dict(step=step, seed=SEED, seconds=round(time.perf_counter()-start), date=date.today().isoformat())
            store("runs", part, pd.DataFrame([about | {"versions": json.dumps(versions())}]), same=("step",))


if __name__ == "__main__": main(sys.argv[1:])
