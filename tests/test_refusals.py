"""Every sentence that refuses has a code, a cause and a remedy; each is found by its sentence, and printed by the command."""
import ast
import copy
import inspect
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import traceback
import zipfile
from html import unescape
from importlib import import_module

import numpy as np
import pytest
from refusals import KINDS, OTHERS, TOP, Speech, sentences, shortened

import neuronlens as nl
from neuronlens.ground.core import InputError
from neuronlens.ground.refusals import THEMES, code_of, explained, find, listed, notes_of, refusals

FOUND, UNKNOWN = sentences()
TABLE = refusals()
WRAPPED = { # Sentences that only say where another one, which has an entry of its own, is true of
    "*: *": "a source, a setting or an intervention, and what is wrong with it",
    "*, row *: *": "a file of questions and the row",
    "*, for concept *: *": "what `information_left` read through an edit",
    "scope *: *": "a scope, and what of it cannot be read",
    "*: range *: *": "the range of a study file, tried on sixteen numbers",
    "*: [prompt] *": "the prompt of a study file, made as a trial",
    "*: [meaning] *": "what more a study file asks of ranges, checked by its own room"}
REPEATED = { # Places that raise what was said elsewhere
    "anatomy._find_sites": "one of the reasons that it found, listed by their names `why` and `more`",
    "cli._plain_errors": "the sentence of an error that was caught",
    "cluster.one": "what was wrong when the worker was made",
    "cluster.parts_from_ray": "what was wrong on a worker",
    "remote.fetched": "what was wrong with the copy of a file, said of its address"}
VALUES = ("7", "'mail.csv', row 3", "(3, 4)\n[1 2]")


def test_every_sentence_has_an_entry():
    "A sentence of the source stands in exactly one entry of neuronlens/refusals.toml: add it to one, or make a new one."
    listed_in = {s: [c for c, r in TABLE.items() if s in r.says] for s in {*FOUND, *(s for r in TABLE.values() for s in r.says)}}
    missing = {s: sorted(FOUND[s]) for s in FOUND if not listed_in[s] and s not in WRAPPED}
    assert not missing, "no entry of neuronlens/refusals.toml lists\n"+"\n".join(f"    {json.dumps(s)}, # {p}" for s, p in missing.items())
    assert not (twice := {s: codes for s, codes in listed_in.items() if len(codes) > 1}), twice
    gone = {s: codes for s, codes in listed_in.items() if codes and s not in FOUND}
    assert not gone, f"the source no longer says {gone}"
    assert {*WRAPPED} <= {*FOUND} and not {*WRAPPED} & {s for r in TABLE.values() for s in r.says}


def test_what_only_the_run_knows_is_known():
    "A place that raises a variable is in the list above, with the reason; no function that makes sentences was renamed."
    assert UNKNOWN == {*REPEATED}


def test_the_table_is_in_order():
    "Codes are unique and rise, each theme is counted from 1; every entry says why and what to do, in whole sentences, each once."
    text = (TOP/"neuronlens/refusals.toml").read_text(encoding="utf-8")
    codes = re.findall(r"^\[(.+)\]$", text, flags=re.M)
    assert codes == sorted({*codes}) == [*TABLE] and all(re.fullmatch(r"NL\d{3}", c) for c in codes)
    assert {int(c[2]) for c in codes} == {*THEMES}
    for part in ("title", "cause", "remedy"):
        said = [getattr(r, part) for r in TABLE.values()]
        assert len({*said}) == len(said), part
    for r in TABLE.values():
        assert r.says and len({*r.says}) == len(r.says) and not r.title.endswith(".") and len(r.title) < 80, r.code
        for said in (r.cause, r.remedy):
            assert 30 < len(said) < 700 and said.rstrip("`").endswith(".") and "—" not in said, (r.code, said)
            assert said.count("`") % 2 == 0, (r.code, said)
        assert r.cause not in r.remedy


