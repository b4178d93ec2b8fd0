"""Faults planted in the launch plans (see mutants.py): a plan that serves what it must not."""

from tests.proof.faults import Fault

TESTS = [
    "tests/kernels/test_plan.py",
    "tests/kernels/test_plan_driver.py",
    "tests/contract/test_plans.py",
]

FAULTS = [
    Fault("stale key: shapes", "_key", "map(_shape, tensors)", "()"),
    Fault("stale key: strides", "_key", "map(_strides, tensors)", "()"),
    Fault("stale key: dtypes", "_key", "map(_dtype, tensors)", "()"),
    Fault("missed alignment", "_key", "address and address % 16", "address and 0"),
    Fault("missed alignment of 8 bytes", "_key", "address % 16", "address % 8"),
    Fault(
        "stale key: which inputs are one",
        "_key",
        "tuple(map(addresses.index, addresses))",
        "None",
    ),
    Fault("stale key: float32 precision", "_key", "torch.get_float32_matmul_precision()", "None"),
    Fault("stale key: tuned configurations", "_key", "tuned.version()", "None"),
    Fault("stale key: architecture", "_key", "assumed_architecture()", "None"),
    Fault("negated view served", "_key", "True in map(_is_negated, tensors)", "False"),
    Fault("hook on launches ignored", "_obstacle", "being_recorded()", "False"),
    Fault("dispatch mode ignored", "_obstacle", "torch._C._len_torch_dispatch_stack()", "0"),
    Fault("subclass served", "_obstacle", "_PLAIN.issuperset(map(type, tensors))", "True"),
    Fault("tuner ignored", "_obstacle", "tuned.being_tuned()", "False"),
    Fault("switch ignored", "_obstacle", "not _enabled", "False"),
    Fault("hooks of Triton ignored", "Planner.__call__", "plan.watched()", "False"),
    Fault("least recently used kept", "Planner.__call__", "self.plans.move_to_end(key)", "None"),
    Fault(
        "memory without bound",
        "Planner._drop_the_oldest",
        "len(self.plans) > MOST_PLANS",
        "False",
    ),
    Fault(
        "wrong offset",
        "_Memory._place",
        "self._piece(tensor, start) + address - start",
        "self._piece(tensor, start)",
    ),
    Fault(
        "shared workspace",
        "_Memory._piece",
        "self.workspace += -(-size // ALIGNMENT) * ALIGNMENT",
        "self.workspace = max(self.workspace, size)",
    ),
    Fault("workspace rounded down", "_Memory._piece", "-(-size // ALIGNMENT)", "size // ALIGNMENT"),
    Fault(
        "another call's memory taken for the workspace",
        "_Memory._place",
        "start in self.allocated",
        "start not in self.inputs",
    ),
    Fault(
        "an output that is an input",
        "_Memory.__init__",
        "start not in self.allocated",
        "False",
    ),
    Fault("one output twice", "_Memory.__init__", "start in self.outputs", "False"),
    Fault("arithmetic forgotten", "_plan", "recorder.computed", "()", place=(1, 2)),
    Fault(
        "the null stream",
        "Plan.replay",
        "self.driver.get_current_stream(current)",
        "0",
        place=(1, 2),
    ),
    Fault(
        "copy forgotten",
        "CopyStep.start",
        "self.target.view(tensors).copy_(self.origin.view(tensors))",
        "None",
    ),
    Fault(
        "outputs with other strides",
        "_plan",
        "output.stride()",
        "torch.empty(output.shape).stride()",
    ),
]
