"""Every module of the network is what it says: hooks fire, adapters and quantisers work or refuse,
and torch.func sees through the eager operators."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.functional import binary_cross_entropy_with_logits

from intrasense_fast import FusedUnavailableError, IntraSenseNet
from intrasense_fast.functional import channel_decoupling
from intrasense_fast.networks.operator_parameters import OperatorParameters
from tests.support.networks import wake


def small(rng: torch.Generator, **options: object) -> IntraSenseNet:
    torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
    net = IntraSenseNet(
        encoder="resnet18",
        refine_strides=(16, 32),
        decoder_channels=(8,) * 5,
        fused=False,
        **options,  # type: ignore[arg-type]
    )
    return wake(net, rng).eval()


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_every_module_with_parameters_is_called(norm: str, rng: torch.Generator) -> None:
    net = small(rng, module_norm=norm)
    called = set()
    for name, module in net.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    net(torch.rand(2, 1, 32, 64, generator=rng))
    own = {
        name
        for name, module in net.named_modules()
        if list(module.parameters(recurse=False)) or list(module.buffers(recurse=False))
    }
    assert own <= called
    assert {"gcp.16.gate", "cdr.32.reduce", "cdr.32.expand"} <= own


@pytest.mark.parametrize(
    ("shape", "layer"),
    [((3, 40), lambda: nn.Linear(40, 3)), ((1, 2, 7, 7), lambda: nn.Conv2d(2, 1, 7))],
)
def test_starts_as_the_layer_of_that_shape(shape, layer, seed: int) -> None:
    torch.manual_seed(seed)
    wanted, after = layer().state_dict(), torch.rand(3)
    torch.manual_seed(seed)
    given = OperatorParameters("step", *shape).state_dict()
    assert torch.equal(torch.rand(3), after)
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)


def test_a_network_pickled_with_layers_works(rng: torch.Generator) -> None:
    net = small(rng)
    x = torch.rand(1, 1, 64, 64, generator=rng)
    wanted = net(x)
    for cdr in net.cdr.values():
        for name in ("reduce", "expand"):
            held = getattr(cdr, name)
            layer = nn.Linear(held.weight.shape[1], held.weight.shape[0])
            layer.load_state_dict(held.state_dict())
            setattr(cdr, name, layer.eval())
    old = pickle.loads(pickle.dumps(net))
    assert torch.equal(old(x), wanted)
    assert isinstance(old.cdr["16"].reduce, OperatorParameters)


def lora(net: nn.Module, **options: object) -> nn.Module:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    return peft.get_peft_model(net, peft.LoraConfig(r=2, init_lora_weights=False, **options))


@pytest.mark.extended
@pytest.mark.parametrize(
    "target",
    [
        {"target_modules": ["gcp.16.projection"]},
        {"target_modules": [], "target_parameters": ["cdr.16.reduce.weight"]},
    ],
    ids=["layer", "operator's parameter"],
)
def test_low_rank_adapters_work(target: dict, rng: torch.Generator) -> None:
    net = small(rng)
    x = torch.rand(1, 1, 64, 64, generator=rng)
    before = net(x)
    adapted = lora(net, **target)
    after = adapted(x)
    assert (after - before).abs().max() > 1e-4
    after.square().mean().backward()
    learning = {name: one for name, one in adapted.named_parameters() if one.requires_grad}
    assert learning and all("lora" in name for name in learning)
    assert all(one.grad is not None and one.grad.any() for one in learning.values())


@pytest.mark.extended
@pytest.mark.parametrize("name", ["gate", "reduce", "expand"])
def test_adapters_of_layers_refuse_what_is_none_by_name(name: str, rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match=r"OperatorParameters\(.*parameters, no layer.* not supp"):
        lora(small(rng), target_modules=[name])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantisation_finds_no_layer_and_changes_nothing(rng: torch.Generator) -> None:
    net = small(rng)
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    x = torch.rand(1, 1, 64, 64, generator=rng)
    assert torch.equal(quantised(x), net(x))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    dist = torch.distributed
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this build of PyTorch has no gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.extended
@pytest.mark.parametrize("parts", [False, True], ids=["whole", "by modules"])
def test_fully_sharded(parts: bool, alone: None, rng: torch.Generator) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net, x = small(rng), torch.rand(1, 1, 64, 64, generator=rng)
    plain = copy.deepcopy(net)
    mesh = init_device_mesh("cpu", (1,))
    if parts:
        for module in (*net.gcp.values(), *net.cdr.values(), net.decoder):
            fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)
    logits, wanted = net(x), plain(x)
    assert torch.equal(logits, wanted)
    logits.square().mean().backward()
    wanted.square().mean().backward()
    for (name, one), other in zip(net.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad.full_tensor(), other.grad, msg=name)


@pytest.mark.extended
def test_a_part_of_a_parameter_is_refused_by_name(alone: None, rng: torch.Generator) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    weight = distribute_tensor(torch.rand(1, 4), init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match=r"reduce_weight is a DTensor.*full_tensor"):
        channel_decoupling(
            torch.rand(1, 4, 3, 3), weight, torch.rand(1), torch.rand(4, 1), torch.rand(4)
        )


@pytest.fixture
def double(rng: torch.Generator) -> tuple[IntraSenseNet, Tensor]:
    return small(rng).double(), torch.rand(3, 1, 32, 64, generator=rng, dtype=torch.float64)


def test_vmap_is_a_batch(double) -> None:
    net, x = double
    fractions = dict(net.masked_fraction)
    with torch.no_grad():
        torch.testing.assert_close(vmap(lambda one: net(one[None])[0])(x), net(x))
    assert fractions.keys() <= net.masked_fraction.keys()


def test_per_sample_gradients_are_those_of_each_image(double) -> None:
    net, x = double
    target = (x > 0.5).to(x.dtype)
    parameters = {name: one.detach() for name, one in net.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, mask: Tensor) -> Tensor:
        logits = functional_call(net, parameters, (image[None],))
        return binary_cross_entropy_with_logits(logits, mask[None])

    each = vmap(grad(loss), (None, 0, 0))(parameters, x, target)
    for index in range(len(x)):
        net.zero_grad()
        binary_cross_entropy_with_logits(net(x[index, None]), target[index, None]).backward()
        for name, one in net.named_parameters():
            error = (each[name][index] - one.grad).norm()
            assert error <= 1e-7 * one.grad.norm() + 1e-12, name


@pytest.mark.extended
def test_jvp_is_the_transpose_of_the_backward_pass(double, rng: torch.Generator) -> None:
    net, x = double
    direction, cotangent = (torch.randn(x.shape, generator=rng, dtype=x.dtype) for _ in range(2))
    logits, moved = jvp(net, (x,), (direction,))
    image = x.clone().requires_grad_()
    torch.testing.assert_close(logits, net(x))
    (pulled,) = torch.autograd.grad(net(image), image, cotangent)
    forward, backward = (moved * cotangent).sum(), (pulled * direction).sum()
    assert (forward - backward).abs() <= 1e-8 * moved.norm() * cotangent.norm()


@pytest.mark.extended
def test_gradients_of_the_training_mode_take_buffers_as_arguments(rng: torch.Generator) -> None:
    net, x = small(rng).train(), torch.rand(2, 1, 64, 64, generator=rng)
    parameters = {name: one.detach() for name, one in net.named_parameters()}
    buffers = {name: one.clone() for name, one in net.named_buffers()}

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        output = functional_call(net, (parameters, buffers), (x,))
        return output.logits.square().mean() + output.whitening_loss

    gradients = grad(loss)(parameters, {name: one.clone() for name, one in buffers.items()})
    output = net(x)
    (output.logits.square().mean() + output.whitening_loss).backward()
    for name, one in net.named_parameters():
        assert (gradients[name] - one.grad).norm() <= 1e-2 * one.grad.norm() + 1e-5, name


def test_kernels_refuse_transforms_by_name(rng: torch.Generator) -> None:
    net = small(rng)
    net.fused = True
    with pytest.raises(FusedUnavailableError, match=r"torch\.func"):
        vmap(lambda one: net(one[None]))(torch.rand(2, 1, 64, 64, generator=rng))
