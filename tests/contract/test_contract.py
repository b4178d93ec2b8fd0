"""The contract matrix: every property of every operator, generated from tests/proof."""

import copy
import importlib

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from benchmarks.cuda_graphs import captured
from tests.proof import budget
from tests.proof.records import Contract, Row
from tests.proof.registry import contracts, cost_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHOWN = (torch.float32, torch.bfloat16)
FORMATS = (torch.contiguous_format, torch.channels_last)


def name(value) -> str | None:
    return value.name if isinstance(value, Contract) else str(value).removeprefix("torch.")


every_operator = pytest.mark.parametrize("contract", contracts(), ids=name)


def every_row() -> list:
    """Every shape in float32, the one that shows most in bfloat16; the rest is extended."""
    rows = []
    for contract in contracts():
        for what, shape in contract.shapes.items():
            for dtype in (*DTYPES, torch.float64):
                shown = dtype == torch.float32 or (dtype == torch.bfloat16 and what == "odd")
                row = f"{name(dtype)}-{contract.name}-{what}"
                marks = () if shown else pytest.mark.extended
                rows.append(pytest.param(contract, shape, dtype, id=row, marks=marks))
    return rows


def leaves(inputs: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """The inputs as leaves of a graph, strides kept; those in `names` require gradients."""
    return {key: t.detach().requires_grad_(key in names) for key, t in inputs.items()}


def call(contract: Contract, function, inputs: dict[str, Tensor], **options) -> dict[str, Tensor]:
    outputs = function(**inputs, **options)
    return dict(
        zip(contract.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True)
    )


def run(contract: Contract, function, inputs, grads=None, *, names=None, sources=None, **options):
    """(outputs, gradients of `names`) of one call; `grads` are those of outputs in `sources`."""
    names, sources = names or contract.differentiable, sources or contract.differentiable_outputs
    inputs = leaves(inputs, names)
    outputs = call(contract, function, inputs, **options)
    if grads is None:
        return outputs, {}
    found = torch.autograd.grad(
        [outputs[s] for s in sources],
        [inputs[n] for n in names],
        [grads[s].to(outputs[s].dtype) for s in sources],
        allow_unused=True,
    )
    return outputs, {
        n: torch.zeros_like(inputs[n]) if g is None else g
        for n, g in zip(names, found, strict=True)
    }


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: t.double() if t.dtype.is_floating_point else t for key, t in inputs.items()}


def grads_for(contract: Contract, outputs: dict[str, Tensor], rng) -> dict[str, Tensor]:
    return {
        s: torch.randn(outputs[s].shape, generator=rng).to(outputs[s].device, outputs[s].dtype)
        for s in contract.differentiable_outputs
    }


def compare(contract, inputs, rng, *, options=None, sources=None, tf32=False) -> None:
    """Fused forward and backward against the float64 reference.

    Within the budget of the inputs' dtype, or of TF32 products.
    """
    options = contract.option_sets[0] if options is None else options
    grads = grads_for(contract, call(contract, contract.public, inputs, fused=True, **options), rng)
    sources = sources or contract.differentiable_outputs
    outputs, gradients = run(
        contract, contract.public, inputs, grads, sources=sources, fused=True, **options
    )
    forced = contract.reference_options(inputs, tuple(outputs.values()))
    truth, true_gradients = run(
        contract, contract.reference, double(inputs), grads, sources=sources, **options, **forced
    )
    dtype = inputs[contract.features[0]].dtype
    eager, eager_gradients = {}, {}
    if dtype.itemsize == 2 or tf32:
        eager, eager_gradients = run(
            contract, contract.public, inputs, grads, sources=sources, fused=False, **options
        )
    largest = max(
        (g.norm().item() for g in true_gradients.values() if g.isfinite().all()), default=0.0
    )
    for key, actual in outputs.items():
        if not actual.dtype.is_floating_point:
            assert actual.shape == truth[key].shape and actual.dtype == truth[key].dtype, key
            continue
        assert key not in contract.statistics or actual.dtype == (
            torch.float64 if dtype == torch.float64 else torch.float32
        )
        judge(contract, key, actual, eager.get(key), truth[key], inputs, budget.FORWARD, tf32=tf32)
    for key, actual in gradients.items():
        least = 1e-2 * largest
        judge(
            contract,
            f"d_{key}",
            actual,
            eager_gradients.get(key),
            true_gradients[key],
            inputs,
            budget.BACKWARD,
            least,
            tf32=tf32,
        )


