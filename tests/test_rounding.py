"""What rounding makes stays well inside its bound, whatever order sums are taken in; what is wrong lies far outside."""
import copy

import numpy as np
import pytest
import torch
from test_architectures import NAMES
from tiny import BEYOND, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from neuronlens.ground.core import InputError
from neuronlens.ground.rounding import agree, apart, epsilon, rounding, score_size, steps_of
from neuronlens.models.anatomy import Site, anatomy
from neuronlens.models.hooks import hooked

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.randint(5, 99, (4, 20), generator=torch.Generator().manual_seed(0))
ROOM = .4 # Share of a bound that these may take up, so that another processor has as much again


class OneByOne(TorchDispatchMode):
    "Matrix products as sums of one product after the other, from either end, each rounded: no order is worse."
    def __init__(self, backwards=False):
        super().__init__()
        self.backwards, self.calls = backwards, 0

    def __torch_dispatch__(self, fn, types, args=(), kwargs=None):
        op = torch.ops.aten
        if fn not in (op.mm.default, op.bmm.default, op.addmm.default): return fn(*args, **(kwargs or {}))
        self.calls += 1
        out, (a, b) = (args[0] if fn is op.addmm.default else 0), args[-2:]
        for k in range(a.shape[-1])[::-1 if self.backwards else 1]: out = out+a[..., k:k+1]*b[..., k:k+1, :]
        return out


def states(model):
    "What every block hands on, and the logits."
    with torch.no_grad(): out = model(IDS, output_hidden_states=True)
    return [*out.hidden_states, out.logits]


def share(model, seen, exact):
    "The largest share of the bound that the difference to exact states takes up."
    return max(apart(a, b, model) for a, b in zip(seen, exact, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_rounding_stays_inside(name):
    "On this processor and in the worst orders of summation, three models each; and the bound is not a thousand times too wide."
    seen = []
    for seed in range(3):
        model = tiny_model(name, seed, attn_implementation="eager")
        exact = states(copy.deepcopy(model).double())
        seen.append(share(model, states(model), exact))
        for backwards in (False, True):
            with OneByOne(backwards) as order: seen.append(share(model, states(model), exact))
            assert order.calls > 15
    assert .005 < max(seen) < ROOM, seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_inside(name, dtype):
    "Sums are taken in float32, only their results are cut; the truth has the same weights."
    model = tiny_model(name).to(dtype)
    assert .01 < share(model, states(model), states(copy.deepcopy(model).double())) < 1
    assert epsilon(dtype) == torch.finfo(dtype).eps


@pytest.mark.parametrize("stream", ["residual", "mlp", "attention"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_lies_outside(name, stream):
    "One neuron edited too many, at one token of one text in one block: it shows wherever the answer is made of it."
    model = tiny_model(name)
    width, read = anatomy(model).widths[stream], -1 if anatomy(model).head == "last" else 0
    with torch.no_grad():
        plain = model(IDS[:1]).logits
        size = float(model(IDS).logits.abs().max())
        for block in range(3):
            for j in range(0, width, 5):
                def edit(h, j=j):
                    h = h.clone()
                    h[0, read, j] += h.abs().max()/2
                    return h
                with hooked(model, {Site(stream, block): edit}): far = apart(model(IDS[:1]).logits, plain, model, size=size)
                assert far > BEYOND, (block, j, far)


def test_deeper_and_wider_models_have_more_room():
    "By the root of the operations and of the width; half precision by its last place alone."
    model = tiny_model("bert")
    assert steps_of(model) == pytest.approx(28**.5*(1+16**.5)) and steps_of(model, 0) == pytest.approx(2*(1+16**.5))
    deep = tiny_model("bert", num_hidden_layers=12, hidden_size=64)
    assert steps_of(deep) == pytest.approx(100**.5*(1+64**.5))
    half = copy.deepcopy(deep).half()
    assert steps_of(half) == pytest.approx(100**.5*(1+64**.5/2**13))
    assert rounding(2, steps_of(half), half.dtype) == pytest.approx(4*10*(1+8/2**13)*2**-10*2)


def test_comparing():
    "Types, shapes, numbers that are none, places: what is said of them."
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for a in (x, x.tolist(), torch.tensor(x), [torch.tensor(r) for r in x]):
        agree(a, x, 1)
        assert apart(a, x*(1+1e-5), 1) > 1
    agree(x*(1+2**-23), x, 1)
    agree(np.full(3, 7.), 7, 1)
    with pytest.raises(InputError, match=r"shapes \(3, 4\) and \(4, 3\)"): agree(x, x.T, 1)
    wrong = x.copy()
    wrong[2, 1] += 1e-3
    with pytest.raises(AssertionError, match=r"site: .* at \[2, 1\]: rounding .* and 1 of 12 numbers"): agree(wrong, x, 1, what="site")
    wrong[2, 1] = np.nan
    with pytest.raises(AssertionError, match=r"nan is not .* at \[2, 1\]"): agree(wrong, x, 1)
    agree(wrong, wrong, 1)


def test_probabilities_are_measured_by_their_scores():
    "The same scores in float32 and float64, far apart or all alike: probabilities and their logarithms agree by the size of the scores."
    gen = torch.Generator().manual_seed(0)
    for scale in (.1, 1, 30):
        z = scale*torch.randn(500, 4, generator=gen, dtype=torch.float64)
        off = z+(torch.rand(500, 4, generator=gen, dtype=torch.float64)*2-1)*rounding(z.abs().max().item(), 10)
        for f in (torch.softmax, torch.log_softmax):
            assert .01 < apart(f(off, -1), f(z, -1), 10, size=score_size(f(z, -1))) < 2 # Scores off by all that they may be
