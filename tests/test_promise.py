"""Every layer and kernel keeps the promise of DESIGN: forward, every gradient, running statistics.

Judged by the NumPy reference in units of the promise. Also: dtypes, memory layouts, inputs that
have broken other libraries, any number of threads.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

import normalform as nf
from normalform import budget
from normalform.testing import HARD_INPUTS, assert_accurate, assert_layer_accurate, judge
from zoo import ZOO, build

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KERNELS = ["auto", "eager", "two_float"]


def as_stored(x, layout):
    """The same values in another arrangement of memory."""
    if layout == "channels last" and x.ndim in (4, 5):
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return x.contiguous(memory_format=formats[x.ndim])
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"))
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x


def prepared(name, kernel, training=True, dtype=torch.float32):
    layer, shape = build(name, dtype=dtype)
    layer.kernel = kernel
    return layer.train(training), shape


def gradient(kind, y):
    """A gradient of the output: noise; ones, whose dx cancels; y itself, which cancels too."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(y.shape, generator=generator).to(y.dtype)
    return {"noise": noise, "ones": torch.ones_like(y), "y": y.detach()}[kind]


@pytest.mark.filterwarnings("ignore:running_:UserWarning")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("hard", HARD_INPUTS)
@pytest.mark.parametrize("name", ZOO)
def test_hard_inputs(name, hard, kernel, training):
    if (kernel, hard) == ("two_float", "subnormal"):
        kernel = "auto"  # two float32 have no room below the smallest: not promised there
    layer, shape = prepared(name, kernel, training)
    x = HARD_INPUTS[hard](shape, torch.Generator().manual_seed(1))
    assert_layer_accurate(layer, x, gradient("noise", x))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["ones", "y"])