def judge(contract, key, actual, eager, truth, inputs, bound, least=1e-30, *, tf32=False) -> None:
    tolerance = contract.tolerance(key)
    scale = inputs[tolerance.scale] if tolerance.scale else None
    if tf32:
        # torch's own products are TF32 too: on a GPU their gradients show what that costs.
        bound = max(tolerance.tf32 or budget.TF32, 2 * budget.error(eager, truth, scale, least))
    elif eager is not None:
        # Where both are float32 sums of the same 16-bit inputs, rounding errors are luck.
        enough = bound if actual.dtype.itemsize > 2 else 0.0
        least = 1.0 if tolerance.absolute else least
        budget.assert_within_budget(
            actual, eager, truth, key, scale=scale, least=least, enough=enough
        )
        return
    elif actual.dtype == torch.float64:
        bound = budget.FLOAT64
    else:
        bound = tolerance.float32 or bound
    budget.assert_close(
        actual, truth, bound, key, scale=scale, least=least, absolute=tolerance.absolute
    )


@pytest.mark.parametrize("contract, shape, dtype", every_row())
def test_values_and_gradients(contract, shape, dtype, device, rng):
    if dtype == torch.float64 and device.type == "cuda":
        pytest.skip("float64 runs eager on a GPU")
    compare(contract, contract.make_inputs(Row(shape, dtype, device=device), rng), rng)


@pytest.mark.parametrize(
    "contract, options",
    [
        pytest.param(p, o, id=f"{p.name}-{', '.join(f'{k}={v}' for k, v in o.items())}")
        for p in contracts()
        for o in p.option_sets[1:]
    ],
)
def test_options(contract, options, device, rng):
    compare(
        contract,
        contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng),
        rng,
        options=options,
    )


@every_operator
def test_each_output_alone_sends_its_gradient(contract, device, rng):
    inputs = contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng)
    for source in contract.differentiable_outputs:
        compare(contract, inputs, rng, sources=(source,))


@every_operator
@pytest.mark.parametrize(
    "dtype, memory_format",
    [
        pytest.param(
            dtype,
            memory_format,
            marks=()
            if (dtype, memory_format) in zip(SHOWN, reversed(FORMATS), strict=True)
            else pytest.mark.extended,
        )
        for dtype in DTYPES
        for memory_format in FORMATS
    ],
    ids=name,
)
def test_memory_format_is_kept(contract, dtype, memory_format, device, rng):
    inputs = contract.make_inputs(Row(contract.shapes["odd"], dtype, memory_format, device), rng)
    outputs = call(contract, contract.public, inputs, fused=True, **contract.option_sets[0])
    for source, target in contract.maps:
        assert outputs[target].is_contiguous(memory_format=memory_format), (
            f"{target} of a {memory_format} {source}"
        )
    compare(contract, inputs, rng)


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
def test_tf32_products_where_torch_allows_them(contract, device, rng):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        compare(
            contract,
            contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng),
            rng,
            tf32=True,
        )
    finally:
        torch.set_float32_matmul_precision(before)


@every_operator
@pytest.mark.parametrize("change", (offset, expanded), ids=lambda change: change.__name__)
def test_inputs_with_any_strides(contract, change, device, rng):
    inputs = contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng)
    compare(
        contract,
        {key: change(t) if key in contract.features else t for key, t in inputs.items()},
        rng,
    )


@every_operator
@pytest.mark.parametrize("how", ("cat", "sum", "permuted"))
def test_gradients_that_arrive_with_any_strides(contract, how, device, rng):
    inputs = contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng)

    def scalar(function, tensors, **options):
        outputs = call(contract, function, tensors, **options)
        features = (
            outputs[contract.differentiable_outputs[0]].float()
            if "fused" in options
            else outputs[contract.differentiable_outputs[0]]
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

    options = contract.option_sets[0]
    mine, theirs = (
        leaves(inputs, contract.differentiable),
        leaves(double(inputs), contract.differentiable),
    )
    outputs = tuple(call(contract, contract.public, inputs, fused=True, **options).values())
    scalar(contract.public, mine, fused=True, **options).backward()
    scalar(
        contract.reference, theirs, **options, **contract.reference_options(inputs, outputs)
    ).backward()
    grads = {
        key: theirs[key].grad for key in contract.differentiable if theirs[key].grad is not None
    }
    largest = max(g.norm().item() for g in grads.values())
    for key, truth in grads.items():
        judge(
            contract,
            f"d_{key}",
            mine[key].grad,
            None,
            truth,
            inputs,
            budget.BACKWARD,
            1e-2 * largest,
        )


@every_operator
def test_gradients_only_for_what_asks_for_them(contract, device, rng):
    inputs = contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng)
    options = {"fused": True, **contract.option_sets[0]}
    grads = grads_for(contract, call(contract, contract.public, inputs, **options), rng)
    _, full = run(contract, contract.public, inputs, grads, **options)
    largest = max(g.norm().item() for g in full.values())
    for key in contract.differentiable:
        _, alone = run(contract, contract.public, inputs, grads, names=(key,), **options)
        budget.check_form(alone[key], full[key], key)
        assert budget.error(alone[key], full[key], least=1e-2 * largest) <= 1e-6, key
    outputs = call(contract, contract.public, inputs, **options)
    assert not any(t.requires_grad for t in outputs.values())


