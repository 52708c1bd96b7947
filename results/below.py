"""What an edit costs at every block below the last where its gate is learned: `NEURONLENS_DATA=folder python results/below.py emotion`, a
a part of `paper.py`; five to twenty minutes each, or `python results/below.py smollm2 residual.16` for one site.

All neurons of a block are edited at every token, once the gate of the text is open. It is asked at the mean over the tokens, in `bins(8)`
or posterior ranges of such means (`fitted_at` 'text'), by a vote that is learned on training texts. Or every token asks for itself and is
edited where it is in range, at posterior ranges of tokens and equal votes. Which of both, edit, ranges and what opens the gate are chosen
on validation texts: the least disturbance at a macro target accuracy of .035 or less, one setting for all concepts; where none gets there,
the lowest target accuracy. Test texts are read once. All is learned from training texts that the model answers right. The rows replace
those of preset `learned` in results/blocks.csv.

Of SmolLM2 five blocks in its middle, half an hour each, asked without worked examples: what stands before a text is read before the text
can be asked. Other blocks that are named are chosen and measured on fewer texts, in some ten minutes.

Beside them, preset `probe`: the same edits, where the best linear probe of that block is the gate (logistic regression on the mean over the
tokens or on the readout, and its price, by validation AUC), its threshold chosen in the same way. It is what can be known there. How well
each gate tells a concept on validation texts is printed, area under the curve.
"""
import sys
import time
from dataclasses import replace

import numpy as np
from paper import HERE, SEED, store, texts_of
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neuronlens.arrays.gates import learn_gate
from neuronlens.arrays.ranges import fit_ranges
from neuronlens.edits.planning import means_of
from neuronlens.edits.sweeps import changes_on, effects_on, grid
from neuronlens.ground.data import balance, take
from neuronlens.models.anatomy import anatomy
from neuronlens.records.calibration import answered_by, calibrated
from neuronlens.records.given import correct_only
from neuronlens.records.recording import record
from neuronlens.records.tokens import record_tokens
from neuronlens.studies.saved import right_ones
from neuronlens.studies.spec import read_study
from neuronlens.studies.study import study_model, study_prompt

EDITS, RANGES, AT, MARGIN = ("mean", "exchange", "partner"), ("bins(8)", "posterior(0.2)"), .05, .015
FURTHER = ("shift(2)", "transport(2)", "transport(3)") # Of SmolLM2, too
PROBABILITIES = (.9, .7, .5, .4, .3, .2, .15, .1, .07, .05, .03, .02, .01, .005) # From which a gate may open
VOTES = (.4, .45, .5, .55, .6) # Of the tokens that ask for themselves
SHARES = np.r_[np.arange(.5, .9, .05), np.arange(.9, 1.001, .01)] # Of the own texts that a probe lets through
VALIDATION, TEST, PER_CLASS = 300, 600, 250 # Texts in all; training texts of each class whose tokens are read
MIDDLE = [f"residual.{b}" for b in range(13, 18)] # Of SmolLM2
SIZES_ASKED, ELSEWHERE = (250, 75, 100, 60), (250, 25, 50, 60) # Of SmolLM2: texts of each class to fit, choose, measure, read
PLAIN = "{text}\nTopic:" # Nothing stands before the text


