"""Which neurons of a language model carry a concept, in which ranges, and what editing just those ranges does.

    texts, models   read_texts read_chunks bbc_news split distinct · load_classifier minilm fine_tune · make_prompt calibrated
                    smollm2_prompted · record recording record_tokens summarise · InputError
    which neurons   rank rank_model register_ranking probe_layers
    when            Setting · class_statistics fit_distributions fit_ranges register_range
    what then       plan grid preset_grid PRESETS register_edit · linear_edit leace · editing generate · make_edit load_edit
    how well        ablate measure_effects sweep · intervals compare choose trade_off random_ranges shuffled_labels
                    information_left · firing_matrix range_purity set_overlap polysemantic_counts predicted_collateral
                    · language_effects firing_by_position
    look            explore write_report
    studies         demo_study read_study run_study load_study · load

Everything else is in its room, `nl.matching.cka` say; rooms stand on seven floors, each importing only from those below:
ground, models and arrays, records, edits, views, studies. A room that is called like a name is found on its floor:
`nl.records.recording`. Every name loads its room when it is first used.
The one hand-written file of the package.
"""
__version__ = "0.2.0"

import sys as _sys
from importlib import import_module as _import_module
from importlib.machinery import ModuleSpec as _ModuleSpec
from importlib.machinery import PathFinder as _PathFinder

_NAMES = { # Room: the names that most users need
    "ground.core": "InputError",
    "ground.data": "bbc_news distinct read_chunks read_texts split",
    "ground.setting": "Setting",
    "models.weights": "minilm",
    "models.model": "load_classifier",
    "models.prompt": "make_prompt",
    "models.prompted": "smollm2_prompted",
    "models.training": "fine_tune",
    "records.given": "recording",
    "records.recording": "record",
    "records.calibration": "calibrated",
    "records.summary": "summarise",
    "records.tokens": "record_tokens",
    "arrays.statistics": "class_statistics",
    "arrays.probing": "probe_layers",
    "arrays.saliency": "rank register_ranking",
    "arrays.distributions": "fit_distributions",
    "arrays.ranges": "fit_ranges register_range",
    "arrays.firing": "firing_matrix predicted_collateral range_purity",
    "arrays.overlap": "polysemantic_counts set_overlap",
    "edits.attribution": "rank_model",
    "edits.edit": "linear_edit register_edit",
    "edits.planning": "plan",
    "edits.ablation": "ablate",
    "edits.effects": "measure_effects",
    "edits.evidence": "compare intervals random_ranges shuffled_labels",
    "edits.sweeps": "grid sweep",
    "edits.erasure": "information_left leace",
    "edits.choice": "choose trade_off",
    "edits.presets": "PRESETS preset_grid",
    "edits.portable": "load_edit make_edit",
    "edits.language": "editing firing_by_position generate",
    "edits.reading": "language_effects",
    "views.workbook": "explore",
    "studies.spec": "demo_study read_study",
    "studies.study": "run_study",
    "studies.saved": "load load_study",
    "studies.report": "write_report",
}
_ROOMS = { # Floor: its rooms, also found without it
    "ground": "core refusals files progress data cache rounding scopes setting machine tables",
    "models": "trials batches weights model prompt verbalizers anatomy prompted hooks sites writing latents training",
    "arrays": "places statistics quantiles testing probing sparsity saliency separation distributions density regions bins ranges firing predicates formulas scores linguistics margins meaning groups modes axis corners scrambling scale gates overlap matching profile",
    "records": "provenance remote fingerprint store shards sources given recording calibration summary untrained tokens cluster",
    "edits": "partners asks edit planning ablation attribution effects evidence farm sweeps erasure controls presets choice questions language portable attached explaining reading live states meant lens left further",
    "views": "drawing plots plot_effects plot_erasure plot_meaning plot_sweeps plot_overlap cards slider charts widgets inspect erase_view overlap_view meaning_view workbook explorer",
    "studies": "fields door verify spec saved study findings report serve check evals cli",
}
_LATER = { # Names offered here until 0.2, and where they are; they go with 0.4
    "ground.data": "Texts make_texts", "ground.setting": "settings_grid", "models.model": "Classifier smollm2", "models.prompt": "Prompt",
    "models.prompted": "load_prompted", "models.writing": "generated_answers",
    "records.given": "Recording", "records.recording": "load_recording recorded", "records.cluster": "summarise_on_ray",
    "arrays.probing": "fit_probe site_differences", "arrays.sparsity": "elastic_net_path probe_by_count sparsest_probe",
    "arrays.saliency": "RANKINGS", "arrays.separation": "bhattacharyya", "arrays.distributions": "compare_fits", "arrays.ranges": "RANGES",
    "arrays.overlap": "pair_overlap", "arrays.matching": "cka family_overlap matched_neurons ranking_agreement",
    "edits.attribution": "MODEL_RANKINGS attribute", "edits.edit": "EDITS", "edits.effects": "load_effects",
    "edits.evidence": "over_seeds", "edits.sweeps": "interventions", "edits.choice": "matched", "edits.erasure": "mean_projection readability", "edits.presets": "preset",
    "edits.reading": "multiple_choice perplexity", "edits.questions": "read_questions", "views.inspect": "NeuronView TextView",
    "views.erase_view": "EraseView", "views.overlap_view": "OverlapView", "views.workbook": "LayersView Workbook",
    "studies.saved": "Study", "studies.fields": "StudySpec",
}
_MOVED = { # Modules by the paths they had until 0.2: where else than in the room of that name their contents are
    "data": "core files machine", "cache": "files", "model": "weights batches trials", "statistics": "quantiles core",
    "store": "provenance files machine", "recording": "given summary shards provenance", "probing": "sparsity testing erasure",
    "saliency": "sparsity", "distributions": "separation", "ranges": "density regions bins", "overlap": "firing matching separation statistics study",
    "ablation": "planning edit attribution tokens", "hooks": "anatomy", "study": "spec saved", "evidence": "choice testing", "sweeps": "rounding",
    "plots": "plot_effects plot_sweeps plot_overlap", "prompt": "calibration prompted verbalizers writing", "language": "reading questions",
    "widgets": "cards inspect live profile", "report": "findings", "workbook": "charts erase_view overlap_view inspect cards widgets live setting",
    **dict.fromkeys("progress rounding setting training cluster attribution effects erasure presets cli".split(), ""),
}
_AT = {room: f"neuronlens.{floor}.{room}" for floor, rooms in _ROOMS.items() for room in rooms.split()}
_HOME, _FORMER = ({name: f"neuronlens.{room}" for room, names in of.items() for name in names.split()} for of in (_NAMES, _LATER))
__all__ = sorted(_HOME)


