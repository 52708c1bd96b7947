"""What an intervention did, by hand: every measure on texts whose numbers can be added up on paper."""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from neuronlens.edits.effects import MEASURES, changes_of, disturbance, effects_of, load_effects, measure, measure_effects, tally
from neuronlens.edits.evidence import compare, contributions, intervals
from neuronlens.ground.core import InputError
from neuronlens.ground.setting import Setting

# Five texts of three classes; the edit aims at class 0
GOLD = np.array([0, 0, 1, 1, 2])
BEFORE = np.array([[.7, .2, .1], [.4, .5, .1], [.1, .8, .1], [.6, .3, .1], [.2, .2, .6]])
AFTER = np.array([[.2, .5, .3], [.5, .3, .2], [.3, .4, .3], [.1, .8, .1], [.5, .1, .4]])
FIRES = np.array([1., .5, .25, 0., .75])


def test_disturbance_is_total_variation():
    "Half the sum of absolute changes: with three classes more than the largest change alone, and no less than it."
    before, after = np.array([[.5, .3, .2]]), np.array([[.1, .5, .4]])
    assert disturbance(before, after)[0] == pytest.approx(.4)
    assert disturbance(np.array([[.4, .4, .1, .1]]), np.array([[.1, .1, .4, .4]]))[0] == pytest.approx(.6) # The largest change is .3
    assert disturbance(np.array([[1., 0, 0]]), np.array([[0, .5, .5]]))[0] == pytest.approx(1)
    np.testing.assert_allclose(disturbance(BEFORE, np.stack([AFTER, BEFORE])), [[.5, .2, .4, .5, .3], [0]*5], atol=1e-12)


def test_every_measure_by_hand():
    "Auxiliary texts are 2, 3 and 4; of these 2 and 4 were right before, and 4 is broken."
    m = measure(GOLD, 0, BEFORE, AFTER, FIRES)
    assert list(m) == list(MEASURES)
    wanted = dict(target_accuracy=.5, target_confidence=(.2+.5)/2, auxiliary_accuracy=2/3, auxiliary_confidence=(.4+.8+.4)/3,
                  disturbance=(.4+.3)/2, broken=.5, fires_on_target=.75, fires_on_auxiliary=1/3)
    assert m == pytest.approx(wanted)
    assert measure(GOLD, 2, BEFORE, AFTER, FIRES)['disturbance'] == pytest.approx((.5+.4)/2) # 0 and 2 were right, 1 and 3 were not
    assert measure(GOLD, 2, BEFORE, AFTER, FIRES)['broken'] == .5


def test_sums_add_up():
    "In batches, and for several edits at once."
    both = np.stack([AFTER, BEFORE])
    fires = np.stack([FIRES, 0*FIRES])
    sums, counts = tally(GOLD, [0, 1], BEFORE, both, fires)
    np.testing.assert_array_equal(counts, [[2, 2, 3, 3, 2, 2, 2, 3], [2, 2, 3, 3, 2, 2, 2, 3]])
    np.testing.assert_allclose(sums[1], [1, .8+.3, 2, .7+.4+.6, 0, 0, 0, 0])
    parts = [tally(GOLD[r], [0, 1], BEFORE[r], both[:, r], fires[:, r]) for r in ([0, 4], [1], [2, 3])]
    for whole, part in zip((sums, counts), zip(*parts, strict=True), strict=True): np.testing.assert_allclose(whole, sum(part))


def outcome(**kw):
    iv = Setting('a', edit='zero', site='residual.1')
    full = replace(iv, condition='full', range='full')
    vote = replace(iv, concept='c', range='gaussian(2)', vote=.5, fitted_at='tokens', fraction=.2)
    return SimpleNamespace(interventions=[full, iv, vote], classes=('a', 'b', 'c'), labels=GOLD, before=BEFORE,
                           after=np.stack([AFTER, BEFORE, AFTER]), fires=np.stack([FIRES]*3), **kw)


