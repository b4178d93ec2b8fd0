"""Bad input of every operator: what came, what is needed, what to do; and the meaning of fused=."""

import subprocess
import sys

import pytest
import torch

from intrasense_fast import functional
from intrasense_fast.kernels.runtime import FusedUnavailableError, fused_status

MAP = torch.zeros(2, 4, 5, 6)
POSITIONS = torch.zeros(2, 5, 6)
MLP = (torch.zeros(2, 4), torch.zeros(2), torch.zeros(4, 2), torch.zeros(4))
GATE = (torch.zeros(1, 2, 7, 7), torch.zeros(1))


def attention(q=(2, 9, 3), k=(2, 9, 3), v=(2, 9, 4), x=(2, 9, 4), dtype=torch.float32, **options):
    return functional.nonlocal_attention(
        *(torch.zeros(shape, dtype=dtype) for shape in (q, k, v, x)), **options
    )


def whitening(features=MAP, mean=POSITIONS, top=POSITIONS, weight=GATE[0], bias=GATE[1], **options):
    return functional.entropy_whitening(features, mean, top, weight, bias, **options)


def decoupling(features=MAP, w1=MLP[0], b1=MLP[1], w2=MLP[2], b2=MLP[3], **options):
    return functional.channel_decoupling(features, w1, b1, w2, b2, **options)


def loss(logits=MAP, target=MAP, **options):
    return functional.bce_dice(logits, target, **options)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: attention(k=(2, 8, 3)),
            r"key must have shape \(B, N, d\), as query = \(2, 9, 3\), got \(2, 8, 3\)",
        ),
        (lambda: attention(v=(2, 8, 4)), r"value must have shape .*\(2, 9, 4\), got \(2, 8, 4\)"),
        (
            lambda: attention(x=(2, 9, 5)),
            r"residual must have shape .*\(2, 9, 4\), got \(2, 9, 5\)",
        ),
        (lambda: attention(q=(9, 3)), r"query must have shape \(B, N, d\), got \(9, 3\)"),
        (lambda: attention(q=(2, 9, 0), k=(2, 9, 0)), "d must be at least 1, got 0"),
        (lambda: attention(v=(2, 9, 0), x=(2, 9, 0)), "C must be at least 1, got 0"),
        (
            lambda: attention(dtype=torch.int64),
            r"must be floating point, got torch.int64; convert it with .float\(\)",
        ),
        (
            lambda: functional.nonlocal_attention(
                *(torch.zeros(1, 2, 3, dtype=d) for d in (torch.float32, torch.float16) * 2)
            ),
            "convert one with",
        ),
        (
            lambda: functional.nonlocal_attention(
                *(torch.zeros(1, 2, 3, device=d) for d in ("cpu", "meta") * 2)
            ),
            "move them together",
        ),
        (
            lambda: whitening(mean=torch.zeros(2, 5, 5)),
            r"channel_mean must have shape .*\(2, 5, 6\), got \(2, 5, 5\)",
        ),
        (
            lambda: whitening(weight=torch.zeros(1, 2, 4, 4)),
            r"gate_weight must have shape \(1, 2, k, k\) with k odd, got \(1, 2, 4, 4\)",
        ),
        (lambda: whitening(bias=torch.zeros(2)), r"gate_bias must have shape"),
        (lambda: whitening(window=4), "window must be an odd integer >= 1, got 4"),
        (lambda: whitening(window=0), "window must be an odd integer >= 1, got 0"),
        (lambda: whitening(window=3.0), "window must be an odd integer"),
        (lambda: whitening(threshold=-0.1), "threshold must be finite and >= 0, got -0.1"),
        (lambda: whitening(threshold=float("nan")), "threshold must be finite"),
        (lambda: whitening(eps=0.0), "eps must be finite and > 0"),
        (lambda: whitening(entropy_scale="bits"), r"entropy_scale must be one of .* got 'bits'"),
        (
            lambda: whitening(
                features=torch.zeros(2, 4, 0, 6),
                mean=torch.zeros(2, 0, 6),
                top=torch.zeros(2, 0, 6),
            ),
            "H must be at least 1",
        ),
        (lambda: whitening(features=MAP.int()), "must be floating point"),
        (
            lambda: whitening(features=MAP.to(torch.float8_e4m3fn)),
            "must be float16, bfloat16, float32 or float64, got",
        ),
        (
            lambda: decoupling(features=MAP.to_sparse()),
            r"features must be dense, got torch.sparse_coo; .*\.to_dense\(\)",
        ),
        (
            lambda: decoupling(features=torch.zeros(4, 5, 6)),
            r"features must have shape \(B, C, H, W\), got \(4, 5, 6\)",
        ),
        (
            lambda: decoupling(w1=torch.zeros(2, 3)),
            r"reduce_weight must have shape .*\(2, 4\), got \(2, 3\)",
        ),
        (
            lambda: decoupling(w2=torch.zeros(4, 3)),
            r"expand_weight must have shape .*\(4, 2\), got \(4, 3\)",
        ),
        (lambda: decoupling(b2=torch.zeros(3)), "expand_bias must have shape"),
        (lambda: decoupling(ridge=0.0), "ridge must be a finite number > 0, got 0.0"),
        (lambda: decoupling(ridge=float("inf")), "ridge must be a finite number"),
        (lambda: decoupling(squeeze="none"), r"squeeze must be one of .* got 'none'"),
        (
            lambda: loss(target=torch.zeros(2, 4, 5, 5)),
            r"target must have shape .*\(2, 4, 5, 6\), got \(2, 4, 5, 5\)",
        ),
        (lambda: loss(logits=MAP.long()), "logits must be floating point"),
        (lambda: loss(target=MAP.to(torch.complex64)), "target must be bool, integer or float"),
        (lambda: loss(logits=torch.zeros(3)), r"logits must have shape \(B, K, H, W\), got \(3\)"),
    ],
)
def test_bad_input_says_what_came_and_what_is_needed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: decoupling(ridge="10"), "ridge must be a number, got '10'"),
        (lambda: whitening(threshold=None), "threshold must be a number, got None"),
        (lambda: whitening(eps=True), "eps must be a number, got True"),
        (lambda: loss(logits=[1.0]), "logits must be a tensor, got list"),
    ],
)
def test_what_is_no_tensor_or_number_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("call", [attention, whitening, decoupling, loss])
def test_fused_takes_true_false_or_none(call):
    with pytest.raises(TypeError, match="fused must be True, False or None, got 'yes'"):
        call(fused="yes")


