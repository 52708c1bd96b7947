"""The house is in order: exports, README, notebooks, imports, files."""
import ast
import filecmp
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from readme import readme
from stub import HELP, STUB, helped, stub

import neuronlens

TOP = Path(__file__).resolve().parents[1]
MODULES = sorted((TOP / "neuronlens").rglob("*.py"))
PAGES = sorted(p for p in (TOP / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
ARRAY_ROOMS = ("core", "rounding", "statistics", "quantiles", "testing", "probing", "sparsity", "saliency", "separation",
               "distributions", "density", "regions", "bins", "ranges", "firing", "predicates", "formulas", "scores", "margins", "meaning",
               "groups", "modes", "axis", "corners", "scrambling", "scale", "overlap", "matching", "profile", "effects", "evidence",
               "erasure", "choice")


def loaded_by(code):
    "Top-level modules that a fresh interpreter has after running `code`."
    call = [sys.executable, "-c", f"import sys\n{code}\nprint(*{{m.split('.')[0] for m in sys.modules}})"]
    return set(subprocess.run(call, capture_output=True, text=True, check=True, cwd=TOP).stdout.split())


def test_import_is_cheap():
    "The package, and the command line before a command runs, load nothing heavy."
    for code in ("import neuronlens", "import neuronlens.studies.cli"):
        assert not {"torch", "transformers", "matplotlib", "pandas", "numpy"} & loaded_by(code), code


def test_array_rooms_need_no_model():
    "Array rooms import no model library and no plotting library."
    assert not {"torch", "transformers", "matplotlib"} & loaded_by("\n".join(f"import {neuronlens._AT[room]}" for room in ARRAY_ROOMS))


def test_floors_hold():
    "Rooms import from their own floor and those below (pyproject.toml); import-linter also sees what is imported when a function runs."
    said = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=TOP, capture_output=True, text=True)
    assert said.returncode == 0 and "0 broken" in said.stdout, said.stdout


def test_lazy_names_resolve():
    "Every name that the package promises exists, and is not shadowed by a module of the same name."
    code = "import neuronlens as nl\nfor n in nl.__all__: assert not hasattr(getattr(nl, n), '__path__'), n\n" \
           "import types\nassert not [n for n in nl.__all__ if isinstance(getattr(nl, n), types.ModuleType)]"
    assert "neuronlens" in loaded_by(code) and len(neuronlens.__all__) <= 60
    assert all(f" {n} " in neuronlens.__doc__.replace("\n", " ") for n in neuronlens.__all__)
    assert subprocess.run([sys.executable, "-c", "import neuronlens\nneuronlens.nothing"], capture_output=True).returncode


def test_stub_in_step():
    "Editors and type checkers read the lazy names in a stub, which is made from the same list."
    assert STUB.read_text(encoding="utf-8") == stub() and HELP.read_text(encoding="utf-8") == helped(), "run `make prepare`"
    assert STUB.with_name("py.typed").exists()


def test_exports_in_step(tmp_path):
    "The modules are what the notebooks export."
    for name in ("settings.ini", "pyproject.toml", "setup.py", "README.md"):
        (tmp_path / name).write_bytes((TOP / name).read_bytes())
    for p in PAGES:
        (q := tmp_path / p.relative_to(TOP)).parent.mkdir(parents=True, exist_ok=True)
        q.write_bytes(p.read_bytes())
    (tmp_path / "neuronlens").mkdir()
    (tmp_path / "neuronlens/__init__.py").write_bytes((TOP / "neuronlens/__init__.py").read_bytes())
    subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=tmp_path, check=True, capture_output=True)
    names = sorted(str(p.relative_to(TOP / "neuronlens")) for p in MODULES)
    assert names == sorted(str(p.relative_to(tmp_path / "neuronlens")) for p in (tmp_path / "neuronlens").rglob("*.py"))
    same, differ, _ = filecmp.cmpfiles(TOP / "neuronlens", tmp_path / "neuronlens", names, shallow=False)
    assert not differ, f"run `make prepare`: {differ}"


