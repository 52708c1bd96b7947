"""The documentation site: every page opens alone, in the order of `_quarto.yml`, finds what it promises, and runs nothing of the data."""
import base64
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).resolve().parents[1]
BAD = '<img src=x onerror=alert(1)>'
DOT = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
SITE = importlib.util.spec_from_file_location('site_build', TOP/'site/build.py')
b = importlib.util.module_from_spec(SITE)
sys.modules['site_build'] = b # Its dataclasses look themselves up
SITE.loader.exec_module(b)
CONFIG = yaml.safe_load((TOP/'_quarto.yml').read_text(encoding='utf-8'))


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The whole site, rendered once with pandoc: (folder, pages)."
    said = []
    out = tmp_path_factory.mktemp('site')/'docs'
    pages = b.build(TOP, out, said.append)
    assert not [s for s in said if s.startswith('skipped')], said
    return out, pages


def code(source, *outputs):
    "A code cell; a dict is a display, a text a stream."
    outs = [dict(output_type='stream', name='stdout', text=o) if isinstance(o, str) else
            dict(output_type='display_data', data=o, metadata={}) for o in outputs]
    return dict(cell_type='code', id='c', metadata={}, source=source, outputs=outs, execution_count=None)


def text(source): return dict(cell_type='markdown', id='m', metadata={}, source=source)


def doc(name, signature, about):
    "What nbdev stores for a documented name."
    said = f'---\n\n[source](https://example.org/x.py#L1)\n\n### {name}\n\n```python\n{signature}\n```\n\n*{about}*'
    return code(f'#| echo: false\n#| output: asis\nshow_doc({name})', {'text/markdown': said, 'text/plain': name})


def checkout(folder, **pages):
    "A small checkout: notebooks by name, the first of them home."
    (folder/'nbs').mkdir(parents=True)
    contents = [f'{n}.ipynb' for n in pages]
    shown = dict(project=dict(type='website'), website=dict(title='small', sidebar=dict(contents=contents)))
    (folder/'_quarto.yml').write_text(yaml.safe_dump(shown))
    (folder/'settings.ini').write_text((TOP/'settings.ini').read_text())
    for n,cells in pages.items():
        nb = dict(cells=[text(f'# {n}\n\n> Promise of {n}.'), *cells], metadata=dict(kernelspec=dict(name='python3', language='python')))
        (folder/'nbs'/f'{n}.ipynb').write_text(json.dumps(nb | dict(nbformat=4, nbformat_minor=5)))
    return folder


def render(top, out='_docs'):
    "The second half of a build, on notebooks that need nothing of nbdev."
    config,pages = b.stage(top, lambda s: None)
    (top/'_proc').mkdir(exist_ok=True)
    for p in (top/'nbs').glob('*.ipynb'): (top/'_proc'/p.name).write_bytes(p.read_bytes())
    nbs = b.finish(top, top/'_proc', pages)
    return b.with_pandoc(top, nbs, pages, config, top/out)


# ---------------------------------------------------------------- the real site

