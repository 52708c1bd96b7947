"""Settings of Sphinx, and the two things it lacks: names that lead to their documentation, and formulas without a script."""
import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes

extensions = ['myst_nb', 'sphinx.ext.viewcode']
nb_execution_mode = 'off' # Stored outputs are what a page shows
nb_ipywidgets_js = {} # No script from the web
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4
html_math_renderer = 'mathml'
html_theme = 'furo'
FONTS = {'font-stack': 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif',
         'font-stack--monospace': 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'}
html_theme_options = dict(light_css_variables=FONTS | {'color-brand-primary': '#0b5cad', 'color-brand-content': '#0b5cad'},
                          dark_css_variables={'color-brand-primary': '#74b6f2', 'color-brand-content': '#74b6f2'})
html_logo = html_favicon = 'static/mark.svg'
html_static_path = ['static']
templates_path = ['templates']
html_sidebars = {'search': [f'sidebar/{part}.html' for part in ('brand', 'scroll-start', 'navigation', 'scroll-end')]} # It has one
html_css_files = ['site.css']
html_js_files = ['site.js']
html_show_sourcelink = html_copy_source = html_show_sphinx = html_show_copyright = False
toc_object_entries_show_parents = 'hide'
add_module_names = False


def above(node):
    "What a node stands in, inmost first."
    while node := node.parent: yield node


def name_links(app, doctree, docname):
    "Names in prose and tables lead to their documentation."
    goals = {}
    for full,o in app.env.domains['py'].objects.items():
        if (short := re.sub(r'^([a-z_]\w*\.)+(?=\w)', '', full)) not in goals or o.docname == docname: goals[short] = o
    for node in list(doctree.findall(nodes.literal)):
        goal,near,box = goals.get(node.astext().removesuffix('()')),node.parent,node.parent.parent
        own = isinstance(box, nodes.entry) and box is box.parent[0] and any(isinstance(n, addnodes.desc) for n in above(box)) # A parameter
        if goal is None or own or any(isinstance(n, nodes.reference | nodes.title) for n in (near, box)): continue
        where = app.builder.get_relative_uri(docname, goal.docname)+'#'+goal.node_id
        near.replace(node, nodes.reference('', '', node.deepcopy(), refuri=where, internal=True))


def mathml(self, node, block=False):
    "Formulas as MathML: no script, no font."
    self.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def levels(app, pagename, templatename, context, doctree):
    "Captions of the menu are headings; the theme does not say of which level."
    for k in ('furo_navigation_tree', 'body'):
        if k in context: context[k] = context[k].replace('class="caption" role="heading"', 'class="caption" role="heading" aria-level="2"')


def setup(app):
    "What Sphinx calls."
    app.connect('html-page-context', levels, priority=900) # After the theme
    app.add_html_math_renderer('mathml', (mathml, None), (lambda self, node: mathml(self, node, True), None))
    app.connect('doctree-resolved', name_links)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
