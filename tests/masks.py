"""The pages and tests of trained models on models trained otherwise: `python tests/masks.py [draws] [tests]`, `make test-masks`.

Another processor, another release of torch or another number of threads trains another model of the same quality. Here the same is had by
dropout that draws other masks: everything that the pages and the tests of tutorials claim about a trained model must hold for these,
too. Each draw has a cache of its own under build/, one line says what became of it, and the exit status is 1 if anything failed.
"""
import os
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
TESTS = ['tests/test_notebooks.py', 'tests/test_tutorials.py']
MADE = """
import sys, torch
from neuronlens import training
plain = training._train
def otherwise(*args): # After the new head was drawn: the model is the same, the masks are not
    torch.rand(int(sys.argv[1]))
    return plain(*args)
training._train = otherwise
training.example_classifier(progress=False)
"""


def run(draw, tests):
    "Train with other masks where that is not done yet, and run; (exit status, what pytest said)."
    cache = TOP/f'build/masks-{draw}'
    env = os.environ | dict(NEURONLENS_CACHE=str(cache), NEURONLENS_TEST_CACHE=str(cache), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
    subprocess.run([sys.executable, '-c', MADE, str(draw)], env=env, cwd=TOP, check=True)
    call = [sys.executable, '-m', 'pytest', '-q', '-n', '2', '--dist', 'loadfile', '--no-loadscope-reorder', *tests]
    done = subprocess.run(call, env=env, cwd=TOP, capture_output=True, text=True)
    return done.returncode, done.stdout


def main(draws, tests):
    "Every draw after the other; how many of them failed."
    bad = 0
    for draw in range(1, draws+1):
        start, (status, told) = time.monotonic(), run(draw, tests)
        lines = told.strip().splitlines() or ['nothing ran']
        print(f'masks {draw}: {lines[-1]} ({time.monotonic()-start:.0f} s with training)', flush=True)
        for line in lines:
            if line.startswith(('FAILED', 'ERROR')): print(line)
        if status: (TOP/f'build/masks-{draw}.log').write_text(told, encoding='utf-8')
        bad += bool(status)
    return bad


if __name__ == '__main__':
    args = sys.argv[1:]
    sys.exit(min(1, main(int(args.pop(0)) if args and args[0].isdigit() else 2, args or TESTS)))
