"""One run in several processes: on one machine, or on many under torchrun or SLURM.

The processes agree on the run when it begins, by words that they leave for each other in a store: torch's
groups, made for tensors, leave threads that may abort a process or hold it up when it ends. From then on none
waits for another, so that one that dies takes nothing with it but the picture in its hands.
"""

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from ldm.device import device_count, pick_device
from ldm.errors import InputError, keeping_the_stop, let_streams_take_all, stop_when_asked

T = TypeVar("T")
Work = Callable[[torch.device, "Group"], None]

PATIENCE = timedelta(minutes=30)  # of a process for the others' beginning: disks may be slow
LOST = b""  # the last word of a process that a fault of the program ends

# How processes are ended in detail is none of a user's.
logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)


class AgreedError(InputError):
    """A fault that all have heard of and this process alone tells."""


@dataclass(frozen=True)
class Group:
    """The processes of a run, as one of them sees them."""

    rank: int = 0
    size: int = 1
    store: Any = None  # what all of them can count in and leave words
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
        except InputError as refused:
            fault = refused
        except BaseException:
            with contextlib.suppress(RuntimeError):
                self._say(LOST)
            raise
        for rank, told in enumerate(self._exchange(fault)):
            if told is not None:
                raise AgreedError(*told.args) if rank == self.rank else SystemExit(2)
        return result  # type: ignore[return-value]

    def from_first(self, work: Callable[[], T]) -> T:
        """The result of some work that the first process alone does, in every process."""
        result = self.agree(lambda: work() if self.rank == 0 else None)
        return result if self.size == 1 else self._exchange(result)[0]  # type: ignore[return-value]

    def _exchange(self, word: Any) -> list[Any]:
        """The words of all processes, each of which has one to say now."""
        try:
            names = self._say(pickle.dumps(word))
            _wait_for(lambda: self.store.check(names))
            words = [self.store.get(name) for name in names]
            # The first may have the store, which goes with it when it ends.
            heard = f"have heard {names[0]}"
            self.store.add(heard, 1)
            if self.rank == 0 and LOST not in words:
                _wait_for(lambda: self.store.add(heard, 0) == self.size)
        except RuntimeError:
            words = [LOST]
        if LOST in words:
            if self.tells():
                print("error: another process of this run was lost; start it again", file=sys.stderr)
            raise SystemExit(1)
        return [*map(pickle.loads, words)]

    def _say(self, word: bytes) -> list[str]:
        """Lets the others hear this process's next word. By what names the words of all are in the store."""
        turn = self.store.add(f"words of {self.rank}", 1)
        names = [f"word {turn} of {rank}" for rank in range(self.size)]
        self.store.set(names[self.rank], word)
        return names

    def tells(self, fault: InputError | None = None) -> bool:
        """Whether this process is the first that has a fault to tell of."""
        if isinstance(fault, AgreedError):
            return True  # the store may be gone with the process that had it
        try:
            return self.store is None or self.store.add("faults", 1) == 1
        except RuntimeError:
            return True  # the process that counted is gone

    def ends(self) -> bool:
        """Lets the others know that this process has done its share. Whether it is sure to be the last."""
        return self.store.add("ended", 1) == self.size if self.tended else self.size == 1

    def others_work(self) -> bool:
        """Whether others have not done their share yet; only where this is sure to come to an end."""
        return self.tended and self.store.add("ended", 0) < self.size


def _wait_for(condition: Callable[[], bool]) -> None:
    """Waits for other processes. Unlike a store, which waits in C++, this hears of signals meanwhile."""
    until = time.monotonic() + PATIENCE.total_seconds()
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError(f"others are not heard of for {PATIENCE}")
        time.sleep(0.02)


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


