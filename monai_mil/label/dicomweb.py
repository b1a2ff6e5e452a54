"""The series of a DICOMweb store, such as Orthanc behind OHIF, as a project's scans. Needs MONAI Label."""

from __future__ import annotations

import logging
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces.datastore import DefaultLabelTag

from monai_mil.errors import MonaiMILError, ScanReadError
from monai_mil.files import make_folder, partial_name
from monai_mil.label.datastore import ProjectDatastore
from monai_mil.label.images import StudyImage, StudyImages
from monai_mil.label.masks import has_finding
from monai_mil.label.project import Project
from monai_mil.locks import locked

logger = logging.getLogger(__name__)

_VOLUME = ".nii.gz"
_UID, _COUNT = "0020000E", "00201209"


class RemoteSeries(StudyImages):
    """The series of a store, each under its SeriesInstanceUID; one is fetched when it is first read.

    Args:
        remote: MONAI Label's own datastore of that address.
    """

    def __init__(self, remote: DICOMWebDatastore) -> None:
        super().__init__(Path(remote._datastore.image_path()).resolve(), ["scans"])
        self.remote = remote
        self._counts: dict[str, int] = {}

    def here(self, image: StudyImage) -> Path:
        """The folder of a series' files, all that the store has.

        Raises:
            ScanReadError: the store does not give them.
        """
        with self._alone_with(image):
            self._complete(image)
        return image.path

    def _alone_with(self, image: StudyImage) -> AbstractContextManager[None]:
        """Keep other threads out, and the processes that score images beside the server: all share the files."""
        make_folder(self.folder)
        return locked(self.folder / f".{image.name}.lock")

    def _complete(self, image: StudyImage) -> None:
        has = len(list(image.path.glob("*.dcm")))
        if not has or has != self._counts.get(image.name, has):
            self._fetch(image)

    def _fetch(self, image: StudyImage) -> None:
        partial = partial_name(image.path)
        try:
            client, by_frame = self.remote._client, self.remote._fetch_by_frame
            dicom_web_download_series(None, image.name, str(partial), client, by_frame)
            shutil.rmtree(image.path, ignore_errors=True)
            image.path.with_name(image.name + _VOLUME).unlink(missing_ok=True)
            partial.rename(image.path)
        except Exception as error:  # whatever requests, pydicom and the disk raise
            raise self._silent(f"series '{image.name}' cannot be fetched", error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def volume(self, image: StudyImage) -> Path:
        """The volume that MONAI Label makes of a series for clients."""
        place = image.path.with_name(image.name + _VOLUME)
        with self._alone_with(image):
            self._complete(image)
            if not place.is_file():
                self.remote.get_image_uri(image.name)  # makes it; says at first where it was made, not where it lies
        return place

    def at(self, path: str) -> StudyImage | None:
        """The series of a folder, or of the volume that MONAI Label makes of it for clients."""
        return super().at(path.removesuffix(_VOLUME))

    def _search(self) -> dict[str, StudyImage]:
        try:
            answered = self.remote._client.search_for_series(
                search_filters=self.remote._search_filter, fields=["NumberOfSeriesRelatedInstances"]
            )
            found = {str(series[_UID]["Value"][0]): series for series in answered}
        except Exception as error:  # requests' own, and what it makes of an answer that is none
            raise self._silent("it cannot be searched", error) from error
        self._counts = {name: int(series[_COUNT]["Value"][0]) for name, series in found.items() if _COUNT in series}
        return {name: StudyImage(name, self.folder / name, "scans") for name in found}

    def _silent(self, what: str, error: Exception) -> ScanReadError:
        reason = str(error).split("\n", 1)[0]
        return ScanReadError(f"DICOMweb store '{self.remote.name()}': {what} ({reason}); is it running?")


class SeriesDatastore(ProjectDatastore, DICOMWebDatastore):
    """A project's scans in a DICOMweb store.

    Labels are kept with the project, as those of a folder are, and a mask with a finding goes to the store as DICOM SEG
    too. It is one of MONAI Label's own datastores by its class, for only those are answered with DICOM SEG.

    Args:
        project: its images become the store's series.
        remote: MONAI Label's own datastore of that address.
    """

    def __init__(self, project: Project, remote: DICOMWebDatastore) -> None:
        ProjectDatastore.__init__(self, project)
        self.remote = remote
        project.images = RemoteSeries(remote)

    def get_image_uri(self, image_id: str) -> str:
        """The volume of a series, made for clients; empty where there is none."""
        try:
            return str(self.project.images.volume(self.project.images.find(image_id)))
        except MonaiMILError as error:
            logger.warning("%s", error)
            return ""

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep what an annotator submitted, and send a mask that marks anything to the store.

        Raises:
            HTTPException: nothing is kept, or (502) the store did not take what is kept; the detail says which.
        """
        name = super().save_label(image_id, label_filename, label_tag, label_info)
        if label_tag == DefaultLabelTag.FINAL.value and has_finding(Path(label_filename)):
            uid = self.project.images.find(image_id).name
            try:
                self.remote.save_label(uid, label_filename, label_tag, dict(label_info or {}))
            except Exception as error:  # of requests, pydicom and dcmqi
                logger.warning("a label was kept here, but not in the store: %r", error)
                raise HTTPException(
                    status_code=502,
                    detail="the label is kept with the project, but the DICOMweb store did not take the DICOM SEG",
                ) from error
        return name

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Nothing: series are added to the store itself."""
        raise HTTPException(status_code=405, detail="send series to the DICOMweb store, not through this server")
