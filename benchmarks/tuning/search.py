"""Opt-in autotuning: time configurations of the kernels on this GPU and keep the quickest.

    python -m benchmarks.tuning [SUBJECT ...] [--save FILE] [--out TABLE.json]

A candidate takes the place of what the operator's configs.py answers; the launcher is captured in a
CUDA graph and its replays are timed, L2 warm. Candidates compile in parallel, in processes of their
own, into Triton's cache; one that does not compile, does not fit or spills is never chosen.
`use_tuned_configs(FILE)` (intrasense_fast.functional) puts the saved choices to use.
"""

import argparse
import contextlib
import importlib
import importlib.util
import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarks.cuda_graphs import microseconds
from benchmarks.tuning.subject import Shape, Subject
from intrasense_fast.files import atomic_path
from intrasense_fast.kernels._common import tuned
from intrasense_fast.kernels._common.configs import KernelConfig
from intrasense_fast.kernels._common.launch import Launch, recording
from tests.proof.registry import OPERATORS


class Case(NamedTuple):
    """One configuration of one subject ("operator.name") on one shape.

    config None: what configs.py answers.
    """

    subject: str
    shape: Shape
    config: KernelConfig | None


def subjects() -> dict[str, Subject]:
    """Those of every operator that has candidates, by "operator.name"."""
    known = {}
    for operator in OPERATORS:
        module = f"benchmarks.tuning.candidates.{operator}"
        if importlib.util.find_spec(module) is not None:
            declared = importlib.import_module(module).SUBJECTS
            known.update({f"{operator}.{name}": subject for name, subject in declared.items()})
    return known


@contextlib.contextmanager
def answering(config: KernelConfig | None, function: str) -> Iterator[list[str]]:
    """`config` is the answer to every question to `function`; yields the questions it met."""
    met: list[str] = []
    before = tuned.override

    def override(asked: str) -> KernelConfig | None:
        if asked.split("(")[0].endswith(f".{function}"):
            met.append(asked)
            return config
        return None

    tuned.override = override
    try:
        yield met
    finally:
        tuned.override = before


def compiled(case: Case) -> str:
    """In a process of its own: "" or what is wrong with the configuration."""
    spills: list[str] = []

    def start(launch: Launch) -> None:
        kernel = launch.start()
        if getattr(kernel, "n_spills", 0):
            spills.append(f"{launch.kernel.__name__} spills {kernel.n_spills}")

    subject = subjects()[case.subject]
    try:
        with answering(case.config, subject.function), recording(start):
            subject.start(case.shape)()
        torch.cuda.synchronize()
    except Exception as failure:
        lines = str(failure).strip().splitlines() or [""]
        return f"{type(failure).__name__}: {lines[0][:100]}"
    return ", ".join(spills)


def sweep(names: list[str], workers: int) -> Iterator[dict[str, Any]]:
    """A row a case, all of one shape before the next.

    Keys: "subject", "shape", "question", "config", "us", "problem".
    """
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for name in names:
            subject = subjects()[name]
            cases = [
                Case(name, shape, config)
                for shape in subject.shapes
                for config in itertools.chain([None], subject.candidates(shape))
            ]
            problems = list(
                tqdm(pool.map(compiled, cases), f"compiling {name}", len(cases), unit="case")
            )
            for shape, members in itertools.groupby(
                zip(cases, problems, strict=True), key=lambda pair: pair[0].shape
            ):
                call = subject.start(shape)
                for case, problem in members:
                    yield timed(case, problem, call)


def timed(case: Case, problem: str, call: Callable[[], object]) -> dict[str, Any]:
    """The row of one case; its time is None where there is a problem."""
    time = None
    with answering(case.config, subjects()[case.subject].function) as met:
        if not problem:
            time = microseconds(call)
    config = None if case.config is None else asdict(case.config)
    row = {"subject": case.subject, "shape": list(case.shape), "question": met[0] if met else ""}
    return {**row, "config": config, "us": time, "problem": problem}


def chosen(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The quickest configuration of every question, by its times over all shapes.

    Only where it beats the table's answer.
    """
    asked: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["us"] is not None:
            asked.setdefault(row["question"], {}).setdefault(json.dumps(row["config"]), []).append(
                row["us"]
            )
    found = {}
    for question, times in asked.items():
        whole = {
            config: sum(each)
            for config, each in times.items()
            if len(each) == max(map(len, times.values()))
        }
        best = min(whole, key=lambda config: whole[config])
        if best != "null":
            found[question] = json.loads(best)
    return found


def save(path: Path, content: dict[str, Any]) -> None:
    import triton

    with atomic_path(path) as temporary:
        made = {
            "gpu": torch.cuda.get_device_name(),
            "triton": triton.__version__,
            "torch": torch.__version__,
        }
        temporary.write_text(json.dumps({**made, **content}, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "names", nargs="*", metavar="SUBJECT", help="which, as operator.name; all if none is named"
    )
    parser.add_argument(
        "--save", type=Path, help="write the quickest configurations here, for use_tuned_configs"
    )
    parser.add_argument("--out", type=Path, help="write every time here")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes that compile"
    )
    options = parser.parse_args(arguments)
    known = list(subjects())
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"no subject {', '.join(unknown)}; there are {', '.join(known)}")
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    rows: list[dict[str, Any]] = []
    for key, members in itertools.groupby(
        sweep(options.names or known, options.workers),
        key=lambda row: (row["subject"], tuple(row["shape"])),
    ):
        print(*key)
        found = list(members)
        rows += found
        for row in sorted(found, key=lambda row: row["us"] or float("inf"))[:12] + [
            row for row in found if not row["config"]
        ]:
            time = "-" if row["us"] is None else f"{row['us']:.1f}"
            config = row["config"] and {
                **row["config"]["blocks"],
                **{k: row["config"][k] for k in ("num_warps", "num_stages")},
            }
            print(f"  {time:>8} us  {config or 'the table'} {row['problem']}", flush=True)
        if options.out:
            save(options.out, {"rows": rows})
        if options.save:
            save(options.save, {"configs": chosen(rows)})
    return 0
