"""Known bugs of norms, planted one at a time: a suite that lets one live is too loose."""

import test_promise as promise
import test_recipes
from mutation import Mutant
from normalform import recipes
from normalform.kernels import ByPasses, composite, eager, passes, plan, two_float
from normalform.layers import running


def hard(name, hard="plain", kernel="eager", training=True):
    return lambda: promise.test_hard_inputs(name, hard, kernel, training)


MUTANTS = [
    # Statistics
    Mutant(
        "unbiased variance",
        plan._merge,
        "average(square if var is None else square + var)",
        "average(square if var is None else square + var) * count / (count - 1)",
        hard("batch 2d"),
    ),
    Mutant(
        "variance in one pass",
        plan._merge,
        "distance.sub_(rest).square_()",
        "shift.square() - (near + rest).square()",
        hard("batch 2d", "mean 1e6"),
    ),
    Mutant(
        "statistics in float32",
        eager.moments,
        "x.to(torch.float64)",
        "x.to(torch.float32)",
        lambda: promise.test_sizes_off_the_beaten_track("rms", (65537, 7), "eager"),
    ),
    Mutant(
        "mean in one float64",
        plan._merge,
        "return Moments(near, rest, ",
        "return Moments(near + rest, torch.zeros_like(rest), ",
        promise.test_an_element_next_to_the_mean,
    ),
    Mutant(
        "pooled without the spread between the means",
        plan._merge,
        "average(square if var is None else square + var)",
        "average(square if var is None else var)",
        hard("switch 2d"),
    ),
    Mutant(
        "root mean square of centred values",
        plan._merge,
        "if not cells.center:",
        "if False:",
        hard("rms"),
    ),
    Mutant(
        "channels of a group taken apart",
        plan.split,
        "t.view(blocks, run.block, groups, t.shape[1] // groups, *t.shape[2:])",
        "t.view(blocks, run.block, t.shape[1] // groups, groups, *t.shape[2:]).transpose(2, 3)",
        hard("group"),
    ),
    Mutant(
        "sums in an order that depends on threads",
        plan.total,
        "if d not in dims) > 1:",
        "if d not in dims) > 0:",
        lambda: promise.test_same_bits_for_any_number_of_threads("eager"),
    ),
    Mutant(
        "the last block of a batch joins the one before",
        recipes.Recipe._runs,
        "tail * values == 1",
        "tail > 0",
        lambda: test_recipes.test_ghost_blocks_cover_the_batch(),
    ),
    # Coefficients
    Mutant(
        "eps outside the root",
        plan.blend,
        "(var + plan.eps).rsqrt()",
        "1 / (var.sqrt() + plan.eps)",
        hard("batch 2d", "variance below eps"),
    ),
    Mutant(
        "variances blended by the weights of the means",
        plan.blend,
        "weights[1][k] * branch.var",
        "weights[0][k] * branch.var",
        hard("switch 2d"),
    ),
    Mutant(
        "a branch of one value kept in the blend",
        passes._drop_single_values,
        "max(cells.counts) != 1",
        "True",
        hard("switch rows"),
    ),
    # Apply
    Mutant(
        "scale and shift folded in float32",
        eager.apply,
        "_centred(x, at).mul_(",
        "(x.float() - (at.shift + at.mean).float()).mul(",
        hard("batch 2d", "mean 1e6"),
    ),
    Mutant(
        "rounded before the bias is added",
        eager.apply,
        "y.add_(bias)",
        "y.to(x.dtype) + bias",
        lambda: promise.test_dtypes_and_layouts(
            "batch 2d", "contiguous", promise.DTYPES[1], "eager"
        ),
    ),
    Mutant(
        "evaluation by batch statistics",
        running._Batch.forward,
        "training = self.training or",
        "training = True or",
        hard("batch 2d", training=False),
    ),
    Mutant(
        "sums over axes that do not lie together",
        plan._runs,
        "runs[-1][0] == d + 1",
        "True",
        lambda: promise.test_float64_of_many_samples((2048, 3, 12, 12), True, "eager"),
    ),
    # Gradients
    Mutant(
        "gradient without the share of the mean",
        plan.terms_of_dx,
        "offset + _share(gm, cells)",
        "offset + 0 * _share(gm, cells)",
        hard("layer, token"),
    ),
    Mutant(
        "gradient with half the share of the variance",
        plan.terms_of_dx,
        "_share(gv, cells, 2.0)",
        "_share(gv, cells)",
        hard("instance 2d"),
    ),
    Mutant(
        "blend: dx about the mean of the first branch",
        plan.terms_of_dx,
        "point = first.shift + first.mean + apart /",
        "point = first.shift + first.mean + 0 * apart /",
        lambda: promise.test_branches_of_means_far_apart(("layer", "batch"), "eager"),
    ),
    Mutant(
        "gradient of the weight not divided by std",
        ByPasses.backward,
        "product * at.rstd",
        "product",
        hard("group"),
    ),
    Mutant(
        "gradient of the logits dropped",
        ByPasses.backward,
        "gradient.to(logit)",
        "0 * logit",
        hard("switch 2d"),
    ),
    Mutant(
        "x cast twice, its gradient rounded twice",
        composite,
        "(wide - shift - mean)",
        "(x.to(wide.dtype) - shift - mean)",
        lambda: promise.test_gradients_that_will_be_differentiated_again(
            "batch 2d", 0.0, promise.DTYPES[1], "eager"
        ),
    ),
    # Running statistics
    Mutant(
        "biased running variance",
        plan.population,
        "m.var * (n / max(n - 1, 1))",
        "m.var",
        hard("batch 2d"),
    ),
    Mutant(
        "momentum the wrong way round",
        passes.update,
        "new, momentum)",
        "new, 1 - momentum)",
        hard("switch 2d"),
    ),
    Mutant(
        "nan taken into the running statistics",
        passes.update,
        "torch.where(finite, new, buffer)",
        "new",
        lambda: promise.test_running_statistics_stay_finite("batch 2d", "eager"),
    ),
    # Two floats
    Mutant(
        "the low half of x - mean dropped",
        two_float._centred,
        "more + (error - rest_low)",
        "0 * more",
        hard("switch rows", "mean 1e6", "two_float", training=False),
    ),
    Mutant(
        "errors of sums dropped",
        two_float._sum,
        "_renormalize(high, error + low)",
        "_renormalize(high, low)",
        lambda: promise.test_sizes_off_the_beaten_track("batch 2d", (2, 6, 251, 253), "two_float"),
    ),
    Mutant(
        "errors of products dropped",
        two_float._product,
        "((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2",
        "torch.zeros_like(high)",
        lambda: promise.test_sizes_off_the_beaten_track("rms", (65537, 7), "two_float"),
    ),
    Mutant(
        "no power of two before squaring",
        two_float._moments,
        "exponent = -_exponent(largest)",
        "exponent = 0 * _exponent(largest)",
        hard("batch 2d", "huge", "two_float"),
    ),
]
