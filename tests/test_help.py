"""What an editor, `help` and `?` show: every parameter with what it is, completion of the lazy names, types."""
import inspect
import io
import json
import os
import pydoc
import re
import subprocess
import sys
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import docstrings
import pytest
from readme import readme

import neuronlens as nl

TOP = Path(__file__).resolve().parents[1]


ONE_LINE = {"erasure.unedited"} # `def unedited(acts): return acts` says itself what it does


def public():
    "(name, definition) of every public function and class of every room."
    for room, at in nl._AT.items():
        for name in import_module(at).__all__:
            thing = getattr(import_module(at), name)
            if (inspect.isfunction(thing) or inspect.isclass(thing)) and f"{room}.{name}" not in ONE_LINE: yield f"{room}.{name}", thing


def parameters(thing):
    "Names that a call of it takes; of an exception none, of a class what it is made of."
    if inspect.isclass(thing):
        own = "__init__" in vars(thing)
        if issubclass(thing, BaseException) or not (own or issubclass(thing, tuple)): return []
        names = [*inspect.signature(thing.__init__ if own else thing.__new__).parameters.values()][1:]
    else: names = inspect.signature(thing).parameters.values()
    return [{p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")+p.name for p in names if not p.name.startswith("_")]


def section(doc, name):
    "A section of a docstring as heads and what is said below them."
    m = re.search(rf"(?m)^{name}\n-+\n((?:.+\n?)*)", doc)
    rows = re.split(r"(?m)^(?=\S)", m[1])[1:] if m else []
    return {r.partition("\n")[0].partition(" : ")[0]: r for r in rows}


def test_every_parameter_is_in_the_help():
    "As `help` prints it; what has a comment in the source has it there, with its shape and unit."
    seen, bare = 0, []
    for name, thing in public():
        doc, said = inspect.getdoc(thing) or "", pydoc.plain(pydoc.render_doc(thing))
        rows = section(doc, "Parameters")
        assert not (missing := [p for p in parameters(thing) if p not in rows]), (name, missing)
        for p, row in rows.items():
            assert row.splitlines()[0] in said, (name, p)
            seen, bare = seen+1, bare+[f"{name}: {p}"]*("\n    " not in row)
    assert seen > 900 and len(bare) < .05*seen, bare # Functions of one line say no more than their names


def test_shapes_and_units_are_shown():
    doc = inspect.getdoc(nl.rank)
    assert "acts" in section(doc, "Parameters") and "`[N, D]` activations, finite" in doc and "Returns\n-------\nRanking" in doc
    assert "can be loaded, and the folder of a study" in section(inspect.getdoc(nl.load), "Raises")["InputError"]
    assert "default 'gaussian(2.5)'" in inspect.getdoc(nl.fit_ranges)
    out = io.StringIO()
    with redirect_stdout(out): help(nl.Setting)
    assert "vote : float | str, default 0.0" in out.getvalue() and "least share of the salient neurons" in out.getvalue()


def test_ipython_shows_it():
    "`nl.rank?`"
    from IPython.core.oinspect import Inspector
    shown = Inspector(theme_name="nocolor").info(nl.rank)
    assert "`[N, D]` activations" in shown["docstring"] and "ranking: str" in shown["definition"]


def test_it_reads_as_numpydoc():
    "A summary of one line, sections in order, each head underlined as long as it is."
    for name, thing in public():
        lines = (inspect.getdoc(thing) or "").split("\n")
        assert lines[0].strip(), name
        heads = [h for h, line in zip(lines, lines[1:], strict=False) if h and set(line) == {"-"} and len(h) == len(line)]
        order = [h for h in ("Parameters", "Attributes", "Returns", "Raises") if h in heads]
        assert heads == order and all(len(line) <= 140 for line in lines), name


SOURCE = '''
@dataclass
class Setting:
    "A 'setting'."
    vote:float=0. # Share, 0 to 1
    names:list=field(default_factory=list) # Written \\\\n, or """ quoted
    _own:int=0 # For us

    def only(self,
        fraction:float, # In (0, 1]
    )->str: # Fewer
        "Some."
        return ''

def rank(
    acts, # `[N, D]` activations
    *,
    seed:int|None=None, # Of what is drawn
    **kw, # Handed on
)->Ranking: # `[C, D]`
    'Say "it".'
    if acts is None: raise InputError(f"acts={acts!r} are none")
    return 1

def _helper(
    x, # Not public
): "Nothing."
'''


def test_comments_become_sections(tmp_path):
    "Of public definitions and their methods; of nothing else."
    (tmp_path/"room.py").write_text('"""A room."""\n\n__all__ = ["Setting", "rank"]\n'+SOURCE)
    of = docstrings.said(tmp_path/"room.py")
    assert of.pop("Setting") == ("Parameters\n----------\nvote : float, default 0.0\n    Share, 0 to 1\n"
                                 'names : list, default []\n    Written \\\\n, or """ quoted')
    assert of.pop("Setting.only") == "Parameters\n----------\nfraction : float\n    In (0, 1]\n\nReturns\n-------\nstr\n    Fewer"
    assert of.pop("rank") == dedent('''
        Parameters
        ----------
        acts
            `[N, D]` activations
        seed : int | None, default None
            Of what is drawn
        **kw
            Handed on

        Returns
        -------
        Ranking
            `[C, D]`

        Raises
        ------
        InputError
            "acts=... are none"''').strip()
    assert of == {}


def test_wherever_it_comes_from_and_once():
    "Also of what is imported from its room; loading a room again says it once."
    code = ("from neuronlens.ground.setting import Setting\nimport importlib, neuronlens.ground.setting as room\n"
            "again = importlib.reload(room).Setting\nprint(*(c.__doc__.count('Parameters') for c in (Setting, again)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TOP).stdout.split() == ["1", "1"]


def test_nbdev_reads_the_comments_as_before():
    "`docments` of fastcore, which the documentation of nbdev is made of."
    from fastcore.docments import docments
    told = docments(nl.rank)
    assert told["acts"].startswith("A `Recording`; or `[N, D]` activations") and "\n" not in told["acts"]


def test_jedi_completes():
    "Without a kernel: the lazy names, their signature and what help says."
    jedi = pytest.importorskip("jedi", reason="jedi comes with IPython, but is not here")
    project = jedi.Project(TOP, added_sys_path=[str(TOP)])
    def script(code): return jedi.Script("import neuronlens as nl\n"+code, project=project)
    assert {"rank", "rank_model"} <= {c.name for c in script("nl.ra").complete()}
    assert {"read_texts", "record", "Setting", "saliency"} <= {c.name for c in script("nl.").complete()}
    (call,) = script("nl.rank(").get_signatures()
    assert [p.name for p in call.params][:3] == ["acts", "labels", "ranking"]
    (found,) = script("nl.rank").infer()
    assert "`[N, D]` activations" in found.docstring() and "Parameters" in found.docstring()
    assert {"salient", "to_frame", "scores"} <= {c.name for c in script("nl.rank([[1.]], [0]).").complete()}


CHECKED = """import neuronlens as nl
reveal_type(nl.fit_ranges)
reveal_type(nl.Setting('sports').fraction)
reveal_type(nl.load_classifier('x'))
"""
WRONG = "import neuronlens as nl\nnl.rnk(3)\nnl.load_classifier(3)\n"


def checked(tool, code, folder):
    "What a type checker says of some code. An editable installation is nothing that it finds: the checkout is named."
    (folder/"x.py").write_text(code)
    env = os.environ | dict(MYPYPATH=str(TOP), PYTHONPATH=str(TOP))
    return subprocess.run([*tool, "x.py"], cwd=folder, env=env, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    "What is imported is read once for all of them."
    return [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", tmp_path_factory.mktemp("mypy")]


@pytest.mark.slow
def test_the_ten_lines_are_typed(mypy, tmp_path):
    "mypy --strict passes on the example of the README, and knows what it ends in."
    ten = re.search(r"(import neuronlens as nl\n)```.*?```python\n(train_texts.*?)```", readme(), flags=re.S)
    code = ten[1]+ten[2].rstrip().removesuffix("effects")+"reveal_type(effects)\n"
    said = checked(mypy, code, tmp_path)
    assert "Success: no issues" in said and 'Revealed type is "neuronlens.edits.effects.Effects"' in said, said
    assert "Found 1 error" in checked(mypy, code.replace("'dprime'", "5"), tmp_path) # A number is no ranking


@pytest.mark.slow
def test_mypy_sees_types(mypy, tmp_path):
    tool = mypy
    said = checked(tool, CHECKED, tmp_path)
    assert '-> neuronlens.arrays.ranges.Ranges"' in said and re.search('"(builtins.)?float"', said) and "models.model.Classifier" in said
    said = checked(tool, WRONG, tmp_path)
    assert 'has no attribute "rnk"' in said and 'incompatible type "int"' in said


@pytest.mark.slow
def test_pyright_sees_types(tmp_path):
    "basedpyright is pyright with everything that it needs in its wheel; pyright itself fetches a program when it first runs."
    if find_spec("basedpyright") is None: pytest.skip("basedpyright is not installed, and pyright does not run offline")
    (tmp_path/"pyrightconfig.json").write_text(json.dumps(dict(typeCheckingMode="standard", extraPaths=[str(TOP)])))
    tool = [sys.executable, "-m", "basedpyright"]
    said = checked(tool, CHECKED, tmp_path)
    assert "-> Ranges" in said and '"float"' in said and '"Classifier"' in said
    said = checked(tool, WRONG, tmp_path)
    assert '"rnk" is not a known attribute' in said and '"Literal[3]"' in said
