"""In a browser: JupyterLab runs a page, and its live views answer to the keyboard."""
import base64
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError
from urllib.request import Request, urlopen

import nbformat
import numpy as np
import pytest
from conftest import WORDS, axe

TUTORIALS = Path(__file__).resolve().parents[1]/'nbs/tutorials'
KERNEL = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
SETTINGS = {'@jupyterlab/apputils-extension:notification': dict(fetchNews='false', checkForUpdates=False, doNotDisturbMode=True),
            '@jupyterlab/notebook-extension:tracker': dict(windowingMode='none'), # Every output stays in the page
            '@jupyterlab/docmanager-extension:plugin': dict(autosave=False)}
OPTIONS = ['--no-browser', '--ServerApp.ip=127.0.0.1', '--ServerApp.port_retries=0', '--ServerApp.allow_root=True',
           '--LabApp.expose_app_in_browser=True', '--JupyterNotebookApp.expose_app_in_browser=True',
           '--ServerApp.log_level=WARN', '--LabApp.collaborative=False']


def write_notebook(path, *cells):
    "A notebook of these code cells, for the kernel of this environment."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=KERNEL)
    nbformat.write(nb, path)
    return path


def answers(url, server, log, patience=120):
    "Wait until the server speaks; say what it wrote where it does not."
    for _ in range(patience*4):
        try: return urlopen(Request(f'{url}/api/status', headers={'Authorization': f'token {server.token}'}), timeout=5).read()
        except (URLError, OSError): time.sleep(.25)
        if server.process.poll() is not None: break
    raise RuntimeError(f'JupyterLab did not start: {log.read_text()[-2000:]}')


def end(process):
    "The server and its kernels are gone; asked first."
    process.terminate()
    try: process.wait(20)
    except subprocess.TimeoutExpired: pass
    try: os.killpg(process.pid, signal.SIGKILL) # Whatever of its own session is left
    except ProcessLookupError: pass
    process.wait(10)


@pytest.fixture(scope='module')
def server(tmp_path_factory, browser):
    "JupyterLab on loopback, with a token, in a copy of the tutorials; it reads and writes no settings of the user."
    pytest.importorskip('jupyterlab', reason='jupyterlab is not installed')
    home = tmp_path_factory.mktemp('lab')
    (root := home/'pages').mkdir()
    for p in TUTORIALS.glob('*.ipynb'): (root/p.name).write_bytes(p.read_bytes())
    (home/'config/labconfig').mkdir(parents=True)
    (home/'config/labconfig/default_setting_overrides.json').write_text(json.dumps(SETTINGS))
    own = {f'JUPYTER_{k}_DIR': str(home/k.lower()) for k in ('CONFIG', 'RUNTIME', 'DATA')}
    own |= dict(IPYTHONDIR=str(home/'ipython'), JUPYTER_TOKEN='', MPLCONFIGDIR=str(home/'mpl'))
    path = os.pathsep.join([str(TUTORIALS.parents[1]), *filter(None, [os.environ.get('PYTHONPATH')])])
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    token, log = secrets.token_hex(16), home/'log'
    call = [sys.executable, '-m', 'jupyterlab', *OPTIONS, f'--ServerApp.port={port}', f'--IdentityProvider.token={token}',
            f'--ServerApp.root_dir={root}']
    with log.open('w') as out:
        process = subprocess.Popen(call, env=os.environ | own | dict(PYTHONPATH=path), stdout=out, stderr=out, cwd=root,
                                   start_new_session=True)
    made = SimpleNamespace(process=process, token=token, url=f'http://127.0.0.1:{port}', root=root)
    try:
        answers(made.url, made, log)
        yield made
    finally: end(process)


OPEN = 'window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length > 0'


