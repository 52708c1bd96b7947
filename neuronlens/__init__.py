"""Which neurons of a language model carry a concept, in which ranges, and what editing just those ranges does.

The one hand-written file of the package: the names most users need, each loaded from its room when first used.
"""
__version__ = "0.2.0"

from importlib import import_module as _import_module

_ROOMS = {
    "core": "InputError",
    "data": "Texts bbc_news distinct make_texts read_chunks read_texts split",
    "setting": "Setting settings_grid",
    "model": "Classifier load_classifier minilm smollm2",
    "prompt": "Prompt calibrated generated_answers load_prompted make_prompt smollm2_prompted",
    "training": "fine_tune",
    "recording": "Recording load_recording record recorded",
    "summary": "summarise",
    "cluster": "summarise_on_ray",
    "statistics": "class_statistics",
    "probing": "fit_probe probe_layers site_differences",
    "sparsity": "elastic_net_path probe_by_count sparsest_probe",
    "saliency": "RANKINGS rank register_ranking",
    "separation": "bhattacharyya",
    "distributions": "compare_fits fit_distributions",
    "ranges": "RANGES fit_ranges register_range",
    "firing": "firing_matrix predicted_collateral range_purity",
    "overlap": "pair_overlap polysemantic_counts set_overlap",
    "matching": "cka family_overlap matched_neurons ranking_agreement",
    "attribution": "MODEL_RANKINGS attribute rank_model",
    "ablation": "EDITS ablate linear_edit plan record_tokens register_edit",
    "effects": "load_effects measure_effects",
    "evidence": "compare intervals over_seeds random_ranges shuffled_labels",
    "sweeps": "grid sweep",
    "erasure": "information_left leace mean_projection readability",
    "choice": "choose matched trade_off",
    "presets": "PRESETS preset preset_grid",
    "language": "editing firing_by_position generate language_effects multiple_choice perplexity read_questions",
    "widgets": "NeuronView TextView",
    "workbook": "EraseView LayersView OverlapView Workbook explore",
    "study": "Study StudySpec demo_study load_study read_study run_study",
    "report": "write_report",
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}
_MODULES = {*_ROOMS, "hooks", "plots", "plot_effects", "plot_overlap", "profile", "live", "cli"}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _HOME:
        value = getattr(_import_module(f"neuronlens.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = _import_module(f"neuronlens.{name}")
    else:
        raise AttributeError(f"module 'neuronlens' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__, *_MODULES})
