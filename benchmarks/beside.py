"""What this checkout takes beside a commit before it, in turns, as ratios.

    python benchmarks/beside.py COMMIT [--rounds 5] [--work NAME ...]

Two processes, one for each, do every piece of work call by call in turns, so that what else the machine does meets both. `ratio`
is the median of the ratios of neighbouring calls; one commit beside itself says how far that goes by itself.
Names of arguments and places of modules as they were before 0.3 are understood, so that COMMIT may be any since 0.2.
"""
import argparse
import importlib
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
FORMER = dict(ranking="rankings", fraction="fractions", range="ranges", site="sites", concept="concepts", edit="edits")


def found(place):
    "A name of a room, `edits.sweeps:grid`, in the folders of today or in the flat package of before."
    room, _, name = place.partition(":")
    for module in (room, room.rpartition(".")[2]):
        try: return getattr(importlib.import_module(f"neuronlens.{module}"), name)
        except (ImportError, AttributeError): continue
    raise SystemExit(f"{place} is not in this commit")


def spelled(function, *args, **kw):
    "Call with the names of the arguments that this commit has."
    has = inspect.signature(function).parameters
    return function(*args, **{k if k in has or FORMER.get(k) not in has else FORMER[k]: v for k, v in kw.items()})


def works():
    "Pieces of work by name, each a call without arguments, and how many calls make a round."
    import numpy as np
    get = {n: found(f"{room}:{n}") for room, names in {
        "models.training": "example_classifier example_texts", "records.recording": "example_recordings record", "ground.data": "take",
        "arrays.statistics": "class_statistics", "arrays.saliency": "rank", "arrays.ranges": "fit_ranges",
        "edits.sweeps": "effects_on grid", "edits.effects": "measure_effects", "edits.ablation": "ablate",
        "edits.evidence": "intervals"}.items() for n in names.split()}
    clf, (train, test), texts = get["example_classifier"](False), get["example_recordings"](False), get["example_texts"]()[1]
    few, last = get["take"](texts, np.arange(0, len(texts), 14)), f"residual.{len(clf.model.base_model.encoder.layer)-1}"
    acts, labels, classes = train.acts, train.labels, train.classes

    def fits():
        s = get["class_statistics"](acts, labels, classes)
        get["rank"](acts, labels, "dprime", statistics=s)
        get["fit_ranges"](acts, labels, "gaussian(2.5)", statistics=s)
    def plan(site=last, n=60, **kw):
        kw = dict(fraction=[.05, .1, .3, .6, .8, .9], range=["gaussian(1)", "gaussian(2.5)", "quantile(0.8)"], edit="mean") | kw
        return spelled(get["grid"], train, site=site, **kw)[:n]
    ivs, mid = plan(), plan("residual.3", 10)
    outcome = get["ablate"](clf, texts, ivs, recording=test, progress=False)
    return dict(
        statistics=(fits, 40), posterior=(lambda: get["fit_ranges"](acts, labels, "posterior"), 5),
        grid=(lambda: plan(n=None, ranking=["dprime", "probeless"]), 3),
        record=(lambda: get["record"](clf, few, last, progress=False), 4),
        last_block=(lambda: get["effects_on"](clf, texts, ivs, recording=test, progress=False), 3),
        block_3=(lambda: get["effects_on"](clf, few, mid, progress=False), 2),
        ablate=(lambda: get["ablate"](clf, texts, ivs, recording=test, progress=False), 3),
        effects=(lambda: get["measure_effects"](outcome).frame, 10),
        intervals=(lambda: get["intervals"](outcome, draws=200, progress=False), 3))


def child(names):
    "In a process of its own, with the checkout to measure first on its path: does what it is told, a line each, and says how long it took."
    here = Path(importlib.import_module("neuronlens").__file__)
    if not here.is_relative_to(os.environ["PYTHONPATH"]): raise SystemExit(f"{here} would be measured")
    todo = {k: v for k, v in works().items() if not names or k in names}
    for call, _ in todo.values(): call()
    print(json.dumps({k: times for k, (_, times) in todo.items()}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        todo[line.strip()][0]()
        print(time.perf_counter()-start, flush=True)


class Side:
    "A process that measures one checkout."
    def __init__(self, tree, names):
        env = os.environ | dict(PYTHONPATH=str(tree), OMP_WAIT_POLICY="PASSIVE", TQDM_DISABLE="1", HF_HUB_OFFLINE="1",
                                PYTHONWARNINGS="ignore", NEURONLENS_CACHE=os.environ.get("NEURONLENS_CACHE") or str(TOP/"build/cache"))
        self.process = subprocess.Popen([sys.executable, __file__, "--child", "-", "--work", *names], env=env, cwd=tree, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.times = json.loads(self.said())

    def said(self):
        line = self.process.stdout.readline()
        if not line: raise SystemExit("a process that measures has ended")
        return line

    def take(self, name):
        self.process.stdin.write(name+"\n")
        self.process.stdin.flush()
        return float(self.said())


def compare(now, then, name, rounds):
    "Calls of one piece of work in turns: least time of each, the median of the ratios of neighbours and the middle half of them."
    pairs = []
    for i in range(rounds*now.times[name]):
        a, b = (s.take(name) for s in ((now, then), (then, now))[i % 2])
        pairs.append((a, b) if i % 2 == 0 else (b, a))
    ratios = sorted(a/b for a, b in pairs)
    mid = [statistics.quantiles(ratios, n=4)[k] for k in (0, 2)]
    print(f"{name:12s} {1e3*min(a for a, _ in pairs):10.2f} {1e3*min(b for _, b in pairs):10.2f} "
          f"{statistics.median(ratios):7.3f}  {mid[0]:.3f} to {mid[1]:.3f}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("commit")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--work", nargs="*", default=[], help="names of pieces of work; without: all")
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child: return child(a.work)
    with tempfile.TemporaryDirectory() as d:
        there = Path(d)/"then"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(there), a.commit], cwd=TOP, check=True)
        try:
            now, then = Side(TOP, a.work), Side(there, a.work)
            print(f"{'work':12s} {'now (ms)':>10s} {'then (ms)':>10s} {'ratio':>7s}  middle half", flush=True)
            for name in now.times: compare(now, then, name, a.rounds)
            for side in (now, then): side.process.stdin.close()
        finally: subprocess.run(["git", "worktree", "remove", "--force", str(there)], cwd=TOP, check=False)


if __name__ == "__main__": main()