class Lab:
    "One notebook open in JupyterLab."
    def __init__(self, page, trouble): self.page, self.trouble = page, trouble

    def js(self, code, given=None):
        "Run JavaScript with the application and the open notebook at hand."
        return self.page.evaluate('(given) => {const app = window.jupyterapp, nb = app.shell.currentWidget; return (async () => {'
                                  f'{code}' '})()}', given)

    def run_all(self, seconds=600):
        "Run every cell, top to bottom; errors are the test's."
        self.page.wait_for_function('window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === "idle"',
                                    timeout=90_000)
        self.js("window.ran = null; const done = v => {window.ran = [`${v}`]};"
                "app.commands.execute('notebook:run-all-cells').then(done, done)")
        self.page.wait_for_function('window.ran !== null', timeout=seconds*1000)
        outputs = self.outputs()
        wrong = [o for cell in outputs for o in cell['outputs'] if o['output_type'] == 'error']
        assert not wrong, '\n'.join(wrong[0]['traceback'])
        assert all(cell['count'] for cell in outputs), 'a cell did not run'
        return outputs

    def outputs(self):
        "Execution count and outputs of every code cell that has something to run."
        return self.js("return nb.content.widgets.filter(w => w.model.type === 'code' && w.model.sharedModel.getSource().trim())"
                       ".map(w => ({count: w.model.executionCount, outputs: w.model.outputs.toJSON()}))")

    def press(self, name, key, times=1, within=None):
        "Move the first slider of this name that can be seen, with the keyboard."
        (within or self.page).locator('input[type=range]:visible').and_(self.page.get_by_label(name, exact=True)).first.focus()
        for _ in range(times): self.page.keyboard.press(key)

    def type(self, text, within=None):
        "Type into the first text field and press Enter."
        field = (within or self.page).locator('.widget-text input[type=text]:visible').first
        field.fill('')
        field.press_sequentially(text)
        field.press('Enter')

    def wait_for(self, text, seconds=60):
        "Wait until the page shows this text."
        self.page.get_by_text(text).filter(visible=True).first.wait_for(timeout=seconds*1000)


@pytest.fixture
def lab(server, browser):
    """Opens a notebook of the server's folder: `lab('page.ipynb')`, or with `app='notebooks'` in Notebook 7; nothing else on the network
    can be reached."""
    contexts = []
    def show(name, app='lab/tree', **how):
        context, trouble = browser.new_context(**(dict(viewport=dict(width=1400, height=1000)) | how)), []
        contexts.append(context)
        def route(r):
            if r.request.url.startswith((server.url, 'data:', 'blob:')): return r.continue_()
            trouble.append(f'request to {r.request.url}')
            r.abort()
        context.route('**/*', route)
        page = context.new_page()
        page.on('dialog', lambda d: (trouble.append(f'dialog: {d.message}'), d.dismiss()))
        page.on('pageerror', lambda e: trouble.append(str(e)))
        page.goto(f'{server.url}/{app}/{name}?token={server.token}&reset')
        page.wait_for_function(OPEN, timeout=120_000)
        return Lab(page, trouble)
    yield show
    for c in contexts: c.close()


SMALL = """from html import escape
from ipywidgets import HTML, VBox
from neuronlens.views.slider import Slider
tau, said = Slider(value=2.5, min=.5, max=4, step=.1, description='tau'), HTML()
def show(_): said.value = f'<p class="said">{escape("<b>tau</b>")} is {tau.value:.1f}</p>'
tau.observe(show, 'value')
show(None)
VBox([tau, said])"""


@pytest.mark.slow
def test_a_slider_moves_with_the_keyboard(lab, server, pictures):
    "The machinery itself: a page of three lines, the keyboard, an answer from the kernel."
    write_notebook(server.root/'small.ipynb', '1+1', SMALL)
    page = lab('small.ipynb')
    assert page.run_all()[0]['outputs'][0]['data']['text/plain'] == '2'
    said = page.page.locator('p.said')
    said.wait_for(timeout=60_000)
    assert said.inner_text() == '<b>tau</b> is 2.5'
    page.press('tau', 'ArrowRight', 3)
    page.page.wait_for_function("document.querySelector('p.said').innerText.endsWith('is 2.8')", timeout=60_000)
    page.page.screenshot(path=pictures/'lab-small.png')
    assert not page.trouble