def named(path):
    "What a name that begins with `nl` stands for."
    thing = nl
    for part in path.split(".")[1:]: thing = getattr(thing, part)
    return thing


def test_what_the_remedies_name_is_there():
    "A remedy that names a function, an argument or a command that was renamed sends people nowhere."
    calls = 0
    for r in TABLE.values():
        for code in re.findall(r"`([^`]*)`", f"{r.cause} | {r.remedy}"):
            for path in re.findall(r"\bnl(?:\.\w+)+", code): named(path)
            for command in re.findall(r"\bneuronlens (\w+)", code):
                assert command in ("run", "demo", "example", "check", "verify", "cache", "explain"), (r.code, command)
            try: tree = ast.parse(code.replace("..,", "...,"))
            except SyntaxError: continue
            for call in [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).startswith("nl.")]:
                calls, of = calls+1, inspect.signature(named(ast.unparse(call.func))).parameters.values()
                assert len(call.args) <= sum(p.kind <= p.POSITIONAL_OR_KEYWORD for p in of), (r.code, code)
                unknown = {k.arg for k in call.keywords} - {p.name for p in of}
                assert not unknown or any(p.kind is p.VAR_KEYWORD for p in of), (r.code, code, unknown)
    assert calls > 50


@pytest.mark.parametrize("value", VALUES)
def test_every_sentence_finds_its_entry(value):
    "Filled with values, whatever they are, and wrapped in another."
    for code, r in TABLE.items():
        for s in r.says:
            said = s.replace("*", value)
            assert code_of(said) == code, (said, code_of(said))
            assert code_of(f"texts.csv, row 3: {said}; run it again") == code, said


def test_nothing_else_has_a_code():
    for said in ("", "the moon is full", "could not convert string to float: 'a'"): assert code_of(said) is None and notes_of(said) == []


def test_the_reader_of_the_source_reads_all_of_it(tmp_path):
    "Sentences put together in every way that the package has; and a place that it cannot read is named."
    (tmp_path/"room.py").write_text('''
AGAIN = 'run it again'
def a(x, what):
    if x: raise InputError(f"{x!r} is no {'whole ' if x else ''}moon; {AGAIN}")
    for said, known in (("{} of {}", 1), ("{what!r} but", 2)): raise Damaged(said.format(x, x))
    raise InputError("one" if x else f"{x} two")
def b(x): raise InputError("left "+f"{x}"+' right'[:200])
def c(x):
    try: pass
    except InputError as e: raise InputError(str(e)) from None
    def d(): raise TypeError("not a moon")
    return InputError(f"{x} handed on")
''')
    assert [p.stem for p in tmp_path.glob("*.py")] == ["room"]
    got = [(place, skeletons and sorted(map(shortened, skeletons))) for place, skeletons in Speech(tmp_path/"room.py").sites()]
    assert sorted(got, key=str) == sorted([
        ("room.a", ["* is no *moon; run it again"]), ("room.a", ["* but", "* of *"]), ("room.a", ["* two", "one"]),
        ("room.b", ["left * right"]), ("room.c", None), ("room.d", ["not a moon"]), ("room.c", ["* handed on"])], key=str)


def test_other_kinds_of_errors_are_read():
    "Whatever the package makes of `InputError` is read, too, and so is what it raises of Python's own with a sentence."
    named, raised = set(), set()
    for path in (TOP/"neuronlens").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"^class (\w+)\((?:InputError|Damaged|DiskFull)\)", text, flags=re.M))
        raised |= set(re.findall(r"\braise (\w+)\(f?[\"']", text))
    assert named <= KINDS and raised <= KINDS | OTHERS | {"BlockingIOError", "OSError"} # Those two are caught where they are raised


# --- through the public names

def caught(call):
    with pytest.raises(InputError) as e: call()
    return e.value


