"""A graphics processor that is not there: tensors that stay in main memory, but say that they are on `cuda:0`.

Inside `with Pretend():` a tensor may be moved to devices of CUDA, which there are none of. Its numbers stay where they were; what changes
is what it says of its device, and that whatever a real device would refuse is refused: two devices in one operation, an array of numpy
of a tensor that is not in main memory, a generator of another device. So a test can find most mistakes about devices on a machine
without one. It does not find what is other arithmetic, memory that runs out, or anything that happens inside one call of torch.
"""
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device('cpu')
FREE = ('copy_', '__setstate__', '__repr__', '__format__', '__hash__', '__len__', 'size', 'dim', 'numel', 'item', 'tolist',
        'is_floating_point', '__reduce_ex__', '__deepcopy__', '_has_compatible_shallow_copy_type', 'set_data')
NEAR = ('numpy', '__array__')


def at(t):
    "Where a tensor says that it is."
    return t.__dict__.get('_pretended', CPU) if isinstance(t, torch.Tensor) else CPU


def put(t, device):
    "Let it say that."
    if isinstance(t, torch.Tensor): t.__dict__['_pretended'] = device
    return t


def full(device):
    "With its number, as tensors have it."
    device = torch.device(device) if not isinstance(device, int) else torch.device('cuda', device)
    return torch.device('cuda', 0) if device.type == 'cuda' and device.index is None else device


class MixedDevices(RuntimeError): "What a real device would refuse."


def refuse(name, *devices):
    raise MixedDevices(f'Expected all tensors to be on the same device, but {name} found {" and ".join(sorted(map(str, {*devices})))}')


class Pretend(TorchFunctionMode):
    "While it is on there are graphics processors, as far as torch is asked in Python."
    def __enter__(self):
        self.stack = ExitStack()
        gib = 1 << 30
        for name, value in dict(mem_get_info=lambda d=None: (60*gib, 80*gib), memory_reserved=lambda d=None: 0,
                                memory_allocated=lambda d=None: 0, empty_cache=lambda: None, synchronize=lambda d=None: None).items():
            self.stack.enter_context(patch.object(torch.cuda, name, value))
        return super().__enter__()

    def __exit__(self, *error):
        self.stack.close()
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, '__name__', '')
        of = getattr(getattr(func, '__self__', None), '__name__', '') # Of a property
        if name == '__get__':
            if of == 'device': return at(args[0])
            if of in ('is_cuda', 'is_cpu'): return at(args[0]).type == of[3:]
        if name == '__set__' and of == 'data':
            put(args[0], at(args[1]))
            return func(*args, **kwargs)
        if name in ('to', 'cuda', 'cpu'): return self.move(func, name, args, kwargs)
        if name in NEAR and at(args[0]).type != 'cpu':
            raise MixedDevices(f"can't convert {at(args[0])} device type tensor to numpy; use Tensor.cpu()")
        made = full(kwargs.pop('device')) if kwargs.get('device') is not None else None
        if made is not None: kwargs['device'] = 'cpu' if made.type == 'cuda' else made
        where = self.found(name, args, kwargs)
        if made is not None and (g := kwargs.get('generator')) is not None and g.device != made: refuse('generator', g.device, made)
        out = func(*args, **kwargs)
        given = {id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        to = made or where
        if to is not None:
            for t in tree_leaves(out):
                if isinstance(t, torch.Tensor) and (id(t) not in given or name.endswith('_')): put(t, to)
        return out

    def move(self, func, name, args, kwargs):
        "`to`, `cuda` and `cpu`: a copy that says it is there."
        x, rest = args[0], list(args[1:])
        target = CPU if name == 'cpu' else full(rest[0] if rest else kwargs.get('device') or 'cuda') if name == 'cuda' else None
        if name == 'to':
            target = at(x)
            for i, a in enumerate(rest):
                if isinstance(a, torch.Tensor): target, rest[i] = at(a), a.dtype
                elif isinstance(a, str | torch.device) or type(a) is int: target, rest[i] = full(a), None
            if kwargs.get('device') is not None: target = full(kwargs.pop('device'))
            kwargs = {k: v for k, v in kwargs.items() if k not in ('non_blocking', 'copy')}
            rest = [a for a in rest if a is not None and type(a) is not bool] # Whether to wait, and to copy: here always
            new = x.to(*rest, **kwargs) if rest or kwargs else x
        else: new = x
        if target.type == 'meta': return func(*args, **kwargs)
        if new is x and target != at(x): new = x.clone()
        return new if new is x else put(new, target)

    def found(self, name, args, kwargs):
        "The device of an operation; refuses two, as torch does: numbers alone may come from main memory, and so may indices."
        if name in FREE: return at(args[0]) if args else None
        if name == 'grad': return at(next(t for t in tree_leaves(args[1]) if isinstance(t, torch.Tensor))) # Slopes lie by their inputs
        if name in ('__getitem__', '__setitem__'):
            own = at(args[0])
            inside = [t for t in tree_leaves(args[1]) if isinstance(t, torch.Tensor)]
            for t in inside:
                if at(t).type != 'cpu' and at(t) != own: refuse(name, own, at(t))
            if name == '__setitem__' and inside and isinstance(args[2], torch.Tensor) and args[2].ndim and at(args[2]) != own:
                refuse(name, own, at(args[2]))
            return own
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if not tensors: return None
        devices = {at(t) for t in tensors if t.ndim} or {at(t) for t in tensors}
        devices |= {at(t) for t in tensors if at(t).type == 'cuda'}
        if len(devices) > 1: refuse(name, *devices)
        return next(iter(devices))


def moved(model, device):
    "A model whose weights say that they are there; to be called inside `Pretend`."
    return model.to(device)


def spread(model, blocks, devices):
    "A model over several devices as accelerate spreads it: each block on its own, what enters a block moved to it."
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    model.to(devices[0])
    for block, device in zip(blocks, devices, strict=True):
        block.to(device)
        add_hook_to_module(block, AlignDevicesHook(execution_device=device))
    inside = {id(m) for b in blocks for m in b.modules()}
    leaves = [m for m in model.modules() if id(m) not in inside and not [*m.children()] and [*m.parameters(recurse=False)]]
    for m in leaves: add_hook_to_module(m, AlignDevicesHook(execution_device=devices[0]))
    add_hook_to_module(model, AlignDevicesHook(execution_device=devices[0], io_same_device=True))
    return model


def all_tensors(x, fn): return tree_map(lambda t: fn(t) if isinstance(t, torch.Tensor) else t, x)
