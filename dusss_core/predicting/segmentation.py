"""DICOM SEG: the masks of a series, with references to its pictures and coded segments (PS3.3 A.51), by highdicom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dusss_core.errors import UserError
from dusss_core.predicting.inputs import Job

if TYPE_CHECKING:
    from highdicom.seg import Segmentation

    from dusss_core.student import About

MANUFACTURER = "feddusss"
_CATEGORY = ("49755003", "SCT", "Morphologically Abnormal Structure")
_TYPE = ("52988006", "SCT", "Lesion")
_EMPTY_IF_ABSENT = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Type 2 in every DICOM picture: they must be there, and may be empty. De-identified files often lack them."""


class Segments(NamedTuple):
    """How foreground classes are coded, in order of their index: value, scheme and meaning of each."""

    types: tuple[tuple[str, str, str], ...]


def segments_of(about: About, codes: Sequence[str]) -> Segments:
    """The codes that were given, VALUE^SCHEME^MEANING each, or "Lesion" for every class.

    Raises:
        UserError: not of that form, or another number than there are classes.
    """
    names = about.names[1:]
    if not codes:
        return Segments((_TYPE,) * len(names))
    types = []
    for code in codes:
        parts = tuple(part.strip() for part in code.split("^"))
        if len(parts) != 3 or not all(parts):
            raise UserError(f"--code {code}: not of the form VALUE^SCHEME^MEANING", "such as '233604007^SCT^Pneumonia'")
        types.append(parts)
    if len(types) != len(names):
        raise UserError(
            f"--code: {len(types)} codes for {len(names)} classes", f"give one for each of {', '.join(names)}"
        )
    return Segments(tuple(types))


def write_segmentation(
    job: Job,
    masks: Sequence[np.ndarray],
    maps: Sequence[np.ndarray] | None,
    about: About,
    segments: Segments,
) -> Iterator[tuple[str, Any]]:
    """File names and DICOM datasets: the masks, and with `maps` the probabilities as a fractional segmentation.

    Raises:
        UserError: highdicom is not installed, or the series lacks what a segmentation must refer to.
    """
    import pydicom

    sources = [pydicom.dcmread(file) for file in job.files]
    for source in sources:
        for name in _EMPTY_IF_ABSENT:
            if name not in source:
                setattr(source, name, "")
    yield f"{job.name}_seg.dcm", _segmentation(job, sources, np.stack(masks), about, segments, "BINARY")
    if maps is not None:
        stacked = np.stack([one[..., None] if one.ndim == 2 else one[1:].transpose(1, 2, 0) for one in maps])
        fractions = _segmentation(job, sources, stacked.clip(0, 1), about, segments, "FRACTIONAL")
        yield f"{job.name}_probabilities_seg.dcm", fractions


def _segmentation(job: Job, sources: list, pixels: np.ndarray, about: About, segments: Segments, kind: str):
    try:
        import highdicom
    except ImportError:
        raise UserError("DICOM SEG needs the package highdicom", "pip install 'feddusss[dicom]'") from None
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=about.study, version=about.tensors[:16], family=codes.DCM.ArtificialIntelligence, source=MANUFACTURER
    )
    category = highdicom.sr.CodedConcept(*_CATEGORY)
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=category,
            segmented_property_type=highdicom.sr.CodedConcept(*code),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, (label, code) in enumerate(zip(about.names[1:], segments.types, strict=True), start=1)
    ]
    # the same prediction of the same pictures has the same identifiers
    made_of = [about.tensors, str(about.threshold), kind, *(str(source.SOPInstanceUID) for source in sources)]
    try:
        written = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=pixels if kind == "FRACTIONAL" else pixels.astype(np.uint8),
            segmentation_type=kind,
            segment_descriptions=descriptions,
            series_instance_uid=generate_uid(entropy_srcs=[*made_of, "series"]),
            series_number=900,
            sop_instance_uid=generate_uid(entropy_srcs=[*made_of, "instance"]),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=about.study,
            software_versions=f"student {about.tensors[:16]}",
            device_serial_number=about.tensors[:16] or "0",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            content_label="SEGMENTATION",
        )
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{job.files[0]}: no DICOM SEG can refer to this series: {str(error).rstrip('.')}",
            _other_masks(job, sources),
        ) from error
    _without_half_measures(written)
    return written


def _other_masks(job: Job, sources: list) -> str:
    """What to do for masks of a series that no DICOM SEG can refer to."""
    again = "export it again with its study, series and positions"
    frames = int(sources[0].get("NumberOfFrames", 1) or 1)
    if frames == 1:
        return f"convert it to PNG or NIfTI, or {again}"
    file = job.files[0]
    return f"name its frames, '{file}#0' to '{file}#{frames - 1}', for a PNG of each, or {again}"


def _without_half_measures(written: Segmentation) -> None:
    """A radiograph may have a pixel spacing and no slice thickness: highdicom copies the one, and reads nothing back in
    which the other is missing. The picture that the segmentation refers to has the spacing all the same."""
    shared = written.SharedFunctionalGroupsSequence[0]
    if "PixelMeasuresSequence" in shared and "SliceThickness" not in shared.PixelMeasuresSequence[0]:
        del shared.PixelMeasuresSequence