CASES = {
    "NL007": lambda: nl.rank([1., 2.], [0, 1]),
    "NL012": lambda: nl.class_statistics(np.ones((4, 2)), [0, 0, 1, 5], ["a", "b"]),
    "NL014": lambda: nl.rank(np.ones((2, 3)), [0, 0]),
    "NL101": lambda: nl.read_texts("none.csv"),
    "NL404": lambda: nl.fit_ranges(np.eye(4), [0, 0, 1, 1], "gaussian(-1)"),
    "NL401": lambda: nl.rank(np.eye(4), [0, 0, 1, 1], "none"),
    "NL414": lambda: nl.Setting("sports", vote=3),
    "NL201": lambda: nl.load_classifier("./no/such/model"),
    "NL305": lambda: nl.load("none.safetensors"),
    "NL601": lambda: nl.read_study("none.toml"),
    "NL706": lambda: nl.explore("demo")}


@pytest.mark.parametrize("code", CASES)
def test_errors_know_their_code(code, tmp_path, monkeypatch):
    "The message stays the plain sentence; the code is an attribute, and the last line of a traceback."
    monkeypatch.chdir(tmp_path)
    e = caught(CASES[code])
    assert e.code == code == find(e).code and code not in str(e)
    assert traceback.format_exception(e)[-1] == f"{code}: `neuronlens explain {code}` says why, and what to do\n"


def test_a_refusal_that_is_caught_costs_nothing_more():
    "Neither the table nor a code is looked for until somebody asks."
    code = ("import sys, neuronlens\nfrom neuronlens.ground.core import InputError, labelled\n"
            "for _ in range(100):\n    try: labelled([1.], [0])\n    except InputError as e: str(e), repr(e)\n"
            "assert 'neuronlens.ground.refusals' not in sys.modules and 'tomllib' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=TOP)


def test_notes_of_ones_own_stay():
    "An error is still one: more notes can be added, it can be sent to another process, and a sentence of somebody else has none."
    e = InputError("label 7 is outside the 3 classes (0, 1, 2)")
    e.add_note("in row 5")
    for x in (e, pickle.loads(pickle.dumps(e)), copy.copy(e)):
        assert [n[:5] for n in x.__notes__] == ["NL012", "in ro"] and x.code == "NL012"
    assert InputError("of my own").__notes__ == [] and InputError("of my own").code is None and InputError().code is None


def test_ipython_shows_the_code():
    code = "import neuronlens as nl; nl.Setting('sports', vote=3)"
    call = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", code]
    said = subprocess.run(call, capture_output=True, text=True, cwd=TOP).stdout
    assert "vote 3 is outside 0 to 1\nNL414: `neuronlens explain NL414`" in said


# --- by hand

def test_find():
    for x in ("NL012", "nl012", " NL 12", "12", "label 7 is outside the 3 classes", "outside the classes"):
        assert find(x).code == "NL012"
    for bad in ("NL999", "4711"): assert caught(lambda b=bad: find(b)).code == "NL804"
    assert "NL80" in str(caught(lambda: find("NL808")))
    assert caught(lambda: find("xyzzy")).code == caught(lambda: find("")).code == "NL804"
    assert find("class 'sport' is none of the model's").code == "NL219" # Cut off, and shorter than another that is whole
    r = find("NL012")
    assert all(x in str(r) and x in r._repr_markdown_() for x in (r.code, r.title)) and "*" not in str(r)


def test_explained():
    assert explained("") == listed() and listed().count("\n  NL") == len(TABLE) and all(t in listed() for t in THEMES.values())
    assert explained("NL012") == str(find("NL012"))
    assert explained("must be a list").startswith("In sentences of several:") and explained("must be a list").count("\n  NL") > 2


def command(*args):
    call = [sys.executable, "-c", "from neuronlens.studies.cli import main; main()", *args]
    p = subprocess.run(call, capture_output=True, text=True, cwd=TOP, env=os.environ | {"COLUMNS": "100"})
    return p.returncode, p.stdout, p.stderr


def test_the_command_says_the_code(tmp_path):
    "A refusal is one line that ends in what to type, and that prints the entry; an unknown code is refused alike."
    status, out, err = command("run", str(tmp_path/"none.toml"), "--out", str(tmp_path/"out"))
    assert (status, out, err) == (2, "", f"neuronlens: {tmp_path/'none.toml'}: no such study file (neuronlens explain NL601)\n")
    status, out, err = command("explain", "NL601")
    assert (status, err, out) == (0, "", str(find("NL601"))+"\n") and "neuronlens example > study.toml" in " ".join(out.split())
    assert command("explain", *err.split(), "none.toml: no such study file")[1].startswith("NL601")
    assert command("explain")[1] == listed()+"\n"
    status, out, err = command("explain", "NL999")
    assert (status, out) == (2, "") and err.startswith("neuronlens: no code is called NL999; the nearest are NL") and err.count("\n") == 1
    assert err.endswith("(neuronlens explain NL804)\n")


@pytest.mark.slow
def test_the_table_is_in_the_packages(tmp_path):
    "A wheel and a source distribution hold it."
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md"): (tmp_path/name).write_bytes((TOP/name).read_bytes())
    shutil.copytree(TOP/"neuronlens", tmp_path/"neuronlens", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "bdist_wheel"], cwd=tmp_path, check=True, capture_output=True)
    (wheel,), (source,) = (tmp_path/"dist").glob("*.whl"), (tmp_path/"dist").glob("*.tar.gz")
    assert "neuronlens/refusals.toml" in zipfile.ZipFile(wheel).namelist()
    assert any(n.endswith("/neuronlens/refusals.toml") for n in tarfile.open(source).getnames())


