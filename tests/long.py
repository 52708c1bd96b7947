"""What took longer than two seconds, by name in `tests/long.txt`; `make test` leaves that to the long tests.

`python tests/long.py` writes the list anew from the times that `make test-all` left under build/. What every first run must pay once
(the training of the example classifier, the conversion of SmolLM2) stays in `make test`.
"""
import sys
from pathlib import Path
from xml.etree import ElementTree

TOP = Path(__file__).resolve().parents[1]
LIST = TOP / "tests/long.txt"
SECONDS = 2.
ONCE = {"test_notebooks.py::test_page[14_training]", "test_notebooks.py::test_page[10_model]"}


def times(paths):
    "Seconds of every test by `file::name`, over all files that `--junitxml` wrote."
    cases = [c for p in paths for c in ElementTree.parse(p).iter("testcase")]
    return {f"{c.get('classname').rpartition('.')[2]}.py::{c.get('name')}": float(c.get("time")) for c in cases}


def long_names():
    "The names in the list."
    return set(LIST.read_text(encoding="utf-8").splitlines())


def write(paths):
    names = sorted(n for n, t in times(paths).items() if t > SECONDS and n not in ONCE)
    LIST.write_text("\n".join(names) + "\n", encoding="utf-8")
    return names


if __name__ == "__main__":
    paths = [Path(p) for p in sys.argv[1:]] or [TOP / "build/test.xml", TOP / "build/test-slow.xml"]
    if gone := [str(p) for p in paths if not p.is_file()]: sys.exit(f"{gone[0]} is not there: run `make test-all` first")
    print(f"{len(write(paths))} tests take longer than {SECONDS:g} s")