@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("name", ZOO)
def test_gradients_that_cancel(name, mean, kind, kernel):
    layer, shape = prepared(name, kernel)
    x = torch.randn(shape) + mean
    assert_layer_accurate(layer, x, gradient(kind, layer(x)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced", "transposed"])
@pytest.mark.parametrize("name", ZOO)
def test_dtypes_and_layouts(name, layout, dtype, kernel):
    layer, shape = prepared(name, kernel)
    x = as_stored((torch.randn(shape) * 3 + 50).to(dtype), layout)
    dy = as_stored(gradient("noise", x), layout)
    assert_layer_accurate(layer, x, dy)


@pytest.mark.parametrize("kernel", ["auto", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ZOO)
def test_parameters_of_the_same_type(name, dtype, kernel):
    layer, shape = prepared(name, kernel, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    assert_layer_accurate(layer, x, gradient("noise", x))


@pytest.mark.parametrize("kernel", ["auto", "eager"])
@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("name", ZOO)
def test_float64(name, mean, kernel):
    layer, shape = prepared(name, kernel, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64) + mean
    assert_layer_accurate(layer, x, gradient("noise", x))


@pytest.mark.parametrize("kernel", ["cpu", "eager"])
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("shape", [(2048, 3, 12, 12), (9000, 4, 3, 3)], ids=str)
def test_float64_of_many_samples(shape, alike, kernel):
    """Alike ones are rounded alike: errors of sums that are taken one by one add up."""
    generator = torch.Generator().manual_seed(4)
    x, dy = torch.randn((2, *shape), generator=generator).double()
    if alike:
        x = x[:1].expand(shape).contiguous()
    for make in (nf.BatchNorm2d, nf.InstanceNorm2d):
        layer = make(shape[1], momentum=1.0, track_running_stats=True).double()
        layer.kernel = kernel
        assert_layer_accurate(layer, x, dy)


@pytest.mark.parametrize("kernel", ["cpu", "eager"])
@pytest.mark.parametrize("over", [("layer", "batch"), ("group:2", "batch"), ("batch", "group:3")])
def test_branches_of_means_far_apart(over, kernel):
    """What a branch adds to dx must not be the small difference of what others make large."""
    for dtype, far in [(torch.float64, [1e4, 1e3]), (torch.float32, [1e14, 1e9])]:
        _means_far_apart(over, kernel, dtype, torch.tensor(far))


def _means_far_apart(over, kernel, dtype, far):
    for seed in (0, 1, 7, 218):
        generator = torch.Generator().manual_seed(seed)
        x, dy = torch.randn((2, 5, 6, 1, 1), generator=generator).to(dtype)
        x.view(-1)[[0, 7]] = far.to(dtype)
        layer = nf.SwitchNorm2d(6, over=over).to(dtype)
        layer.kernel = kernel
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
        assert_layer_accurate(layer, x, dy)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ZOO)
def test_expanded_input(name, kernel):
    layer, shape = prepared(name, kernel)
    x = torch.randn((1, *shape[1:])).expand(shape)
    assert_layer_accurate(layer, x, gradient("noise", torch.empty(shape)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("batch 2d", (2, 6, 251, 253)),
        ("batch 2d", (31, 6, 1, 1)),
        ("instance 2d", (2, 6, 257, 3)),
        ("layer, sample", (1, 6, 129, 131)),
        ("group", (1, 6, 7, 769)),
        ("switch 2d", (3, 6, 65, 63)),
        ("ghost 2d", (3, 6, 31, 2)),
        ("layer, token", (1, 2163, 7)),
        ("rms", (65537, 7)),
    ],
)
def test_sizes_off_the_beaten_track(name, shape, kernel):
    layer, _ = prepared(name, kernel)
    x = torch.randn(shape) + 100
    assert_layer_accurate(layer, x, gradient("noise", x))


@pytest.mark.parametrize("kernel", ["auto", "eager"])
def test_ten_million_values_behind_one_mean(kernel):
    layer, _ = prepared("layer, sample", kernel)
    x = torch.randn(1, 6, 1300, 1300) + 1e5
    assert_layer_accurate(layer, x)


@pytest.mark.filterwarnings("ignore:running_:UserWarning")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ZOO)
def test_nan_stays_in_its_cell(name, bad, kernel):
    layer, shape = prepared(name, kernel)
    x = torch.randn(shape)
    x.view(-1)[-1] = bad
    dy = gradient("noise", x)
    result = judge(layer, x)
    x.requires_grad_()
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    gradients = result.backward(dy.double().numpy())
    spoiled = torch.from_numpy(~np.isfinite(result.y))
    assert spoiled.any()
    assert torch.equal(~y.isfinite(), spoiled)
    assert torch.equal(~dx.isfinite(), torch.from_numpy(~np.isfinite(gradients.x)).view(shape))
    y_and_xhat = {k: np.nan_to_num(getattr(result, k), posinf=0, neginf=0) for k in ("y", "xhat")}
    finite = replace(result, **y_and_xhat)
    allowed = np.where(spoiled, np.inf, budget.allowed_y(finite, x.dtype))
    assert_accurate(torch.where(spoiled, 0, y), np.where(spoiled, 0, result.y), allowed)


@pytest.mark.parametrize("kernel", ["auto", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("name", ZOO)
def test_gradients_that_will_be_differentiated_again(name, mean, dtype, kernel):
    """They come from the differentiable form of the recipe, which keeps the same promise."""
    layer, shape = prepared(name, kernel)
    x = (torch.randn(shape) + mean).to(dtype).requires_grad_()
    dy = gradient("noise", x)
    result = judge(layer, x)
    (dx,) = torch.autograd.grad(layer(x), x, dy, create_graph=True)
    gradients = result.backward(dy.double().numpy())
    allowed = budget.allowed_dx(result, gradients, x.dtype)
    assert_accurate(dx.detach(), gradients.x.reshape(shape), allowed.reshape(shape), "dx")


def test_an_element_next_to_the_mean():
    """One float64 for the mean is off by 6e-11 at |mean| = 1e6 std, more than the promise."""
    x = torch.full((1, 3001), 1e6)
    x[0, 1::2] += 1
    x[0, 2::2] -= 1
    x[0, 1] += 0.0625
    for kernel in KERNELS:
        layer = nf.LayerNorm(3001)
        layer.kernel = kernel
        assert_layer_accurate(layer, x)


@pytest.mark.parametrize("kernel", ["auto", "eager"])
@pytest.mark.parametrize("name", ["batch 2d", "switch 2d", "ghost 2d", "instance, tracked"])
def test_running_statistics_stay_finite(name, kernel):
    layer, shape = prepared(name, kernel)
    before = {key: buffer.clone() for key, buffer in layer.named_buffers()}
    x = torch.randn(shape)
    x[0, 2, 0, 0] = float("nan")
    with pytest.warns(UserWarning, match=r"running_(mean|var): 1 of 6 channels kept"):
        layer(x)
    for key in ("running_mean", "running_var"):
        kept = getattr(layer, key) == before[key]
        assert kept.tolist() == [c == 2 for c in range(6)]


@pytest.mark.parametrize("kernel", ["auto", "eager"])
@pytest.mark.parametrize("name", ["batch 2d", "switch 2d", "ghost 2d", "instance, tracked"])
def test_evaluation_of_one_sample_changes_no_buffer(name, kernel):
    """There the cells of instance and of batch norm are the same."""
    layer, shape = prepared(name, kernel, training=False)
    before = {key: buffer.clone() for key, buffer in layer.named_buffers()}
    layer(torch.randn(1, *shape[1:]))
    assert all(torch.equal(buffer, before[key]) for key, buffer in layer.named_buffers())


@pytest.mark.parametrize("kernel", ["auto", "eager"])
def test_same_bits_for_any_number_of_threads(kernel):
    """In float64, where no last rounding hides a sum taken in another order."""
    cases = {
        "layer, sample": (1, 6, 300, 301),
        "batch 2d": (4, 6, 120, 121),
        "switch 2d": (2, 6, 200, 100),
        "instance 2d": (1, 6, 256, 256),
        "layer, token": (1, 9001, 7),
    }
    threads = torch.get_num_threads()
    try:
        for name, shape in cases.items():
            x = torch.randn(shape, dtype=torch.float64).add(1).requires_grad_()
            runs = []
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                layer, _ = prepared(name, kernel, dtype=torch.float64)
                y = layer(x)
                runs.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], x.cos())])
            for run in runs[1:]:
                assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True)), name
    finally:
        torch.set_num_threads(threads)