@pytest.mark.slow
def test_a_cell_that_fails_is_seen(lab, server):
    "Running all cells reports the error of the first that fails."
    write_notebook(server.root/'broken.ipynb', '1/0', '2')
    with pytest.raises(AssertionError, match='ZeroDivisionError'): lab('broken.ipynb').run_all()


# --- the first tutorial

BAD = '<img src=x onerror=alert(1)>'
SAYS = 'Parliament will vote on the new tax before the election.'


@pytest.fixture(scope='module')
def demo():
    "The study of the tutorial, in this process; the example model is trained where it is not yet."
    import neuronlens as nl
    return nl.run_study(nl.demo_study(), progress=False).open()


def tidy(study):
    "The neuron that the tutorial picks: the two classes closest to each other are furthest apart there, in spreads."
    s = study.statistics
    return int((np.diff(np.sort(s.mean, 0), axis=0).min(0)/s.sd.max(0)).argmax())


def in_range(study, concept, neuron, tau):
    "From the library alone: the range's ends, the share of every class inside, and how much of the range is in the picture."
    import neuronlens as nl
    from neuronlens.arrays.firing import share_inside
    from neuronlens.views.plots import _borders
    c, x = study.classes.index(concept), study.test.acts[:, neuron]
    r = nl.fit_ranges(study.train.acts[:, [neuron]], study.train.labels, f'gaussian({tau})', classes=study.classes)
    left, right = _borders(np.histogram_bin_edges(x, 40))
    lo, hi = r.lo[c, 0], r.hi[c, 0]
    return lo[0], hi[0], share_inside(x, study.test.labels, lo, hi, study.classes), min(hi[0], right)-max(lo[0], left)


def band(card):
    "Width of the shaded range in the picture of a card."
    svg = base64.b64decode(card.locator('img').first.get_attribute('src').split(',')[1]).decode()
    path = re.search(r'd="([^"]*)"[^>]*style="[^"]*opacity: 0.16', svg)[1]
    x = [float(n) for n in re.findall(r'[ML] ([-\d.]+) ', path)]
    return max(x)-min(x)


def rates(card):
    "Class to the share that the card's table of firing says."
    rows = card.locator('table').first.locator('tbody tr').all_inner_texts()
    return {r.split('\t')[0].strip(): float(r.split('\t')[-1].strip().rstrip('%'))/100 for r in rows}


def answered(study, text, **how):
    "From the library alone: the sentence about a text before and after the range of a concept is edited."
    import neuronlens as nl
    from neuronlens.ground.data import Texts
    r = nl.fit_ranges(study.train.acts, study.train.labels, 'gaussian(2.5)', statistics=study.statistics)
    ivs = nl.plan(study.statistics, [study.ranking], r, study.train.site, edit='mean', **how)
    one = Texts([text]*len(study.classes), np.arange(len(study.classes)), study.classes, 'typed') # Every class has to have one
    out = nl.ablate(study.clf, one, [iv for iv in ivs if iv.condition == 'range'], progress=False)
    before, after = (f'{study.classes[int(p.argmax())]} ({p.max():.1%})' for p in (out.before[0], out.after[0, 0]))
    return f'Before the edit: {before}. With the range of politics edited: {after}.'


