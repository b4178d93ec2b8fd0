"""The contract matrix: every property of every operator, generated from the registry (kernels/_proof/registry.py)."""

import copy

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from intrasense_fast.kernels._proof import budget
from intrasense_fast.kernels._proof.registry import OperatorProof, Row, proofs
from intrasense_fast.kernels.tune import captured

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FORMATS = (torch.contiguous_format, torch.channels_last)


def name(value) -> str | None:
    return value.name if isinstance(value, OperatorProof) else str(value).removeprefix("torch.")


every_operator = pytest.mark.parametrize("proof", proofs(), ids=name)
every_shape = pytest.mark.parametrize(
    "proof, shape",
    [pytest.param(p, s, id=f"{p.name}-{what}") for p in proofs() for what, s in p.shapes.items()],
)


def leaves(inputs: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """The inputs as leaves of a graph, strides kept; those in `names` require gradients."""
    return {key: t.detach().requires_grad_(key in names) for key, t in inputs.items()}


def call(proof: OperatorProof, function, inputs: dict[str, Tensor], **options) -> dict[str, Tensor]:
    outputs = function(**inputs, **options)
    return dict(
        zip(proof.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True)
    )


def run(proof: OperatorProof, function, inputs, grads=None, *, names=None, sources=None, **options):
    """(outputs, gradients of `names`) of one call; `grads` are those of the outputs in `sources`."""
    names, sources = names or proof.differentiable, sources or proof.differentiable_outputs
    inputs = leaves(inputs, names)
    outputs = call(proof, function, inputs, **options)
    if grads is None:
        return outputs, {}
    found = torch.autograd.grad(
        [outputs[s] for s in sources], [inputs[n] for n in names], [grads[s].to(outputs[s].dtype) for s in sources],
        allow_unused=True,
    )  # fmt: skip
    return outputs, {
        n: torch.zeros_like(inputs[n]) if g is None else g
        for n, g in zip(names, found, strict=True)
    }


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: t.double() if t.dtype.is_floating_point else t for key, t in inputs.items()}


def grads_for(proof: OperatorProof, outputs: dict[str, Tensor], rng) -> dict[str, Tensor]:
    return {
        s: torch.randn(outputs[s].shape, generator=rng).to(outputs[s].device, outputs[s].dtype)
        for s in proof.differentiable_outputs
    }


def compare(proof, inputs, rng, *, options=None, sources=None, tf32=False) -> None:
    """Fused forward and backward against the float64 reference, within the budget of the inputs' dtype, or of TF32 products."""
    options = proof.option_sets[0] if options is None else options
    grads = grads_for(proof, call(proof, proof.public, inputs, fused=True, **options), rng)
    sources = sources or proof.differentiable_outputs
    outputs, gradients = run(
        proof, proof.public, inputs, grads, sources=sources, fused=True, **options
    )
    forced = proof.reference_options(inputs, tuple(outputs.values()))
    truth, true_gradients = run(
        proof, proof.reference, double(inputs), grads, sources=sources, **options, **forced
    )
    dtype = inputs[proof.features[0]].dtype
    eager, eager_gradients = {}, {}
    if dtype.itemsize == 2 or tf32:
        eager, eager_gradients = run(
            proof, proof.public, inputs, grads, sources=sources, fused=False, **options
        )
    largest = max(
        (g.norm().item() for g in true_gradients.values() if g.isfinite().all()), default=0.0
    )
    for key, actual in outputs.items():
        if not actual.dtype.is_floating_point:
            assert actual.shape == truth[key].shape and actual.dtype == truth[key].dtype, key
            continue
        assert key not in proof.statistics or actual.dtype == (
            torch.float64 if dtype == torch.float64 else torch.float32
        )
        judge(proof, key, actual, eager.get(key), truth[key], inputs, budget.FORWARD, tf32=tf32)
    for key, actual in gradients.items():
        least = 1e-2 * largest
        judge(
            proof,
            f"d_{key}",
            actual,
            eager_gradients.get(key),
            true_gradients[key],
            inputs,
            budget.BACKWARD,
            least,
            tf32=tf32,
        )


