"""In a browser: JupyterLab runs a page, and its live views answer to the keyboard."""
import json
import os
import secrets
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
import pytest

TUTORIALS = Path(__file__).resolve().parents[1]/'nbs/tutorials'
KERNEL = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
SETTINGS = {'@jupyterlab/apputils-extension:notification': dict(fetchNews='false', checkForUpdates=False, doNotDisturbMode=True),
            '@jupyterlab/notebook-extension:tracker': dict(windowingMode='none'), # Every output stays in the page
            '@jupyterlab/docmanager-extension:plugin': dict(autosave=False)}
OPTIONS = ['--no-browser', '--ServerApp.ip=127.0.0.1', '--ServerApp.port_retries=0', '--ServerApp.allow_root=True',
           '--LabApp.expose_app_in_browser=True', '--ServerApp.log_level=WARN', '--LabApp.collaborative=False']


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


class Lab:
    "One notebook open in JupyterLab."
    def __init__(self, page, trouble): self.page, self.trouble = page, trouble

    def js(self, code, given=None):
        "Run JavaScript with the application and the open notebook at hand."
        return self.page.evaluate('(given) => {const app = window.jupyterapp, nb = app.shell.currentWidget; return (async () => {'
                                  f'{code}' '})()}', given)

    def run_all(self, seconds=240):
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

    def slider(self, name):
        "The handle of the slider with this label."
        row = self.page.locator('.jupyter-widgets.widget-slider, .jupyter-widgets.widget-hslider').filter(has_text=name).first
        return row.locator('.noUi-handle').first


@pytest.fixture
def lab(server, browser):
    "Opens a notebook of the server's folder: `lab('page.ipynb')`; nothing else on the network can be reached."
    contexts = []
    def show(name, **how):
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
        page.goto(f'{server.url}/lab/tree/{name}?token={server.token}&reset')
        page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length > 0", timeout=120_000)
        return Lab(page, trouble)
    yield show
    for c in contexts: c.close()


SMALL = """from html import escape
from ipywidgets import HTML, FloatSlider, VBox
tau, said = FloatSlider(value=2.5, min=.5, max=4, step=.1, description='tau'), HTML()
def show(_): said.value = f'<p class="said">{escape("<b>tau</b>")} is {tau.value:.1f}</p>'
tau.observe(show, 'value')
show(None)
VBox([tau, said])"""


def test_a_slider_moves_with_the_keyboard(lab, server, pictures):
    "The machinery itself: a page of three lines, the keyboard, an answer from the kernel."
    write_notebook(server.root/'small.ipynb', '1+1', SMALL)
    page = lab('small.ipynb')
    assert page.run_all()[0]['outputs'][0]['data']['text/plain'] == '2'
    said, handle = page.page.locator('p.said'), page.slider('tau')
    said.wait_for(timeout=30_000)
    assert said.inner_text() == '<b>tau</b> is 2.5'
    handle.focus()
    for _ in range(3): page.page.keyboard.press('ArrowRight')
    page.page.wait_for_function("document.querySelector('p.said').innerText.endsWith('is 2.8')", timeout=30_000)
    page.page.screenshot(path=pictures/'lab-small.png')
    assert not page.trouble


def test_a_cell_that_fails_is_seen(lab, server):
    "Running all cells reports the error of the first that fails."
    write_notebook(server.root/'broken.ipynb', '1/0', '2')
    with pytest.raises(AssertionError, match='ZeroDivisionError'): lab('broken.ipynb').run_all()