def test_rooms_are_found(): assert import_module("neuronlens.ground.refusals") is nl.refusals


@pytest.mark.slow
def test_the_site_has_a_page_a_code(tmp_path):
    "The list has every code and sentence, each code a page that says what the command says, and the menu has the list alone."
    pytest.importorskip("sphinx", reason="sphinx is not installed")
    pages = ("index", "errors")
    for n in pages:
        (tmp_path/"nbs").mkdir(exist_ok=True)
        nb = json.loads((TOP/f"nbs/{n}.ipynb").read_text(encoding="utf-8"))
        if n == "index": nb["cells"] = [dict(cell_type="markdown", id="a", metadata={}, source="# index\n\n> Home. [Errors](errors.ipynb)")]
        (tmp_path/f"nbs/{n}.ipynb").write_text(json.dumps(nb), encoding="utf-8")
    for name in ("neuronlens/refusals.toml", "neuronlens/ground/refusals.py", "settings.ini"):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_bytes((TOP/name).read_bytes())
    config = "project: {type: website}\nwebsite: {title: small, sidebar: {contents: [index.ipynb, errors.ipynb]}}\n"
    (tmp_path/"_quarto.yml").write_text(config)
    call = [sys.executable, TOP/"site/build.py", "--top", tmp_path, "--preview", "--out", "docs"]
    subprocess.run(call, check=True, capture_output=True, text=True)
    def text(name):
        html = (tmp_path/"docs"/name).read_text(encoding="utf-8")
        article = html.partition("<article")[2].partition("</article>")[0]
        said = unescape(re.sub(r"<[^>]+>", "", article)).translate(str.maketrans("‘’“”", "''\"\"")) # Printed quotation marks
        return html, " ".join(said.split())
    html, said = text("errors.html")
    assert {p.stem for p in (tmp_path/"docs/errors").glob("*.html")} == {*TABLE}
    for code, r in TABLE.items():
        assert f'href="errors/{code}.html"' in html and r.title in said
        page, own = text(f"errors/{code}.html")
        for part in (code, r.title, *r.sentences(), r.cause.replace("`", ""), r.remedy.replace("`", "")):
            assert " ".join(part.split()) in own, (code, part)
        menu = page.partition('class="sidebar-tree"')[2].partition("</div>")[0]
        assert "NL0" not in menu and menu.count("errors.html") == 1
    for s in {s for r in TABLE.values() for s in r.sentences()}: assert " ".join(s.split()) in said, s