@pytest.mark.slow
def test_the_first_tutorial(lab, demo, pictures):
    "Every cell runs; its neuron and its text answer the keyboard with the numbers of the library."
    page = lab('first_concept.ipynb')
    page.run_all()
    outputs = page.page.locator('.jp-Cell:has(.nl-slider)')
    neuron, text = outputs.nth(0), outputs.nth(1)
    neuron.scroll_into_view_if_needed()
    card = neuron.locator('.widget-html-content .nl-view')
    lo, hi, share, width = in_range(demo, 'politics', tidy(demo), 2.5)
    page.wait_for(f'[{lo:.2f}, {hi:.2f}]')
    before = band(card)
    assert rates(card) == pytest.approx(dict(zip(demo.classes, share, strict=True)), abs=.00051)
    page.press('tau', 'ArrowLeft', 12, neuron)
    lo, hi, after, narrow = in_range(demo, 'politics', tidy(demo), 1.3)
    page.wait_for(f'[{lo:.2f}, {hi:.2f}]')
    assert abs(after-share).max() > .02 and rates(card) == pytest.approx(dict(zip(demo.classes, after, strict=True)), abs=.00051)
    assert band(card)/before == pytest.approx(narrow/width, rel=.01)
    page.page.screenshot(path=pictures/'lab-neuron.png')
    text.scroll_into_view_if_needed()
    page.type(SAYS, text)
    page.wait_for(answered(demo, SAYS, fraction=[.5], concept=[demo.classes.index('politics')]))
    page.page.screenshot(path=pictures/'lab-text.png')
    page.type(BAD, text)
    text.locator('.token').filter(has_text='alert').first.wait_for(timeout=120_000)
    assert page.page.locator('.jp-Notebook img[src="x"]').count() == 0 and not page.trouble


# --- every view, on data that is not to be trusted

VIEWS = """import neuronlens as nl
from neuronlens.studies.spec import parse_study
from neuronlens.views.workbook import explore
spec = parse_study(dict(data=dict(train='train.csv', test='test.csv'), model=dict(classifier='bert'),
                        method=dict(ranking=['dprime'], fraction=[.5, .25])), folder='.')
study = nl.run_study(spec, progress=False)
study"""


@pytest.fixture(scope='module')
def untrusted(server, bert, frame, test_frame):
    "Beside the pages: texts with markup, in a class that is called like markup, and a tiny BERT that knows it by that name."
    shutil.copytree(bert, server.root/'bert')
    config = json.loads((server.root/'bert/config.json').read_text())
    config |= dict(id2label={'0': BAD, '1': 'food', '2': 'tool'}, label2id={BAD: 0, 'food': 1, 'tool': 2})
    (server.root/'bert/config.json').write_text(json.dumps(config))
    for name, df in dict(train=frame, test=test_frame).items():
        df = df.replace({'label': {'animal': BAD}})
        df.assign(text=[f'{BAD} {t}' for t in df.text]).to_csv(server.root/f'{name}.csv', index=False)
    return server.root


GROUPS = ('Which neurons', 'When', 'What then')
TOO_WIDE = """[...document.querySelectorAll('.jp-OutputArea-output .widget-box')]
    .filter(e => e.offsetParent && !e.matches('.nl-area') && e.scrollWidth > e.clientWidth+2)
    .map(e => [e.className, e.scrollWidth, e.clientWidth])"""


def effect(folder, tau):
    "From the library alone: mean target accuracy and disturbance of the range, as the bars say them."
    import neuronlens as nl
    from neuronlens.studies.spec import parse_study
    spec = parse_study(dict(data=dict(train='train.csv', test='test.csv'), model=dict(classifier='bert'),
                            method=dict(ranking=['dprime'], fraction=[.25], range=f'gaussian({tau})', layers=False)), folder=folder)
    df = nl.run_study(spec, progress=False).effects.macro().set_index('condition')
    return f"range {df.target_accuracy['range']:.3f} [", f"range {df.disturbance['range']:.4f} ["