def judge(proof, key, actual, eager, truth, inputs, bound, least=1e-30, *, tf32=False) -> None:
    scale = inputs[proof.scale[key]] if key in proof.scale else None
    if tf32:
        # torch's own products are TF32 too: on a GPU their gradients show what that costs.
        allowed = max(
            proof.tf32.get(key, budget.TF32), 2 * budget.error(eager, truth, scale, least)
        )
        budget.assert_close(
            actual, truth, allowed, key, scale=scale, least=least, absolute=key in proof.absolute
        )
    elif eager is not None:
        # Where both are float32 sums of the same 16-bit inputs, their rounding errors are a matter of luck.
        enough = bound if actual.dtype.itemsize > 2 else 0.0
        least = 1.0 if key in proof.absolute else least
        budget.assert_within_budget(
            actual, eager, truth, key, scale=scale, least=least, enough=enough
        )
    elif actual.dtype == torch.float64:
        budget.assert_close(
            actual,
            truth,
            budget.FLOAT64,
            key,
            scale=scale,
            least=least,
            absolute=key in proof.absolute,
        )
    else:
        bound = proof.tolerance.get(key, bound)
        budget.assert_close(
            actual, truth, bound, key, scale=scale, least=least, absolute=key in proof.absolute
        )


@every_shape
@pytest.mark.parametrize("dtype", (*DTYPES, torch.float64), ids=name)
def test_values_and_gradients(proof, shape, dtype, device, rng):
    if dtype == torch.float64 and device.type == "cuda":
        pytest.skip("float64 runs eager on a GPU")
    compare(proof, proof.make_inputs(Row(shape, dtype, device=device), rng), rng)


@pytest.mark.parametrize(
    "proof, options",
    [
        pytest.param(p, o, id=f"{p.name}-{', '.join(f'{k}={v}' for k, v in o.items())}")
        for p in proofs()
        for o in p.option_sets[1:]
    ],
)
def test_options(proof, options, device, rng):
    compare(
        proof,
        proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng),
        rng,
        options=options,
    )


@every_operator
def test_each_output_alone_sends_its_gradient(proof, device, rng):
    inputs = proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng)
    for source in proof.differentiable_outputs:
        compare(proof, inputs, rng, sources=(source,))


@every_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("memory_format", FORMATS, ids=name)
def test_memory_format_is_kept(proof, dtype, memory_format, device, rng):
    inputs = proof.make_inputs(Row(proof.shapes["odd"], dtype, memory_format, device), rng)
    outputs = call(proof, proof.public, inputs, fused=True, **proof.option_sets[0])
    for source, target in proof.maps:
        assert outputs[target].is_contiguous(memory_format=memory_format), (
            f"{target} of a {memory_format} {source}"
        )
    compare(proof, inputs, rng)


def offset(t: Tensor) -> Tensor:
    """The same values at an odd offset, with gaps."""
    storage = t.new_full(
        (*t.shape[:-1], 2 * t.shape[-1] + 3), torch.nan if t.dtype.is_floating_point else 0
    )
    view = storage[..., 3::2]
    view.copy_(t)
    return view


def expanded(t: Tensor) -> Tensor:
    """One image for the whole batch, with a batch stride of zero."""
    return t[:1].expand_as(t)


@every_operator
def test_tf32_products_where_torch_allows_them(proof, device, rng):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        compare(
            proof,
            proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng),
            rng,
            tf32=True,
        )
    finally:
        torch.set_float32_matmul_precision(before)


@every_operator
@pytest.mark.parametrize("change", (offset, expanded), ids=lambda change: change.__name__)
def test_inputs_with_any_strides(proof, change, device, rng):
    inputs = proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng)
    compare(
        proof, {key: change(t) if key in proof.features else t for key, t in inputs.items()}, rng
    )


@every_operator
@pytest.mark.parametrize("how", ("cat", "sum", "permuted"))
def test_gradients_that_arrive_with_any_strides(proof, how, device, rng):
    inputs = proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng)

    def scalar(function, tensors, **options):
        outputs = call(proof, function, tensors, **options)
        features = (
            outputs[proof.differentiable_outputs[0]].float()
            if "fused" in options
            else outputs[proof.differentiable_outputs[0]]
        )
        if how == "sum":
            return features.sum()
        if how == "cat":
            joined = torch.cat((features, features * 0.5), -1) if features.dim() else features[None]
            return (joined * torch.arange(joined.shape[-1], device=joined.device)).sum()
        turned = features.movedim(0, -1) if features.dim() else features
        return (
            turned * torch.linspace(-1, 1, turned.numel(), device=turned.device).view(turned.shape)
        ).sum()

    options = proof.option_sets[0]
    mine, theirs = (
        leaves(inputs, proof.differentiable),
        leaves(double(inputs), proof.differentiable),
    )
    outputs = tuple(call(proof, proof.public, inputs, fused=True, **options).values())
    scalar(proof.public, mine, fused=True, **options).backward()
    scalar(
        proof.reference, theirs, **options, **proof.reference_options(inputs, outputs)
    ).backward()
    grads = {key: theirs[key].grad for key in proof.differentiable if theirs[key].grad is not None}
    largest = max(g.norm().item() for g in grads.values())
    for key, truth in grads.items():
        judge(
            proof, f"d_{key}", mine[key].grad, None, truth, inputs, budget.BACKWARD, 1e-2 * largest
        )


