"""Statistics and quantile sketches against other libraries, in any split and order, in half precision, and in time."""
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch
from datasketches import tdigest_float
from safetensors.numpy import load, save
from scipy import stats

from neuronlens.arrays.distributions import fit_distributions
from neuronlens.arrays.quantiles import ClassQuantiles, batch_quantiles, merge_quantiles
from neuronlens.arrays.ranges import fit_ranges, quantile
from neuronlens.arrays.saliency import rank
from neuronlens.arrays.statistics import ClassStatistics, batch_statistics, class_statistics, merge_statistics, merged, moments, pooled
from neuronlens.ground.core import InputError

ABC = ('a', 'b', 'c')
FIELDS = ('mean', 'm2', 'm3', 'm4', 'abs_mean')


def make(n, D=4, seed=0, loc=0., scale=1.):
    "acts [n, D] float32 of skewed neurons, labels [n] of three classes."
    rng = np.random.default_rng(seed)
    return (rng.gamma(2, scale, size=(n, D))+loc).astype(np.float32), rng.integers(0, 3, n)


def cut(acts, labels, k, seed=0, measure=batch_statistics, **kw):
    "`k` batches of very different sizes, some empty, in mixed order; the last third holds no class c."
    rng = np.random.default_rng(seed)
    order = np.r_[(p := rng.permutation(len(acts)))[labels[p] == 2], p[labels[p] != 2]]
    ends = np.sort(rng.integers(0, len(acts)+1, k-1))
    parts = [measure(acts[r], labels[r], ABC, **kw) for r in np.split(order, ends)]
    return [parts[i] for i in rng.permutation(k)]


def close(a, b, rtol=1e-9):
    for name in FIELDS: np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=rtol, atol=1e-9)
    for name in ('n', 'low', 'high'): np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# --- moments

@pytest.mark.parametrize('k', [1, 2, 3, 32, 33, 34, 150])
@pytest.mark.parametrize('seed', [0, 1])
def test_any_number_of_parts_is_one_pass_of_scipy(k, seed):
    acts, labels = make(700, seed=seed)
    parts = cut(acts, labels, k, seed)
    assert k < 3 or any((p.n == 0).any() for p in parts)
    whole = merge_statistics(iter(parts))
    for c in range(3):
        own = acts[labels == c].astype(np.float64)
        np.testing.assert_allclose(whole.mean[c], own.mean(0), rtol=1e-12)
        np.testing.assert_allclose(whole.sd[c], own.std(0), rtol=1e-12)
        np.testing.assert_allclose(whole.skew[c], stats.skew(own), rtol=1e-9)
        np.testing.assert_allclose(whole.kurtosis[c], stats.kurtosis(own, fisher=False), rtol=1e-9)
        np.testing.assert_allclose(whole.abs_mean[c], abs(own).mean(0), rtol=1e-12)
        np.testing.assert_array_equal((whole.low[c], whole.high[c]), (own.min(0), own.max(0)))
    close(merge_statistics(parts[::-1]), whole)
    close(class_statistics(acts, labels, ABC), whole)


def test_merging_two_in_turn_is_merging_all():
    parts = cut(*make(300), 40)
    one = parts[0]
    for p in parts[1:]: one = merged(one, p)
    close(one, merge_statistics(parts))


def pairwise(na, a, nb, b):
    "Two batches by Pébay 2008, equations 2.1 to 2.3: another way to the same numbers."
    (ma, a2, a3, a4), (mb, b2, b3, b4), n = a, b, na+nb
    d = mb-ma
    return (ma+d*nb/n, a2+b2+d**2*na*nb/n, a3+b3+d**3*na*nb*(na-nb)/n**2+3*d*(na*b2-nb*a2)/n,
            a4+b4+d**4*na*nb*(na**2-na*nb+nb**2)/n**3+6*d**2*(na**2*b2+nb**2*a2)/n**2+4*d*(na*b3-nb*a3)/n)


def test_two_parts_are_as_published():
    rng = np.random.default_rng(0)
    x, y = rng.gamma(1, size=(7, 5)), rng.normal(3, 2, size=(40, 5))
    a, b = moments(x.astype(np.float32)), moments(y.astype(np.float32))
    np.testing.assert_allclose(pooled([7, 40], [a, b])[:4], pairwise(7, a[:4], 40, b[:4]), rtol=1e-11)


def test_a_class_no_part_has_stays_empty():
    acts, labels = make(60)
    s = merge_statistics(batch_statistics(acts[labels == c], labels[labels == c], ABC) for c in (0, 1))
    assert s.n[2] == 0 and (s.mean[2] == 0).all() and np.isnan(s.sd[2]).all()
    assert (s.low[2] == np.inf).all() and (s.high[2] == -np.inf).all()