@pytest.mark.slow
def test_every_view_on_untrusted_data(lab, untrusted, pictures):
    "Markup in texts and class names stays text in every tab; the bars are what the library computes, before and after tau moves."
    write_notebook(untrusted/'views.ipynb', VIEWS, 'book = explore(study)\nbook.erase.set(concept="macro")\nbook')
    page = lab('views.ipynb')
    page.run_all()
    def bars(): return [b.get_attribute('aria-label') for b in page.page.locator('svg[role=img]:visible').all()]
    def tab(name): page.page.get_by_role('tab', name=name, exact=True).click()
    page.page.locator('.jp-OutputArea .nl-slider:visible').first.wait_for(timeout=120_000)
    page.page.screenshot(path=pictures/'lab-tab-neuron.png')
    tab('Erase')
    page.wait_for('target accuracy')
    seen = {}
    for tau, key in ((2.5, None), (.5, 'ArrowLeft')):
        if key: page.press('tau', key, 20)
        accuracy, disturbance = seen[tau] = effect(untrusted, tau)
        page.page.locator(f'svg[aria-label^="target accuracy"][aria-label*="{accuracy}"]:visible').wait_for(timeout=120_000)
        assert any(b.startswith('disturbance') and disturbance in b for b in bars())
    assert seen[2.5] != seen[.5]
    page.page.screenshot(path=pictures/'lab-tab-erase.png')
    tab('Text')
    page.page.locator('.token:visible').first.wait_for(timeout=120_000) # A tab is made when it is opened first
    page.type(f'{BAD} {WORDS["food"][0]}')
    page.page.locator('.token:visible').filter(has_text=WORDS['food'][0]).first.wait_for(timeout=120_000)
    page.page.screenshot(path=pictures/'lab-tab-text.png')
    headings = [h for h in page.page.locator('.widget-html-content h4:visible').all_inner_texts() if h in GROUPS]
    assert headings == [*GROUPS]
    page.js('app.shell.collapseLeft()') # The list of files would take all of it
    page.page.set_viewport_size(dict(width=390, height=1000))
    page.page.wait_for_timeout(1500)
    assert not page.page.evaluate(TOO_WIDE) # What is wide scrolls beside the controls
    page.page.screenshot(path=pictures/'lab-tab-text-phone.png')
    page.page.set_viewport_size(dict(width=1400, height=1000))
    assert BAD in page.page.locator('.jp-Notebook').inner_text()
    for name in ('Overlap', 'Layers'):
        tab(name)
        page.page.wait_for_timeout(1500)
        page.page.screenshot(path=pictures/f'lab-tab-{name.lower()}.png')
    assert page.page.locator('.jp-Notebook img[src="x"]').count() == 0 and not page.trouble


# --- what is left of a view: after a restart, after save and reopen, in a page that is not trusted

EACH = ['NeuronView(study)', 'TextView(study)', 'EraseView(study)', 'OverlapView(study)', 'LayersView(study)', 'nl.explore(study)']
ERROR = 'Error displaying widget'
TRUSTED = "return nb.content.widgets.some(w => w.model.type === 'code' && w.model.outputs.length && w.model.trusted)"
WHOLE = """[...document.querySelectorAll('.nl-still')].map(e => [e.offsetParent !== null && e.innerText.length > 50,
    [...e.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 100)])"""


def visible(page, selector): return page.page.locator(f'{selector}:visible').count()


def all_drawn(page):
    "Every view of the page shows its picture once, and no sentence says that something is missing."
    n = len(EACH)
    page.page.wait_for_function(f"document.querySelectorAll('.nl-still').length >= {n}", timeout=60_000)
    page.page.wait_for_timeout(4000) # The frontend looks for a model for two seconds
    assert page.page.evaluate(WHOLE) == [[True, True]]*n
    assert page.page.get_by_text(ERROR).filter(visible=True).count() == 0 and visible(page, '.nl-live') == 0


