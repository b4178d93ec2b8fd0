"""What each start and resume of a run ran on, what it accepted, and why it ended: attempts.jsonl in
the run's folder."""

import contextlib
import datetime
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import intrasense_fast
from intrasense_fast.console import show
from intrasense_fast.errors import first_line
from intrasense_fast.files import write_text
from intrasense_fast.networks.checksums import digest_of
from intrasense_fast.provenance import former_digests
from intrasense_fast.signals import Stopped
from intrasense_fast.training import run_folder
from intrasense_fast.training.config import TrainConfig

ATTEMPTS = "attempts.jsonl"
NO_END = "no end was recorded: it was killed, or its machine stopped"
_LABELS = {"network_sha256": "the network's file", "instructions": "CPU instructions"}


@dataclass
class Attempt:
    """One start or resume of a run.

    Attributes:
        run: the run's folder.
        earlier: the entries before it, oldest first.
        environment: what `environment` says of this process.
        accepted: files that are not those of the attempt before, see `provenance.Changes.record`;
            empty where there are none.
        of_run: the entries of the run that this is a fold of, where it keeps its own.
    """

    run: Path
    earlier: list[dict[str, Any]]
    environment: dict[str, Any]
    accepted: dict[str, Any] = field(default_factory=dict)
    of_run: list[dict[str, Any]] = field(default_factory=list)
    _entry: dict[str, Any] | None = None

    def begin(self) -> None:
        """Add the entry, once; an entry before it without an end was killed, and says so."""
        if self._entry is not None:
            return
        for entry in self.earlier:
            entry["reason"] = entry.get("reason") or NO_END
        self._entry = {
            "attempt": len(self.earlier) + 1,
            "kind": "resume" if self.earlier or self._is_older() else "start",
            "began": _now(),
            "ended": None,
            "reason": None,
            **self.environment,
        }
        if self.accepted:
            self._entry["accepted"] = self.accepted
        self._write()

    def all_accepted(self) -> list[dict[str, Any]]:
        """Of the attempts before it, and its own."""
        before = [*self.of_run, *self.earlier]
        return [*(entry.get("accepted") or {} for entry in before), self.accepted]

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Record why the block ended."""
        try:
            yield
        except Stopped as error:
            self._end(str(error))
            raise
        except KeyboardInterrupt:
            self._end("stopped at once by a second SIGINT")
            raise
        except Exception as error:
            self._end(first_line(error))
            raise
        except BaseException:
            self._end("stopped by a signal while it did not train")
            raise
        self._end("finished")

    def _is_older(self) -> bool:
        """Did the run begin before attempts were recorded?"""
        return (self.run / "history.jsonl").exists()

    def _end(self, reason: str) -> None:
        if self._entry is None:
            return
        self._entry |= {"ended": _now(), "reason": reason}
        try:
            self._write()
        except OSError as error:
            # On a full disk: what ended the run is the error to tell.
            show(f"{self.run / ATTEMPTS}: its end is not recorded ({error.strerror})", sys.stderr)

    def _write(self) -> None:
        lines = [*self.earlier, *([self._entry] if self._entry else [])]
        write_text(self.run / ATTEMPTS, "".join(json.dumps(line) + "\n" for line in lines))


def read_attempts(run: Path) -> tuple[list[dict[str, Any]], int]:
    """The entries of attempts.jsonl, and how many lines of it are damaged; none where there is no
    file."""
    try:
        text = (run / ATTEMPTS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return [], 0
    entries: list[dict[str, Any]] = []
    lines = [line for line in text.splitlines() if line.strip()]
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            entries += [entry] if _is_sound(entry) else []
    return entries, len(lines) - len(entries)


def _is_sound(entry: Any) -> bool:
    """Is it an entry, and can its accepted files be read?"""
    if not isinstance(entry, dict) or not isinstance(entry.get("versions"), dict):
        return False
    try:
        former_digests([entry.get("accepted") or {}])
    except (AttributeError, KeyError, TypeError):
        return False
    return True


def environment(config: TrainConfig, device: torch.device, processes: int = 1) -> dict[str, Any]:
    """What the last bits of a run depend on beside its files and values: code, versions, device,
    CPU, threads and processes."""
    on_gpu = device.type == "cuda"
    found = {
        "commit": run_folder.commit(),
        "code_sha256": _code_digest(),
        "versions": run_folder.versions(),
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
    if ":" in config.network:
        found["network_sha256"] = _file_digest(config.network)
    return found


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two environments do not share, each as "torch 2.9.0, now 2.9.1"."""
    found = []
    if then.get("code_sha256") != now["code_sha256"]:
        commits = [str(one.get("commit") or "unknown")[:10] for one in (then, now)]
        same = commits[0] == commits[1]
        found.append(
            f"this package's code was changed (commit {commits[0]} both times)"
            if same
            else f"this package's code {commits[0]}, now {commits[1]}"
        )
    pairs = [(name, then["versions"].get(name), value) for name, value in now["versions"].items()]
    names = ("network_sha256", "device", "processor", "instructions", "threads")
    pairs += [(_LABELS.get(name, name), then.get(name), now.get(name)) for name in names]
    pairs.append(("processes", then.get("processes", 1), now["processes"]))
    found += [f"{name} {one}, now {other}" for name, one, other in pairs if one != other]
    return found


def remark(attempt: Attempt, damaged: int) -> str:
    """Whether the run goes on to the bits of an uninterrupted one, in a line; "bitwise" only where
    nothing that they depend on has changed since it began."""
    if not attempt.earlier or damaged:
        which = "is damaged" if damaged else "was not written when this run began"
        return (
            f"{ATTEMPTS} {which}: whether the run goes on to the same bits as an uninterrupted one "
            "cannot be told"
        )
    found: dict[str, None] = {}
    for entry in attempt.earlier:
        found |= dict.fromkeys(differences(entry, attempt.environment))
        if entry.get("accepted"):
            found["files were changed in an earlier attempt"] = None
    if attempt.accepted:
        found["files have changed"] = None
    if found:
        return f"not bitwise: since this run began, {'; '.join(found)}"
    if attempt.environment["device"] != "cpu":
        return "files, code and versions are those it began with; on a GPU, last bits may differ"
    return "bitwise: files, code, versions, CPU and threads are those it began with"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _code_digest() -> str:
    """SHA-256 of every Python file of this package."""
    root = Path(intrasense_fast.__file__).parent
    digest = hashlib.sha256()
    # A checkout holds kernels/ as a link, which rglob does not follow.
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                file = Path(folder, name)
                digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _file_digest(network: str) -> str | None:
    """SHA-256 of the file of a network from outside."""
    module = sys.modules.get(network.partition(":")[0])
    file = getattr(module, "__file__", None)
    return None if file is None else digest_of(Path(file))


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
