"""Which way of editing to recommend, chosen anew: `NEURONLENS_DATA=folder python results/recommend.py`, minutes for each part.

Last block, every data set, validation texts alone; all is learned from training texts that the model answers right. A way is a range, a
vote, an edit and what an open gate covers. Its fraction is chosen for each data set (all neurons where the vote is learned): the least
disturbance at a macro target accuracy of .035 or less, else the lowest target accuracy. What each way reaches on each data set is in
results/recommend.csv; printed are, by way, how many data sets it brings to .035, and its mean disturbance and rank.
"""
import sys

import pandas as pd
from paper import HERE, PARTS, Part

from neuronlens.edits.sweeps import grid
from neuronlens.records.given import correct_only

FRACTIONS = (.3, .4, .5, .6, .8, 1.)
EQUAL, LEARNED = (.4, .5, .6), ("weighted", "weighted(0.5)", "weighted(0.3)", "weighted(0.15)")
WAYS = [("posterior", v, "mean", "range") for v in EQUAL]
WAYS += [(r, v, e, "salient") for r, votes in (("posterior(0.2)", (*EQUAL, *LEARNED)), ("bins(8)", LEARNED)) for v in votes
         for e in ("mean", "exchange", "partner")]
AT, MARGIN = .05, .015


def reached(p):
    "What each way reaches on the validation texts of one part."
    fit, rows = correct_only(p.rec["train"]), []
    for r, v, e, c in WAYS:
        some = 1. if isinstance(v, str) else list(FRACTIONS)
        ivs = grid(fit, ranking="dprime", fraction=some, range=r, vote=v, edit=e, covers=c, site=p.site)
        m = p.effects([iv for iv in ivs if iv.condition == "range"], "validation").macro()
        m = m.query("condition == 'range'")[["fraction", "target_accuracy", "disturbance", "broken"]]
        fine = m[m.target_accuracy <= AT-MARGIN]
        best = fine.sort_values("disturbance").iloc[0] if len(fine) else m.sort_values("target_accuracy").iloc[0]
        rows.append(dict(dataset=p.name, range=r, vote=v, edit=e, covers=c, reached=bool(len(fine))) | best.to_dict())
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main(parts):
    path = HERE/"recommend.csv"
    for name in parts or PARTS:
        table = reached(Part(name, sites=False)).round(5)
        if path.exists(): table = pd.concat([pd.read_csv(path).query("dataset != @name"), table], ignore_index=True)
        table.to_csv(path, index=False)
    ways = ["range", "vote", "edit", "covers"]
    table["vote"] = table.vote.astype(str)
    table["rank"] = table.groupby("dataset").disturbance.rank()
    told = table.groupby(ways, sort=False).agg(reached=("reached", "sum"), target=("target_accuracy", "mean"),
                                               disturbance=("disturbance", "mean"), worst=("disturbance", "max"), rank=("rank", "mean"))
    print(told.sort_values(["reached", "disturbance"], ascending=[False, True]).round(4).to_string())


if __name__ == "__main__": main(sys.argv[1:])