@pytest.mark.parametrize('value', [.1, -3e4, 1e-30, 1/3, 0.])
def test_a_constant_neuron_has_variance_0(value):
    "Exactly 0, also after doubling the data forty times."
    acts, labels = np.full((500, 2), value, np.float32), np.arange(500) % 3
    s = merge_statistics(cut(acts, labels, 60))
    for _ in range(40): s = s.merge(s)
    assert s.n.sum() == 500*2**40 and not np.isnan(s.sd).any()
    for name in ('m2', 'm3', 'm4', 'sd'): assert (getattr(s, name) == 0).all(), name
    assert (s.mean == np.float64(np.float32(value))).all()


def test_a_large_offset_costs_no_accuracy():
    rng = np.random.default_rng(0)
    acts, labels = (1e4+rng.normal(0, 1e-2, (20000, 3))).astype(np.float32), rng.integers(0, 3, 20000)
    s = merge_statistics(cut(acts, labels, 200))
    for c in range(3):
        exact = acts[labels == c].astype(np.float64)-1e4
        np.testing.assert_allclose(s.sd[c], exact.std(0), rtol=1e-9)
        np.testing.assert_allclose(s.kurtosis[c], stats.kurtosis(exact, fisher=False), rtol=1e-8)
        assert (abs(s.sd[c]-1e-2) < 5e-4).all()


def watched(parts, living, most):
    "The parts one at a time, noting how many of them exist."
    for p in parts:
        living.add(p)
        most.append(len(living))
        yield p
        del p


@pytest.mark.parametrize('measure, merge, size', [(batch_statistics, merge_statistics, 32), (batch_quantiles, merge_quantiles, 8)])
def test_a_generator_is_never_held_whole(measure, merge, size):
    acts, labels = make(300)
    living, most = weakref.WeakSet(), []
    merge(watched((measure(acts[i:i+3], labels[i:i+3], ABC) for i in range(0, 300, 3)), living, most))
    assert len(most) == 100 and max(most) <= size+3


def test_what_does_not_belong_together_is_refused():
    acts, labels = make(50)
    for measure, merge, what in ((batch_statistics, merge_statistics, 'statistics'), (batch_quantiles, merge_quantiles, 'quantiles')):
        a = measure(acts, labels, ABC)
        with pytest.raises(InputError, match=f"cannot merge {what} of classes"): merge([a, a, measure(acts, labels, ('a', 'c', 'b'))])
        with pytest.raises(InputError, match=f"cannot merge {what} of 4 and 3 neurons"): merge([a, measure(acts[:, :3], labels, ABC)])
        with pytest.raises(InputError, match=f"no {what} to merge"): merge(iter(()))


def test_a_thousand_parts_are_quick():
    "14 classes, 4,096 neurons: about 0.7 s of one processor; time of the processor, because others use it too."
    rng = np.random.default_rng(0)
    names = tuple(map(str, range(14)))
    def part(i):
        x = rng.normal(i, size=(14, 4096))
        return ClassStatistics(rng.integers(1, 9, 14), *(x+k for k in range(5)), *np.float32([x, x]), names)
    parts, took = [part(i) for i in range(50)], []
    for _ in range(2):
        start = time.process_time()
        s = merge_statistics(parts[i % 50] for i in range(1000))
        took.append(time.process_time()-start)
    assert s.n.sum() == 20*sum(p.n.sum() for p in parts)
    assert min(took) < 2


# --- quantiles

def rank_error(own, found, q):
    "Distance from `q` to the shares of `own [n, D]` below and up to `found [D]`, the worst neuron."
    return max((own < found).mean(0).max()-q, q-(own <= found).mean(0).min(), 0)


SHAPES = {'normal': lambda r, s: r.normal(size=s), 'heavy': lambda r, s: r.standard_t(2, size=s), 'gamma': lambda r, s: r.gamma(.5, size=s),
          'two': lambda r, s: r.normal(size=s)+6*(r.random(s) < .3), 'ties': lambda r, s: np.round(r.normal(size=s), 1),
          'relu': lambda r, s: np.maximum(0, r.normal(size=s)), 'far': lambda r, s: 1e4+r.normal(size=s)}


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('n, size', [(90, 90), (3000, 64), (30000, 1000), (30000, 30000)])
def test_rank_error_is_small(shape, n, size):
    "0.005 at the ends of the central 95 %, 0.01 at those of 90 %, 0.06 anywhere, and none at the extremes."
    rng = np.random.default_rng(0)
    acts = SHAPES[shape](rng, (n, 3)).astype(np.float32)
    q = merge_quantiles(batch_quantiles(acts[i:i+size], np.zeros(min(size, n-i), int), ABC) for i in range(0, n, size))
    bounds = {.005:.003, .025:.005, .05:.01, .25:.06, .5:.06, .75:.06, .95:.01, .975:.005, .995:.003}
    for share, bound in bounds.items(): assert rank_error(acts, q.quantile(share)[0], share) <= bound+1/n, share
    np.testing.assert_array_equal((q.quantile(0)[0], q.quantile(1)[0]), (acts.min(0), acts.max(0)))
    assert np.isnan(q.quantile(.5)[1:]).all()