class Below:
    "The texts of a study, and what is at every block below the last of its model."

    def __init__(self, name, sites=()):
        spec = read_study(HERE/f"{name}.toml")
        train, validation, test = texts_of(spec)
        self.C, few = len(train.classes), lambda t, n: balance(t, min(n, int(t.counts().min())), seed=SEED)
        self.edits = (*EDITS, *FURTHER) if spec.model.causal else EDITS
        asked = SIZES_ASKED if {*sites} <= {*MIDDLE} else ELSEWHERE
        n, m, k, each = asked if spec.model.causal else (None, VALIDATION//self.C, TEST//self.C, PER_CLASS)
        if spec.model.causal: spec, train = replace(spec, prompt=replace(spec.prompt, template=PLAIN, shots=0)), few(train, n)
        prompt, train = study_prompt(spec, train)
        self.name, self.clf, self.classes = name, study_model(spec, train, False, prompt), train.classes
        self.texts = dict(train=train, validation=few(validation, m), test=few(test, k))
        last = len(anatomy(self.clf.model))-1
        self.sites = list(sites) or (MIDDLE if spec.model.causal else [f"residual.{b}" for b in range(last)])
        kw = dict(beside="text", progress=False, cache=True)
        read = [*self.sites, f"residual.{last}"] if spec.model.causal else self.sites
        self.rec = {k: record(self.clf, t, read, **kw) for k, t in self.texts.items()}
        if spec.prompt.calibrate: self.clf = calibrated(self.clf, self.rec["train"])
        if spec.prompt.calibrate: self.rec["train"] = answered_by(self.clf, self.rec["train"])
        train, self.rec["train"] = take(train, right_ones(self.rec["train"])), correct_only(self.rec["train"])
        self.tokens = record_tokens(self.clf, few(train, each), self.sites, seed=SEED, progress=False)

    def plan(self, site, edit, **gate):
        return grid(self.rec["train"], tokens=self.tokens, ranking="dprime", fraction=1., edit=edit, site=site, seed=SEED, **gate)

    def opened(self, site, edits, part):
        "What every edit does to every text of a part where its gate stands open: edit to (right `[C, N]`, moved `[C, N]`)."
        ivs = [iv for iv in self.plan(site, list(edits), fitted_at="tokens") if iv.condition == "full"]
        seen = changes_on(self.clf, self.texts[part], ivs, progress=False)
        rows = {e: [i for i, iv in enumerate(ivs) if iv.edit == e] for e in edits}
        self.before = seen.before.argmax(1) == seen.labels
        return {e: (seen.right[own], seen.moved[own]) for e, own in rows.items()}


def through(p, labels, outcome, opens):
    "(target accuracy, disturbance, broken, own texts that open, others) of each concept, where a gate opens for some texts."
    rows = []
    for c, (right, moved, hit) in enumerate(zip(*outcome, opens, strict=True)):
        own, rest = labels == c, (labels != c) & p.before
        after = np.where(hit, right, p.before)
        rows.append((after[own].mean(), np.where(hit, moved, 0)[rest].mean(), (~after)[rest].mean(), hit[own].mean(), hit[~own].mean()))
    return np.array(rows)


def best(tried):
    "The key of the least macro disturbance among those that reach the aim, else of the lowest target accuracy; and whether it is reached."
    reached = {k: m for k, m in tried.items() if m[0] <= AT-MARGIN}
    return (min(reached, key=lambda k: reached[k][1]), True) if reached else (min(tried, key=lambda k: tuple(tried[k][:2])), False)


def by_token(p, site, setting, labels):
    "Macro effects on validation texts where every token asks for itself."
    ivs = [iv for iv in p.plan(site, "mean", **setting) if iv.condition == "range"]
    seen = changes_on(p.clf, p.texts["validation"], ivs, progress=False)
    return through(p, labels, (seen.right, seen.moved), np.ones_like(seen.right)).mean(0)


def gates(p, site):
    "Range to the probability `[C, N]` that its learned gates give validation texts."
    means, labels = means_of(p.rec["train"], site)
    seen, every, out = means_of(p.rec["validation"], site)[0], np.arange(means.shape[1]), {}
    for kind in RANGES:
        ranges = fit_ranges(means, labels, kind, classes=p.classes)
        out[kind] = np.stack([learn_gate(means, labels, ranges, every, c, seed=SEED).probability(seen) for c in range(p.C)])
    return out


def probes(p, site):
    "Scores `[C, N]` of the best linear probe of each concept, of validation and of test texts."
    labels, best_of = p.rec["train"].labels, []
    own = p.rec["validation"].labels
    for c in range(p.C):
        found = []
        for at in (lambda r: r.at(site), lambda r: means_of(r, site)[0]):
            for price in (.003, .05):
                m = make_pipeline(StandardScaler(), LogisticRegression(C=price, class_weight="balanced", max_iter=500))
                m.fit(at(p.rec["train"]), labels == c)
                scores = [m.decision_function(at(p.rec[k])) for k in ("validation", "test")]
                found.append((roc_auc_score(own == c, scores[0]), scores))
        best_of.append(max(found, key=lambda f: f[0])[1])
    return [np.stack(s) for s in zip(*best_of, strict=True)]


def area(scores, labels): return np.mean([roc_auc_score(labels == c, s) for c, s in enumerate(scores)]) # Macro, of scores `[C, N]`


def at_block(p, site):
    "Rows of what was chosen and of the probe at one block."
    start, labels = time.perf_counter(), {k: p.rec[k].labels for k in ("validation", "test")}
    tried, held = p.opened(site, p.edits, "validation"), gates(p, site)
    macro = lambda e, opens: through(p, labels["validation"], tried[e], opens).mean(0)
    learned = {(e, kind, t): macro(e, g >= t) for e in p.edits for kind, g in held.items() for t in PROBABILITIES}
    seen, new = probes(p, site)
    cuts = {s: [np.quantile(x[labels["validation"] == c], 1-s) for c, x in enumerate(seen)] for s in SHARES}
    of_probe = {(e, s): macro(e, seen >= np.array(cut)[:, None]) for e in p.edits for s, cut in cuts.items()}
    asked = dict(fitted_at="text", scope="text", covers="salient")
    settings = {(e, kind, t): asked | dict(range=kind, vote=f"weighted({t})") for e, kind, t in learned}
    for v in VOTES:
        settings[key := ("mean", "posterior", v)] = dict(range="posterior", vote=v, fitted_at="tokens")
        learned[key] = by_token(p, site, settings[key], labels["validation"])
    key, reached = best(learned)
    ivs = p.plan(site, key[0], **settings[key])
    found = effects_on(p.clf, p.texts["test"], [iv for iv in ivs if iv.condition == "range"], progress=False).frame
    rows = found[found.condition == "range"].assign(preset="learned", reached=reached, texts=len(p.texts["test"]), draw=0)
    (edit, share), reached = best(of_probe)
    cost = through(p, labels["test"], p.opened(site, [edit], "test")[edit], new >= np.array(cuts[share])[:, None])
    names = ("target_accuracy", "disturbance", "broken", "fires_on_target", "fires_on_auxiliary")
    line = rows[["concept", "site", "n_target", "n_auxiliary", "texts", "draw"]].assign(**dict(zip(names, cost.T, strict=True)))
    line = line.assign(condition="probe", preset="probe", edit=edit, fraction=1., fitted_at="probe", reached=reached)
    told = {r.preset.iloc[0]: r[list(names[:3])].mean().round(4).to_dict() for r in (rows, line)}
    told["AUC"] = {k: area(s, labels["validation"]).round(3).item() for k, s in (held | dict(probe=seen)).items()}
    print(p.name, site, *key, settings[key]["fitted_at"], told, f"{time.perf_counter()-start:.0f} s", flush=True)
    return rows, line


def main(asked):
    sites = [a for a in asked if "." in a]
    for name in [a for a in asked if a not in sites]:
        p = Below(name, sites)
        for site in p.sites:
            for rows in at_block(p, site): store("blocks", p.name, rows, same=("preset", "site"))


if __name__ == "__main__": main(sys.argv[1:])
