"""Jobs on the workers of a Dask cluster that shares its disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monai_mil.compare.job import Job
from monai_mil.compare.perform import perform
from monai_mil.errors import SettingsError
from monai_mil.files import write_json


def run_on_dask(jobs: Sequence[Job], scheduler: str) -> Iterator[Job]:
    """Do jobs and yield each when it has ended; Dask hands the job of a lost worker to another one.

    Args:
        jobs: the folders of the comparison and of the cohort must be the same for all workers.
        scheduler: address of a running scheduler, for example ``tcp://host:8786``.

    Raises:
        ModuleNotFoundError: Dask is not installed; says what to install.
        SettingsError: there is no scheduler at the address.
    """
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Dask is not installed: pip install 'monai-mil[scale]'") from error
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as error:
        raise SettingsError(f"no Dask scheduler at '{scheduler}' ({error}); look whether it runs") from error
    with client:
        futures = {client.submit(perform, job, pure=False): job for job in jobs}
        for future in as_completed(futures):
            job = futures[future]
            if future.status != "finished" and job.finished() is None:
                write_json({"reason": f"its worker was lost or ended ({future.exception()!r})"}, job.failure)
            yield job