def test_twice_the_size_is_less_error():
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(20000, 4)).astype(np.float32)
    def worst(k):
        q = merge_quantiles(batch_quantiles(acts[i:i+500], [0]*500, ABC, k=k) for i in range(0, 20000, 500))
        return max(rank_error(acts, q.quantile(s)[0], s) for s in np.linspace(.01, .99, 99))
    assert worst(400) < worst(100)/2


def test_few_examples_are_exact():
    for n in (1, 2, 3, 10, 40):
        acts = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
        q = batch_quantiles(acts, [1]*n, ABC)
        for share in (np.arange(n)+.5)/n:
            np.testing.assert_array_equal(q.quantile(share)[1], np.quantile(acts, share, axis=0, method='inverted_cdf'))


@pytest.mark.parametrize('k', [2, 8, 9, 10, 30])
def test_packing_changes_nothing(k):
    "The same bytes as live sketches merged one after the other."
    acts, labels = make(3000)
    sizes = np.array_split(np.arange(3000), k)
    q = merge_quantiles(batch_quantiles(acts[r], labels[r], ABC) for r in sizes)
    for c in range(3):
        for j in range(4):
            live = None
            for r in sizes:
                s = tdigest_float(100)
                s.update(np.sort(acts[r][labels[r] == c][:, j]))
                s.compress()
                if live is None: live = s
                else: live.merge(s)
            i = 4*c+j
            assert q.data[q.offsets[i]:q.offsets[i+1]].tobytes() == live.serialize()


def test_same_order_same_numbers_any_order_close():
    acts, labels = make(20000)
    parts = cut(acts, labels, 60, measure=batch_quantiles)
    one = merge_quantiles(parts)
    np.testing.assert_array_equal(one.data, merge_quantiles(iter(parts)).data)
    in_turn = parts[0]
    for p in parts[1:]: in_turn = in_turn.merge(p)
    np.testing.assert_array_equal(one.data, in_turn.data)
    for other in (merge_quantiles(parts[::-1]), batch_quantiles(acts, labels, ABC)):
        np.testing.assert_array_equal(other.n, np.bincount(labels))
        for s in (.025, .975):
            for c in range(3): assert rank_error(acts[labels == c], other.quantile(s)[c], s) < .006
    shuffled = np.random.default_rng(1).permutation(20000)
    np.testing.assert_array_equal(batch_quantiles(acts[shuffled], labels[shuffled], ABC).data, batch_quantiles(acts, labels, ABC).data)


def test_arrays_come_back_as_they_went():
    "Through safetensors; what is merged afterwards is the same to the byte, and looking changes nothing."
    acts, labels = make(4000)
    a, b, c = cut(acts, labels, 3, measure=batch_quantiles)
    a.quantile(.3)
    back = [ClassQuantiles.from_arrays(load(save(q.to_arrays())), ABC) for q in (a, b, c)]
    for x, y in zip((a, b, c), back, strict=True):
        assert x.classes == y.classes and x.k == y.k and x.neurons == y.neurons == 4
        for name in ('n', 'data', 'offsets'): np.testing.assert_array_equal(getattr(x, name), getattr(y, name))
    np.testing.assert_array_equal(merge_quantiles(back).data, merge_quantiles([a, b, c]).data)


def test_broken_arrays_are_refused():
    good = batch_quantiles(*make(50), ABC).to_arrays()
    for change in (dict(data=good['data'][:-1]), dict(offsets=good['offsets'][:-1]), dict(offsets=good['offsets']+1), dict(n=good['n'][:2]),
                   dict(offsets=good['offsets'][:0])):
        with pytest.raises(InputError, match="do not fit together"): ClassQuantiles.from_arrays(good | change, ABC)


def test_more_than_a_sketch_can_count_is_refused():
    q = batch_quantiles(*make(50), ABC)
    many = ClassQuantiles(q.n+2**31, q.data, q.offsets, ABC, q.k)
    with pytest.raises(InputError, match="a sketch counts to"): merge_quantiles([many, many])