def test_the_table_has_a_base_row_for_every_setting(tmp_path):
    e = measure_effects(outcome())
    assert e.frame[['concept', 'condition', 'range', 'fraction']].values.tolist() == [
        ['a', 'base', 'none', .5], ['a', 'full', 'full', .5], ['a', 'range', 'gaussian(2.5)', .5], ['c', 'base', 'none', .2],
        ['c', 'range', 'gaussian(2)', .2]]
    assert e.frame.vote.tolist() == [0, 0, 0, 0, .5] and e.frame.fitted_at.tolist() == ['readout']*4+['tokens']
    assert e.frame.n_target.tolist() == [2, 2, 2, 1, 1] and e.frame.n_auxiliary.tolist() == [3, 3, 3, 4, 4]
    for k, v in measure(GOLD, 0, BEFORE, AFTER, FIRES).items(): assert e.frame[k][1] == pytest.approx(v)
    for k, v in measure(GOLD, 2, BEFORE, BEFORE, 0*FIRES).items(): assert e.frame[k][3] == pytest.approx(v)
    macro = e.only(condition='base').macro()
    assert macro.concepts.tolist() == [1, 1] and macro.target_accuracy.tolist() == [.5, 1]
    again = load_effects(e.save(tmp_path/'e.csv')).frame
    np.testing.assert_allclose(again[list(MEASURES)], e.frame[list(MEASURES)])


def test_many_interventions_are_measured_in_parts():
    "More numbers than are looked at at once: every row is that of its own intervention."
    rng, N, C, I = np.random.default_rng(0), 2100, 40, 60
    p = rng.random((I+1, N, C)).astype(np.float32)
    p /= p.sum(-1, keepdims=True)
    y = rng.integers(0, C, N)
    ivs = [Setting(str(i % C), 'full', 's', 'r', (i+1)/I, 'full', edit='zero') for i in range(I)]
    o = SimpleNamespace(interventions=ivs, classes=tuple(map(str, range(C))), labels=y, before=p[0], after=p[1:], fires=np.ones((I, N)))
    df = measure_effects(o).frame
    own = df[df.condition == 'full'].reset_index()
    for i in (0, 30, I-1): assert own.disturbance[i] == pytest.approx(measure(y, i % C, p[0], p[i+1], np.ones(N))['disturbance'])


def test_what_is_no_answer_is_refused():
    o = outcome()
    o.after = np.where(np.arange(3)[:, None, None] == 1, np.inf, o.after)
    with pytest.raises(InputError, match="edit 'zero' for concept 'a': the answers are not finite"): measure_effects(o)
    with pytest.raises(InputError, match='class number 2 has answers that are not finite'): measure(GOLD, 2, BEFORE, AFTER*np.nan, FIRES)
    for bad in (dict(before=BEFORE[:3]), dict(after=AFTER[:, :2]), dict(fires=FIRES[:2]), dict(labels=GOLD+1), dict(concept=3)):
        with pytest.raises(InputError): measure(**dict(labels=GOLD, concept=0, before=BEFORE, after=AFTER, fires=FIRES) | bad)


def test_answers_that_are_no_numbers_name_an_edit():
    "Also where one array of answers stands for several edits."
    before, fires = np.full((4, 2), .5), np.ones((2, 4))
    for after in (np.full((1, 4, 2), np.nan), np.stack([before, before*np.inf])):
        with pytest.raises(InputError, match='aimed at class number . has answers that are not finite'):
            tally(np.array([0, 1, 0, 1]), np.array([0, 1]), before, after, fires)


@pytest.mark.parametrize('of', [measure_effects, changes_of, intervals, lambda o: contributions(o, 'broken'),
                                lambda o: compare(o, 'full', 'range'),
                                lambda o: effects_of(o.interventions, o.classes, (np.ones((3, 8)),)*2, (np.ones((3, 8)),)*2)])
@pytest.mark.parametrize('concept', [-1, 3, True, None])
def test_an_edit_of_no_class_is_refused(of, concept):
    "What erases all classes at once has no class of its own: it must not stand in the row of the last."
    o = outcome()
    o.interventions[1] = replace(o.interventions[1], concept=concept)
    with pytest.raises(InputError, match=rf"intervention 1 \(range, zero\) is of no class: concept {concept}"): of(o)