def in_processes(work: Work, devices: int, device: str) -> None:
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
    there = here if found.type == "cpu" else device_count(found.type)
    # SLURM may show each process one GPU alone, its own.
    own = external and "LOCAL_WORLD_SIZE" not in os.environ and there == 1
    if found.index is not None:
        raise InputError(f"--device {device} is one device and --devices {here}: give --device {found.type}.")
    if here > there and not own:
        raise InputError(f"{here} devices of the kind {device} are asked for; there is only {there}.")

    # A picture's last bits follow the number of threads, which must not follow the number of processes.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if external:
        _join_launched(work, found.type)
    else:
        _start(work, found.type, devices)


def _join_launched(work: Work, kind: str) -> None:
    """This process's part of the work, among those that torchrun or SLURM started."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        from lightning_fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment()
        os.environ |= {
            "MASTER_ADDR": slurm.main_address,
            "MASTER_PORT": str(slurm.main_port),
            "RANK": str(slurm.global_rank()),
            "WORLD_SIZE": str(slurm.world_size()),
            "LOCAL_RANK": str(slurm.local_rank()),
        }
    try:
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        group = Group(rank, size, store, tended=distributed.is_torchelastic_launched())
        index = int(os.environ["LOCAL_RANK"])
    except (KeyError, RuntimeError, ValueError) as refused:
        raise InputError(f"The processes do not fit together: {refused}") from None
    try:
        with keeping_the_stop():
            work(_device(kind, index), group)
    except InputError as fault:
        if group.tells(fault):
            raise
        raise SystemExit(2) from None
    except KeyboardInterrupt as asked:
        if group.rank == 0:
            raise
        raise SystemExit(128 + asked.args[0]) from None


def _start(work: Work, kind: str, count: int) -> None:
    """The whole work in so many new processes, whose store lives in this one and so outlives each of them."""
    store = _store()
    try:
        with _interrupts_wait():
            processes = torch.multiprocessing.spawn(
                _started, (store.port, work, kind, count), count, join=False
            )
        while not processes.join():
            pass
    except torch.multiprocessing.ProcessExitedException as ended:
        if ended.exit_code > 0:
            raise SystemExit(ended.exit_code) from None
        name = f"process {ended.error_index} of {count} was killed ({ended.signal_name})"
        print(f"error: {name}; every finished picture is kept, --resume makes the rest", file=sys.stderr)
        raise SystemExit(128 - ended.exit_code) from None
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.terminate()
        for child in multiprocessing.active_children():
            child.join()
        raise


def _started(rank: int, port: int, work: Work, kind: str, count: int) -> None:
    """What each new process does; one of them tells of a fault, and who started them of a stop."""
    try:
        let_streams_take_all()
        group = Group(rank, count, _store(port), tended=True)
        stop_when_asked()
        _interrupts_come()
        with keeping_the_stop():
            work(_device(kind, rank), group)
    except InputError as fault:
        if group.tells(fault):
            print(f"error: {fault}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as asked:
        raise SystemExit(128 + (asked.args[0] if asked.args else signal.SIGINT)) from None


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Holds Ctrl-C back until it ends, and in processes started within it until `_interrupts_come` there."""
    # Interrupted while it imports torch, a process would say so at length. Who started it hears of the same
    # Ctrl-C and ends it by SIGTERM.
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # the first process would start it, which lets interrupts come
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        _interrupts_come()


def _interrupts_come() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _store(port: int = 0) -> distributed.TCPStore:
    """What the processes of one machine count in: a new store, or the one that is at this port."""
    return distributed.TCPStore(
        "127.0.0.1",
        port,
        is_master=port == 0,
        timeout=PATIENCE,
        wait_for_workers=False,
        use_libuv=sys.platform != "win32",  # torch for Windows is built without it
    )


def _device(kind: str, index: int) -> torch.device:
    """The device of the process with this index on its machine."""
    if kind in ("cpu", "mps"):
        return torch.device(kind)
    device = torch.device(kind, index % device_count(kind))
    torch.get_device_module(device).set_device(device)
    return device
