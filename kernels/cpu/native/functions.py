"""Elementary functions on 16 lanes. NaN stays NaN."""

from vllm_nb.kernels.cpu.native.kernel import helper
from vllm_nb.kernels.cpu.native.simd import (
    Floats,
    as_floats,
    fma,
    maximum,
    minimum,
    nearest,
    shift_left,
    splat,
    splat_int,
    to_floats,
    where_less,
    zeros,
)

_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_UNDERFLOW, _OVERFLOW = -87.3, 88.3


@helper
def exp(x: Floats) -> Floats:
    """e**x, relative error below 2e-7; exactly 0 below -87.3, and 2.2e38 from 88.3 up.

    Polynomial: Cephes' expf (S. L. Moshier), on [-ln 2 / 2, ln 2 / 2].
    """
    # the constant first: a NaN in the second place survives
    y = minimum(splat(_OVERFLOW), maximum(splat(_UNDERFLOW), x))
    power = nearest(y * splat(_LOG2_E))
    whole = to_floats(power)
    r = fma(whole, splat(-_LN2_HIGH), y)
    r = fma(whole, splat(-_LN2_LOW), r)
    p = splat(1.9875691500e-4)
    p = fma(p, r, splat(1.3981999507e-3))
    p = fma(p, r, splat(8.3334519073e-3))
    p = fma(p, r, splat(4.1665795894e-2))
    p = fma(p, r, splat(1.6666665459e-1))
    p = fma(p, r, splat(5.0000001201e-1))
    p = fma(p, r * r, r) + splat(1.0)
    two_to_power = as_floats(shift_left(power + splat_int(127), 23))
    return where_less(x, splat(_UNDERFLOW), zeros(), p * two_to_power)


@helper
def tanh(x: Floats) -> Floats:
    """Absolute error below 2e-7."""
    one = splat(1.0)
    return one - splat(2.0) / (exp(x + x) + one)


@helper
def silu(x: Floats) -> Floats:
    """x * sigmoid(x), relative error below 5e-7."""
    return x / (splat(1.0) + exp(zeros() - x))


@helper
def gelu_tanh(x: Floats) -> Floats:
    """GELU's tanh form: 0.5 (1 + tanh u) = sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    u = splat(0.7978845608028654) * fma(x * x * x, splat(0.044715), x)
    return x / (splat(1.0) + exp(zeros() - u - u))