@pytest.mark.parametrize("call", [attention, whitening, decoupling, loss])
def test_an_empty_batch_gives_empty_outputs(call):
    empty = {
        attention: lambda: attention((0, 9, 3), (0, 9, 3), (0, 9, 4), (0, 9, 4)),
        whitening: lambda: whitening(MAP[:0], POSITIONS[:0], POSITIONS[:0]),
        decoupling: lambda: decoupling(MAP[:0]),
        loss: lambda: loss(MAP[:0], MAP[:0]),
    }[call]
    full = call()
    for nothing, something in zip(empty(), full, strict=True):
        assert nothing.dtype == something.dtype
        assert nothing.shape == ((0, *something.shape[1:]) if something.dim() else ())


def test_fused_on_a_cpu_without_the_interpreter_says_what_to_do():
    code = """
import torch
from intrasense_fast import functional
from intrasense_fast.kernels.runtime import FusedUnavailableError, fused_status
z = torch.zeros(1, 1, 2, 2)
assert not fused_status(z).available
functional.bce_dice(z, z)
try:
    functional.bce_dice(z, z, fused=True)
except FusedUnavailableError as error:
    print(error)
"""
    environment = {"PATH": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert (
        "CUDA or ROCm GPU" in result.stdout
        and "TRITON_INTERPRET=1" in result.stdout
        and "fused=None" in result.stdout
    )


@pytest.mark.parametrize(
    "before, after, message",
    [
        (
            "import triton.language",
            'os.environ["TRITON_INTERPRET"] = "1"',
            "set TRITON_INTERPRET=1 before Python starts",
        ),
        (
            'os.environ["TRITON_INTERPRET"] = "on"',
            "import triton.language",
            "Triton interpreter on the CPU",
        ),
        pytest.param(
            'os.environ["TRITON_INTERPRET"] = "on"',
            "",
            "Triton interpreter on the CPU",
            marks=pytest.mark.extended,
        ),
        pytest.param(
            'os.environ["TRITON_INTERPRET"] = "0"',
            "",
            "set TRITON_INTERPRET=1 before Python starts",
            marks=pytest.mark.extended,
        ),
    ],
)
def test_status_is_what_triton_decided(before, after, message):
    code = f"""
import os, torch
{before}
{after}
from intrasense_fast import fused_status
print(fused_status(torch.zeros(1)).reason)
"""
    environment = {"PATH": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert message in result.stdout


def test_bfloat16_in_the_interpreter_is_right_without_the_tests_repairs():
    code = """
import torch
from intrasense_fast.functional import nonlocal_attention
q = torch.randn(1, 8, 4).bfloat16()
fused, eager = (nonlocal_attention(q, q, q, q, fused=fused)[0].float() for fused in (True, False))
print(float((fused - eager).norm() / eager.norm()))
"""
    environment = {"PATH": "", "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) <= 2e-2


def test_a_refused_double_backward_names_a_way_that_works(device):
    features = MAP.to(device).requires_grad_()
    out, _ = whitening(features, *(t.to(device) for t in (POSITIONS, POSITIONS, *GATE)), fused=True)
    with pytest.raises(NotImplementedError, match=r"differentiate its reference\.py"):
        torch.autograd.grad(out.sum(), features, create_graph=True)


def test_status_of_devices_and_dtypes_the_kernels_do_not_serve():
    assert "floating-point" in fused_status(torch.zeros(1, dtype=torch.int32)).reason
    assert "meta" in fused_status(torch.zeros(1, device="meta")).reason
    with pytest.raises(FusedUnavailableError, match="on meta"):
        functional.bce_dice(
            torch.zeros(1, 1, 2, 2, device="meta"),
            torch.zeros(1, 1, 2, 2, device="meta"),
            fused=True,
        )