def test_importing_is_cheap():
    code = "import sys, neuronlens.arrays.statistics, neuronlens.arrays.ranges; print('datasketches' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == 'False'


# --- half precision

HALVES = {'float16 array': lambda a: a.astype(np.float16), 'float16': lambda a: torch.tensor(a).half(),
          'bfloat16': lambda a: torch.tensor(a).bfloat16(), 'bfloat16, learnt': lambda a: torch.tensor(a).bfloat16().requires_grad_()}


@pytest.mark.parametrize('how', HALVES)
def test_every_measure_takes_half_precision(how):
    "The same as the same numbers in float32."
    acts, labels = make(120)
    half = HALVES[how](acts)
    wide = half.astype(np.float32) if how == 'float16 array' else half.detach().float().numpy()
    tensor_labels = torch.tensor(labels)
    close(class_statistics(half, tensor_labels), class_statistics(wide, labels), rtol=0)
    np.testing.assert_array_equal(batch_quantiles(half, labels, ABC).data, batch_quantiles(wide, labels, ABC).data)
    np.testing.assert_array_equal(fit_distributions(half, labels).ks, fit_distributions(wide, labels).ks)
    for kind in ('dprime', 'probeless', 'max_activation', 'random'):
        np.testing.assert_array_equal(rank(half, labels, kind).scores, rank(wide, labels, kind).scores)
    for kind in ('gaussian(1)', 'quantile(0.8)'):
        a, b = fit_ranges(half, labels, kind), fit_ranges(wide, labels, kind)
        np.testing.assert_array_equal((a.lo, a.hi), (b.lo, b.hi))
        np.testing.assert_array_equal(a.contains(half, 1), b.contains(wide, 1))


def test_sums_are_wider_than_activations():
    "Adding up in half precision stops at 2,048 in float16 and at 256 in bfloat16."
    ones, labels = np.ones((6000, 1)), np.repeat([0, 1], 3000)
    for half, stop in ((ones.astype(np.float16), 2048), (torch.tensor(ones).bfloat16(), 256)):
        naive = half[0]*0
        for row in half[:3000]: naive = naive+row
        assert naive == stop
        assert (class_statistics(half, labels).mean == 1).all()
        assert (merge_statistics(batch_statistics(half[i:i+50], labels[i:i+50], ('a', 'b')) for i in range(0, 6000, 50)).mean == 1).all()
    big = np.float16([[300], [302], [300], [302]])
    assert (class_statistics(big, [0, 0, 1, 1]).sd == 1).all()


def test_infinity_of_half_precision_is_named():
    with np.errstate(over='ignore'): acts = np.array([[1.], [70000.]]).astype(np.float16)
    with pytest.raises(InputError, match="neuron 0 is inf in row 1"): class_statistics(acts, [0, 1])


# --- ranges from sketches

@pytest.mark.parametrize('q', [.5, .8, .9, .95, .99, 1])
def test_range_of_a_sketch_is_near_the_exact_one(q):
    acts, labels = make(9000)
    sketch = merge_quantiles(cut(acts, labels, 50, measure=batch_quantiles))
    made = fit_ranges(None, None, f'quantile({q})', quantiles=sketch)
    exact = fit_ranges(acts, labels, f'quantile({q})', classes=ABC)
    assert made.classes == exact.classes and made.name == exact.name
    bound = {1:0, .99:.006, .95:.006, .9:.012}.get(q, .06)
    for c in range(3):
        own = acts[labels == c]
        assert abs((own < made.lo[c, :, 0]).mean(0)-(own < exact.lo[c, :, 0]).mean(0)).max() <= bound
        assert abs((own > made.hi[c, :, 0]).mean(0)-(own > exact.hi[c, :, 0]).mean(0)).max() <= bound


def test_range_of_a_small_sketch_is_exact():
    acts, labels = make(45)
    for q in (.3, .5, .8, .95, 1):
        lo, hi = quantile(acts, labels, q)
        r = fit_ranges(None, None, f'quantile({q})', quantiles=batch_quantiles(acts, labels, ABC))
        np.testing.assert_array_equal((r.lo[..., 0], r.hi[..., 0]), (lo, hi))


def test_activations_come_before_sketches():
    acts, labels = make(90)
    other = batch_quantiles(acts+5, labels, ABC)
    np.testing.assert_array_equal(fit_ranges(acts, labels, 'quantile', quantiles=other).lo, fit_ranges(acts, labels, 'quantile').lo)