@every_operator
@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, *(pytest.param(d, marks=pytest.mark.extended) for d in DTYPES[:2])],
    ids=name,
)
def test_the_same_bits_twice(contract, dtype, device, rng):
    inputs = contract.make_inputs(Row(contract.shapes["odd"], dtype, device=device), rng)
    options = {"fused": True, **contract.option_sets[0]}
    grads = grads_for(contract, call(contract, contract.public, inputs, **options), rng)
    first, second = (run(contract, contract.public, inputs, grads, **options) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        for key in one:
            assert torch.equal(one[key], other[key]), key


@every_operator
def test_one_image_does_not_depend_on_the_others(contract, device, rng):
    if not contract.per_image:
        pytest.skip("sums over the batch by definition")
    inputs = contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng)
    options = {"fused": True, **contract.option_sets[0]}
    together = call(contract, contract.public, inputs, **options)
    batch = inputs[contract.features[0]].shape[0]
    for image in range(batch):
        one = {
            k: t[image : image + 1] if k not in contract.parameters else t
            for k, t in inputs.items()
        }
        for key, alone in call(contract, contract.public, one, **options).items():
            assert torch.equal(alone[0], together[key][image]), key


@every_operator
@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
def test_what_is_not_finite_comes_out_as_in_the_reference(contract, value, device, rng):
    inputs = contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng)
    options = contract.option_sets[0]
    for key in contract.features:
        broken = {k: t.clone() if k == key else t for k, t in inputs.items()}
        broken[key].select(0, 0).flatten()[:1].fill_(value) if broken[key][
            0
        ].is_contiguous() else broken[key][0][(0,) * (broken[key].dim() - 1)].fill_(value)
        fused = call(contract, contract.public, broken, fused=True, **options)
        truth = call(contract, contract.reference, broken, **options)
        for output, actual in fused.items():
            if actual.dtype.is_floating_point:
                budget.check_form(actual, truth[output], f"{output} with {value} in {key}")
            else:
                assert torch.equal(actual, truth[output]), f"{output} with {value} in {key}"


@every_operator
def test_offsets_beyond_32_bits(contract, device, rng):
    """Images 2^30 elements apart: the third one starts beyond 2^31.

    On the CPU the pages between are never touched.
    """
    if device.type == "cuda":
        pytest.skip(
            "the same rows run under the interpreter; on a GPU they would need 4 GiB a tensor"
        )
    import torch.utils.deterministic as settings

    settings.fill_uninitialized_memory = False
    _, *rest = contract.shapes["one position"]
    inputs = contract.make_inputs(Row((3, *rest), torch.float16, device=device), rng)
    far = {}
    for key, t in inputs.items():
        if key in contract.features and t.shape[0] == 3:
            storage = torch.empty(2**31 + t[0].numel() + 16, dtype=t.dtype)
            view = storage.as_strided(t.shape, (2**30, *torch.empty(t.shape[1:]).stride()))
            far[key] = view.copy_(t)
        else:
            far[key] = t
    options = {"fused": True, **contract.option_sets[0]}
    outputs = call(contract, contract.public, inputs, **options)
    grads = grads_for(contract, outputs, rng)
    near, near_gradients = run(contract, contract.public, inputs, grads, **options)
    away, away_gradients = run(contract, contract.public, far, grads, **options)
    for one, other in ((near, away), (near_gradients, away_gradients)):
        for key in one:
            assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize(
    "contract, bad",
    [pytest.param(p, b, id=f"{p.name}-{b.what}") for p in contracts() for b in p.bad_inputs],
)
def test_bad_input_is_a_clear_error(contract, bad, device, rng):
    inputs = contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng)
    for fused in (True, False):
        with pytest.raises(bad.error, match=bad.match):
            contract.public(**bad.change(inputs), fused=fused, **contract.option_sets[0])


