"""The numeric tests on every kind of arithmetic that this processor has: `python tests/kernels.py [which] [files]`, `make test-kernels`.

Torch and the libraries of matrix products pick their code by processor, so that the same sum comes out differently elsewhere. Here they
are told to pick as if they were on an older one, in a process of its own for each. One line says what became of each; failing tests are
named, and the exit status is 1 if there are any. `which` is one or more of the combinations, as in `avx2:SSE41:1`; without it all are run.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

TESTS = Path(__file__).resolve().parent
# Neither browser, site, Ray nor training: what compares numbers that a model or an array room makes
FILES = ["rounding", "forward", "architectures", "edits", "sweeps", "attribution", "prompt", "language", "presets", "throughput",
         "golden", "laws", "statistics", "testing", "probing", "sparsity", "saliency", "separation", "distributions", "regions", "ranges",
         "firing", "overlap", "matching", "evidence", "choice", "erasure", "neurox", "frozen"]
TORCH = {"default": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
PRODUCTS = {"SSE41": ("COMPATIBLE", {"sse4_1"}), "AVX2": ("AVX2", {"avx2"})} # oneDNN's name of it, MKL's, and what it takes
THREADS = (1, 2)


def features():
    "What this processor can do, by the names that Linux has for it; empty where nobody says."
    try: lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError: return set()
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())


def missing(torch, products, threads, has, cores):
    "Why a combination cannot be run here; '' if it can."
    if lacks := sorted((TORCH[torch] | PRODUCTS[products][1])-has): return f"this processor has no {', '.join(lacks)}"
    return f"this machine has {cores} core" if threads > cores else ""


def run(torch, products, threads, files):
    "One combination in a process of its own: what its tests said."
    with tempfile.NamedTemporaryFile(suffix=".json") as f:
        env = os.environ | {"ATEN_CPU_CAPABILITY": torch, "DNNL_MAX_CPU_ISA": products, "MKL_CBWR": PRODUCTS[products][0],
                            "OMP_NUM_THREADS": str(threads), "NEURONLENS_TEST_THREADS": str(threads), "NEURONLENS_KERNELS": f.name,
                            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])}
        call = [sys.executable, "-m", "pytest", "-q", "-p", "kernels", *files]
        done = subprocess.run(call, env=env, cwd=TESTS.parent, capture_output=True, text=True)
        said = Path(f.name).read_text()
    return json.loads(said) if said else dict(counts={}, failed=[done.stdout[-2000:]+done.stderr[-2000:]], shares={})


def main(args):
    "Run what there is, print a line for each, and the tests that failed; their number."
    every = {":".join(map(str, c)): c for c in product(TORCH, PRODUCTS, THREADS)}
    which, files = [c for n, c in every.items() if n in args], [a for a in args if a not in every]
    files, has, failed = files or [str(TESTS/f"test_{n}.py") for n in FILES], features(), set()
    print(f"{'torch':8} {'products':8} {'threads':7}  result")
    for combination in which or every.values():
        print("{:8} {:8} {:7}  ".format(*combination), end="", flush=True)
        if why := missing(*combination, has, os.cpu_count()): print(f"left out: {why}")
        else:
            start, said = time.monotonic(), run(*combination, files)
            failed.update(said["failed"])
            counts = ", ".join(f"{n} {k}" for k, n in said["counts"].items()) or "nothing ran"
            most = max(said["shares"].items(), key=lambda x: x[1], default=("any", 0.))
            print(f"{counts} in {time.monotonic()-start:.0f} s; at most {most[1]:.2g} of a bound, in {most[0]}", flush=True)
            for test in said["failed"]: print(f"FAILED {test}", flush=True)
    return len(failed)


# --- inside the process: a pytest plugin that takes down what happened

class Watch:
    "How the tests ended, and how close each file came to what rounding may make."
    def __init__(self): self.counts, self.failed, self.shares, self.file = {}, [], {}, ""

    def agree(self, plain, apart):
        def watched(got, want, of, **kw):
            share = apart(got, want, of, **{k: v for k, v in kw.items() if k != "what"})
            if share <= 1: self.shares[self.file] = max(share, self.shares.get(self.file, 0.))
            return plain(got, want, of, **kw)
        return watched

    def pytest_runtest_setup(self, item): self.file = item.path.name

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.outcome == "passed": return
        self.counts[report.outcome] = self.counts.get(report.outcome, 0)+1
        if report.outcome == "failed": self.failed.append(report.nodeid)

    def pytest_collectreport(self, report):
        if report.outcome == "failed": self.failed.append(report.nodeid)

    def pytest_sessionfinish(self):
        said = dict(counts=self.counts, failed=self.failed, shares=self.shares)
        Path(os.environ["NEURONLENS_KERNELS"]).write_text(json.dumps(said))


def pytest_configure(config):
    "Registered by `-p kernels`, before a test imports `agree`."
    from neuronlens.ground import rounding
    watch = Watch()
    rounding.agree = watch.agree(rounding.agree, rounding.apart)
    config.pluginmanager.register(watch)


if __name__ == "__main__": sys.exit(min(main(sys.argv[1:]), 1))
