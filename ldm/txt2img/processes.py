"""One run in several processes, by Lightning Fabric: on one machine, or on many under torchrun or SLURM.

The processes agree on the run when it begins. From then on none waits for another, so that one that dies
takes nothing with it but the picture in its hands.
"""

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from ldm.device import pick_device
from ldm.errors import InputError, escape_what_streams_lack, stop_when_asked

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)  # of a process for the others' beginning: disks may be slow

# How processes are connected and ended in detail is none of a user's.
logging.getLogger("lightning_fabric.utilities").setLevel(logging.WARNING)
logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Group:
    """The processes of a run, as one of them sees them."""

    rank: int = 0
    size: int = 1
    store: Any = None  # what all of them can count in
    tended: bool = False  # whether all are stopped when one dies

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of what all have to do."""
        return items[self.rank :: self.size]

    def agree(self, work: Callable[[], T]) -> T:
        """Does some work in every process. Where it faults in one, that one tells why, and all end."""
        if self.size == 1:
            return work()
        result, fault = None, None
        try:
            result = work()
        except InputError as told:
            fault = told
        faults: list[InputError | None] = [None] * self.size
        self._exchange(lambda: distributed.all_gather_object(faults, fault))
        for rank, fault in enumerate(faults):
            if fault is not None:
                raise fault if rank == self.rank else SystemExit(2)
        return result  # type: ignore[return-value]

    def from_first(self, work: Callable[[], T]) -> T:
        """The result of some work that the first process alone does, in every process."""
        results = [self.agree(lambda: work() if self.rank == 0 else None)]
        if self.size > 1:
            self._exchange(lambda: distributed.broadcast_object_list(results, src=0))
        return results[0]  # type: ignore[return-value]

    def _exchange(self, words: Callable[[], None]) -> None:
        try:
            words()
        except RuntimeError:
            if self.tells():
                print("error: another process of this run was lost; start it again", file=sys.stderr)
            raise SystemExit(1) from None

    def tells(self) -> bool:
        """Whether this process is the first that has a fault to tell of."""
        try:
            return self.store is None or self.store.add("faults", 1) == 1
        except RuntimeError:
            return True  # the process that counted is gone

    def ends(self) -> None:
        """Lets the others know that this process has done its share."""
        if self.store is not None:
            self.store.add("ended", 1)

    def others_work(self) -> bool:
        """Whether others have not done their share yet; only where this is sure to come to an end."""
        return self.tended and self.store.add("ended", 0) < self.size


def launched() -> tuple[int, int]:
    """How many processes torchrun or SLURM has started on each machine, and on how many machines."""
    get = os.environ.get
    if "LOCAL_WORLD_SIZE" in os.environ:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(get("WORLD_SIZE", here)) // here
    if int(get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        machines = int(get("SLURM_NNODES", 1))
        return int(get("SLURM_NTASKS", 1)) // machines, machines
    return 1, 1


def in_processes(work: Callable[[torch.device, Group], None], devices: int, device: str) -> None:
    """Does the work, `work(device, group)`, in as many processes on this machine as devices are asked for.

    Or in those that torchrun or SLURM started. Ends with code 2 where the input was bad.
    """
    here, machines = launched()
    external = here * machines > 1
    if devices < 1:
        raise InputError(f"--devices is {devices}: give 1 or more.")
    if external and devices not in (1, here):
        raise InputError(f"--devices is {devices}, but {here} processes were started here: leave it out.")
    if not external and devices == 1:
        work(pick_device(device), Group())
        return
    here, found = here if external else devices, pick_device(device)
    there = {"cuda": torch.cuda.device_count(), "cpu": here}.get(found.type, 1)
    if here > there or found.index is not None:
        raise InputError(f"{here} devices of the kind {device} are asked for; there is only {there}.")

    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    # A picture's last bits follow the number of threads, which must not follow the number of processes.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Only words are exchanged, never tensors, so that the CPU's backend will do for every device.
    strategy = DDPStrategy(
        process_group_backend="gloo", timeout=PATIENCE, start_method="popen" if external else "spawn"
    )
    # Left to itself, Fabric takes a SLURM job's variables for a sign that SLURM started the processes.
    plugins = [] if external else [LightningEnvironment()]
    try:
        fabric = Fabric(
            accelerator=found.type, devices=here, num_nodes=machines, strategy=strategy, plugins=plugins
        )
    except (RuntimeError, ValueError) as refused:
        raise InputError(f"The processes do not fit together: {refused}") from None
    try:
        fabric.launch(_member, work, external)
    except torch.multiprocessing.ProcessExitedException as ended:
        if ended.exit_code > 0:
            raise SystemExit(ended.exit_code) from None
        name = f"process {ended.error_index} of {here} was killed ({ended.signal_name})"
        print(f"error: {name}; every finished picture is kept, --resume makes the rest", file=sys.stderr)
        raise SystemExit(128 - ended.exit_code) from None
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.terminate()
        for child in multiprocessing.active_children():
            child.join()
        raise


def _member(fabric: Any, work: Callable[[torch.device, Group], None], external: bool) -> None:
    """What each process does; faults and stops are told of by one of them."""
    stop_when_asked()
    escape_what_streams_lack()
    store = distributed.distributed_c10d._get_default_store()
    tended = not external or distributed.is_torchelastic_launched()
    group = Group(fabric.global_rank, fabric.world_size, store, tended)
    try:
        work(fabric.device, group)
    except InputError as fault:
        if external and group.tells():
            raise
        if not external and group.tells():
            print(f"error: {fault}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as asked:
        if external and group.rank == 0:
            raise
        raise SystemExit(128 + asked.args[0]) from None
