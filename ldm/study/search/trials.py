"""The trials of a search, in a storage that several processes and machines may share."""

import contextlib
import json
import math
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import optuna
from numpy.random import SeedSequence
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from ldm.errors import InputError
from ldm.image_io import writable_folder
from ldm.study.search.space import Space
from ldm.txt2img.manifest import differences

STUDY: Final = "freeu"
SETTINGS, NAME, HEARD, VALUELESS = "settings", "name", "heard", "valueless"  # of the study and of a trial
SILENT = 300.0  # seconds after which a running trial that nothing was heard of is taken for dead
LISTEN = 10.0  # seconds from one sign of life to the next
SQLITE = b"SQLite format 3\0"
JOURNALS = (".log", ".journal", ".jsonl")

Direction = Literal["maximize", "minimize"]

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Trials:
    """The trials in a storage file, of a search with these settings; the first to come makes the study.

    `directions` say which of a trial's values are better, "maximize" or "minimize", `flag` what the path
    comes from. Raises InputError where the file is no storage, or that of a search with other settings.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], directions: Sequence[Direction], seed: int, flag: str
    ):
        self.path, self.seed = path, seed
        settings = json.loads(json.dumps(settings))
        with self.usable():
            storage = open_storage(path)
            try:
                self.study = optuna.create_study(
                    storage=storage, study_name=STUDY, directions=list(directions)
                )
                self.study.set_user_attr(SETTINGS, settings)
            except DuplicatedStudyError:
                self.study = optuna.load_study(storage=storage, study_name=STUDY)
            then = self.study.user_attrs.get(SETTINGS, settings)
        if changes := [*differences(then, settings)]:
            more = " and more" if len(changes) > 2 else ""
            raise InputError(
                f"{path} holds a search with other settings: {'; '.join(changes[:2])}{more}. "
                f"Give the same again, or another {flag}."
            )

    @contextlib.contextmanager
    def usable(self) -> Iterator[None]:
        """Turns what a storage may raise into an InputError that names it."""
        try:
            yield
        except InputError:
            raise
        except (
            SQLAlchemyError,
            StorageInternalError,
            sqlite3.Error,
            OSError,
            RuntimeError,
            ValueError,
        ) as fault:
            reason = str(fault.__cause__ or fault).strip().partition("\n")[0]
            raise InputError(f"The storage {self.path} cannot be used: {reason}") from None

    def all(self) -> list[FrozenTrial]:
        """Every trial, by their numbers; those that nothing was heard of for long have failed."""
        with self.usable():
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == TrialState.RUNNING and silence(trial) > SILENT:
                    with contextlib.suppress(ValueError, RuntimeError):  # another process was first
                        self.study.tell(trial.number, state=TrialState.FAIL)
            return self.study.get_trials(deepcopy=False)

    def complete(self) -> list[FrozenTrial]:
        return [trial for trial in self.all() if trial.state == TrialState.COMPLETE]

    def begun(self) -> list[FrozenTrial]:
        """Those that came to an end, with or without values, and those that run, here or elsewhere."""
        states = (TrialState.COMPLETE, TrialState.RUNNING)
        return [it for it in self.all() if it.state in states or it.user_attrs.get(VALUELESS)]

    def failed(self) -> list[FrozenTrial]:
        """Those of which no values came."""
        return [trial for trial in self.all() if trial.user_attrs.get(VALUELESS)]

    def front(self) -> list[FrozenTrial]:
        """The trials that no other is better than in every value."""
        with self.usable():
            return self.study.best_trials

    def next(self, space: Space, wanted: Mapping[str, Mapping[str, Any]]) -> Trial:
        """A trial to make: one of the `wanted` parameters that nobody has taken on yet, then what TPE says.

        What TPE says depends on the seed and the trials that are begun, so that a search that was stopped
        goes on as if it had not been.
        """
        begun = self.begun()
        # A process that was killed may have left one waiting, which is the next to be taken.
        waiting = [trial for trial in self.all() if trial.state == TrialState.WAITING]
        known = [trial.user_attrs.get(NAME) for trial in (*begun, *waiting)]
        with self.usable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns of its own options
            for name, params in wanted.items():
                if name not in known:
                    self.study.enqueue_trial(dict(params), user_attrs={NAME: name})
                    break
            self.study.sampler = RoundingSampler(
                seed=int(SeedSequence([self.seed, len(begun)]).generate_state(1)[0]),
                multivariate=len(self.study.directions) == 1,
                constant_liar=True,
            )
            trial = self.study.ask(space.distributions)
            self.hear(trial)
            return trial

    def hear(self, trial: Trial) -> None:
        """Notes that a trial is alive, unless that was noted just before."""
        now = time.time()
        if now - trial.user_attrs.get(HEARD, 0.0) > LISTEN:
            # Another process may have taken it for dead.
            with self.usable(), contextlib.suppress(UpdateFinishedTrialError):
                trial.set_user_attr(HEARD, now)

    def finish(self, trial: Trial, values: Sequence[float]) -> None:
        """Writes down what came of a trial, unless it was taken for dead and is being made again."""
        with self.usable():
            self.study.tell(trial, list(values), skip_if_finished=True)

    def fail(self, trial: Trial) -> None:
        """Writes down that no values came of a trial, so that nobody tries it again."""
        with self.usable(), contextlib.suppress(UpdateFinishedTrialError):
            trial.set_user_attr(VALUELESS, True)
        self.give_up(trial)

    def give_up(self, trial: Trial) -> None:
        """Lets others have a trial that was not ended."""
        with self.usable():
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


class RoundingSampler(TPESampler):
    """TPE that asks for short numbers."""

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        values = super().sample_relative(study, trial, search_space)
        return {name: rounded(value, search_space[name]) for name, value in values.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        value = super().sample_independent(study, trial, param_name, param_distribution)
        return rounded(value, param_distribution)


def rounded(value: Any, distribution: BaseDistribution) -> Any:
    """A number of a range with 3 decimals, or more in a narrow range, and within it; others as they are."""
    if not isinstance(distribution, FloatDistribution):
        return value
    low, high = distribution.low, distribution.high
    decimals = max(3, 2 - math.floor(math.log10(high - low)))
    return min(max(round(value, decimals), low), high)


def silence(trial: FrozenTrial) -> float:
    """For how many seconds nothing was heard of a trial."""
    began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return time.time() - float(trial.user_attrs.get(HEARD, began))


def open_storage(path: Path) -> BaseStorage:
    """The storage in a file, or a new one: a journal by its ending (.log, .journal, .jsonl), else SQLite.

    Raises InputError where the file is neither, and for a URL.
    """
    if url := re.match(r"[\w+]{2,}:(?=[/\\])", str(path)):  # one letter is a drive
        raise InputError(
            f"A search is kept in a file, not at {url[0]}//...: give the path of an SQLite database, or for "
            "several machines of a journal that ends in .log."
        )
    writable_folder(path.parent)
    try:
        with path.open("rb") as file:
            content = file.read(len(SQLITE))
    except FileNotFoundError:
        content = b""
    other = (
        f"{path} is no storage of a search: it is neither an Optuna database nor a journal. Choose another."
    )
    if content == SQLITE or (not content and path.suffix not in JOURNALS):
        if foreign(path):
            raise InputError(other)
        # Opened by its path, not by a URL, in which %, ? and braces mean something else. Another process that
        # writes is waited for.
        connect = partial(sqlite3.connect, path, timeout=60, check_same_thread=False)
        for _ in range(5):
            with contextlib.suppress(SQLAlchemyError):  # two processes may make its tables at once
                return RDBStorage("sqlite:///search.db", engine_kwargs={"creator": connect})
            time.sleep(0.3)
        return RDBStorage("sqlite:///search.db", engine_kwargs={"creator": connect})
    if content and not content.startswith(b'{"op_code"'):
        raise InputError(other)
    try:
        return JournalStorage(JournalFileBackend(str(path), MendingLock(path)))
    except (ValueError, KeyError, TypeError, AssertionError):
        raise InputError(other) from None


class MendingLock(JournalFileOpenLock):
    """Optuna's lock of a journal, under which a last line that was cut short is taken away.

    A full disk or a power cut leaves one. Whoever has the lock has no other that writes beside it. It is a
    file and no symbolic link: Windows and some shares have none, and one of a relative path leads nowhere, so
    that nobody sees how old it is.
    """

    def __init__(self, path: Path):
        super().__init__(str(path))
        self.path = path

    def acquire(self) -> bool:
        acquired = super().acquire()
        try:
            with self.path.open("rb+") as journal:
                journal.seek(max(0, journal.seek(0, os.SEEK_END) - 1))
                if journal.read() not in (b"", b"\n"):
                    journal.seek(0)
                    journal.truncate(journal.read().rfind(b"\n") + 1)
        except BaseException:
            self.release()
            raise
        return acquired


def foreign(path: Path) -> bool:
    """Whether an SQLite database has tables and none of them is Optuna's."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    return bool(tables) and not tables & {"studies", "version_info"}