def test_readme_in_step():
    "README.md is made from nbs/index.ipynb."
    assert (TOP / "README.md").read_text(encoding="utf-8") == readme(), "run `make prepare`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_stored_outputs(page):
    "Outputs are stored, small, and free of paths, progress bars, widgets and errors."
    text = page.read_text(encoding="utf-8")
    nb = json.loads(text)
    outs = [o for c in nb["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    said = json.dumps(outs)
    assert outs and len(text) < 1_000_000
    assert nb["metadata"]["kernelspec"]["name"] == "python3"
    assert all("id" in c for c in nb["cells"])
    assert not re.search(r"/(root|home|tmp|Users|var/folders)/", said)
    assert "application/vnd.jupyter.widget-view+json" not in said
    assert not [o for o in outs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert "it/s]" not in said and "█" not in said


@pytest.mark.parametrize("page", [p for p in PAGES if re.match(r"\d\d_", p.name)], ids=lambda p: p.stem)
def test_page_order(page):
    "A room imports, in its exported cells, only from rooms with lower numbers; cells stay short."
    number = {p.stem.partition("_")[2]: p.stem[:2] for p in PAGES if re.match(r"\d\d_", p.name)}
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if not source.startswith("#| export"):
            continue
        for room in re.findall(r"^from neuronlens\.\w+\.(\w+) import", source, flags=re.M):
            assert number[room] < page.stem[:2], f"{page.stem} imports {room}"
        body = ast.parse(source).body
        alone = all(isinstance(n, ast.Import | ast.ImportFrom | ast.Assign) for n in body) or sum(map(is_definition, body)) == 1
        assert source.count("\n") <= (50 if alone else 30), f"{page.stem}, {cell['id']}: split it; one definition may have fifty lines"


def is_definition(n): return isinstance(n, ast.FunctionDef | ast.ClassDef)


def exported(page):
    "(number of the cell, source, definitions in it) of every exported cell of a page, and the sources of all its cells of code."
    cells = [c for c in json.loads(page.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    sources = ["".join(c["source"]) for c in cells]
    own = [(i, s, [n for n in ast.parse(s).body if is_definition(n)]) for i, s in enumerate(sources) if s.startswith("#| export")]
    return own, sources


def met(page):
    "Whether every public definition of a page is used within three cells of it; a result where what returns it is used."
    own, sources = exported(page)
    public, out, returns = set(import_module(neuronlens._AT[page.stem[3:]]).__all__), {}, {}
    for i, _, definitions in own:
        shown = [s for s in sources[i+1:] if not s.startswith("#| exporti")][:3]
        shown = " ".join(s for s in shown if not s.startswith("#| export"))
        for d in definitions:
            if d.name in public: out[d.name] = bool(re.search(rf"\b{d.name}\b", shown))
            if isinstance(d, ast.FunctionDef) and isinstance(d.returns, ast.Name): returns.setdefault(d.returns.id, []).append(d.name)
    return {n: ok or any(out.get(f) for f in returns.get(n, ())) for n, ok in out.items()}


SCRIPTS = sorted(p for folder in ("results", "benchmarks", "site") for p in (TOP/folder).glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_scripts_import_what_there_is(script):
    "A name that moved to another room is found by no test of a script that takes hours."
    asked = [n for n in ast.walk(ast.parse(script.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    asked = [(n.module, a.name) for n in asked if n.module and n.module.partition(".")[0] == "neuronlens" for a in n.names]
    assert [f"{module}.{name}" for module, name in asked if not hasattr(import_module(module), name)] == []


def test_pages_are_easy_to_read():
    "How cells are cut, and how soon a definition is shown at work: values reached, which may only improve (CONTRIBUTING)."
    rooms = [p for p in PAGES if re.match(r"\d\d_", p.name)]
    cells = [(s.rstrip().count("\n"), len(d)) for p in rooms for _, s, d in exported(p)[0]]
    lines = sorted(n for n, _ in cells)
    assert lines[len(lines)//2] <= 12 and lines[int(.9*len(lines))] <= 25
    assert sum(n > 1 for _, n in cells) <= .11*len(cells) # Helpers of a few lines stand together
    shown = [ok for p in rooms for ok in met(p).values()]
    assert sum(shown) >= .85*len(shown)
    assert sum(len(import_module(at).__all__) for at in neuronlens._AT.values()) <= 300 # 230 and what is moving in
    assert max(len(json.loads(p.read_text(encoding="utf-8"))["cells"]) for p in rooms) <= 70


def test_rooms_are_small():
    "No room is a house of its own: values reached, which may only improve (CONTRIBUTING)."
    lines = {p.stem: len(p.read_text(encoding="utf-8").splitlines()) for p in MODULES if p.name not in ("_modidx.py", "__init__.py")}
    assert sorted(lines.values())[len(lines)//2] <= 230
    assert not {room: n for room, n in lines.items() if n > 450}


def test_old_paths_and_names_are_found():
    "For one release, with a warning that says where they are; what never was there is not."
    code = "import warnings, neuronlens as nl\nfor n in nl._FORMER: getattr(nl, n)\nfor m in nl._MOVED: __import__(f'neuronlens.{m}')\n" \
           "from neuronlens.overlap import cka, firing_matrix\nfrom neuronlens.data import InputError, read_texts\n" \
           "assert nl.InputError is InputError and nl.firing_matrix is firing_matrix\n"
    call = [sys.executable, "-W", "always::DeprecationWarning:__main__", "-c", code]
    said = subprocess.run(call, capture_output=True, text=True, check=True, cwd=TOP).stderr
    assert "nl.cka is nl.matching.cka since 0.3" in said and "neuronlens.data is neuronlens.ground.data since 0.3" in said
    assert said.count("DeprecationWarning") == len(neuronlens._FORMER)+len(neuronlens._MOVED)
    for wrong in ("import neuronlens.nothing", "from neuronlens.overlap import nothing"):
        assert subprocess.run([sys.executable, "-W", "ignore", "-c", wrong], capture_output=True, cwd=TOP).returncode, wrong


def test_nothing_is_pickled():
    "No module of the package can unpickle anything."
    for p in MODULES:
        assert not re.search(r"\bpickle\b(?!d)|torch\.load|joblib|np\.load\(", p.read_text(encoding="utf-8")), p.name


def test_nothing_is_printed():
    "The library logs; only the command line writes to standard output, through typer and rich."
    for p in MODULES:
        found = re.findall(r"(?<![\w.])print\(.*|sys\.std(?:out|err)\.write.*|basicConfig.*", p.read_text(encoding="utf-8"))
        assert not found, (p.name, found)
        assert p.name == "cli.py" or not re.search(r"typer\.echo|rich\.console", p.read_text(encoding="utf-8")), p.name


def test_bars_end_with_their_block():
    "A bar is used in a `with` block, which ends it before an error is said; iterating alone would leave that to the garbage collector."
    uses = [(p.name, line) for p in MODULES for line in p.read_text(encoding="utf-8").splitlines()
            if re.search(r"\bprogress_bar\(", line) and not line.startswith("def ")]
    assert len(uses) >= 12
    assert not [u for u in uses if not re.match(r" +(with|return) progress_bar\(", u[1])]


def test_one_quarto_file():
    "The tracked Quarto configuration is the one at the top."
    tracked = subprocess.run(["git", "ls-files", "*_quarto.yml"], cwd=TOP, capture_output=True, text=True)
    if tracked.returncode or not tracked.stdout:
        pytest.skip("not a git checkout with tracked files")
    assert tracked.stdout.split() == ["_quarto.yml"]


def test_requirements_are_complete():
    "Whatever the package imports at run time is a requirement, and development tools are not."
    tops = set()
    for p in MODULES:
        tops |= set(re.findall(r"^\s*(?:from|import) (\w+)", p.read_text(encoding="utf-8"), flags=re.M))
    third = {t.lower() for t in tops - set(sys.stdlib_module_names) - {"neuronlens"} if find_spec(t)}
    wanted = (TOP / "settings.ini").read_text().split("\nrequirements = ")[1].split("\n")[0]
    names = {re.split(r"[<>=]", r)[0].replace("-", "_").lower() for r in wanted.split()} | {"sklearn", "pil"}
    assert third <= names, third - names
    assert not {"nbdev", "fastcore", "pytest"} & names


def test_release():
    "One version everywhere, and the changelog has a section for it."
    version = neuronlens.__version__
    assert f"\nversion = {version}\n" in (TOP / "settings.ini").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in (TOP / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}\n" in (TOP / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_leaves_are_noticed(tmp_path):
    "A test that writes into the user's home, or leaves a file in the checkout, fails the run though it passes itself."
    (tmp_path / "home/.cache/neuronlens").mkdir(parents=True)
    (tests := tmp_path / "tests").mkdir()
    for name in ("conftest.py", "long.py"): (tests / name).write_bytes((TOP / "tests" / name).read_bytes())
    (tests / "long.txt").touch()
    (tests / "test_it.py").write_text("import os, pathlib\n"
        "def test_it():\n"
        "    home = os.environ['NEURONLENS_REAL_HOME']\n"
        "    assert os.environ['HOME'] != home\n"
        "    pathlib.Path(home, '.cache/neuronlens/x').write_text('x')\n")
    env = {**os.environ, "NEURONLENS_REAL_HOME": str(tmp_path / "home")}
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests / "test_it.py")]
    done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "1 passed" in done.stdout
    assert "FAILED: the tests changed or left ~/.cache/neuronlens/x" in done.stdout
    assert subprocess.run(call, cwd=tmp_path, env=env, capture_output=True).returncode == 1 # Written anew
    (tests / "test_it.py").write_text("def test_it(): pass\n")
    assert subprocess.run(call, cwd=tmp_path, env=env, capture_output=True).returncode == 0


def test_totals(tmp_path):
    "Counts of two runs in one line; a run that left no file is a failure."
    for name, n, bad in (("a", 5, 0), ("b", 3, 1)):
        (tmp_path / name).write_text(f'<testsuites><testsuite tests="{n}" failures="{bad}" errors="0" skipped="1"/></testsuites>')
    call = [sys.executable, str(TOP / "tests/totals.py")]
    def said(*names):
        done = subprocess.run([*call, *(str(tmp_path / n) for n in names)], capture_output=True, text=True)
        return done.stdout.strip(), done.returncode
    assert said("a") == ("4 passed, 0 failed, 1 skipped", 0)
    assert said("a", "b") == ("5 passed, 1 failed, 2 skipped", 1)
    assert said("a", "c") == ("4 passed, 1 failed, 1 skipped", 1)