def _warn(old, now):
    from warnings import warn
    warn(f"{old} is {now} since 0.3 and goes with 0.4", DeprecationWarning, stacklevel=3)


def __getattr__(name):
    if name in _HOME:
        value = getattr(_import_module(_HOME[name]), name)
    elif name in _AT:
        value = _import_module(_AT[name])
    elif name in _ROOMS:
        return _import_module(f"neuronlens.{name}")
    elif name in _FORMER:
        room = _FORMER[name].rpartition('.')[2]
        _warn(f"nl.{name}", f"nl.{_FORMER[name].removeprefix('neuronlens.') if room in _HOME else room}.{name}")
        return getattr(_import_module(_FORMER[name]), name)
    else:
        raise AttributeError(f"module 'neuronlens' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__, *_AT})


class _Package(type(_sys)):
    "A floor finds its rooms; a room that was imported does not take the place of the name that it is called like."
    def __setattr__(self, name, value):
        if isinstance(value, type(_sys)) and name in _ROOMS:
            value.__getattr__ = lambda room: _room_of(name, room)
        if not (isinstance(value, type(_sys)) and name in _HOME): super().__setattr__(name, value)


def _room_of(floor, room):
    if room in _ROOMS[floor].split(): return _import_module(f"neuronlens.{floor}.{room}")
    raise AttributeError(f"module 'neuronlens.{floor}' has no attribute {room!r}")


class _Moved:
    "Finds modules by the paths they had until 0.2, with a warning."
    def find_spec(self, name, path=None, target=None):
        room = name.removeprefix("neuronlens.")
        return _ModuleSpec(name, self) if name.startswith("neuronlens.") and room in _MOVED else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        room = module.__name__.rpartition(".")[2]
        _warn(module.__name__, _AT[room])
        homes = [_AT[r] for r in (room, *_MOVED[room].split())]

        def find(name):
            for home in homes:
                if hasattr(there := _import_module(home), name):
                    return getattr(there, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        module.__getattr__, module.__doc__ = find, f"Moved to {', '.join(homes)}."


class _Told:
    "Finds rooms where Python does; once loaded, their docstrings also say what comments in the source say of parameters."
    said = None

    def find_spec(self, name, path=None, target=None):
        if name not in _PLACES:
            return None
        spec = _PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def tell(module):
            load(module)
            if _Told.said is None:
                from json import loads
                try: _Told.said = loads(__spec__.loader.get_data(__file__.removesuffix("__init__.py")+"help.json"))
                except OSError: _Told.said = {} # Not made yet, by tests/stub.py
            for place, more in _Told.said.get(name, {}).items():
                thing = module
                for part in place.split("."): thing = getattr(thing, part)
                thing.__doc__ = f"{thing.__doc__ or ''}\n\n{more}"
        spec.loader.exec_module = tell
        return spec


_PLACES = frozenset(_AT.values())
_sys.meta_path.insert(0, _Told())
_sys.meta_path.append(_Moved())
_sys.modules[__name__].__class__ = _Package