@every_operator
def test_gradients_only_for_what_asks_for_them(proof, device, rng):
    inputs = proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng)
    options = {"fused": True, **proof.option_sets[0]}
    grads = grads_for(proof, call(proof, proof.public, inputs, **options), rng)
    _, full = run(proof, proof.public, inputs, grads, **options)
    largest = max(g.norm().item() for g in full.values())
    for key in proof.differentiable:
        _, alone = run(proof, proof.public, inputs, grads, names=(key,), **options)
        budget.check_form(alone[key], full[key], key)
        assert budget.error(alone[key], full[key], least=1e-2 * largest) <= 1e-6, key
    outputs = call(proof, proof.public, inputs, **options)
    assert not any(t.requires_grad for t in outputs.values())


@every_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_the_same_bits_twice(proof, dtype, device, rng):
    inputs = proof.make_inputs(Row(proof.shapes["odd"], dtype, device=device), rng)
    options = {"fused": True, **proof.option_sets[0]}
    grads = grads_for(proof, call(proof, proof.public, inputs, **options), rng)
    first, second = (run(proof, proof.public, inputs, grads, **options) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        for key in one:
            assert torch.equal(one[key], other[key]), key


@every_operator
def test_one_image_does_not_depend_on_the_others(proof, device, rng):
    if not proof.per_image:
        pytest.skip("sums over the batch by definition")
    inputs = proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng)
    options = {"fused": True, **proof.option_sets[0]}
    together = call(proof, proof.public, inputs, **options)
    batch = inputs[proof.features[0]].shape[0]
    for image in range(batch):
        one = {
            k: t[image : image + 1] if k not in proof.parameters else t for k, t in inputs.items()
        }
        for key, alone in call(proof, proof.public, one, **options).items():
            assert torch.equal(alone[0], together[key][image]), key


@every_operator
@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
def test_what_is_not_finite_comes_out_as_in_the_reference(proof, value, device, rng):
    inputs = proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng)
    options = proof.option_sets[0]
    for key in proof.features:
        broken = {k: t.clone() if k == key else t for k, t in inputs.items()}
        broken[key].select(0, 0).flatten()[:1].fill_(value) if broken[key][
            0
        ].is_contiguous() else broken[key][0][(0,) * (broken[key].dim() - 1)].fill_(value)
        fused = call(proof, proof.public, broken, fused=True, **options)
        truth = call(proof, proof.reference, broken, **options)
        for output, actual in fused.items():
            if actual.dtype.is_floating_point:
                budget.check_form(actual, truth[output], f"{output} with {value} in {key}")
            else:
                assert torch.equal(actual, truth[output]), f"{output} with {value} in {key}"


@every_operator
def test_offsets_beyond_32_bits(proof, device, rng):
    """Images 2^30 elements apart: the third one starts beyond 2^31. On the CPU the pages between are never touched."""
    if device.type == "cuda":
        pytest.skip(
            "the same rows run under the interpreter; on a GPU they would need 4 GiB a tensor"
        )
    import torch.utils.deterministic as settings

    settings.fill_uninitialized_memory = False
    _, *rest = proof.shapes["one position"]
    inputs = proof.make_inputs(Row((3, *rest), torch.float16, device=device), rng)
    far = {}
    for key, t in inputs.items():
        if key in proof.features and t.shape[0] == 3:
            storage = torch.empty(2**31 + t[0].numel() + 16, dtype=t.dtype)
            view = storage.as_strided(t.shape, (2**30, *torch.empty(t.shape[1:]).stride()))
            far[key] = view.copy_(t)
        else:
            far[key] = t
    options = {"fused": True, **proof.option_sets[0]}
    outputs = call(proof, proof.public, inputs, **options)
    grads = grads_for(proof, outputs, rng)
    near, near_gradients = run(proof, proof.public, inputs, grads, **options)
    away, away_gradients = run(proof, proof.public, far, grads, **options)
    for one, other in ((near, away), (near_gradients, away_gradients)):
        for key in one:
            assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize(
    "proof, bad",
    [pytest.param(p, b, id=f"{p.name}-{b.what}") for p in proofs() for b in p.bad_inputs],
)
def test_bad_input_is_a_clear_error(proof, bad, device, rng):
    inputs = proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng)
    for fused in (True, False):
        with pytest.raises(bad.error, match=bad.match):
            proof.public(**bad.change(inputs), fused=fused, **proof.option_sets[0])


