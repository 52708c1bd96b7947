"""The documentation site: every page opens alone, in the order of `_quarto.yml`, finds what it promises, and runs nothing of the data."""
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import yaml
from conftest import axe

pytest.importorskip('sphinx', reason='sphinx is not installed')
TOP = Path(__file__).resolve().parents[1]
BAD = '<img src=x onerror=alert(1)>'
SITE = importlib.util.spec_from_file_location('site_build', TOP/'site/build.py')
b = importlib.util.module_from_spec(SITE)
SITE.loader.exec_module(b)
CONFIG = yaml.safe_load((TOP/'_quarto.yml').read_text(encoding='utf-8'))
LISTED = b.listed(CONFIG['website']['sidebar']['contents'])
PAGES = [b.page_name(n).replace('.ipynb', '.html') for _,n in LISTED]
CODE = {n: [b.joined(c['source']) for c in json.loads((TOP/'nbs'/n).read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
        for _,n in LISTED}


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The whole site, rendered once with Sphinx."
    said,out = [],tmp_path_factory.mktemp('site')/'docs'
    b.build(TOP, out, said.append)
    assert not [s for s in said if s.startswith('skipped')], said
    return out


def code(source, *outputs):
    "A code cell; a dict is a display, a text a stream."
    outs = [dict(output_type='stream', name='stdout', text=o) if isinstance(o, str) else
            dict(output_type='display_data', data=o, metadata={}) for o in outputs]
    return dict(cell_type='code', id='c', metadata={}, source=source, outputs=outs, execution_count=None)


def text(source): return dict(cell_type='markdown', id='m', metadata={}, source=source)


def checkout(folder, **pages):
    "A small checkout: notebooks by name, one of them `index`."
    (folder/'nbs').mkdir(parents=True)
    shown = dict(project=dict(type='website'), website=dict(title='small', sidebar=dict(contents=[f'{n}.ipynb' for n in pages])))
    (folder/'_quarto.yml').write_text(yaml.safe_dump(shown))
    (folder/'settings.ini').write_text((TOP/'settings.ini').read_text())
    for n,cells in pages.items():
        nb = dict(cells=[text(f'# {n}\n\n> Promise of {n}.'), *[c | dict(id=f'c{i}') for i,c in enumerate(cells)]],
                  metadata=dict(kernelspec=dict(name='python3', language='python', display_name='Python 3')))
        (folder/'nbs'/f'{n}.ipynb').write_text(json.dumps(nb | dict(nbformat=4, nbformat_minor=5)))
    return folder


def words(html): return re.sub(r'\s+', ' ', unescape(re.sub(r'<[^>]+>', '', html))).strip()


# ---------------------------------------------------------------- the real site

def test_everything_is_listed():
    "Every page of `_quarto.yml` is written, and every notebook is a page with a name of its own."
    there = {p.relative_to(TOP/'nbs').as_posix() for p in (TOP/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    assert {n for _,n in LISTED} == there and PAGES[0] == 'index.html' and len(set(PAGES)) == len(PAGES)


FACTS = """() => ({h1: document.querySelectorAll('h1').length, lang: document.documentElement.lang,
    mute: document.querySelectorAll('article img:is(:not([alt]), [alt=""])').length,
    runs: document.querySelectorAll('article script:not(.nlx script, .nlx + script)').length, // But the explorer's
    body: document.querySelector('article').innerText.length, paper: getComputedStyle(document.body).backgroundColor})"""


SOME = ['index.html', 'search.html', 'tutorials/first_concept.html', 'howto/erase_while_it_writes.html', 'ranges.html', 'workbook.html',
        'explore.html', 'tutorials/erasing.html', 'howto/activations_as_npy.html', 'where.html', 'glossary.html', 'speed.html',
        'gallery.html', 'errors.html'] # Pages of every kind; the first ones stand for the others where each takes long
FEW = pytest.param(SOME[:7], id='some'), pytest.param(SOME[7:], id='more', marks=pytest.mark.deep)


@pytest.mark.parametrize('pages', [pytest.param(SOME, id='some'), pytest.param(PAGES, id='all', marks=pytest.mark.deep)])
def test_pages_open_alone(site, offline, pages):
    "Every page opens from file:// without a request, an error or a warning, light and dark, fits desk and phone; pictures have words."
    page,trouble = offline(site/'index.html', viewport=dict(width=1400, height=900))
    papers = set()
    for p in dict.fromkeys([*pages, 'search.html', 'genindex.html']):
        page.set_viewport_size(dict(width=1400, height=900))
        page.goto((site/p).as_uri())
        facts = page.evaluate(FACTS)
        assert facts.pop('body') > (300 if p in PAGES else 20) and facts.pop('paper') == 'rgb(255, 255, 255)', p
        assert facts == dict(h1=1, lang='en', mute=0, runs=0), (p, facts)
        page.emulate_media(color_scheme='dark')
        papers.add(page.evaluate('getComputedStyle(document.body).backgroundColor'))
        for width in (1400, 390):
            page.set_viewport_size(dict(width=width, height=844))
            assert page.evaluate('document.documentElement.scrollWidth') <= width, (p, width)
        page.emulate_media(color_scheme='light')
        assert trouble == [], (p, trouble)
    assert len(papers) == 1 and papers != {'rgb(255, 255, 255)'}


def test_navigation(site):
    "Order and sections are those of `_quarto.yml`, on every page; the links before and after walk through all of them."
    for i,p in enumerate(PAGES):
        html = (site/p).read_text(encoding='utf-8')
        nav = html.partition('<div class="sidebar-tree">')[2].partition('</div>')[0]
        at = lambda url, p=p: os.path.normpath(Path(p).parent/url) if url != '#' else p
        assert [at(h) for h in re.findall(r'<a [^>]*href="([^"]+)"', nav)] == [*PAGES[1:], 'genindex.html'], p
        assert re.findall(r'caption-text">([^<]+)<', nav) == list(dict.fromkeys(s for s,_ in LISTED if s))
        near = {k: at(h) for k,h in re.findall(r'<a class="(next|prev)-page" href="([^"]+)"', html)}
        assert near == ({'prev': PAGES[i-1]} if i else {}) | ({'next': PAGES[i+1]} if p != PAGES[-1] else {}), p


def test_search_finds_names_and_words(site, offline):
    "From any page a name leads to its documentation, and a word to the pages that use it; what is not there is said not to be."
    page,trouble = offline(site/PAGES[-1])
    name = re.search(r'id="(neuronlens[\w.]+\.fit_ranges)"', ' '.join(p.read_text(encoding='utf-8') for p in site.rglob('*.html')))[1]
    where = page.locator('#search-found > li')
    page.keyboard.press('/')
    page.keyboard.type('fit_ranges')
    page.keyboard.press('Enter')
    where.first.wait_for()
    assert where.first.inner_text().startswith(name)
    where.first.locator('a').first.click()
    page.wait_for_url(f'**#{name}')
    assert page.locator(f'[id="{name}"]').is_visible()
    page.goto((site/'search.html').as_uri()+'?q=calibration')
    where.first.wait_for()
    assert where.count() > 3
    page.goto((site/'search.html').as_uri()+'?q=nosuchword')
    page.get_by_text('No page matches').wait_for()
    assert where.count() == 0 and page.locator('#search-said a').get_attribute('href') == 'glossary.html' and trouble == []


ASKED = {'GPT-2 generate':'howto/erase_while_it_writes', 'generates gpt2':'howto/erase_while_it_writes', 'npy':'howto/activations_as_npy',
         'custom ranking':'howto/rank_by_my_own_function', 'ranking of my own':'howto/rank_by_my_own_function',
         'LaTeX paper':'howto/numbers_for_a_paper',
         'how do I erase a concept while it writes?':'howto/erase_while_it_writes', 'two models compared':'howto/compare_two_models',
         'which neurons do two concepts share?':'howto/neurons_shared_by_two_concepts', 'read a jsonl file':'howto/read_a_data_file',
         'run on a cluster':'howto/many_texts', 'how can I save my results':'howto/save_and_open', 'install on colab':'where',
         'edit my own classifier':'howto/edit_my_classifier', 'what does flip rate mean?':'glossary', 'What is macro?':'glossary',
         'NL012':'errors/NL012',
         'perplexity':'reading', 'total variation distance':'effects', 'choosing a fraction':'howto/choose_without_fooling_myself'}


def test_search_answers_questions(site, offline):
    "Words in any order, other endings, the words of others, and questions find their page first, with the place and the words marked."
    page,trouble = offline(site/'search.html')
    for asked,goal in ASKED.items():
        page.fill('#query', asked)
        page.wait_for_function("document.title.startsWith(document.querySelector('#query').value.trim())")
        first,seen = page.locator('#search-found > li').first,page.locator('#search-found').inner_text()[:400]
        assert first.locator('a').first.get_attribute('href').startswith(f'{goal}.html'), (asked, seen)
        assert first.locator('mark').count() and 20 < len(first.locator('p').first.inner_text()) < 400, (asked, seen)
        assert (first.locator('small').inner_text() == 'How to') == goal.startswith('howto/')
    assert trouble == []


def test_search_by_keyboard(site, offline):
    "It answers while one types; arrows move through what is found, Enter opens it; on a phone the search is a touch away."
    page,trouble = offline(site/'search.html')
    page.keyboard.type('while a model wri')
    page.locator('#search-found > li').first.wait_for()
    page.keyboard.press('ArrowDown')
    page.keyboard.press('ArrowDown')
    page.keyboard.press('ArrowUp')
    goal = page.evaluate('document.activeElement.href')
    assert goal == page.locator('#search-found > li > a').first.evaluate('a => a.href')
    page.keyboard.press('Enter')
    page.wait_for_url(goal)
    page.set_viewport_size(dict(width=390, height=844))
    page.locator('.to-search').click()
    page.wait_for_url('**/search.html')
    assert page.evaluate("document.activeElement.id") == 'query' and trouble == []


TRAINED = {'digits_of_a_convolution_net', 'a_policy_that_plays', 'latents_of_a_sparse_autoencoder', 'edit_sae_latents',
           'image_classifier'} # Theirs first


def test_how_to_pages(site):
    "A page a task: one sentence when one wants it, about ten lines of code, what to look at, where to read on; one click from home."
    home = (site/'index.html').read_text(encoding='utf-8')
    tasks = [n for s,n in LISTED if s == 'How to']
    assert len(tasks) >= 10 and all(f'href="{b.page_name(n).replace(".ipynb", ".html")}"' in home.partition('<article')[2] for n in tasks)
    for n in tasks:
        cells = json.loads((TOP/'nbs'/n).read_text(encoding='utf-8'))['cells']
        prose = '\n'.join(b.joined(c['source']) for c in cells if c['cell_type'] == 'markdown')
        assert re.match(r'# .+\n\n> [^\n]+\n', prose) and '## What to look at' in prose and '**Read on**' in prose, n
        code = [s for c in CODE[n] if not c.startswith('#| hide') for s in c.splitlines()]
        lines = [s for s in code if s.strip() and not s.startswith(('import', 'from'))]
        most = 60 if Path(n).stem in TRAINED else 22
        assert 5 <= len(lines) <= most and not any(len(s) > 140 for s in lines), (n, len(lines))


def test_menu_names_are_distinct(site):
    "No two entries of the menu are called the same."
    nav = (site/'index.html').read_text(encoding='utf-8').partition('<div class="sidebar-tree">')[2].partition('</div>')[0]
    names = [words(x) for x in re.findall(r'<a [^>]*reference internal[^>]*>(.*?)</a>', nav, flags=re.S)]
    assert len(names) == len(PAGES) and len(set(names)) == len(names), [n for n in names if names.count(n) > 1]


@pytest.mark.parametrize('pages', FEW)
@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_accessible(site, offline, theme, pages):
    "axe-core finds nothing serious or critical on pages of every kind, at a desk and on a phone; dark differs in its colours alone."
    found,only = {},['color-contrast', 'link-in-text-block'] if theme == 'dark' else None
    for p in pages:
        page,_ = offline(site/p, color_scheme=theme, viewport=dict(width=1400, height=900))
        if p == 'search.html': page.fill('#query', 'erase a concept')
        found |= {f'{p} {k}':v for k,v in axe(page, only=only).items()}
        page.set_viewport_size(dict(width=390, height=844))
        found |= {f'{p} on a phone {k}':v for k,v in axe(page, only=only).items()}
    assert not found, '\n'.join(f'{k}: {v}' for k,v in found.items())


def test_every_export_is_described(site):
    "Every public definition is on its page, with each parameter and what its comment says, and leads to its source."
    for p,cells in zip(PAGES, CODE.values(), strict=True):
        shown = '\n'.join(c for c in cells if c.startswith(('#| export\n', '#| exports\n')))
        names = re.findall(r'^(?:def|class) ([a-zA-Z]\w*)', shown, flags=re.M)
        html = (site/p).read_text(encoding='utf-8')
        for n in names: assert re.search(rf'<dt [^>]*id="neuronlens\.[\w.]+\.{n}"', html), (p, n)
    page = next(site/p for p,cells in zip(PAGES, CODE.values(), strict=True) if any('\ndef gaussian(' in c for c in cells))
    html = re.search(r'<dt [^>]*id="neuronlens[\w.]+\.gaussian".*?</dl>', page.read_text(encoding='utf-8'), flags=re.S)[0]
    said = words(html)
    assert said.startswith('gaussian(statistics, tau=2.5) → tuple[source]') and 'float 2.5 Half width in class standard' in said
    assert re.search(r'href="[\w/.]+#neuronlens[\w.]+ClassStatistics"', html) and re.search(r'href="_modules/[\w/]+\.html#gaussian"', html)


def test_links_hold(site):
    "No link of the whole site is broken, nothing is loaded from elsewhere, and few links lead elsewhere."
    faults,elsewhere = b.check(site)
    assert faults == [] and all(u.startswith('https://') for u in elsewhere) and len(elsewhere) < 20


def test_home_shows_the_picture_and_the_commands(site):
    "Home has its promise, its picture and the two commands."
    html = (site/'index.html').read_text(encoding='utf-8')
    assert html.count('<div class="paths">') == 1 and all(f'<strong>You {w}' in html for w in ('want to learn', 'do research', 'build'))
    assert (site/re.search(r'src="(_images/ranges[\w]*\.png)"', html)[1]).read_bytes() == (TOP/'nbs/images/ranges.png').read_bytes()
    assert 'make demo' in words(html) and 'make test' in words(html)


def test_theme_and_menu(site, offline):
    "The theme follows the system until one is chosen, and stays chosen; a phone has a menu."
    page,trouble = offline(site/'index.html', color_scheme='dark', viewport=dict(width=390, height=800))
    paper = lambda: page.evaluate('getComputedStyle(document.body).backgroundColor')
    dark = paper()
    tree = page.locator('.sidebar-tree')
    assert not tree.is_visible() or tree.bounding_box()['x'] < 0
    page.locator('.mobile-header label').first.click()
    page.wait_for_function("document.querySelector('.sidebar-tree').getBoundingClientRect().x >= 0")
    page.reload()
    page.locator('.theme-toggle:visible').first.click()
    light = paper()
    page.goto((site/PAGES[-1]).as_uri())
    assert light != dark and light == paper() == 'rgb(255, 255, 255)' and trouble == []


@pytest.mark.parametrize('name', [0, 1, -1])
def test_pictures(site, offline, pictures, name):
    "Screenshots to look at: light, dark, and on a phone."
    for kind,how in dict(light={}, dark=dict(color_scheme='dark'), phone=dict(viewport=dict(width=390, height=844))).items():
        page,trouble = offline(site/PAGES[name], **(dict(viewport=dict(width=1400, height=1000)) | how))
        path = pictures/f"site-{PAGES[name].replace('/', '-').removesuffix('.html')}-{kind}.png"
        page.screenshot(path=path)
        assert trouble == [] and path.stat().st_size > 10_000


# ---------------------------------------------------------------- small sites

def test_faults_stop_the_build_and_are_named(tmp_path):
    "A broken link or anchor, and whatever would be loaded, stop the build; page and link are named, and the old site stays."
    links = {'[x](36_range.ipynb)': 'range.ipynb', '[x](other.ipynb#no)': "'no'", '[x](#not)': "'not'", '![x](no.png)': 'no.png',
             '![x](https://example.org/x.png)': 'opening it would ask https://example.org/x.png',
             '<a href="no.html">x</a>': 'broken link no.html'}
    top = checkout(tmp_path, index=[text('x')], other=[*map(text, links)])
    (top/'_docs').mkdir()
    with pytest.raises(b.SiteError) as e: b.build(top, top/'_docs', lambda s: None)
    for says in links.values(): assert re.search(rf'(?m)^other\.(ipynb|html)\b.*{re.escape(says)}', str(e.value)), (says, str(e.value))
    assert list((top/'_docs').iterdir()) == []


def test_what_the_search_reads():
    "Places of a page: headings and definitions with anchors; what follows a definition belongs to its heading again; sources stay out."
    html = """<nav>menu</nav><article role="main"><section id="ranges"><h1>ranges<a class="headerlink" href="#ranges">#</a></h1>
        <p>What <em>be</em>longs.</p><section id="fit"><h2>Fit</h2><dl class="py function"><dt id="nl.a.fit">fit(x)<a href="#"><span
        class="viewcode-link">[source]</span></a></dt><dd><p>Fits.<br/>It.</p></dd></dl>
        <details><summary>Source</summary><pre>secret</pre></details><p>After &amp; more.</p><pre>fit(1)</pre>
        <details><summary>Answer</summary><p>42</p></details><script>run()</script></section></section></article><p>foot</p>"""
    said = b.Places(html).said()
    assert [(p['anchor'], p['head'], p['text']) for p in said] == [('', 'ranges', 'What belongs.'), ('fit', 'Fit', ''),
        ('nl.a.fit', 'fit', 'fit(x) Fits. It.'), ('fit', 'Fit', 'After & more. Answer 42')]
    assert (said[2]['name'], said[3]['code']) == ('nl.a.fit', 'fit(1)')
    groups = b.synonyms(TOP)
    for pair in ({'broken', 'flip rate'}, {'site', 'hook point'}, {'erase', 'remove'}): assert any(pair <= set(g) for g in groups), pair
    assert not any({'target', 'auxiliary'} <= set(g) or {'prompt', 'verbalizer'} <= set(g) for g in groups)


def test_text_stays_text_and_options_are_honoured(tmp_path, offline):
    "What data say never becomes a tag; stored styles keep to themselves; cell options do what they say; formulas are MathML."
    define = f'#| exports\ndef f(\n    a:int|None=None, # One `|` two {BAD}\n): # Same\n    "Doc {BAD}"\n    return a'
    cells = [code('#| default_exp data'), code(define), code(f'x = "{BAD}"', BAD), code('y', {'text/plain': BAD}),
             code('#| hide\nhidden()'), code('#| echo: false\nunseen()', 'shown output'), code('#| output: false\nseen()', 'gone'),
             code('#| include: false\nboth()', 'gone'),
             code('z', {'text/html': '<style>p{color:red}</style><p>kept</p>'}), text('Formula $x^2$ and `f`.')]
    top = checkout(tmp_path, index=cells)
    b.build(top, top/'_docs', lambda s: None)
    page,trouble = offline(top/'_docs/index.html')
    shown = page.locator('article').inner_text()
    assert shown.count(BAD) >= 5 and page.locator('article img, article script').count() == 0 and trouble == []
    assert 'shown output' in shown and 'seen()' in shown and not re.search(r'gone|hidden\(|unseen|both\(|#\|', shown)
    html = (top/'_docs/index.html').read_text(encoding='utf-8')
    assert '@scope {p{color:red}}' in html and '<math' in html and re.search(r'href="#neuronlens\.data\.f"><code', html)
    assert page.evaluate("getComputedStyle(document.querySelector('article > section > p')).color") != 'rgb(255, 0, 0)'


@pytest.mark.parametrize('html', ['<script>alert(1)</script>', BAD, '<a href="javascript:alert(1)">x</a>'])
def test_outputs_that_run_are_refused(tmp_path, html):
    "Stored HTML is kept as it is, so HTML that runs something stops the build."
    with pytest.raises(b.SiteError, match='nbs/index.ipynb: a stored output would run code'):
        b.stage(checkout(tmp_path, index=[code('x', {'text/html': html})]))


def test_documentation():
    "Name, parameters with type, default and meaning, and what comes back, as written by hand; for Quarto under a heading."
    said = """def f(
    a, # First
    b:int|None=None, # Second,
        # over two lines
    *c, d='#', **e, # Rest
)->tuple: # Both
    'Doc.'"""
    params,back = b.signature(b.ast.parse(said).body[0], said.split('\n'))
    assert params[:2] == [('a', '', '', 'First'), ('b', 'int | None', 'None', 'Second, over two lines')] and back == ('tuple', 'Both')
    assert [p[0] for p in params[2:]] == ['*c', 'd', '**e'] and params[4][3] == 'Rest'
    assert b.api(said, 'm').startswith("~~~~{py:function} f(a, b=None, *c, d='#', **e) -> tuple\n:module: m\n\nDoc.")
    assert b.api(said, 'm', quarto=True).startswith("### `f` {#f}\n\n```python\nf(a, b=None, *c, d='#', **e) -> tuple\n```")
    done = b.api('class C:\n    "About."\n    n:int=1 # How many\n    @property\n    def p(self): "One."\n    def _q(self): pass', 'm')
    assert '| `n` | `int` | `1` | How many |' in done and '{py:property} p\n' in done and '_q' not in done


def test_quarto_gets_the_prepared_notebooks(tmp_path):
    "Where Quarto is installed it renders the prepared notebooks and runs nothing; pages that are not written are named and left out."
    top = checkout(tmp_path/'top', index=[text('[r](3_other.ipynb)'), code('#| hide\nx = 1')], **{'3_other': [text('y')], 'soon': []})
    (top/'nbs/soon.ipynb').unlink()
    fake,log = tmp_path/'bin/quarto', tmp_path/'log.json'
    fake.parent.mkdir()
    fake.write_text(f'#!{sys.executable}\nimport json, os, pathlib, sys\n'
                    f'pathlib.Path({str(log)!r}).write_text(json.dumps(dict(args=sys.argv[1:], cwd=os.getcwd())))\n'
                    'out = pathlib.Path(sys.argv[sys.argv.index("--output-dir")+1])\nout.mkdir(parents=True)\n'
                    '(out/"index.html").write_text("x")\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run([sys.executable, TOP/'site/build.py', '--top', top], capture_output=True, text=True,
                          env=os.environ | {'PATH': f"{fake.parent}{os.pathsep}{os.environ['PATH']}"})
    assert done.returncode == 0 and 'there is no nbs/soon.ipynb' in done.stdout, done.stderr
    called = json.loads(log.read_text())
    assert called['args'][:2] == ['render', '--no-execute'] and Path(called['cwd']) == top/'_proc' and (top/'_docs/index.html').is_file()
    shown = yaml.safe_load((top/'_proc/_quarto.yml').read_text())
    assert shown['website']['sidebar']['contents'] == ['index.ipynb', 'other.ipynb'] and (top/'_proc/offline.scss').is_file()
    staged = (top/'_proc/index.ipynb').read_text()
    assert '[r](other.ipynb)' in staged and 'x = 1' not in staged
    html = CONFIG['format']['html'] # Quarto's own themes load fonts, and its mathematics a script, from the web
    assert html['html-math-method'] == 'mathml' and all('offline.scss' in theme for theme in html['theme'].values())
    assert '$web-font-path: false' in (TOP/'site/offline.scss').read_text()


def test_readers_that_are_programs(site):
    "A list of all pages with what each promises, and all of their text: every public definition with its meaning, no markup of a page."
    listed, whole = ((site/n).read_text(encoding='utf-8') for n in ('llms.txt', 'llms-full.txt'))
    links = re.findall(r'^- \[(.+)\]\((.+)\): (.+)$', listed, re.M)
    assert [u for _,u,_ in links] == PAGES and all((site/u).is_file() for u in PAGES)
    assert re.match(r'# neuronlens\n\n> .+\n', listed) and listed.count('\n## ') == len({s for s,_ in LISTED if s})
    starts = [whole.index(f'<!-- {p} -->') for p in PAGES]
    assert starts == sorted(starts) and '{py:function}' not in whole
    for name in ('fit_ranges', 'record', 'measure_effects'): assert re.search(rf'### `{name}` .*\n+```python\n{name}\(', whole), name
    assert 'half width in class standard deviations' in whole.lower() # The comment of a parameter