def test_everything_is_listed():
    "Every page of `_quarto.yml` is written, and every notebook is a page."
    listed = [p.source for p in b.listed(CONFIG)]
    there = {p.relative_to(TOP/'nbs').as_posix() for p in (TOP/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    assert set(listed) == there
    assert listed[0] == 'index.ipynb' and len(set(listed)) == len(listed)


def test_pages_open_alone(site, offline):
    "Every page opens from file:// without a request, an error or a warning; it fits a desk and a phone; its pictures say what they show."
    out,pages = site
    page,trouble = offline(out/'index.html', viewport=dict(width=1280, height=800))
    for p in pages:
        page.goto((out/p.out).as_uri())
        facts = page.evaluate("""() => ({h1: document.querySelectorAll('h1').length, lang: document.documentElement.lang,
            wide: document.documentElement.scrollWidth, mute: [...document.images].filter(i => !i.alt.trim()).length,
            runs: document.querySelectorAll('main script').length, body: document.querySelector('article').innerText.length})""")
        assert trouble == [], (p.out, trouble)
        assert facts['h1'] == 1 and facts['lang'] == 'en' and not facts['mute'] and not facts['runs'], (p.out, facts)
        assert facts['body'] > 300, p.out
        assert facts['wide'] <= 1280, p.out
        page.set_viewport_size(dict(width=390, height=800))
        assert page.evaluate('document.documentElement.scrollWidth') <= 390, p.out
        page.set_viewport_size(dict(width=1280, height=800))


def test_navigation(site):
    "Names and order are those of `_quarto.yml`, on every page; the links before and after walk through all of them."
    out,pages = site
    assert [p.source for p in pages] == [p.source for p in b.listed(CONFIG)]
    for i,p in enumerate(pages):
        html = (out/p.out).read_text(encoding='utf-8')
        nav = html.partition('<nav id="nav"')[2].partition('</nav>')[0]
        goals = [os.path.normpath(Path(p.out).parent/h) for h in re.findall(r'href="([^"]+)"', nav)]
        assert goals == [q.out for q in pages], p.out
        assert nav.count('aria-current="page"') == 1
        assert re.findall(r'<h2>([^<]+)</h2>', nav) == list(dict.fromkeys(q.section for q in pages if q.section))
        near = dict(re.findall(r'rel="(prev|next)" href="([^"]+)"', html))
        want = dict(prev=pages[i-1].out if i else None, next=pages[i+1].out if i+1 < len(pages) else None)
        assert {k: os.path.normpath(Path(p.out).parent/v) for k,v in near.items()} == {k: v for k,v in want.items() if v}


def test_search(site, offline):
    "A symbol and a title are found by typing, and Enter goes there; what is not there is said not to be."
    out,pages = site
    page,trouble = offline(out/'tutorials/emotion.html')
    page.keyboard.press('/')
    page.keyboard.type('fit_ranges')
    first = page.locator('#found a').first
    assert first.locator('strong').inner_text() == 'fit_ranges'
    page.keyboard.press('Enter')
    page.wait_for_url('**/ranges.html#fit_ranges')
    assert page.locator('#fit_ranges').is_visible()
    title = next(p.title for p in pages if p.source == 'speed.ipynb')
    page.fill('#search', title.lower())
    page.keyboard.press('ArrowDown')
    page.keyboard.press('ArrowUp')
    assert page.locator('#found a[aria-selected=true] strong').inner_text() == title
    page.keyboard.press('Enter')
    page.wait_for_url('**/speed.html')
    page.fill('#search', '<img src=x onerror=alert(1)>')
    assert 'Nothing is called that' in page.locator('#found').inner_text()
    assert trouble == []


def test_every_export_is_described(site):
    "Every public name of every room is on its page, with each parameter and what its comment says."
    out,pages = site
    names = {p.source: {e['title'] for e in p.entries if e['kind'] == 'symbol'} for p in pages}
    for p in pages:
        if not re.match(r'\d\d_', p.source): continue
        room = import_module(f'neuronlens.{Path(p.out).stem}')
        own = {n: getattr(room, n) for n in room.__all__}
        public = {n for n, x in own.items() if getattr(x, '__module__', '') == room.__name__ and hasattr(x, '__name__')}
        assert public and public <= names[p.source], p.source
    html = (out/'ranges.html').read_text(encoding='utf-8').partition('id="gaussian"')[2].partition('</section>')[0]
    assert 'gaussian(statistics, tau=2.5)' in re.sub(r'<[^>]+>', '', html)
    assert '<code>tau</code>' in html and 'Half width in class standard deviations' in html and 'statistics.html#ClassStatistics' in html


def test_links_hold(site):
    "No link of the whole site is broken, nothing is loaded from elsewhere, and links elsewhere are listed."
    out,pages = site
    faults,elsewhere = b.check(out)
    assert faults == []
    assert (out/'external-links.txt').read_text(encoding='utf-8').split() == elsewhere
    assert all(u.startswith('https://') for u in elsewhere)
    assert not [u for u in elsewhere if u.startswith('https://neuronlens.github.io')], 'links into the site stay in it'


def test_home_shows_the_picture_and_the_commands(site):
    "Home has the promise, the picture and the two commands, although nbdev keeps only the head of its first cell."
    out,_ = site
    html = (out/'index.html').read_text(encoding='utf-8')
    assert 'src="images/ranges.png"' in html and (out/'images/ranges.png').read_bytes() == (TOP/'nbs/images/ranges.png').read_bytes()
    assert 'make</span> demo' in html and 'make</span> test' in html and '<div class="lead">' in html


def test_theme_keyboard_and_menu(site, offline):
    "The theme follows the system until one is chosen, and stays chosen; the first tab stop skips to the content; a phone has a menu."
    out,_ = site
    page,trouble = offline(out/'index.html', color_scheme='dark', viewport=dict(width=390, height=800))
    paper = lambda: page.evaluate('getComputedStyle(document.body).backgroundColor')
    dark = paper()
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.className') == 'skip'
    assert not page.locator('#nav').is_visible()
    page.keyboard.press('Tab')
    page.keyboard.press('Enter')
    assert page.locator('#nav').is_visible() and page.get_attribute('.menu', 'aria-expanded') == 'true'
    page.click('.theme')
    assert page.get_attribute('.theme', 'aria-label') == 'Theme: light' and paper() != dark
    page.goto((out/'speed.html').as_uri())
    assert paper() == 'rgb(255, 255, 255)'
    page.click('.theme')
    assert paper() == dark and trouble == []


def test_print(site, offline):
    "On paper only the text is left."
    out,_ = site
    page,_ = offline(out/'ranges.html')
    page.emulate_media(media='print')
    for part in ('.top', '#nav', '.toc', '.steps'): assert not page.locator(part).first.is_visible(), part
    assert page.locator('article').is_visible()


def test_contrast():
    "Text, quiet text, links and code are legible on paper and shade, light and dark (WCAG 2: 4.5)."
    css = (TOP/'site/style.css').read_text(encoding='utf-8')
    blocks = re.findall(r':root[^{,]*\{([^}]*--paper[^}]*)\}', css)[:3]
    light,system,dark = [dict(re.findall(r'--([\w-]+): (#\w{6})', block)) for block in blocks]
    assert system == dark and light.keys() == dark.keys()
    def luminance(c):
        parts = [int(c[i:i+2], 16)/255 for i in (1, 3, 5)]
        r,g,bl = [v/12.92 if v <= .04045 else ((v+.055)/1.055)**2.4 for v in parts]
        return .2126*r+.7152*g+.0722*bl
    def contrast(x, y):
        lo,hi = sorted((luminance(x), luminance(y)))
        return (hi+.05)/(lo+.05)
    for theme in (light, dark):
        for ink in ('ink', 'quiet', 'link', 'kw', 'str', 'num', 'com', 'fun'):
            for paper in ('paper', 'shade', 'wash') if ink in ('ink', 'link') else ('paper', 'shade'):
                assert contrast(theme[ink], theme[paper]) >= 4.5, (ink, paper, theme[ink])
        assert contrast(theme['focus'], theme['paper']) >= 3


@pytest.mark.parametrize('name', ['index', 'ranges', 'paper', 'tutorials/emotion'])
def test_pictures(site, offline, pictures, name):
    "Screenshots to look at: light, dark, and on a phone."
    out,_ = site
    for kind,how in dict(light={}, dark=dict(color_scheme='dark'), phone=dict(viewport=dict(width=390, height=844))).items():
        page,trouble = offline(out/f'{name}.html', **(dict(viewport=dict(width=1400, height=1000)) | how))
        path = pictures/f"site-{name.replace('/', '-')}-{kind}.png"
        page.screenshot(path=path)
        assert trouble == [] and path.stat().st_size > 10_000


# ---------------------------------------------------------------- small sites

def test_same_bytes_twice(tmp_path):
    "Building again gives the same files, byte for byte."
    cells = [text('Text with $x^2$ and `code`.'), code('#| label: fig-a\nplot(a)', {'image/png': DOT}),
             code('f()', {'text/html': '<p>x</p>'}), doc('f', "def f(\n    x:int=1, # A number\n)->int: # Another", 'Adds.')]
    top = checkout(tmp_path, index=cells, other=[text('[home](index.ipynb)')])
    render(top, 'one')
    render(top, 'two')
    def files(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    one,two = files(tmp_path/'one'),files(tmp_path/'two')
    assert one == two and {'index.html', 'other.html', 'index_files/figure-1.png', 'search-index.js'} <= one.keys()
    assert one['index_files/figure-1.png'] == base64.b64decode(DOT)
    assert b'<math' in one['index.html'] and b'id="fig-a"' in one['index.html']


def test_real_page_twice(site, tmp_path):
    "A real page rendered again is the same."
    out,pages = site
    old = next(p for p in pages if p.source == '46_presets.ipynb')
    new = b.Page(old.source, old.section, old.title, old.about, old.out, classes=old.classes)
    b.content(json.loads((TOP/'_proc'/old.source).read_text(encoding='utf-8')), new, tmp_path)
    assert new.body == old.body and new.body in (out/old.out).read_text(encoding='utf-8')


@pytest.mark.parametrize('link,says', [
    ('[x](36_range.ipynb)', 'broken link 36_range.ipynb'), ('[x](other.ipynb#no)', 'broken link other.html#no'),
    ('![x](images/no.png)', 'broken link images/no.png'), ('[x](#no)', 'broken link #no'),
    ('![x](https://example.org/x.png)', 'opening it would ask https://example.org/x.png')])
def test_broken_links_are_refused(tmp_path, link, says):
    "A link to nowhere stops the build and is named with its page; the site that was there stays."
    top = checkout(tmp_path, index=[text('x')], other=[text('## Yes\n\n[good](#yes), [good](index.ipynb), [good](https://example.org)')])
    assert render(top) == ['https://example.org']
    before = (top/'_docs/other.html').read_bytes()
    top2 = checkout(tmp_path/'two', index=[text('x')], other=[text(link)])
    (top/'_docs').rename(top2/'_docs')
    with pytest.raises(b.SiteError, match='nbs/other.ipynb: '+re.escape(says)): render(top2)
    assert (top2/'_docs/other.html').read_bytes() == before


def test_text_stays_text(tmp_path, offline):
    "Markup in a text, a stream, a Markdown output, code or a docstring is shown, never run, and cannot close its box."
    cells = [code(f'f("{BAD}") # ```', {'text/plain': BAD+'\n```\n</pre><script>alert(2)</script>'}, f'</pre>{BAD}'),
             code('g()', {'text/markdown': BAD}), doc('h', f"def h(\n    x:str='{BAD}', # {BAD} | x\n)->str: # {BAD}", f'Says {BAD}.')]
    top = checkout(tmp_path, index=cells)
    render(top)
    page,trouble = offline(top/'_docs/index.html')
    asked = []
    page.on('dialog', lambda d: (asked.append(d.message), d.dismiss()))
    page.reload()
    page.fill('#search', 'h')
    shown = page.locator('article').inner_text()
    assert shown.count(BAD) >= 8 and '<script>alert(2)</script>' in shown
    assert page.locator('article img, article script').count() == 0 and asked == [] and trouble == []


@pytest.mark.parametrize('html', ['<script>alert(1)</script>', BAD, '<a href="javascript:alert(1)">x</a>'])
def test_outputs_that_run_are_refused(tmp_path, html):
    "Stored HTML is kept as it is, so HTML that runs something stops the build."
    top = checkout(tmp_path, index=[code('x', {'text/html': html})])
    with pytest.raises(b.SiteError, match='nbs/index.ipynb: a stored output would run code'): render(top)


def test_cell_directives(tmp_path):
    "Quarto's directives are honoured: echo, output, include, code-fold, captions."
    cells = [code('#| echo: false\nhidden_code()', 'shown output'), code('#| output: false\nshown_code()', 'hidden output'),
             code('#| include: false\nboth()', 'gone'), code('#| code-fold: show\n#| code-summary: "Exported source"\nfolded()'),
             code('#| fig-cap: "What it shows"\ndraw()', {'image/png': DOT})]
    render(checkout(tmp_path, index=cells))
    html = (tmp_path/'_docs/index.html').read_text(encoding='utf-8')
    assert 'hidden_code' not in html and 'shown output' in html and 'shown_code' in html and 'hidden output' not in html
    assert 'both()' not in html and 'gone' not in html and '<details class="fold" open><summary>Exported source</summary>' in html
    assert '<figcaption>What it shows</figcaption>' in html and 'alt="What it shows"' in html and '#|' not in html


def test_missing_pages_are_named(tmp_path):
    "A listed page that is not written is left out, and said to be."
    top,said = checkout(tmp_path, index=[text('x')]), []
    shown = yaml.safe_load((top/'_quarto.yml').read_text())
    shown['website']['sidebar']['contents'] += [dict(section='Soon', contents=['soon.ipynb'])]
    (top/'_quarto.yml').write_text(yaml.safe_dump(shown))
    _,pages = b.stage(top, said.append)
    assert [p.source for p in pages] == ['index.ipynb'] and len(said) == 1 and 'soon.ipynb' in said[0]
    assert 'soon' not in (top/'nbs/_quarto.yml').read_text().lower()


def test_signature():
    "Name, parameters with type, default and meaning, and what comes back, as written by hand."
    said = "def f(\n    a, # First\n    b:int|None=None, # Second,\n        # over two lines\n    *c, **d, # Rest\n)->tuple: # Both"
    name,params,back = b.signature(said)
    assert name == 'f' and back == ('tuple', 'Both')
    assert params[:2] == [('a', '', '', 'First'), ('b', 'int | None', 'None', 'Second, over two lines')]
    assert [p[0] for p in params[2:]] == ['*c', '**d'] and params[3][3] == 'Rest'
    assert b.signature("def g():")[1:] == ([], ('', ''))
    assert b.short_signature(name, params, back) == 'f(a, b=None, *c, **d) -> tuple'


def test_quarto_gets_the_processed_notebooks(tmp_path):
    "Where Quarto is installed it is asked to render nbdev's notebooks with the staged configuration, and to run nothing."
    first = '# home\n\n> One promise\n> over two lines.\n\nWhat follows the promise.'
    cells = [text('[r](https://neuronlens.github.io/neuronlens/other.html)'), code('#| hide\nx = 1')]
    top = checkout(tmp_path/'top', index=cells, other=[text('y')])
    nb = json.loads((top/'nbs/index.ipynb').read_text())
    nb['cells'][0]['source'] = first
    (top/'nbs/index.ipynb').write_text(json.dumps(nb))
    fake,log = tmp_path/'bin/quarto', tmp_path/'log.json'
    fake.parent.mkdir()
    fake.write_text(f'#!{sys.executable}\nimport json, os, pathlib, sys\n'
                    f'pathlib.Path({str(log)!r}).write_text(json.dumps(dict(args=sys.argv[1:], cwd=os.getcwd())))\n'
                    'out = pathlib.Path(sys.argv[sys.argv.index("--output-dir")+1])\nout.mkdir(exist_ok=True)\n'
                    '(out/"index.html").write_text("<a href=\'no.html\'>x</a>")\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run([sys.executable, TOP/'site/build.py', '--top', top], capture_output=True, text=True,
                          env=os.environ | {'PATH': f"{fake.parent}{os.pathsep}{os.environ['PATH']}"})
    assert done.returncode == 0, done.stderr
    called = json.loads(log.read_text())
    assert called['args'] == ['render', '--no-execute', '--output-dir', '../_docs'] and Path(called['cwd']) == top/'_proc'
    assert (top/'_proc/_quarto.yml').read_bytes() == (top/'nbs/_quarto.yml').read_bytes() == (top/'_quarto.yml').read_bytes()
    assert (top/'_proc/offline.scss').is_file() and (top/'_docs/index.html').is_file()
    staged = (top/'_proc/index.ipynb').read_text()
    assert 'One promise over two lines.' in staged and 'What follows the promise.' in staged and 'x = 1' not in staged
    assert '[r](other.html)' in staged
    assert 'index.html: broken link no.html' in done.stdout


def test_quarto_configuration_is_offline():
    "The themes of Quarto load fonts, and its mathematics a script, from the web: both are told not to."
    html = CONFIG['format']['html']
    assert html['html-math-method'] == 'mathml' and all('offline.scss' in theme for theme in html['theme'].values())
    assert '$web-font-path: false' in (TOP/'site/offline.scss').read_text()
