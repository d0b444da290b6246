"""Where evaluations run: recipes of engines that others have written, each opened as a `concurrent.futures.Executor`.

A recipe is plain data, kept with the campaign, and imports its engine when it is opened. What the engine raises comes
out of a future as one of three things: an `EvaluationError` belongs to one trial (its worker died again and again), an
`EngineError` to the engine as a whole (the run stops, what was in flight is queued again), anything else is what
happened to this one task.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import queue
import re
import shlex
import shutil
import sys
import tempfile
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import psutil

from .errors import EngineError, EvaluationError, InvalidSpec, MissingExtra

__all__ = ["MPI", "RECIPES", "Dask", "GlobusCompute", "Local", "Parsl", "Recipe", "Workers", "recipe", "settings"]

#: Bytes from which on what is the same for all trials is sent to each worker of Dask once.
_LARGE = 50_000
#: Numerical libraries share the cores of a machine with the other workers.
_THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
_SECRET = re.compile(r"passw|secret|token|credential|private_key", re.IGNORECASE)


class Recipe(ABC):
    """How to start, or connect to, an engine that runs evaluations."""

    @abstractmethod
    def open(self, workers: int | None = None) -> AbstractContextManager[Executor]:
        """The engine's executor; afterwards what was started for it is ended, at once if there was an error.

        Args:
            workers: evaluations at the same time; None if the engine knows.

        Returns:
            A context manager of an executor; its `_max_workers` says how many evaluations it takes at a time.

        Raises:
            MissingExtra: the engine's package is not installed.
            EngineError: it cannot be started or reached.
            InvalidSpec: settings that it does not take.
        """


@dataclass(frozen=True)
class Local(Recipe):
    """Processes of this machine (loky), made again when one of them dies.

    Attributes:
        threads: threads of this process instead, for evaluators that wait for something else.
    """

    threads: bool = False

    def open(self, workers: int | None = None) -> AbstractContextManager[Executor]:  # noqa: D102
        number = workers or os.cpu_count() or 1
        return _threads(number) if self.threads else _processes(number)


@dataclass(frozen=True)
class Dask(Recipe):
    """A cluster of Dask (https://distributed.dask.org): one that runs already, one of this machine, or batch jobs.

    Attributes:
        address: of a scheduler that runs already, "tcp://host:8786" or "tls://..."; a scheduler file "....json";
            "environment": what DASK_SCHEDULER_ADDRESS or Dask's own configuration says. Empty: one is started.
        cluster: what is started: processes of this machine, or jobs of a batch system by dask-jobqueue.
        options: for `distributed.LocalCluster` or dask_jobqueue's cluster: cores, processes, memory, queue, walltime,
            account, job_script_prologue, ...
        jobs: batch jobs to keep, one that ends is replaced; by default as many as `workers` need.
        adaptive: keep only as many of these jobs as there is work for.

    Raises:
        InvalidSpec: settings that contradict each other.
    """

    address: str = ""
    cluster: Literal["local", "slurm", "htcondor", "pbs", "lsf", "sge"] = "local"
    options: Mapping[str, Any] = field(default_factory=dict)
    jobs: int | None = None
    adaptive: bool = False

    def __post_init__(self) -> None:
        _check_options(self, "dask")
        if self.address and (self.cluster != "local" or self.options or self.jobs or self.adaptive):
            raise InvalidSpec(
                f"executor dask: with an address nothing is started, got address={self.address!r} and settings of a "
                "cluster. Leave out one or the other"
            )
        if re.search(r"//[^/]*@", self.address):
            raise InvalidSpec("executor dask: an address must not hold a password. Use Dask's TLS configuration")
        if self.cluster == "local" and (self.jobs is not None or self.adaptive):
            raise InvalidSpec(
                f"executor dask: jobs are those of a batch system, got jobs={self.jobs!r}, adaptive={self.adaptive} "
                "for cluster 'local'. Name the cluster: slurm, htcondor, pbs, lsf or sge"
            )
        if self.jobs is not None and self.jobs < 1:
            raise InvalidSpec(f"executor dask: jobs must be positive, got jobs={self.jobs!r}. Give 1 or more")

    @contextmanager
    def open(self, workers: int | None = None) -> Iterator[Executor]:  # noqa: D102
        dask = _package("dask", "dask", "distributed")
        distributed = _package("dask", "distributed")
        config: dict[str, Any] = {
            # A long evaluation that holds the GIL is silent, and may start processes itself.
            "distributed.scheduler.worker-ttl": None,
            "distributed.worker.daemon": False,
            # Ctrl-C is for the run, which then ends them.
            "distributed.worker.preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
            "distributed.scheduler.worker-saturation": 1.0,
            "distributed.nanny.pre-spawn-environ": {**_THREADS, "MALLOC_TRIM_THRESHOLD_": 65536},
        }
        if self.cluster == "local":
            config["distributed.scheduler.allowed-failures"] = 1
            # A value whose worker has died meanwhile is fetched until this has passed, then evaluated again.
            config["distributed.comm.timeouts.connect"] = "10s"
        with contextlib.ExitStack() as stack:
            if not self.address:
                stack.enter_context(dask.config.set(config))
            with _starting("dask"):
                client = stack.enter_context(self._client(distributed, workers))
            yield _Engine(_submit_to_dask(client), _from_dask, workers or self._slots(client))

    def _slots(self, client: Any) -> int:
        """How many evaluations the cluster takes when it is complete."""
        if self.cluster != "local":
            return (self.jobs or 1) * int(self.options.get("processes") or self.options.get("cores") or 1)
        return sum(client.nthreads().values()) or 1

    def _client(self, distributed: Any, workers: int | None) -> AbstractContextManager[Any]:
        if self.address:
            return self._connected(distributed)
        if self.cluster == "local":
            return self._started(distributed, workers)
        return self._queued(distributed, workers)

    @contextmanager
    def _connected(self, distributed: Any) -> Iterator[Any]:
        if self.address == "environment":
            dask = importlib.import_module("dask")
            if not dask.config.get("scheduler-address", None):
                raise InvalidSpec(
                    "executor dask: address 'environment' needs the variable DASK_SCHEDULER_ADDRESS, got none. "
                    "Set it, or give the address"
                )
            where: dict[str, Any] = {}
        elif self.address.endswith(".json"):
            where = {"scheduler_file": os.path.expanduser(self.address)}
            if not os.path.exists(where["scheduler_file"]):
                raise InvalidSpec(
                    f"executor dask: the scheduler file must exist, got {self.address!r}. Start dask first"
                )
        else:
            where = {"address": self.address}
        client = distributed.Client(**where, set_as_default=False, timeout=15)
        with contextlib.closing(client):
            yield client

    @contextmanager
    def _started(self, distributed: Any, workers: int | None) -> Iterator[Any]:
        options = {
            "n_workers": workers or os.cpu_count() or 1,
            "threads_per_worker": 1,
            "memory_limit": 0,
            "dashboard_address": "127.0.0.1:0",
            "silence_logs": 50,
            **self.options,
        }
        with (
            distributed.LocalCluster(**options) as cluster,
            distributed.Client(cluster, set_as_default=False) as client,
            _ended_with(lambda: [nanny.pid for nanny in cluster.workers.values() if getattr(nanny, "pid", None)]),
        ):
            yield client

    @contextmanager
    def _queued(self, distributed: Any, workers: int | None) -> Iterator[Any]:
        with self.batch_system() as cluster:
            jobs = self.jobs or -(-(workers or 1) // self._slots(None))
            # Adapting between equal numbers, rather than scaling once, replaces jobs that have come to an end.
            cluster.adapt(minimum_jobs=0 if self.adaptive else jobs, maximum_jobs=jobs)
            with distributed.Client(cluster, set_as_default=False) as client:
                yield client

    def batch_system(self) -> Any:
        """The cluster of dask_jobqueue, without any job yet; `job_script()` shows what would be submitted."""
        jobqueue = _package("dask", "dask_jobqueue", "dask-jobqueue")
        made = {
            "slurm": "SLURMCluster",
            "htcondor": "HTCondorCluster",
            "pbs": "PBSCluster",
            "lsf": "LSFCluster",
            "sge": "SGECluster",
        }[self.cluster]
        cores = int(self.options.get("cores") or 1)
        options: dict[str, Any] = {"cores": cores, "processes": cores, "memory": f"{2 * cores} GB", **self.options}
        prologue = [f"export {name}={value}" for name, value in _THREADS.items()]
        options["job_script_prologue"] = [*prologue, *options.get("job_script_prologue", ())]
        options["scheduler_options"] = {"dashboard_address": "127.0.0.1:0", **options.get("scheduler_options", {})}
        return getattr(jobqueue, made)(**options)


@dataclass(frozen=True)
class Parsl(Recipe):
    """Workers of Parsl (https://parsl.readthedocs.io): on this machine, in jobs of a batch system, or as configured.

    Attributes:
        provider: where they run.
        options: for Parsl's provider of this kind: partition, account, walltime, worker_init, nodes_per_block,
            max_blocks, scheduler_options, ...
        workers_per_node: evaluations at the same time on a node of a batch system; its cores by default.
        config: "file.py:name" or "module:name" of a `parsl.Config` (or a function that returns one) instead.
        run_dir: where Parsl writes its scripts and logs, a folder that the nodes see; by default a temporary one on
            this machine, or `~/.cache/excursion/parsl` for batch systems.

    Raises:
        InvalidSpec: settings that contradict each other.
    """

    provider: Literal["local", "slurm", "htcondor", "pbs", "lsf"] = "local"
    options: Mapping[str, Any] = field(default_factory=dict)
    workers_per_node: int | None = None
    config: str = ""
    run_dir: str = ""

    def __post_init__(self) -> None:
        _check_options(self, "parsl")
        if self.config and (self.provider != "local" or self.options or self.workers_per_node or self.run_dir):
            raise InvalidSpec(
                f"executor parsl: the configuration says everything, got config={self.config!r} and other settings. "
                "Leave out one or the other"
            )
        if self.config and not re.fullmatch(r"(.+\.py|\w+(\.\w+)*):[^\W\d]\w*", self.config):
            raise InvalidSpec(
                f"executor parsl: the configuration must be named as file.py:name or module:name, "
                f"got config={self.config!r}. Write for example 'cluster.py:config'"
            )
        if self.workers_per_node is not None and self.workers_per_node < 1:
            raise InvalidSpec(
                f"executor parsl: workers_per_node must be positive, got workers_per_node={self.workers_per_node!r}. "
                "Give 1 or more"
            )

    @contextmanager
    def open(self, workers: int | None = None) -> Iterator[Executor]:  # noqa: D102
        _package("parsl", "parsl")
        # The classes come from where they are defined; `parsl.load` would keep one kernel for the whole process.
        kernel_type = importlib.import_module("parsl.dataflow.dflow").DataFlowKernel
        pool_type = importlib.import_module("parsl.concurrent").ParslPoolExecutor
        with contextlib.ExitStack() as stack:
            if self.config:
                with _starting("parsl"):
                    config = self._configured()
            else:
                config = self._made(self._folder(stack), workers)
            with _starting("parsl"):
                kernel = kernel_type(config)
            stack.callback(_end_parsl, kernel)
            stack.enter_context(_ended_with(lambda: _local_blocks(kernel)))
            pool = pool_type(dfk=kernel)
            engine = _Engine(pool.submit, _from_parsl, self._slots(config, workers), takes_back=False)
            stack.enter_context(_watched(kernel, engine))
            yield engine

    def _slots(self, config: Any, workers: int | None) -> int:
        if workers:
            return workers
        if self.provider == "local" and not self.config:
            return os.cpu_count() or 1
        known = 0
        for executor in config.executors:
            provider = getattr(executor, "provider", None)
            nodes = getattr(provider, "max_blocks", 1) * getattr(provider, "nodes_per_block", 1)
            each = getattr(executor, "max_workers_per_node", None) or getattr(executor, "max_threads", None) or 1
            known += nodes * int(each if each != float("inf") else 1)
        return known or 1

    def _folder(self, stack: contextlib.ExitStack) -> str:
        if self.run_dir:
            folder = os.path.abspath(os.path.expanduser(self.run_dir))
        elif self.provider == "local":
            folder = tempfile.mkdtemp(prefix="excursion-parsl-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        else:
            cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
            folder = os.path.join(cache, "excursion", "parsl", uuid.uuid4().hex[:12])
        os.makedirs(folder, exist_ok=True)
        return folder

    def _made(self, folder: str, workers: int | None) -> Any:
        parsl_config = importlib.import_module("parsl.config").Config
        executors, providers = (importlib.import_module(f"parsl.{name}") for name in ("executors", "providers"))
        local = self.provider == "local"
        made = {
            "local": "LocalProvider",
            "slurm": "SlurmProvider",
            "htcondor": "CondorProvider",
            "pbs": "PBSProProvider",
            "lsf": "LSFProvider",
        }[self.provider]
        each = self.workers_per_node or ((workers or os.cpu_count() or 1) if local else None)
        # The workers' programs lie beside this Python, which need not be on PATH.
        setup = [
            f'export PATH={shlex.quote(os.path.dirname(sys.executable))}:"$PATH"',
            *(f"export {name}={value}" for name, value in _THREADS.items()),
        ]
        if local:  # what can be imported here can be imported there
            setup.append(f"export PYTHONPATH={shlex.quote(os.pathsep.join(filter(None, sys.path)))}")
        options = dict(self.options)
        options["worker_init"] = "\n".join([*setup, *filter(None, [options.get("worker_init")])])
        if local:
            options = {"init_blocks": 1, "min_blocks": 1, "max_blocks": 1, **options}
        with _starting("parsl"):
            executor = executors.HighThroughputExecutor(
                label="excursion",
                provider=getattr(providers, made)(**options),
                address="127.0.0.1" if local else None,
                max_workers_per_node=each,
                interchange_launch_cmd=[sys.executable, "-c", _INTERCHANGE, str(os.getpid())],
                worker_logdir_root=folder,
                heartbeat_period=5 if local else 30,
                heartbeat_threshold=20 if local else 120,
                encrypted=True,
            )
        return parsl_config(
            executors=[executor],
            run_dir=folder,
            strategy="none" if local else "simple",
            retries=1,
            retry_handler=_retry_the_lost,
            initialize_logging=False,
        )

    def _configured(self) -> Any:
        """The configuration that the user has written."""
        where, _, name = self.config.rpartition(":")
        if where.endswith(".py"):
            path = os.path.abspath(os.path.expanduser(where))
            if not os.path.isfile(path):
                raise InvalidSpec(f"executor parsl: the configuration's file must exist, got {path}. Correct the path")
            spec = importlib.util.spec_from_file_location("excursion_parsl_config", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        if not hasattr(module, name):
            raise InvalidSpec(f"executor parsl: {where} must define {name!r}, got none. Correct config={self.config!r}")
        found = getattr(module, name)
        return found() if callable(found) else found


@dataclass(frozen=True)
class GlobusCompute(Recipe):
    """An endpoint of Globus Compute (https://globus-compute.readthedocs.io), on whatever machine it runs.

    Attributes:
        endpoint: its id.
        options: for `globus_compute_sdk.Executor`: user_endpoint_config, resource_specification, label, ...

    Raises:
        InvalidSpec: the id is none.
    """

    endpoint: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_options(self, "globus-compute")
        try:
            uuid.UUID(self.endpoint)
        except ValueError:
            raise InvalidSpec(
                f"executor globus-compute: the endpoint must be an id such as {uuid.UUID(int=0)}, "
                f"got endpoint={self.endpoint!r}. `globus-compute-endpoint list` shows it"
            ) from None

    @contextmanager
    def open(self, workers: int | None = None) -> Iterator[Executor]:  # noqa: D102
        sdk = _package("globus", "globus_compute_sdk", "globus-compute-sdk")
        with _starting("globus-compute"):
            # Without the check of versions nothing is sent before it is known that nobody has to log in.
            client = sdk.Client(do_version_check=False)
        if client.app is not None and client.app.login_required():
            raise EngineError(
                "executor globus-compute: needs a login that is there already, got none. Run once by hand: "
                "python -c 'from globus_compute_sdk import Client; Client()'; or set GLOBUS_COMPUTE_CLIENT_ID and "
                "GLOBUS_COMPUTE_CLIENT_SECRET"
            )
        with _starting("globus-compute"):
            executor = sdk.Executor(endpoint_id=self.endpoint, client=client, **self.options)
        try:
            yield _Engine(
                lambda function, *given: executor.submit(_by_name, _name(function), *given), _from_globus, workers or 1
            )
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class MPI(Recipe):
    """The processes of an MPI job, by mpi4py: `mpiexec -n 65 python -m mpi4py.futures -m excursion.cli run scan.yaml`.

    Rank 0 runs the campaign, the others evaluate. Without `mpiexec`, MPI is asked to start the processes.
    """

    @contextmanager
    def open(self, workers: int | None = None) -> Iterator[Executor]:  # noqa: D102
        with _starting("mpi"):
            futures = _package("mpi", "mpi4py.futures", "mpi4py")
            executor = futures.MPIPoolExecutor(workers, main=False, env=_THREADS)
            executor.bootup(wait=True)
        try:
            yield _Engine(executor.submit, _from_mpi, workers or max(1, executor.num_workers))
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Workers(Recipe):
    """Processes that were started elsewhere by `excursion work` and take their trials from the store; see `work`."""

    def open(self, workers: int | None = None) -> AbstractContextManager[Executor]:  # noqa: D102
        raise InvalidSpec(
            "executor workers: trials are evaluated by `excursion work STORE NAME`, got a run that wants to evaluate "
            "them itself. Use `excursion run`, or excursion.work.coordinate, to ask and wait"
        )


#: By the name used in files and on the command line.
RECIPES: dict[str, type[Recipe]] = {
    "local": Local,
    "dask": Dask,
    "parsl": Parsl,
    "globus-compute": GlobusCompute,
    "mpi": MPI,
    "workers": Workers,
}


def recipe(given: Recipe | str | Mapping[str, Any]) -> Recipe:
    """The recipe meant by a name or by {"type": name, setting: value}.

    Raises:
        InvalidSpec: there is no such engine, or it has no such setting.

    Example:
        >>> recipe({"type": "dask", "address": "tcp://10.0.0.1:8786"})
        Dask(address='tcp://10.0.0.1:8786', cluster='local', options={}, jobs=None, adaptive=False)
    """
    if isinstance(given, Recipe):
        return given
    named = {"type": given} if isinstance(given, str) else dict(given)
    name = named.pop("type", None)
    if name not in RECIPES:
        raise InvalidSpec(f"executor: must be one of {', '.join(RECIPES)}, got {name!r}. Correct the name")
    made: Any = RECIPES[name]
    known = {f.name for f in fields(made)}
    if unknown := sorted(named.keys() - known):
        raise InvalidSpec(f"executor {name}: settings are {sorted(known) or 'none'}, got {unknown}. Remove them")
    try:
        return made(**named)
    except TypeError as error:
        raise InvalidSpec(f"executor {name}: a setting must be given, got {sorted(named)} ({error})") from None


def settings(given: Recipe) -> dict[str, Any]:
    """What `recipe` makes the same recipe of, JSON-compatible; only what differs from the defaults.

    Example:
        >>> settings(Dask(cluster="slurm", jobs=4))
        {'type': 'dask', 'cluster': 'slurm', 'jobs': 4}
    """
    name = next(name for name, kind in RECIPES.items() if type(given) is kind)
    found: dict[str, Any] = {"type": name}
    for f in fields(given):  # type: ignore[arg-type]
        value, usual = getattr(given, f.name), f.default_factory() if callable(f.default_factory) else f.default
        if value != usual:
            found[f.name] = dict(value) if isinstance(value, Mapping) else value
    return found


def _check_options(given: Any, name: str) -> None:
    secret = [key for key in given.options if _SECRET.search(str(key))]
    if secret:
        raise InvalidSpec(
            f"executor {name}: settings are kept with the campaign for everybody to read, got options {secret}. "
            "Give secrets to the engine itself, in its own configuration or environment"
        )


def _package(extra: str, module: str, package: str = "") -> Any:
    """The module of an engine.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"executor: the package {package or module!r} must be installed, got {error}. "
            f"Run: pip install 'excursion[{extra}]'"
        ) from error


@contextmanager
def _starting(name: str) -> Iterator[None]:
    """What goes wrong while an engine starts names it."""
    try:
        yield
    except (InvalidSpec, EngineError, MissingExtra):
        raise
    except TypeError as error:
        raise InvalidSpec(
            f"executor {name}: options must be those of the engine, got {error}. See docs/executors.md"
        ) from error
    except Exception as error:
        raise EngineError(
            f"executor {name}: the engine must start, got {_short(error)}. Nothing is lost: correct it and run again"
        ) from error


# --------------------------------------------------------------------------------------- of this machine


@contextmanager
def _threads(workers: int) -> Iterator[Executor]:
    pool = _Threads(workers)
    try:
        yield pool
    except BaseException:
        # A thread cannot be ended; what it does after this is lost.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


class _Threads(Executor):
    """Threads that end with their process, though they wait for something that takes days.

    Those of `ThreadPoolExecutor` do not: Python waits for them before it exits.
    """

    def __init__(self, workers: int) -> None:
        self._max_workers = workers
        self._tasks: queue.SimpleQueue[tuple[Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, function: Callable[..., Any], /, *given: Any, **named: Any) -> Future:
        """As any executor."""
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future = Future()
        self._tasks.put((future, functools.partial(function, *given, **named)))
        if len(self._threads) < self._max_workers:
            thread = threading.Thread(target=self._work, name=f"evaluation {len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del task, future, function  # a waiting thread keeps nothing alive

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As any executor."""
        self._closed = True
        while cancel_futures:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is not None:
                task[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads if wait else ():
            thread.join()


@contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    pool = _Processes(workers)
    try:
        yield pool
    except BaseException:
        pool.kill()
        raise
    pool.shutdown()


class _Processes(Executor):
    """A pool of processes, made on first use and again when it has broken."""

    def __init__(self, workers: int) -> None:
        self._max_workers, self._pool = workers, None

    def submit(self, function: Callable[..., Any], /, *given: Any, **named: Any) -> Future:
        """As any executor."""
        if self._pool is not None and self._pool._flags.broken is not None:
            self.kill()
        try:
            return self._made().submit(function, *given, **named)
        except BrokenExecutor:
            # A worker died a moment ago and no future has told yet.
            self.kill()
            return self._made().submit(function, *given, **named)

    def _made(self) -> Any:
        if self._pool is None:
            import loky

            # One thread each: the workers share the cores. Idle ones end after a minute (and are made again when
            # needed), so that none outlives a run that was killed.
            self._pool = loky.ProcessPoolExecutor(self._max_workers, env=_THREADS, timeout=60)
        return self._pool

    def kill(self) -> None:
        """End what is still running."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, kill_workers=True)
            self._pool = None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the workers go."""
        if self._pool is not None:
            self._pool.shutdown(wait=wait)
            self._pool = None


# ------------------------------------------------------------------------------------------ other engines


class _Engine(Executor):
    """An engine whose futures are plain ones; what it raises is translated.

    `takes_back` says that it can cancel what has not begun yet; nothing depends on it.
    """

    def __init__(
        self,
        submit: Callable[..., Future],
        translate: Callable[[BaseException], BaseException],
        workers: int,
        takes_back: bool = True,
    ) -> None:
        self._submit, self._translate, self._max_workers, self._takes_back = submit, translate, workers, takes_back
        self._lock, self._pending = threading.Lock(), set[Future]()
        self._broken: EngineError | None = None

    def submit(self, function: Callable[..., Any], /, *given: Any, **named: Any) -> Future:
        """As any executor.

        Raises:
            EngineError: the engine takes no more work.
        """
        if self._broken is not None:
            raise self._broken
        try:
            inner = self._submit(function, *given, **named)
        except Exception as error:
            raise _stopped(error) from error
        outer: Future = Future()
        with self._lock:
            self._pending.add(outer)
        if self._takes_back:
            outer.add_done_callback(lambda done: inner.cancel() if done.cancelled() else None)
        inner.add_done_callback(lambda done: self._pass_on(done, outer))
        return outer

    def fail(self, error: EngineError) -> None:
        """The engine has stopped without a word: so say all futures, and whoever submits."""
        self._broken = error
        for outer in list(self._pending):
            if self._mine(outer):
                outer.set_exception(error)

    def _mine(self, outer: Future) -> bool:
        """Whether this future is still to be told something, by the caller alone."""
        with self._lock:
            known = outer in self._pending
            self._pending.discard(outer)
        return known and outer.set_running_or_notify_cancel()

    def _pass_on(self, inner: Future, outer: Future) -> None:
        if self._mine(outer):
            try:
                result = inner.result()
            except (Exception, CancelledError) as error:
                outer.set_exception(self._told(error))
            else:
                outer.set_result(result)

    def _told(self, error: BaseException) -> BaseException:
        if isinstance(error, ModuleNotFoundError) or re.search(r"ModuleNotFoundError\b|No module named", str(error)):
            return EngineError(
                f"executor: the workers need every module that the evaluation needs, got {_short(error)}. "
                "Install the same packages there, or put the files where the workers find them"
            )
        return self._translate(error)


def _short(error: BaseException) -> str:
    """The error and its causes, from the last to the first."""
    told, steps = [], 0
    step: BaseException | None = error
    while step is not None and steps < 4:
        told.append(f"{type(step).__name__}: {' '.join(str(step).split())[-400:].rstrip('.')}")
        step, steps = step.__cause__, steps + 1
    return " because of ".join(told)


def _stopped(error: BaseException) -> EngineError:
    made = EngineError(
        f"executor: the engine must run until the end, got {_short(error)}. "
        "Nothing is lost, what was in flight is queued again: see the engine's own logs and run again"
    )
    made.__cause__ = error
    return made


def _died(times: int, error: BaseException) -> EvaluationError:
    return EvaluationError(
        f"the worker process died {times} times during this evaluation (killed, out of memory or a crash in compiled "
        f"code): {_short(error)}"
    )


def _submit_to_dask(client: Any) -> Callable[..., Future]:
    sent: list[tuple[bytes, Any]] = []

    def once(value: Any) -> Any:
        """What is large becomes a task that every worker fetches once and that is done again if its worker dies."""
        if not isinstance(value, bytes) or len(value) < _LARGE:
            return value
        for known, future in sent:
            if known is value:
                return future
        future = client.submit(bytes, value, key=f"excursion-payload-{uuid.uuid4().hex}")
        sent.append((value, future))
        return future

    def submit(function: Callable[..., Any], *given: Any) -> Future:
        # Equal tasks are different evaluations (noise is real), so each has a key of its own.
        task = client.submit(function, *map(once, given), key=f"evaluation-{uuid.uuid4().hex}")
        inner: Future = Future()

        def done(task: Any) -> None:
            if inner.set_running_or_notify_cancel():
                try:
                    inner.set_result(task.result())
                except (Exception, CancelledError) as error:
                    inner.set_exception(error)
            # Dask would evaluate again what it is asked to keep when the worker that keeps it dies.
            task.release()

        task.add_done_callback(done)
        inner.add_done_callback(lambda future: task.cancel() if future.cancelled() else None)
        return inner

    return submit


def _from_dask(error: BaseException) -> BaseException:
    if type(error).__name__ == "KilledWorker":
        return _died(int(getattr(error, "allowed_failures", 0)) + 1, error)
    if isinstance(error, CancelledError):  # Dask's word for a scheduler that has gone
        return _stopped(error)
    return error


def _retry_the_lost(error: Exception, record: Any) -> float:
    """What one more try costs, of the single one there is: nothing else is tried again here."""
    return 1.0 if type(error).__name__ in ("WorkerLost", "ManagerLost") else 2.0


def _from_parsl(error: BaseException) -> BaseException:
    if type(error).__name__ in ("WorkerLost", "ManagerLost"):
        return _died(2, error)
    if isinstance(error, CancelledError | BrokenExecutor) or type(error).__name__ in (
        "BadStateException",
        "ScalingFailed",
        "InterchangeDiedError",
    ):
        return _stopped(error)
    return error


def _interchanges(kernel: Any) -> list[tuple[Any, Any]]:
    """The executors of a kernel that depend on a process of Parsl on this machine, with this process."""
    found = [(executor, getattr(executor, "interchange_proc", None)) for executor in kernel.executors.values()]
    return [(executor, process) for executor, process in found if process is not None]


@contextmanager
def _watched(kernel: Any, engine: _Engine) -> Iterator[None]:
    """Tell the engine when Parsl's own process has died, which Parsl does not notice."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            for executor, process in _interchanges(kernel):
                if process.poll() is not None:
                    engine.fail(
                        _stopped(RuntimeError(f"the interchange of {executor.label} ended: {process.returncode}"))
                    )
                    return

    thread = threading.Thread(target=watch, name="parsl watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _end_parsl(kernel: Any) -> None:
    for executor, process in _interchanges(kernel):
        if process.poll() is not None:
            # Parsl would ask the dead for ever which jobs there are.
            executor.provider.cancel(list(executor.blocks_to_job_id.values()))
            executor.scale_in = lambda *given, **named: []
    if not kernel.cleanup_called:
        kernel.cleanup()


def _local_blocks(kernel: Any) -> list[int]:
    """Processes of this machine that Parsl has started to evaluate."""
    found = []
    for executor, _ in _interchanges(kernel):
        jobs = getattr(executor.provider, "resources", {}).values()
        found += [int(job["remote_pid"]) for job in jobs if job.get("remote_pid")]
    return found


#: Parsl's interchange, out of reach of Ctrl-C. It ends when the run that has started it was killed; the workers follow
#: when they miss it.
_INTERCHANGE = """
import os, runpy, sys, threading, time
os.setpgid(0, 0)
def watch(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
threading.Thread(target=watch, args=(int(sys.argv.pop()),), daemon=True).start()
runpy.run_module("parsl.executors.high_throughput.interchange", run_name="__main__")
"""


@contextmanager
def _ended_with(processes: Callable[[], list[int]]) -> Iterator[None]:
    """After an error, kill what these processes have started: programs, which would go on by themselves."""
    try:
        yield
    except BaseException:
        for pid in processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
        raise


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _by_name(name: str, *given: Any) -> Any:
    """Calls a function of an installed module. Globus Compute sends this one by its source: it must stand alone."""
    import importlib

    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)(*given)


def _from_globus(error: BaseException) -> BaseException:
    kind = type(error).__name__
    if kind == "TaskExecutionFailed":
        return _died(1, error) if re.search(r"\b(Worker|Manager)Lost\b", str(error)) else error
    service = type(error).__module__.partition(".")[0] in ("globus_compute_sdk", "globus_sdk", "requests", "pika")
    return _stopped(error) if service or isinstance(error, CancelledError | ConnectionError) else error


def _from_mpi(error: BaseException) -> BaseException:
    return _stopped(error) if isinstance(error, CancelledError | BrokenExecutor) else error
