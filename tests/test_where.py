"""Where people work: a wheel in a fresh environment, a notebook as HTML, the kernel's protocol; nothing that axe-core finds serious."""
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
from conftest import axe

TOP = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel of the checkout, made of what git tracks."
    pytest.importorskip('setuptools', reason='setuptools is not installed')
    top,out = tmp_path_factory.mktemp('checkout'),tmp_path_factory.mktemp('wheel')
    call = ['git', 'ls-files', 'neuronlens', 'setup.py', 'settings.ini', 'pyproject.toml', 'README.md']
    listed = subprocess.run(call, cwd=TOP, capture_output=True, text=True)
    if listed.returncode or not listed.stdout: pytest.skip('not a git checkout with tracked files')
    for n in listed.stdout.split():
        (top/n).parent.mkdir(parents=True, exist_ok=True)
        (top/n).write_bytes((TOP/n).read_bytes())
    how = ['--quiet', '--no-deps', '--no-index', '--no-build-isolation', '--wheel-dir', str(out), str(top)]
    done = subprocess.run([sys.executable, '-m', 'pip', 'wheel', *how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob('neuronlens-*.whl'))


def test_wheel_holds_everything(wheel, tmp_path):
    "Every module, the stub and its mark are in the wheel, and what was installed from it, in a place of its own, finds all its names."
    names = zipfile.ZipFile(wheel).namelist()
    want = {p.relative_to(TOP).as_posix() for p in (TOP/'neuronlens').rglob('*.py')}|{'neuronlens/py.typed', 'neuronlens/__init__.pyi'}
    assert want <= set(names) and not [n for n in names if n.startswith(('tests', 'nbs', 'site', 'build'))]
    venv.create(tmp_path/'fresh', with_pip=False)
    python = tmp_path/'fresh/bin/python'
    def ran(*call): return subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    done = ran(sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps', '--no-index', wheel)
    assert done.returncode == 0, done.stderr
    here = Path(ran(python, '-I', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').stdout.strip())
    (here/'others.pth').write_text(sysconfig.get_path('purelib')) # What it needs, but no checkout that was installed to be edited
    code = "import neuronlens as nl\nfor n in [*nl.__all__, *nl._AT]: getattr(nl, n)\nprint(nl.__version__, nl.__file__)"
    done = ran(python, '-I', '-c', code)
    assert done.returncode == 0 and done.stdout.split() == [wheel.name.split('-')[1], str(here/'neuronlens/__init__.py')], done.stderr
    example = ran(tmp_path/'fresh/bin/neuronlens', 'example')
    assert example.returncode == 0 and '[model]' in example.stdout, example.stderr


def test_what_the_page_says_of_installing():
    "The page names the wheel that is built, and the extras that there are."
    said = '\n'.join(c.source for c in nbformat.read(TOP/'nbs/where.ipynb', as_version=4).cells)
    settings = (TOP/'settings.ini').read_text(encoding='utf-8')
    version = settings.partition('\nversion = ')[2].partition('\n')[0]
    assert f'neuronlens-{version}-py3-none-any.whl[demo,lm]' in said and 'neuronlens-' not in said.replace(f'neuronlens-{version}-', '')
    assert all(f'\n{extra}_requirements = ' in settings for extra in ('demo', 'lm', 'ray'))


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A page of views as HTML, as `jupyter nbconvert` makes it."
    out = tmp_path_factory.mktemp('html')
    call = [sys.executable, '-m', 'nbconvert', '--to', 'html', '--output-dir', str(out), str(TOP/'nbs/53_inspect.ipynb')]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out/'53_inspect.html'


def test_a_notebook_as_html_keeps_the_pictures(exported, offline):
    "What views show is in the page that nbconvert makes of a notebook, without a kernel."
    page,_ = offline(exported)
    assert page.locator('.jp-RenderedHTMLCommon svg, .jp-RenderedHTMLCommon img').count() > 1
    assert page.get_by_text('Error displaying widget').count() == 0


@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_views_are_accessible(exported, offline, theme):
    "axe-core finds nothing serious in what the views and results show; what nbconvert puts around it is not ours."
    page,_ = offline(exported, color_scheme=theme, viewport=dict(width=1400, height=900))
    page.evaluate("document.querySelectorAll('.jp-InputArea, .jp-InputPrompt, .jp-OutputPrompt').forEach(e => e.remove())")
    found = axe(page, '.jp-OutputArea')
    assert not found, '\n'.join(f'{k}: {v}' for k,v in found.items())


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    "The report of the demo's study, without its layers."
    import neuronlens as nl
    usual,out = nl.demo_study(),tmp_path_factory.mktemp('demo')/'results'
    study = nl.run_study(type(usual)(usual.data, usual.model, method=type(usual.method)(fraction=[.5], layers=False)), out, progress=False)
    nl.write_report(study, out, progress=False)
    return out/'report.html'


@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_the_report_is_accessible(report, offline, theme):
    "axe-core finds nothing serious in a report, at a desk and on a phone; nothing is asked of the network."
    for width in (1400, 390):
        page,trouble = offline(report, color_scheme=theme, viewport=dict(width=width, height=900))
        found = axe(page)
        assert not found and trouble == [], (trouble, '\n'.join(f'{k}: {v}' for k,v in found.items()))


def test_kernel_protocol(tmp_path):
    "What an editor such as VS Code gets from a kernel: a view is a widget of standard kinds, with picture and text beside it."
    from nbclient import NotebookClient
    code = "import neuronlens as nl\nd = nl.demo_study()\n" \
           "nl.run_study(type(d)(d.data, d.model, method=type(d.method)(fraction=[.5], layers=False)), progress=False)"
    view = "from neuronlens.views.inspect import NeuronView\nNeuronView(_)"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (code, view)])
    client = NotebookClient(nb, timeout=600, kernel_name='python3', store_widget_state=True)
    client.execute(cwd=str(tmp_path))
    view,outs = 'application/vnd.jupyter.widget-view+json',[o.data for o in nb.cells[1].outputs if 'data' in o]
    live = [d for d in outs if view in d]
    assert len(live) == 1 and any('<img' in d.get('text/html', '') and 'text/plain' in d for d in outs), [*map(list, outs)]
    state = nb.metadata.widgets['application/vnd.jupyter.widget-state+json']['state']
    assert live[0][view]['model_id'] in state
    assert {w['model_module'] for w in state.values()} <= {f'@jupyter-widgets/{k}' for k in ('base', 'controls', 'output')}|{'anywidget'}
