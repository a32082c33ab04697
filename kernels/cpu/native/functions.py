"""Elementary functions on 16 lanes. NaN stays NaN."""

from vllm_nb.kernels.cpu.native.kernel import helper
from vllm_nb.kernels.cpu.native.simd import (
    Floats,
    as_floats,
    as_ints,
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

LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_UNDERFLOW, _OVERFLOW = -87.3, 88.3
_LOWEST_POWER = -100.0  # times a float16, 2**x is still no denormal number, which would take long
_ROUNDING = 12582912.0  # 1.5 * 2**23: added to a float, it leaves the nearest integer in the low bits


@helper
def exp(x: Floats) -> Floats:
    """e**x, relative error below 2e-7; exactly 0 below -87.3, and 2.2e38 from 88.3 up.

    Polynomial: Cephes' expf (S. L. Moshier), on [-ln 2 / 2, ln 2 / 2].
    """
    # the constant first: a NaN in the second place survives
    y = minimum(splat(_OVERFLOW), maximum(splat(_UNDERFLOW), x))
    power = nearest(y * splat(LOG2_E))
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
def exp2(x: Floats) -> Floats:
    """2**x for x <= 0, relative error below 3e-7; exactly 0 below -100.

    Polynomial: least greatest relative error on [-1/2, 1/2], with 1 at 0.
    """
    y = maximum(splat(_LOWEST_POWER), x)
    shifted = y + splat(_ROUNDING)
    r = y - (shifted - splat(_ROUNDING))
    p = splat(1.3264727089e-3)
    p = fma(p, r, splat(9.6715128620e-3))
    p = fma(p, r, splat(5.5507337456e-2))
    p = fma(p, r, splat(2.4022242082e-1))
    p = fma(p, r, splat(6.9314697760e-1))
    p = fma(p, r, splat(1.0))
    two_to_power = as_floats(shift_left(as_ints(shifted), 23) + splat_int(127 << 23))
    return where_less(x, splat(_LOWEST_POWER), zeros(), p * two_to_power)


@helper
def rough_exp2(x: Floats) -> Floats:
    """2**x for x <= 0, relative error below 4e-6; 2**-100 below -100.

    Polynomial: least greatest relative error on [-1/2, 1/2], with 1 at 0, so that no result is above 1.
    """
    y = maximum(splat(_LOWEST_POWER), x)
    shifted = y + splat(_ROUNDING)
    r = y - (shifted - splat(_ROUNDING))
    p = splat(9.5828564e-3)
    p = fma(p, r, splat(5.5906433e-2))
    p = fma(p, r, splat(2.4024099e-1))
    p = fma(p, r, splat(6.9312419e-1))
    p = fma(p, r, splat(1.0))
    return as_floats(as_ints(p) + shift_left(as_ints(shifted), 23))  # added to p's exponent


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