@every_operator
def test_a_second_derivative_is_a_clear_error(contract, device, rng):
    inputs = leaves(
        contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng),
        contract.differentiable,
    )
    outputs = call(contract, contract.public, inputs, fused=True, **contract.option_sets[0])
    total = sum(outputs[s].sum() for s in contract.differentiable_outputs)
    with pytest.raises(
        NotImplementedError,
        match=r"no double backward; (use fused=False|differentiate its reference\.py)",
    ):
        torch.autograd.grad(total, [inputs[n] for n in contract.differentiable], create_graph=True)


@pytest.mark.extended
@every_operator
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=name)
def test_autocast_changes_nothing(contract, dtype, device, rng):
    for inside in (torch.float32, dtype):
        inputs = contract.make_inputs(Row(contract.shapes["odd"], inside, device=device), rng)
        options = {"fused": True, **contract.option_sets[0]}
        grads = grads_for(contract, call(contract, contract.public, inputs, **options), rng)
        plain = run(contract, contract.public, inputs, grads, **options)
        with torch.autocast(device.type, dtype=dtype):
            cast = run(contract, contract.public, inputs, grads, **options)
        for one, other in zip(plain, cast, strict=True):
            for key in one:
                assert one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]), key


@every_operator
def test_opcheck(contract, device, rng):
    importlib.import_module(f"intrasense_fast.kernels.{contract.name}.autograd")
    row = Row(contract.shapes["odd"], torch.float32, device=device)
    arguments = contract.samples(row, rng)
    assert set(arguments) == set(contract.library)
    for operator, values in arguments.items():
        overload = getattr(torch.ops.intrasense_fast, operator).default
        # Gradients live in the autograd.Function outside the operator.
        torch.library.opcheck(overload, values, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.extended
@every_operator
@pytest.mark.parametrize("backend", ("aot_eager", pytest.param("inductor", marks=pytest.mark.slow)))
def test_compiles_without_a_graph_break(contract, backend, device, rng):
    inputs = contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng)
    options = {"fused": True, **contract.option_sets[0]}
    public = contract.public

    def function(**tensors):
        return public(**tensors, **options)

    torch._dynamo.reset()
    grads = grads_for(contract, call(contract, contract.public, inputs, **options), rng)
    plain = run(contract, lambda **t: function(**t), inputs, grads)
    compiled = run(
        contract, torch.compile(function, fullgraph=True, backend=backend), inputs, grads
    )
    for one, other in zip(plain, compiled, strict=True):
        for key in one:
            budget.check_form(other[key], one[key], key)
            torch.testing.assert_close(other[key], one[key], rtol=1e-6, atol=1e-6)


@every_operator
def test_exports(contract, device, rng):
    inputs = contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng)

    public, options = contract.public, contract.option_sets[0]

    class Module(torch.nn.Module):
        def forward(self, tensors: dict[str, Tensor]):
            return public(**tensors, fused=True, **options)

    with torch.no_grad():
        program = torch.export.export(Module(), (inputs,))
        expected = call(contract, contract.public, inputs, fused=True, **contract.option_sets[0])
        actual = program.module()(copy.copy(inputs))
    for key, value in zip(
        contract.outputs, actual if isinstance(actual, tuple) else (actual,), strict=True
    ):
        assert torch.equal(value, expected[key]), key
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("intrasense_fast" in target for target in names), (
        "the kernels are not in the exported graph"
    )


@every_operator
def test_saves_no_more_than_it_declares(contract, device, rng):
    inputs = contract.make_inputs(Row(contract.shapes["odd"], torch.bfloat16, device=device), rng)
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        kept.setdefault(t.data_ptr(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(
            contract,
            contract.public,
            leaves(inputs, contract.differentiable),
            fused=True,
            **contract.option_sets[0],
        )
    saved = sum(t.numel() * t.element_size() for t in kept.values())
    assert 0 < saved <= cost_of(contract.name).saved_bytes(inputs)


@pytest.mark.gpu
@every_operator
def test_captured_in_a_cuda_graph(contract, device, rng):
    inputs = contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng)
    options = {"fused": True, **contract.option_sets[0]}
    grads = grads_for(contract, call(contract, contract.public, inputs, **options), rng)
    replay, results = captured(lambda: run(contract, contract.public, inputs, grads, **options))
    replay()
    torch.cuda.synchronize()
    plain = run(contract, contract.public, inputs, grads, **options)
    for one, other in zip(plain, results, strict=True):
        for key in one:
            assert torch.equal(one[key], other[key]), key


@pytest.mark.gpu
@every_operator
def test_runs_on_the_tensors_own_device(contract, rng):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    inputs = contract.make_inputs(
        Row(contract.shapes["odd"], torch.float32, device=torch.device("cuda:1")), rng
    )
    with torch.cuda.device(0):
        compare(contract, inputs, rng)
