"""Slurm: its commands and what they print, its variables, and arrays sent to sbatch by submitit. Torch-free."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from dilm.core.errors import ConfigError, SlurmError
from dilm.scheduler.base import (
    ENDED,
    UNKNOWN,
    CurrentJob,
    JobRef,
    JobStatus,
    Scheduler,
    Submission,
    array_name,
    port,
    ranks_from,
    register,
)
from dilm.scheduler.base import PENDING as WAITS
from dilm.scheduler.base import RUNNING as RUNS

# Slurm's words for the states of a job.
PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STOPPED", "STAGE_OUT", "RESIZING")
SQUEUE_FORMAT = "%F|%K|%A|%T|%r"
SACCT_FORMAT = "JobID,State,ElapsedRaw"
CALL_SECONDS = 60.0
ANSWER_SECONDS = 30  # how long an answer about one job is good
VARIABLES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
# Fields of `hydra.launcher` that submitit has for every kind of cluster; the rest it wants to hear as `slurm_<field>`.
COMMON = (
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "mem_gb",
    "nodes",
    "name",
    "stderr_to_stdout",
)
NOT_PARAMETERS = ("_target_", "submitit_folder", "max_num_timeout", "_recursive_", "_convert_", "scheduler")


@register
class Slurm(Scheduler):
    """Slurm, by its commands on this host's PATH."""

    prefix = "slurm"
    title = "Slurm"
    job_variable = "SLURM_JOB_ID"
    independent_ranks = "export SLURM_KILL_BAD_EXIT=0 SLURM_WAIT=0"

    def current_job(self, environment: Mapping[str, str]) -> CurrentJob | None:
        """The job, or the array's task, whose variables these are."""
        if not (job := environment.get("SLURM_JOB_ID")):
            return None
        array, task = (environment.get(f"SLURM_ARRAY_{part}_ID", "") for part in ("JOB", "TASK"))
        on_node, nodes = (environment.get(name, "") for name in ("SLURM_GPUS_ON_NODE", "SLURM_JOB_NUM_NODES"))
        return CurrentJob(
            job_name(job, array, task),
            restarts=int(environment.get("SLURM_RESTART_COUNT") or 0),
            node=environment.get("SLURMD_NODENAME", ""),
            gpus=int(on_node) * int(nodes or 1) if on_node.isdecimal() else 0,
        )

    def rank_variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """RANK and its companions for a task of srun's.

        A batch script that starts no step is one process, whatever the job asked for: only srun sets the step's size.
        """
        ranks = ranks_from(environment, VARIABLES, "start tasks with srun")
        if not ranks:
            return {}
        single = environment.get("SLURM_STEP_NUM_NODES") == "1"
        return ranks | {
            "MASTER_ADDR": "127.0.0.1" if single else _first_host(environment["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": str(port(environment["SLURM_JOB_ID"], environment["SLURM_STEP_ID"])),
        }

    def status(self, jobs: Collection[JobRef]) -> dict[str, JobStatus]:
        """By one call of squeue, and one of sacct for what that has forgotten."""
        queue = self.queue({job.user for job in jobs})
        if queue is None:
            return {job.name: JobStatus(UNKNOWN, "Slurm does not answer") for job in jobs}
        gone = [job.name for job in jobs if job.name not in queue]
        known = (self.accounting(gone) if gone else {}) | queue
        return {job.name: known[job.name] for job in jobs if job.name in known}

    def queue(self, users: Collection[str]) -> dict[str, JobStatus] | None:
        """These users' jobs that are alive or ended some minutes ago; None where Slurm doesn't answer."""
        whose = ["-u", ",".join(sorted(users))] if all(users) else ["--me"]
        try:
            printed = call("squeue", *whose, "-h", "-r", "-t", "all", "-o", SQUEUE_FORMAT)
        except SlurmError:
            return None
        return parse_queue(printed)

    def accounting(self, names: Collection[str]) -> dict[str, JobStatus]:
        """How jobs ended, by one call of sacct; nothing where the site has no accounting.

        `seconds` are summed over the attempts of a requeued job.
        """
        arrays = sorted({array_name(self.bare_id(name)) for name in names})
        if not arrays or shutil.which("sacct") is None:
            return {}
        try:
            return parse_accounting(
                call("sacct", "-X", "-P", "-n", "--duplicates", "-j", ",".join(arrays), "-o", SACCT_FORMAT)
            )
        except SlurmError:
            return {}

    def has_ended(self, job: JobRef) -> bool | None:
        """Whether this attempt of a job has ended; None where Slurm doesn't answer."""
        return _has_ended(self.bare_id(job.name), job.restarts, int(time.monotonic() / ANSWER_SECONDS))

    def requeue(self, name: str) -> None:
        """Put a job back into the queue. Raises SlurmError."""
        call("scontrol", "requeue", self.bare_id(name))

    def max_array_size(self) -> int:
        """The number of jobs that this cluster takes in one array. Raises SlurmError."""
        for line in call("scontrol", "show", "config").splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "MaxArraySize":
                return int(value)
        raise SlurmError("scontrol show config has no MaxArraySize; set site.max_array_size.")

    def submit(self, submission: Submission) -> list[str]:
        """Queue an array. Raises SlurmError."""
        import submitit

        executor = _executor(submission)
        try:
            jobs = executor.map_array(submission.function, *zip(*submission.arguments, strict=True))
        except submitit.core.utils.FailedJobError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise SlurmError(f"sbatch failed: {lines[-1] if lines else error}") from error
        return [job_name(job.job_id) for job in jobs]

    def check(self, submission: Submission) -> None:
        """Ask sbatch whether it would take an array, without its dependencies. Raises ConfigError, in one line."""
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(self.script(replace(submission, after=())))
            file.flush()
            try:
                call("sbatch", "--test-only", file.name)
            except SlurmError as error:
                raise _refused(submission, str(error)) from error

    def script(self, submission: Submission) -> str:
        """The text that sbatch is given."""
        executor = _executor(submission)._executor
        if len(submission.arguments) > 1:
            executor.parameters["map_count"] = len(submission.arguments)
        text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
        return text

    def cancel_command(self, names: Collection[str]) -> str:
        """`scancel` of the arrays that jobs are of."""
        return f"scancel {' '.join(sorted({array_name(self.bare_id(name)) for name in names}))}"


def call(*command: str) -> str:
    """What a command of Slurm prints. Raises SlurmError with its own last line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_SECONDS, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise SlurmError(f"{command[0]} is not on this machine's PATH; run on a login node of the cluster.") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} did not answer within {CALL_SECONDS:.0f} s.") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("Try ")]
        last = lines[-1] if lines else f"exit status {done.returncode}"
        raise SlurmError(f"{command[0]}: {last.removeprefix(f'{command[0]}: ').removeprefix('error: ')}")
    return done.stdout


def job_name(job: str, array: str = "", task: str = "") -> str:
    """The name of a job, as records, locks and rows have it."""
    return f"slurm-{array}_{task}" if task.isdecimal() else f"slurm-{job}"


def status_from(word: str, reason: str = "", seconds: int = 0) -> JobStatus:
    """A job's status from Slurm's word for its state, such as PENDING or OUT_OF_MEMORY, and why it waits."""
    if word in PENDING or word in RUNNING:
        return JobStatus(WAITS if word in PENDING else RUNS, reason, seconds)
    well = word == "COMPLETED"
    return JobStatus(ENDED, "" if well else f"ended by Slurm: {word}", seconds, well)


def parse_queue(printed: str) -> dict[str, JobStatus]:
    """Jobs of squeue's lines, in SQUEUE_FORMAT."""
    jobs = {}
    for line in printed.splitlines():
        array, task, job, word, reason = line.split("|")
        jobs[job_name(job, array, task)] = status_from(word, reason)
    return jobs


def parse_accounting(printed: str) -> dict[str, JobStatus]:
    """Jobs of sacct's lines, in SACCT_FORMAT; of a requeued one the last attempt's state and all attempts' time."""
    jobs: dict[str, JobStatus] = {}
    for line in printed.splitlines():
        job, words, elapsed = line.split("|")
        name = job_name(job)
        before = jobs[name].seconds if name in jobs else 0
        word = (words.split() or ["UNKNOWN"])[0]  # CANCELLED by <user>
        jobs[name] = status_from(word, "", before + int(elapsed or 0))
    return jobs


@lru_cache(maxsize=1024)
def _has_ended(job: str, restarts: int, moment: int) -> bool | None:
    try:
        printed = call("scontrol", "-o", "show", "job", job)
    except SlurmError as error:
        return True if "Invalid job id" in str(error) else None
    values = dict(part.partition("=")[::2] for part in printed.split())
    return values.get("JobState") not in RUNNING or int(values.get("Restarts", 0)) > restarts


def _first_host(nodes: str) -> str:
    """The address of the first of a step's nodes, where rank 0 runs."""
    name = call("scontrol", "show", "hostnames", nodes).split()[0]
    try:
        socket.getaddrinfo(name, None)
        return name
    except OSError:  # Slurm's names are not always the network's
        values = dict(part.partition("=")[::2] for part in call("scontrol", "-o", "show", "node", name).split())
        return values["NodeAddr"]


def _parameters(submission: Submission) -> dict[str, Any]:
    """The parameters of submitit's executor."""
    given = {name: value for name, value in submission.asked.items() if value is not None}
    parameters = {
        name if name in COMMON else f"slurm_{name}": value
        for name, value in given.items()
        if name not in NOT_PARAMETERS
    }
    further = dict(given.get("additional_parameters") or {})
    if submission.after:
        ids = ":".join(name.removeprefix("slurm-") for name in submission.after)
        further |= {"dependency": f"afterok:{ids}", "kill-on-invalid-dep": "yes"}
    return parameters | {"slurm_additional_parameters": further}


def _executor(submission: Submission) -> Any:
    """submitit's executor for an array. Raises ConfigError for parameters that it doesn't know."""
    import submitit  # a quarter of a second that a plan doesn't need

    executor = submitit.AutoExecutor(folder=str(submission.folder / "%j"), cluster="slurm")
    try:
        executor.update_parameters(**_parameters(submission))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"hydra.launcher: {str(error).splitlines()[0]}") from error
    return executor


def _refused(submission: Submission, message: str) -> ConfigError:
    """What Slurm says, with the keys that it is about and what the cluster has."""
    reason = message.removeprefix("sbatch: ").removeprefix("allocation failure: ")
    asked = submission.asked
    if "partition" in reason.lower() and "account" not in reason.lower():
        known = _listed("%R")
        return ConfigError(f"site.partition {asked.get('partition')!r}: Slurm says {reason!r}. Known: {known}.")
    wanted = ", ".join(
        f"{name}={asked[name]}"
        for name in ("partition", "account", "qos", "constraint", "nodes", "tasks_per_node", "cpus_per_task", "gres",
                     "mem_gb", "timeout_min")
        if asked.get(name) is not None
    )  # fmt: skip
    nodes = _listed("%R: %D nodes of %c CPUs, %m MB, %G")
    return ConfigError(
        f"Slurm would not take the {submission.name} jobs ({reason}). They ask for {wanted}; the cluster has {nodes}. "
        "Change launcher.* or the site's file."
    )


def _listed(what: str) -> str:
    try:
        return "; ".join(sorted(set(call("sinfo", "-h", "-o", what).split("\n")) - {""}))
    except SlurmError:
        return "unknown, since sinfo does not answer"