@every_operator
def test_a_second_derivative_is_a_clear_error(proof, device, rng):
    inputs = leaves(
        proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng),
        proof.differentiable,
    )
    outputs = call(proof, proof.public, inputs, fused=True, **proof.option_sets[0])
    total = sum(outputs[s].sum() for s in proof.differentiable_outputs)
    with pytest.raises(
        NotImplementedError,
        match=r"no double backward; (use fused=False|differentiate its reference\.py)",
    ):
        torch.autograd.grad(total, [inputs[n] for n in proof.differentiable], create_graph=True)


@every_operator
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=name)
def test_autocast_changes_nothing(proof, dtype, device, rng):
    for inside in (torch.float32, dtype):
        inputs = proof.make_inputs(Row(proof.shapes["odd"], inside, device=device), rng)
        options = {"fused": True, **proof.option_sets[0]}
        grads = grads_for(proof, call(proof, proof.public, inputs, **options), rng)
        plain = run(proof, proof.public, inputs, grads, **options)
        with torch.autocast(device.type, dtype=dtype):
            cast = run(proof, proof.public, inputs, grads, **options)
        for one, other in zip(plain, cast, strict=True):
            for key in one:
                assert one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]), key


@every_operator
def test_opcheck(proof, device, rng):
    row = Row(proof.shapes["odd"], torch.float32, device=device)
    arguments = proof.samples(row, rng)
    assert set(arguments) == set(proof.library)
    for operator, values in arguments.items():
        overload = getattr(torch.ops.intrasense_fast, operator).default
        # Gradients live in the autograd.Function outside the operator.
        torch.library.opcheck(overload, values, test_utils=("test_schema", "test_faketensor"))


@every_operator
@pytest.mark.parametrize("backend", ("aot_eager", pytest.param("inductor", marks=pytest.mark.slow)))
def test_compiles_without_a_graph_break(proof, backend, device, rng):
    inputs = proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng)
    options = {"fused": True, **proof.option_sets[0]}

    def function(**tensors):
        return proof.public(**tensors, **options)

    torch._dynamo.reset()
    grads = grads_for(proof, call(proof, proof.public, inputs, **options), rng)
    plain = run(proof, lambda **t: function(**t), inputs, grads)
    compiled = run(proof, torch.compile(function, fullgraph=True, backend=backend), inputs, grads)
    for one, other in zip(plain, compiled, strict=True):
        for key in one:
            budget.check_form(other[key], one[key], key)
            torch.testing.assert_close(other[key], one[key], rtol=1e-6, atol=1e-6)


@every_operator
def test_exports(proof, device, rng):
    inputs = proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng)

    class Module(torch.nn.Module):
        def forward(self, tensors: dict[str, Tensor]):
            return proof.public(**tensors, fused=True, **proof.option_sets[0])

    with torch.no_grad():
        program = torch.export.export(Module(), (inputs,))
        expected = call(proof, proof.public, inputs, fused=True, **proof.option_sets[0])
        actual = program.module()(copy.copy(inputs))
    for key, value in zip(
        proof.outputs, actual if isinstance(actual, tuple) else (actual,), strict=True
    ):
        assert torch.equal(value, expected[key]), key
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("intrasense_fast" in target for target in names), (
        "the kernels are not in the exported graph"
    )


@every_operator
def test_saves_no_more_than_it_declares(proof, device, rng):
    inputs = proof.make_inputs(Row(proof.shapes["odd"], torch.bfloat16, device=device), rng)
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        kept.setdefault(t.data_ptr(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(
            proof,
            proof.public,
            leaves(inputs, proof.differentiable),
            fused=True,
            **proof.option_sets[0],
        )
    saved = sum(t.numel() * t.element_size() for t in kept.values())
    assert 0 < saved <= proof.saved_bytes(inputs)


@pytest.mark.gpu
@every_operator
def test_captured_in_a_cuda_graph(proof, device, rng):
    inputs = proof.make_inputs(Row(proof.shapes["odd"], torch.float32, device=device), rng)
    options = {"fused": True, **proof.option_sets[0]}
    grads = grads_for(proof, call(proof, proof.public, inputs, **options), rng)
    replay, results = captured(lambda: run(proof, proof.public, inputs, grads, **options))
    replay()
    torch.cuda.synchronize()
    plain = run(proof, proof.public, inputs, grads, **options)
    for one, other in zip(plain, results, strict=True):
        for key in one:
            assert torch.equal(one[key], other[key]), key


@pytest.mark.gpu
@every_operator
def test_runs_on_the_tensors_own_device(proof, rng):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    inputs = proof.make_inputs(
        Row(proof.shapes["odd"], torch.float32, device=torch.device("cuda:1")), rng
    )
    with torch.cuda.device(0):
        compare(proof, inputs, rng)
