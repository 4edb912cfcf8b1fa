"""Whatever is done with the knobs, the user's model and torch's global state are as before, also when it fails."""

import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as global_hooks

import pathsum as ps
from tests import architectures as arch

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")


def tensor_facts(t):
    """Who it is, and its bits."""
    bits = t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    grad = None if t.grad is None else tensor_facts(t.grad)
    return id(t), t.untyped_storage().data_ptr(), t.dtype, t.shape, t.requires_grad, bits, grad


def facts(model):
    """All that a run could change: of the model, and of torch."""
    return {
        "parameters": {n: (*tensor_facts(p), p._version) for n, p in model.named_parameters()},
        "buffers": {n: tensor_facts(b) for n, b in model.named_buffers()},
        "modules": {n: (type(m), m.training, sorted(vars(m)), m.forward) for n, m in model.named_modules()},
        "hooks": {n: [len(getattr(m, h)) for h in HOOKS] for n, m in model.named_modules()},
        "global hooks": [len(getattr(global_hooks, h)) for h in GLOBAL_HOOKS],
        "random": torch.get_rng_state().numpy().tobytes(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
        "modes": torch.overrides._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
    }


def assert_same(before, after):
    assert before.keys() == after.keys()
    for what in before:
        assert before[what] == after[what], what


class Dropping(nn.Module):
    """Draws random numbers and counts its batches in train mode."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn, self.drop = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)

    def forward(self, x):
        x = x + self.drop(F.relu(self.bn(self.a(x))))
        return x + self.b(x)


MODELS = {
    "resnet": (arch.resnet20, lambda: torch.randn(2, 3, 16, 16)),
    "pre-ln": (arch.PreLNTransformer, lambda: torch.randint(11, (2, 5))),
    "tower": (
        lambda: ps.ResidualTower(3, 4, norm="batch", encoder="conv3x3", scale="learned:0.5", seed=0),
        lambda: torch.randn(2, 3, 6, 6),
    ),
    "dropout": (Dropping, lambda: torch.randn(5, 6)),
    "plain": (arch.VGG, lambda: torch.randn(2, 3, 8, 8)),
}
USES = {
    "anatomy": lambda net, x: ps.anatomy(net.model, x),
    "knobs": lambda net, x: ps.knobs(net.model, x),
    "run": lambda net, x: net(x),
    "lam": lambda net, x: net(x, lam=0.5),
    "alpha": lambda net, x: net(x, alpha=0.5),
    "series": lambda net, x: net(x, lam=ps.Series.variable(2)),
    "expand": lambda net, x: ps.expand(net, x, order=2),
    "spectrum": lambda net, x: ps.spectrum(net, x),
    "rescale": lambda net, x: net.rescale("learned:1/n", per="stage")(x),
    "fold": lambda net, x: net.rescale(0.3).fold(x),
    "without_norm": lambda net, x: net.without_norm("batch", x),
    "drop": lambda net, x: net.without_norm("all", x, keep="drop"),
    "param_groups": lambda net, x: net.param_groups(optimizer="adamw"),
    "print": lambda net, x: repr(net),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_left(model, use):
    build, inputs = MODELS[model]
    net = build().eval()
    x = inputs()
    net(x).sum().backward()  # so that there are gradients to keep
    knobs = ps.knobs(net, x)
    before = facts(net)
    try:
        USES[use](knobs, x)
    except ps.PathsumError:  # refused: no joins, no norms, no rule
        assert model in ("plain", "pre-ln", "dropout")
    assert_same(before, facts(net))


@pytest.mark.parametrize("use", ["anatomy", "knobs", "fold", "expand", "without_norm", "drop"])
@pytest.mark.parametrize("model", ["resnet", "tower", "dropout"])
def test_nothing_is_left_in_train_mode(model, use):
    """BatchNorm's statistics and the random numbers of dropout are given back; what needs eval mode refuses."""
    build, inputs = MODELS[model]
    net = build().train()
    next(net.children()).eval()  # modes may be mixed
    x = inputs()
    before = facts(net)
    knobs = ps.knobs(net, x)
    assert_same(before, facts(net))
    try:
        USES[use](knobs, x)
    except ps.PathsumError as error:
        assert "train mode" in str(error) or "normalization" in str(error) or "cannot be folded" in str(error)  # noqa: PT017
    assert_same(before, facts(net))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_gradient_mode_around_is_kept(context):
    model, x = arch.resnet20().eval(), torch.randn(2, 3, 32, 32)
    net = ps.knobs(model, x)
    with context():
        before = facts(model)
        net(x, lam=0.5)
        ps.expand(net, x, order=1)
        ps.knobs(model, x)
        assert_same(before, facts(model))
        assert net(x, lam=0.5).requires_grad == torch.is_grad_enabled()


def test_a_default_dtype_is_kept():
    torch.set_default_dtype(torch.float64)
    try:
        model = ps.ResidualMLP(depth=3, width=4, in_features=2, seed=0)
        net = ps.knobs(model, torch.zeros(1, 2)).rescale("1/n")
        ps.expand(net, torch.zeros(1, 2), order=2)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_buffer_that_the_forward_replaces_is_put_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return x + self.f(x)

    model = Counting()
    calls = model.calls
    ps.knobs(model, torch.randn(2, 4))
    assert model.calls is calls
    assert calls == 0


# ------------------------------------------------------------------------------------------------- memory


def live_tensors():
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


@pytest.mark.parametrize("use", ["anatomy", "knobs", "lam", "alpha", "series", "expand", "spectrum", "fold", "drop"])
def test_no_tensor_outlives_its_use_not_even_in_a_cycle(use):
    model = ps.ResidualTower(3, 4, norm="batch", encoder="conv3x3", seed=0).eval()
    x = torch.randn(2, 3, 6, 6)
    net = ps.knobs(model, x)
    USES[use](net, x)  # caches of torch's own
    gc.collect()
    gc.disable()  # what goes by reference counts alone is in no cycle
    try:
        before = live_tensors()
        y = torch.randn(2, 3, 6, 6)
        watched = weakref.ref(y)
        result = USES[use](net, y)
        del result, y
        assert watched() is None
        assert live_tensors() == before
    finally:
        gc.enable()


def test_the_model_goes_with_the_net():
    model = arch.resnet20().eval()
    net = ps.knobs(model, torch.randn(2, 3, 32, 32)).rescale("learned")
    ps.expand(net, torch.randn(1, 3, 32, 32), order=1)
    refs = [weakref.ref(model), weakref.ref(net), weakref.ref(net.lam_values)]
    del model, net
    gc.collect()
    assert all(r() is None for r in refs)


# --------------------------------------------------------------------------------------------- exceptions


class Fragile(nn.Module):
    """Fails in the middle of its second block, when told to."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn, self.error = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), None

    def forward(self, x):
        x = x + self.bn(torch.tanh(self.a(x)))
        h = self.b(x)
        if self.error is not None:
            torch.rand(3)
            raise self.error
        return x + torch.relu_(h)


@pytest.mark.parametrize(
    "error", [RuntimeError("inside"), KeyboardInterrupt(), ps.PathsumError("odd"), TypeError("no")]
)
@pytest.mark.parametrize("use", ["anatomy", "knobs", "lam", "alpha", "series", "expand", "spectrum"])
def test_a_failure_in_the_middle_leaves_nothing(use, error):
    model = Fragile().eval()
    x = torch.randn(5, 4)
    net = ps.knobs(model, x)
    expected = net(x, lam=0.5)
    model.error = error
    draws = use in ("lam", "alpha", "series")  # then the run is the user's, and so are its random numbers
    before = facts(model)
    with pytest.raises(type(error)):
        USES[use](net, x)
    after = facts(model)
    if draws:
        before.pop("random"), after.pop("random")
    assert_same(before, after)
    model.error = None
    assert torch.equal(net(x, lam=0.5), expected)


def test_a_failure_in_train_mode_gives_the_statistics_back():
    model = Fragile().train()
    model.error, x = RuntimeError("inside"), torch.randn(5, 4)
    before = facts(model)
    with pytest.raises(RuntimeError, match="inside"):
        ps.knobs(model, x)
    assert int(model.bn.num_batches_tracked) == 0
    assert_same(before, facts(model))


def test_a_function_without_a_rule_leaves_nothing():
    model = arch.DenseNet(arch.Bessel).eval()
    x = torch.randn(3, 6)
    net = ps.knobs(model, x)
    before = facts(model)
    with pytest.raises(ps.PathsumError, match="bessel_j0"):
        ps.expand(net, x)
    assert_same(before, facts(model))
    assert torch.equal(net(x), model(x))


# -------------------------------------------------------------------------------- nesting, modes, threads


class Watching(torch.overrides.TorchFunctionMode):
    """Another mode, of the user's."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("order", ["inside", "around"])
def test_other_function_modes_see_the_calls_and_change_nothing(order):
    model, x = arch.resnet20().eval(), torch.randn(2, 3, 32, 32)
    net = ps.knobs(model, x)
    expected, terms = net(x, lam=0.5), ps.expand(net, x, order=2).terms
    watching = Watching()
    if order == "around":
        with watching:
            assert torch.equal(ps.knobs(model, x)(x, lam=0.5), expected)
            assert torch.equal(ps.expand(net, x, order=2).terms, terms)
    else:
        forward = model.layer2.forward

        def watched(*args):
            with watching:
                return forward(*args)

        model.layer2.forward = watched
        assert torch.equal(net(x, lam=0.5), expected)
        assert torch.equal(ps.expand(net, x, order=2).terms, terms)
    assert watching.calls > 0


def test_knobs_on_a_knobbed_net():
    """The outer λ replaces what the inner one put in."""
    model, x = arch.resnet20().eval().double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    inner = ps.knobs(model, x).rescale(0.5)
    outer = ps.knobs(inner, x)
    assert [b.lam for b in outer.branches] == [0.5] * 9
    torch.testing.assert_close(outer(x), model_at(inner, x, 0.5))
    torch.testing.assert_close(outer(x, lam=0.25), model_at(inner, x, 0.25))
    torch.testing.assert_close(ps.spectrum(outer, x).terms, ps.spectrum(inner, x).terms)


def model_at(net, x, lam):
    return ps.knobs(net.model, x)(x, lam=lam)


def test_a_knobbed_net_called_inside_another():
    class Head(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.f = net, nn.Linear(10, 10)

        def forward(self, x):
            y = self.net(x, lam=0.5)
            return y + self.f(y)

    x = torch.randn(2, 3, 32, 32)
    inner = ps.knobs(arch.resnet20().eval(), x)
    head = Head(inner).eval()
    net = ps.knobs(head, x)
    y = inner(x, lam=0.5)
    lam = torch.tensor([0.5] * 9 + [0.25])
    torch.testing.assert_close(net(x, lam=lam), y + 0.25 * head.f(y))


def test_threads_do_not_mix():
    x = torch.randn(2, 3, 32, 32)
    net = ps.knobs(arch.resnet20().eval(), x)
    work = {
        0.5: lambda: net(x, lam=0.5),
        0.25: lambda: net(x, lam=0.25),
        "plain": lambda: net(x),
        "alpha": lambda: net(x, alpha=0.5),
        "orders": lambda: ps.expand(net, x, order=1).terms,
        "lengths": lambda: ps.spectrum(net, x, max_length=1).terms,
    }
    with torch.no_grad():
        expected = {key: f() for key, f in work.items()}
    found, ready = {}, threading.Barrier(len(work))

    def run(key):
        ready.wait()
        with torch.no_grad():
            found[key] = work[key]()

    threads = [threading.Thread(target=run, args=(key,)) for key in work]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found.keys() == expected.keys()
    for key in work:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)


# ------------------------------------------------------------------------- compiled models, control flow


def test_a_compiled_model_is_refused_with_what_to_do():
    model = ps.ResidualMLP(depth=2, width=4, in_features=4)
    with pytest.raises(ps.PathsumError, match=r"the model is already compiled .*make the knobs first.*then compile"):
        ps.knobs(torch.compile(model, backend="eager"), torch.randn(2, 4))
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    with pytest.raises(ps.PathsumError, match=r"its part 'blocks\.1' is already compiled .*make the knobs first"):
        ps.anatomy(model, torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_part_is_refused():
    model = ps.ResidualMLP(depth=2, width=4, in_features=4)
    model.decoder = torch.jit.trace(model.decoder, torch.zeros(1, 4))
    with pytest.raises(ps.PathsumError, match="its part 'decoder' is already compiled"):
        ps.knobs(model, torch.randn(2, 4))


class Moody(nn.Module):
    """Does something else in another mood, or for longer inputs."""

    def __init__(self):
        super().__init__()
        self.f, self.mood = nn.Linear(4, 4), ""

    def forward(self, x):
        x = x + self.f(x)
        if self.mood == "more":
            x = x + self.f(torch.tanh(x))
        if self.mood == "other":
            return torch.sigmoid(x)
        if self.mood == "fewer":
            return x
        for _ in range(x.shape[0] // 4):
            x = torch.sin(x)
        return torch.tanh(x)


@pytest.mark.parametrize(
    ("mood", "rows", "text"),
    [
        ("more", 2, "call 3 of the model is torch.tanh|torch.nn.functional.linear|add; .* make the knobs again"),
        ("other", 2, r"call 3 of the model is .*sigmoid; when the knobs were made it was .*tanh"),
        ("fewer", 2, "the model made 2 calls; when the knobs were made it made 3.* make the knobs again"),
        ("", 8, "call 3 of the model is .*sin; .* depends on its input or state; make the knobs again"),
    ],
)
def test_changed_control_flow_is_detected(mood, rows, text):
    model = Moody()
    net = ps.knobs(model, torch.randn(2, 4))
    model.mood = mood
    x = torch.randn(rows, 4)
    for use in (
        lambda: net(x, lam=0.5),
        lambda: net(x, alpha=0.5),
        lambda: ps.expand(net, x),
        lambda: ps.spectrum(net, x),
    ):
        with pytest.raises(ps.PathsumError, match=text):
            use()
    assert torch.overrides._len_torch_function_stack() == 0
    model.mood = ""
    net(torch.randn(2, 4), lam=0.5)
