"""What may tell who a patient is: words of a sentence, and fields of a file's header."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from dusss_core.readers.reference import parse_reference

_GIVEN = (
    "aaron adam ahmed albert alberto alejandro alexander alexandra alfred ali alice amanda amelia andrea andreas "
    "andrew "
    "angela anna anne anthony antonio arthur barbara benjamin bernard brian bruno camille carla carlos carmen carol "
    "caroline catherine charles charlotte chiara chloe christian christina christine christopher claire claudia "
    "daniel daniela david deborah diana diego dorothy edward elena elizabeth emily emma eric erik ernst eva fatima "
    "federico felix fernando francesca francesco francis francisco frank franz friedrich gabriel george gerhard "
    "giovanni giulia giuseppe gregory hannah hans heinrich heinz helen helmut henry hugo ibrahim ines ingrid isabel "
    "isabella ivan jack jacob jacques james jan jane janet jason javier jean jennifer jessica joan johann johannes "
    "john "
    "jonathan jorge jose joseph joshua juan judith julia julie jürgen karen karl katharina katherine kevin klaus laura "
    "lea léa leon linda lisa louis louise luca lucas lucia lucy luigi luis lukas manuel marco margaret maria marie "
    "mario "
    "mark marta martha martin mary matteo matthew maurice maximilian melissa michael michel miguel mohamed mohammed "
    "monika nancy natalie nicholas nicolas nicole nina olga oliver olivia otto pablo pamela paola paolo patricia "
    "patrick "
    "paul pedro peter petra philip philippe pierre rachel ralph raymond rebecca richard robert roberto roger rosa ruth "
    "ryan samantha samuel sandra sara sarah scott sebastian sofia sophia sophie stefan stephanie stephen steven susan "
    "sven teresa theodor theresa thomas timothy ursula uwe valentina valerie victor victoria walter werner wilhelm "
    "william wolfgang yusuf yves"
)
_CAPITAL = r"[A-ZÄÖÜÀÉÈ][a-zà-ÿß'’-]+"
_MONTH = r"(?:jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[a-zäé]*\.?"
_NAMES = (
    re.compile(rf"\b(?:Dr|Prof|Mr|Mrs|Ms|Miss|Herrn?|Frau|Mme|Sra?|Sig(?:nora|\.ra)?)\.? +(?:{_CAPITAL}|[A-Z]{{2,}})"),
    re.compile(
        rf"\b(?i:patient|pt|name|patient name|signed|signed by|read by|reported by|dictated by|referred by|radiologist|"
        rf"physician)(?:: *| +(?:is +|named +)?){_CAPITAL},? +{_CAPITAL}"
    ),
    re.compile(r"\b[A-Za-z-]{2,}\^[A-Za-z-]{2,}"),  # as DICOM writes them
    re.compile(rf"\b(?i:{'|'.join(_GIVEN.split())})\b,? +(?:[A-Z]\. +)?{_CAPITAL}"),
    re.compile(rf"{_CAPITAL}, +(?i:{'|'.join(_GIVEN.split())})\b"),
)
_GIVEN_ALONE = re.compile(rf"(?<![^\W_])(?i:{'|'.join(_GIVEN.split())})(?![^\W_])")
_DATES = (
    re.compile(r"\b(?:19|20)\d\d[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12]\d|3[01])\b"),
    re.compile(r"\b(?:0?[1-9]|[12]\d|3[01])[-/.](?:0?[1-9]|[12]\d|3[01])[-/.](?:(?:19|20)\d\d|\d\d)\b"),
    re.compile(rf"\b\d{{1,2}}\.?(?:st|nd|rd|th)? +(?:of +)?{_MONTH} +(?:19|20)\d\d\b", re.I),
    re.compile(rf"\b{_MONTH} +\d{{1,2}}(?:st|nd|rd|th)?,? +(?:19|20)\d\d\b", re.I),
    re.compile(r"\b(?:dob|date of birth|born|geboren|geb\.|né|née)\b.{0,6}\d", re.I),
    re.compile(r"\b(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\b"),
)
_NUMBERS = (
    re.compile(
        r"\b(?:mrn|medical record|record|accession|case|chart|patient|pid|id|ssn|nhs|acc)\b"
        r"[ .:#-]*(?:no|nr|id|number)?[ .:#-]*[a-z]{0,4}-?\d{4,}",
        re.I,
    ),
    re.compile(r"(?<![\d.])\d{6,}(?![\d.])"),
    re.compile(r"\b[A-Z]{1,4}-?\d{6,}\b"),
    re.compile(r"\b\d{3}-\d{2}-\d{4}\b"),
)
_CONTACTS = (
    re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+"),
    re.compile(r"\b(?:tel|phone|fax|call)\b.{0,4}\+?\d[\d ()/-]{5,}", re.I),
    re.compile(r"\+\d{1,3}[ (]*\d[\d ()/-]{6,}\d"),
)
_AGE = re.compile(r"\b(?:9\d|1[01]\d)[- ](?:years?|y)\b", re.I)

_TAGS = (
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "OtherPatientNames",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientBirthName",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "PatientMotherBirthName",
    "IssuerOfPatientID",
    "MedicalRecordLocator",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "NameOfPhysiciansReadingStudy",
    "OperatorsName",
    "RequestingPhysician",
    "PhysiciansOfRecord",
    "InstitutionName",
    "InstitutionAddress",
    "StationName",
    "AccessionNumber",
    "AdmissionID",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "PatientComments",
    "ImageComments",
    "AdditionalPatientHistory",
    "DeviceSerialNumber",
)
_HARMLESS = re.compile(r"(?i)^[\W_]*(?:anon\w*|removed|none|unknown|n/?a|deidentified|de-identified|x+|0+)?[\W_]*$")
_EXIF = {0x8825: "GPSInfo", 0x013B: "Artist", 0x010E: "ImageDescription", 0x8298: "Copyright", 0x9C9D: "XPAuthor"}
_PNG_TEXT = ("author", "description", "title", "comment", "patient", "name")


@lru_cache(maxsize=4096)
def looks_private(text: str) -> dict[str, str]:
    """What in a sentence looks as if it named a person.

    Returns:
        Of "name", "date", "number", "contact" and "age" those that were found, with the place that gave it away.
    """
    kinds = {"name": _NAMES, "date": _DATES, "number": _NUMBERS, "contact": _CONTACTS, "age": (_AGE,)}
    found = {}
    for kind, patterns in kinds.items():
        match = next((match for pattern in patterns if (match := pattern.search(text))), None)
        if match is not None:
            found[kind] = match[0]
    if "date" in found and found.get("number", "") in found["date"]:
        found.pop("number", None)
    return found


def names_a_person(identity: str) -> bool:
    """Whether a record's id or a patient's key holds a given name, a date, or a name as DICOM writes it."""
    return bool(_GIVEN_ALONE.search(identity) or "^" in identity or any(p.search(identity) for p in _DATES[:5]))


def tags_of(path: Path) -> tuple[str, ...]:
    """Names of the filled fields in a picture's header that may identify a person; () where there are none."""
    reference = parse_reference(path)
    try:
        if reference.suffix in (".dcm", ".dicom"):
            return _dicom_tags(reference.file)
        if reference.suffix in (".nii", ".nii.gz"):
            return _nifti_tags(reference.file)
        return _photo_tags(reference.file)
    except Exception:  # a header that can not be read tells nothing; the picture itself was read
        return ()


def _dicom_tags(file: Path) -> tuple[str, ...]:
    import pydicom

    dataset = pydicom.dcmread(file, stop_before_pixels=True)
    found = [name for name in _TAGS if not _HARMLESS.match(str(dataset.get(name) or ""))]
    if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES":
        found.append("BurnedInAnnotation")
    return tuple(found)


def _nifti_tags(file: Path) -> tuple[str, ...]:
    import nibabel

    header = nibabel.load(file).header
    texts = {name: bytes(header[name].item()).decode("latin-1").strip("\0 ") for name in ("db_name", "aux_file")}
    return tuple(name for name, text in texts.items() if not _HARMLESS.match(text) and len(text) > 3)


def _photo_tags(file: Path) -> tuple[str, ...]:
    from PIL import Image

    with Image.open(file) as picture:
        exif = picture.getexif()
        found = [name for tag, name in _EXIF.items() if exif.get(tag) and not _HARMLESS.match(str(exif[tag]))]
        texts = getattr(picture, "text", None) or {}
        found += [key for key in texts if any(word in key.lower() for word in _PNG_TEXT) and str(texts[key]).strip()]
    return tuple(found)
