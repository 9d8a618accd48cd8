"""A finished student at work: `dusss_core.load("student.safetensors").predict("picture.png")`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dusss_core.config import RuntimeConfig, TrainingConfig
from dusss_core.devices import resolve_device
from dusss_core.errors import UserError
from dusss_core.phases import Phase
from dusss_core.pictures import resize_image, to_bytes
from dusss_core.readers import Raw, raw_of_array, raw_of_picture, read_raw, to_intensities
from dusss_core.runtime import runtime_of
from dusss_core.student.about import About
from dusss_core.student.file import check_network, layers_without_a_site, read_student, whole_student, write_student

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from dusss_core.student.listening import Ears

    Picture = str | Path | np.ndarray | Image.Image


FITTED_ON = 64
"""Pictures that a site's student is fitted to, at most; more help no further (docs/use_a_model.md)."""


class Prediction(NamedTuple):
    """What a student says of a picture, at the picture's own size."""

    mask: np.ndarray
    """H x W, uint8: 0 background, 1, 2, ... the classes."""
    probabilities: np.ndarray
    """float32: one class: H x W, of the foreground; several: C x H x W, the background first, which add up to 1."""


class Student:
    """A finished student. Make it with `dusss_core.load`.

    Args:
        about: what its file says of it.
        tensors: its weights, complete.
        device: auto (a GPU where there is one), cpu, cuda, cuda:N or mps.

    Raises:
        UserError: the weights do not fit the network, or the device is not there.
    """

    def __init__(self, about: About, tensors: dict[str, Tensor], device: str = "auto", source: str = "student"):
        from dusss_core.build import build_student
        from dusss_core.models.weights import load_tensors

        self.about = about
        self.device = resolve_device(device)
        self.source = source
        config = about.config().model_copy(update={"runtime": RuntimeConfig(channels_last="auto")})
        self._runtime = runtime_of(config, Phase.SEGMENT, self.device)
        check_network(config, tensors, source)
        self.network = build_student(config).eval().requires_grad_(False)
        load_tensors(self.network, tensors)
        self.network.to(self.device, memory_format=self._runtime.memory_format)
        self.ears: Ears | None = None
        """What it hears sentences with; see `listen`."""

    @property
    def batch(self) -> int:
        """Pictures that are seen at a time."""
        return self._runtime.eval_batch

    def listen(
        self, vlm: Path | str | None = None, sentences: Sequence[str] = (), encoder: str = "", fetch: bool = False
    ) -> None:
        """Make it ready for sentences: through its own network, or through its study's vision-language model.

        Args:
            vlm: the model's file; None: beside the student's (`student.vlm.safetensors`).
            sentences: those that will come, where they are known: they are encoded at once.
            encoder: folder of the text encoder, in place of where the study found it.
            fetch: a text encoder that is not on this machine may be fetched from the model hub.

        Raises:
            UserError: the model is not there, or is another study's; no text encoder.
        """
        from dusss_core.student.listening import ears_of
        from dusss_core.text.encoder import fetching

        vlm = None if vlm is None else Path(vlm)
        with fetching(fetch):
            self.ears = ears_of(self.about, self.network, self.device, self.source, vlm, encoder)
            if sentences:
                self.ears.learn(sentences)

    def predict(self, picture: Picture, text: str = "") -> Prediction:
        """The mask and the probabilities of one picture.

        Args:
            picture: a path (`volume.nii.gz#z=12`, `cine.dcm#3` and `pages.tif#2` name a slice, frame or page), an
                array (H x W or H x W x 3; uint8, deeper integers, or floating point in [0, 1]), or a PIL picture.
            text: its sentence, for a student that listens; '': the picture alone.

        Raises:
            UserError: the picture cannot be read, or the student must be fitted first (`fit`).
        """
        return next(self.predict_each([picture], [text]))

    def predict_each(
        self, pictures: Iterable[Picture | Raw], texts: Iterable[str] | None = None
    ) -> Iterator[Prediction]:
        """As `predict`, picture by picture, several at a time in the network; as many are held in memory.

        Args:
            texts: a sentence for each picture, '' for none; None: there are none. Asked for after its picture.
        """
        self.check_usable()
        batch: list[tuple[np.ndarray, str]] = []
        said = repeat("") if texts is None else iter(texts)
        for picture in pictures:
            text = next(said)
            if text and self.ears is None:
                self.listen()
            batch.append((self._prepared(picture), text))
            if len(batch) == self.batch or self.about.image.mode == "tile":
                yield from self._see(batch)
                batch = []
        yield from self._see(batch)

    def fit(self, pictures: Sequence[Picture]) -> Student:
        """A student whose normalisation layers have statistics of these pictures; no mask is needed.

        For a hospital that took no part in a study with `local_norm`; some 16 pictures of the kind that it will be used
        on are enough (docs/use_a_model.md).

        Raises:
            UserError: fewer than two pictures, one that cannot be read, or a network without such statistics.
        """
        from dusss_core.training.statistics import fit_statistics, has_statistics

        if not has_statistics(self.network):
            raise UserError(f"{self.source}: its network has no statistics to fit", "use it as it is")
        if len(pictures) < 2:
            raise UserError(f"{len(pictures)} pictures to fit to", "give some sixteen pictures of your own")
        fitted = Student(self.about, self.tensors(), self.device, self.source)
        prepared = [fitted._tile(fitted._prepared(picture)) for picture in pictures]
        fit_statistics(fitted.network, np.stack(prepared), self.about.image, self.device)
        fitted.about = self.about.model_copy(update={"layers": "fitted", "fitted_on": len(pictures)})
        return fitted

    def check_usable(self) -> None:
        """Refuse a student that nobody's normalisation layers are in.

        Raises:
            UserError: with the command that fits it.
        """
        if self.about.layers == "unfitted":
            raise UserError(
                f"{self.source}: its normalisation layers stayed at the sites that trained it (local_norm), so it must "
                "be fitted to some pictures of yours before it is used",
                f"python -m dusss_core fit {self.source} FOLDER_OF_PICTURES --out fitted.safetensors",
            )

    def tensors(self) -> dict[str, Tensor]:
        """Its weights, on the CPU."""
        return {name: value.detach().cpu().contiguous().clone() for name, value in self.network.state_dict().items()}

    def save(self, path: Path | str) -> None:
        """Write its file.

        Raises:
            UserError: disk full or no permission.
        """
        write_student(Path(path), self.about, self.tensors())

    def logits(self, images: np.ndarray) -> Tensor:
        """What its network says of prepared pictures: N x channels x H x W uint8 -> N x C x H x W, float32."""
        import torch

        from dusss_core.inference import see, to_input

        inputs = to_input(torch.from_numpy(images).to(self.device), self.about.image)
        return see(self.network, inputs, self.about.image, self.batch)

    def _prepared(self, picture: Picture | Raw) -> np.ndarray:
        """channels x H x W in [0, 1], at the picture's own size."""
        return to_intensities(_raw(picture), self.about.image.channels)

    def _tile(self, image: np.ndarray) -> np.ndarray:
        """channels x size x size, uint8: as in training; of a large picture its middle."""
        size = self.about.image.size
        if self.about.image.mode == "resize":
            return to_bytes(resize_image(image, size))
        border = [(0, max(0, size - length)) for length in image.shape[1:]]
        image = np.pad(image, [(0, 0), *border], mode="symmetric")
        top, left = ((length - size) // 2 for length in image.shape[1:])
        return to_bytes(image[:, top : top + size, left : left + size])

    def _see(self, batch: Sequence[tuple[np.ndarray, str]]) -> Iterator[Prediction]:
        """Pictures with their sentences."""
        if not batch:
            return
        size = self.about.image.size
        if self.about.image.mode == "tile":
            seen = [self._logits_of([to_bytes(image)], [text]) for image, text in batch]
        else:
            resized = np.stack([to_bytes(resize_image(image, size)) for image, _ in batch])
            logits = self._logits_of(resized, [text for _, text in batch])
            seen = [logits[i : i + 1] for i in range(len(batch))]
        for (image, _), logits in zip(batch, seen, strict=True):
            yield self._judged(logits, image.shape[1:])

    def _logits_of(self, images: np.ndarray | Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """Of prepared pictures of one size, with what their sentences say."""
        plain = self.logits(np.asarray(images))
        return self.ears.told(plain, images, texts) if any(texts) else plain

    def _judged(self, logits: Tensor, shape: tuple[int, int]) -> Prediction:
        from torch.nn import functional as F

        if logits.shape[2:] != shape:
            smaller = shape[0] < logits.shape[2] or shape[1] < logits.shape[3]
            logits = F.interpolate(logits, size=shape, mode="bilinear", align_corners=False, antialias=smaller)
        if logits.shape[1] == 1:
            probabilities = logits.sigmoid()[0, 0].cpu().numpy()
            return Prediction((probabilities > self.about.threshold).astype(np.uint8), probabilities)
        probabilities = logits.softmax(1)[0].cpu().numpy()
        return Prediction(probabilities.argmax(0).astype(np.uint8), probabilities)


def load(path: Path | str, device: str = "auto", fetch: bool = False) -> Student:
    """The student in a file; see `dusss_core.load`."""
    about, tensors = read_student(path)
    if about.text is None:
        return Student(about, tensors, device, str(path))
    from dusss_core.text.encoder import fetching

    with fetching(fetch):  # the network's width is the text encoder's
        return Student(about, tensors, device, str(path))


def write_fitted(
    path: Path,
    config: TrainingConfig,
    tensors: Mapping[str, Tensor],
    layers: Mapping[str, Tensor],
    images: Sequence[np.ndarray],
    device: str,
    **more,
) -> bool:
    """Write the student of a study with `local_norm` for a site without layers of its own, fitted to its pictures.

    Args:
        tensors, layers: what the coordinator has of the student; as `whole_student`.
        images: prepared pictures, channels x H x W uint8; some of them are used, evenly spaced.
        more: fields of `About`.

    Returns:
        Whether it was written: there must be two pictures, unless its network has no statistics.

    Raises:
        UserError: disk full or no permission.
    """
    whose = layers_without_a_site(config)
    whole = whole_student(config, tensors, layers)
    student = Student(About.of(config, layers=whose, **more), whole, device, str(path))
    if whose == "unfitted":
        if len(images) < 2:
            return False
        numbers = np.unique(np.linspace(0, len(images) - 1, min(len(images), FITTED_ON)).astype(int))
        student = student.fit([np.squeeze(np.moveaxis(images[i], 0, -1)) for i in numbers])
    student.save(path)
    return True


def _raw(picture: Any) -> Raw:
    if isinstance(picture, Raw):
        return picture
    if isinstance(picture, str | Path):
        return read_raw(picture)
    try:
        if isinstance(picture, np.ndarray):
            return raw_of_array(picture)
        if hasattr(picture, "getbands"):  # a PIL picture
            return raw_of_picture(picture)
        raise ValueError(f"a {type(picture).__name__}")
    except ValueError as error:
        raise UserError(
            f"not a picture: {error}", "give a path, an array of H x W or H x W x 3, or a PIL picture"
        ) from None