@pytest.mark.slow
@pytest.mark.parametrize('app', ['lab/tree', 'notebooks'])
def test_views_survive(lab, untrusted, pictures, app):
    """While a view lives its picture is hidden; after a restart it says what to do; after save and reopen the picture is there, and so it
    is in a page that is not trusted."""
    if app == 'notebooks': pytest.importorskip('notebook', reason='notebook is not installed')
    imports = '\nfrom neuronlens.views.inspect import NeuronView, TextView\nfrom neuronlens.views.erase_view import EraseView'
    imports += '\nfrom neuronlens.views.overlap_view import OverlapView\nfrom neuronlens.views.workbook import LayersView'
    name = f'kept-{app[:3]}.ipynb'
    write_notebook(untrusted/name, VIEWS+imports, *EACH)
    page = lab(name, app)
    page.run_all()
    page.page.wait_for_function(f"document.querySelectorAll('.nl-live').length >= {len(EACH)}", timeout=120_000)
    page.page.wait_for_function(f"document.querySelectorAll('.nl-still').length == {len(EACH)}", timeout=120_000)
    page.page.wait_for_timeout(1000)
    assert visible(page, '.nl-still') == 0 and visible(page, '.nl-gone') == 0
    assert visible(page, '.nl-here') == len(EACH)-1 # Layers has nothing to move
    found = axe(page.page, '.nl-live') # Every control has a name, sliders too
    assert not found, found
    page.js('await nb.context.save()')
    page.js('await nb.sessionContext.session.kernel.restart()')
    page.page.locator('.nl-gone:visible').first.wait_for(timeout=60_000)
    assert visible(page, '.nl-gone') == len(EACH)-1 and 'run this cell again' in page.page.locator('.nl-gone:visible').first.inner_text()
    page.page.locator('.nl-gone:visible').first.scroll_into_view_if_needed()
    page.page.screenshot(path=pictures/f'views-restarted-{app[:3]}.png')
    page.page.goto('about:blank')
    again = lab(name, app)
    all_drawn(again)
    again.page.screenshot(path=pictures/f'views-reopened-{app[:3]}.png')
    again.page.goto('about:blank')
    nb = nbformat.read(untrusted/name, 4) # As someone else would have made it: no signature
    nb.cells.append(nbformat.v4.new_markdown_cell('from elsewhere'))
    nbformat.write(nb, untrusted/f'other-{name}')
    other = lab(f'other-{name}', app)
    assert not other.js(TRUSTED)
    all_drawn(other)
    other.page.screenshot(path=pictures/f'views-untrusted-{app[:3]}.png')
    trouble = [t for p in (page, again, other) for t in p.trouble if app != 'notebooks' or t.startswith(('request', 'dialog'))]
    assert not trouble # Notebook 7 complains of its own settings


IN_SIGHT = """() => { const rect = q => [...document.querySelectorAll(q)].filter(e => e.offsetParent)[0].getBoundingClientRect();
    const side = rect('.nl-live .nl-side'), area = rect('.nl-live .nl-area'), tau = rect('.nl-side .nl-slider');
    return {area: [area.top, area.bottom], tau: [tau.top, tau.bottom], beside: side.right < area.left+2} }"""


@pytest.mark.slow
@pytest.mark.parametrize('width, height', [(1400, 1000), (1000, 800), (390, 844)])
def test_controls_stay_in_sight(lab, untrusted, pictures, width, height):
    "The picture begins within the first screen, and tau is in sight while the last text of the picture is."
    write_notebook(untrusted/'sight.ipynb', VIEWS+'\nfrom neuronlens.views.inspect import NeuronView', 'NeuronView(study)')
    page = lab('sight.ipynb', viewport=dict(width=width, height=height))
    page.run_all()
    if width < 500: page.js('app.shell.collapseLeft()')
    view = page.page.locator('.nl-live').first
    view.wait_for(timeout=60_000)
    page.page.wait_for_timeout(800)
    view.evaluate("e => e.scrollIntoView({block: 'start'})")
    where = page.page.evaluate(IN_SIGHT)
    assert 0 <= where['area'][0] < height-150 and where['beside'] == (width > 500)
    page.page.locator('.nl-area').first.evaluate('e => e.scrollTo(0, e.scrollHeight)')
    where = page.page.evaluate(IN_SIGHT)
    last = page.page.locator('.nl-area .nl-view tr').last.bounding_box()
    assert last['y']+last['height'] <= height
    if width > 500: assert 0 <= where['tau'][0] and where['tau'][1] <= height
    assert page.page.evaluate(TOO_WIDE) == []
    page.page.screenshot(path=pictures/f'lab-sight-{width}.png')
