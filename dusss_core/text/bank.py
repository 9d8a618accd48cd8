"""Token features of a split's sentences, of their other wordings and of their mirror images.

A frozen encoder sees each distinct wording once (`TextBank`); one that is trained sees those of each batch
anew (`TrainableTextBank`). Both answer the same call.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from dusss_core.config import TextConfig
from dusss_core.errors import UserError
from dusss_core.files import read_tensors, write_tensors
from dusss_core.text.encoder import TOKEN_MULTIPLE, TextEncoder, locate
from dusss_core.text.languages import language
from dusss_core.text.standard import made_up_sentences, moments
from dusss_core.text.wording import language_is_told, may_flip, may_turn, mirror, wordings
from dusss_core.transfer import sent


def build_text_bank(
    sentences: Sequence[str],
    config: TextConfig,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    encoder: TextEncoder | None = None,
    *,
    augmented: bool = True,
) -> TextBank | TrainableTextBank:
    """The bank of a split's sentences.

    Args:
        sentences: distinct sentences, as in Split.sentences; may be empty.
        cache: a folder for the features of a frozen encoder. It holds hashes and features of wordings, never
            the words; it is private to the site. A bank whose wordings are all there needs no transformers.
        encoder: the VLM's own encoder. Needed for tuning lora and full; when frozen it saves loading one.
        augmented: whether config.views other wordings are wanted. Without them (for masks and evaluation) the bank
            holds each sentence as it is and mirrored, in a quarter of the encoding time.

    Raises:
        UserError: the encoder can not be found or loaded, or the cache can not be written.
    """
    device = torch.device(device)
    words = _Wordings(sentences, config.views if augmented else 0)
    if config.tuning != "frozen":
        if encoder is None:
            raise ValueError("tuning lora and full need the encoder that is trained")
        return TrainableTextBank(words, encoder, device)
    made_up = list(made_up_sentences()) if words.texts and config.standardise else []
    tokens, mask = _frozen_features(words.texts + made_up, config, cache, device, encoder)
    n = len(words.texts)
    longest = int(mask[:n].any(0).nonzero().max()) + 1 if n else 0
    length = max(TOKEN_MULTIPLE, -(-longest // TOKEN_MULTIPLE) * TOKEN_MULTIPLE)
    standard = moments(tokens[n:], mask[n:]) if made_up else None
    return TextBank(words, tokens[:n, :length], mask[:n, :length], device, standard)


class _Wordings:
    """The distinct wordings of some sentences, and where each sentence finds its own."""

    def __init__(self, sentences: Sequence[str], views: int):
        number: dict[str, int] = {}
        rows = [
            number.setdefault(text, len(number))
            for sentence in sentences
            for wording in (sentence, *wordings(sentence, views))
            for text in (wording, mirror(wording))
        ]
        self.texts = list(number)
        self.rows = torch.tensor(rows, dtype=torch.int64).reshape(len(sentences), 1 + views, 2)
        self.flip = torch.tensor([may_flip(sentence) for sentence in sentences], dtype=torch.bool)
        unknown = sum(language(sentence) == "other" or not language_is_told(sentence) for sentence in sentences)
        if unknown:
            warnings.warn(
                f"{unknown} of {len(sentences)} different sentences are in a language without word lists, or have no "
                "word that tells it: their pictures are not mirrored in training (dusss_core/text/languages.py)",
                stacklevel=3,
            )
        self.turn = torch.tensor([may_turn(sentence) for sentence in sentences], dtype=torch.bool)


class _Bank:
    """What both banks share: which wording a record gets, and how its picture may be moved."""

    def __init__(self, words: _Wordings, device: torch.device):
        self.n_sentences, self.n_views = words.rows.shape[0], words.rows.shape[1] - 1
        self.device = device
        # one more row for records without text, reached by index -1
        none = words.rows.new_zeros(1, *words.rows.shape[1:])
        # which wording it is, is looked up on the CPU, where the records of a batch are known: no device is waited for
        self._rows = torch.cat([words.rows, none])
        self._flip = torch.cat([words.flip, torch.ones(1, dtype=torch.bool)])
        self._turn = torch.cat([words.turn, torch.ones(1, dtype=torch.bool)])

    def may_flip(self, indices: torch.Tensor) -> torch.Tensor:
        """B bool on the CPU: the mirrored sentence describes the flipped picture. True for -1 (no text)."""
        return self._flip[indices.cpu()]

    def may_turn(self, indices: torch.Tensor) -> torch.Tensor:
        """B bool on the CPU: no place is named, so up-down flips and quarter turns keep it true. True for -1."""
        return self._turn[indices.cpu()]

    def identity(self, indices: torch.Tensor, mirrored: torch.Tensor | None = None) -> torch.Tensor:
        """B int64 on the CPU: equal where records have the same words, whether a sentence is so or becomes so by being
        mirrored.

        Args:
            indices, mirrored: as for `features`.
        """
        return self._wording_of(indices, mirrored, None)[0]

    def _wording_of(
        self, indices: torch.Tensor, mirrored: torch.Tensor | None, view: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Row of the wording (B int64), and whether there is a text (B bool), on the CPU."""
        indices = indices.cpu()
        view = torch.zeros_like(indices) if view is None else view.cpu()
        mirrored = torch.zeros_like(indices) if mirrored is None else mirrored.cpu().long()
        return self._rows[indices, view, mirrored], indices >= 0


class TextBank(_Bank):
    """Features of a frozen encoder: float16 in memory, one row per distinct wording.

    Attributes:
        embedding_width: E.
        n_tokens: L, the longest wording rounded up to a multiple of 8.
        n_sentences, n_views: views 1 to n_views are other wordings, view 0 is the sentence itself.
    """

    def __init__(
        self,
        words: _Wordings,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        device: torch.device,
        standard: tuple[torch.Tensor, torch.Tensor] | None = None,
    ):
        super().__init__(words, device)
        self._standard = None if standard is None else tuple(some.to(device) for some in standard)
        self._tokens, self._mask = tokens.to(device), mask.to(device)
        self.n_tokens, self.embedding_width = tokens.shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return self._tokens.nbytes + self._mask.nbytes

    def features(
        self,
        indices: torch.Tensor,
        *,
        mirrored: torch.Tensor | None = None,
        view: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token features and their mask.

        A record without text (-1) gets zeros, with the mask True at position 0 alone: attention over the mask
        then reads one zero vector and stays finite. Leave such records out of losses by their index.

        Args:
            indices: B, int64, into Split.sentences, -1 for none. It, `mirrored` and `view` are best on the CPU: from a
                device they would have to be waited for.
            mirrored: B, bool: the sentence of the left-right flipped picture. None: nowhere.
            view: B, int64, 0 to n_views. None: the sentence itself.

        Returns:
            B x L x E float32 and B x L bool, on the bank's device.
        """
        row, there = self._wording_of(indices, mirrored, view)
        if not len(self._tokens):
            return self._nothing(len(row))
        row, there = sent(self.device, row, there)
        tokens = self._tokens[row].float()
        if self._standard is not None:
            mean, spread = self._standard
            tokens = (tokens - mean) / spread
        tokens = tokens * there[:, None, None]
        return tokens, _mask_of(self._mask[row], there)

    def _nothing(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.zeros(batch, self.n_tokens, self.embedding_width, device=self.device)
        mask = torch.zeros(batch, self.n_tokens, dtype=torch.bool, device=self.device)
        return tokens, _mask_of(mask, mask[:, 0])


class TrainableTextBank(_Bank):
    """Token ids of the wordings; `features` runs the encoder, with gradients. Attributes as TextBank."""

    def __init__(self, words: _Wordings, encoder: TextEncoder, device: torch.device):
        super().__init__(words, device)
        self._encoder = encoder
        ids, mask = encoder.tokenize(words.texts or [""])
        self._ids, self._mask = ids.to(device), mask.to(device)
        self.n_tokens, self.embedding_width = ids.shape[1], encoder.width

    def features(
        self,
        indices: torch.Tensor,
        *,
        mirrored: torch.Tensor | None = None,
        view: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As TextBank.features; a wording that stands in the batch several times is encoded once."""
        row, there = self._wording_of(indices, mirrored, view)
        distinct, place = torch.unique(row, return_inverse=True)
        row, there, distinct, place = sent(self.device, row, there, distinct, place)
        tokens = self._encoder(self._ids[distinct], self._mask[distinct])[place]
        return tokens * there[:, None, None], _mask_of(self._mask[row], there)


# ---- frozen features ----

_BATCH = 64


def _frozen_features(
    texts: list[str],
    config: TextConfig,
    cache: Path | None,
    device: torch.device,
    encoder: TextEncoder | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n x L x E float16) and mask of all wordings: those in the cache are read, the rest encoded.

    The cache is one file per encoder and max_tokens, which grows with the wordings that are asked for.
    """
    if encoder is not None:
        digest, width = encoder.digest, encoder.width
    else:
        found = locate(config.encoder, cache / "encoders.json" if cache else None)
        digest, width = found.digest, found.width
    if not texts:
        return _empty(0, TOKEN_MULTIPLE, width)
    file = cache / f"text_{digest[:16]}_{config.max_tokens}.safetensors" if cache else None
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    known, tokens, mask = _read_cache(file, digest, width)
    new = [text for text, key in zip(texts, keys, strict=True) if key not in known]
    if new:
        more = _encode(encoder or TextEncoder(config).to(device), new)
        length = max(tokens.shape[1], more[0].shape[1])
        tokens = torch.cat([_padded(tokens, length), _padded(more[0], length)])
        mask = torch.cat([_padded(mask, length), _padded(more[1], length)])
        known.update({hashlib.sha256(text.encode()).digest(): len(known) + i for i, text in enumerate(new)})
        if file is not None:
            _write_cache(file, digest, known, tokens, mask)
    rows = torch.tensor([known[key] for key in keys])
    longest = int(mask[rows].any(0).nonzero().max()) + 1
    length = -(-longest // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    return tokens[rows, :length], mask[rows, :length]


@torch.no_grad()
def _encode(encoder: TextEncoder, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n x L x E float16) and mask on the CPU; wordings of like length share a batch."""
    ids, mask = encoder.tokenize(texts)
    device = next(encoder.parameters()).device
    tokens = torch.zeros(*ids.shape, encoder.width, dtype=torch.float16)
    lengths = mask.sum(1)
    for batch in lengths.argsort(stable=True).split(_BATCH):
        longest = int(lengths[batch].max())
        features = encoder(ids[batch, :longest].to(device), mask[batch, :longest].to(device))
        tokens[batch, :longest] = features.half().cpu() * mask[batch, :longest, None]
    return tokens, mask


def _read_cache(file: Path | None, digest: str, width: int) -> tuple[dict[bytes, int], torch.Tensor, torch.Tensor]:
    """Row by hash of the wording, features, mask. An absent, damaged or foreign cache is an empty one."""
    nothing = {}, *_empty(0, TOKEN_MULTIPLE, width)
    if file is None or not file.is_file():
        return nothing
    try:
        tensors, header = read_tensors(file)
        keys, tokens, mask = tensors["keys"], tensors["tokens"], tensors["mask"]
    except (UserError, KeyError):
        return nothing
    if header.get("encoder") != digest or tokens.shape != (*mask.shape, width) or len(keys) != len(tokens):
        return nothing
    return {bytes(key): row for row, key in enumerate(keys.numpy())}, tokens, mask


def _write_cache(file: Path, digest: str, known: dict[bytes, int], tokens: torch.Tensor, mask: torch.Tensor) -> None:
    keys = torch.frombuffer(bytearray(b"".join(known)), dtype=torch.uint8).reshape(len(known), -1)
    write_tensors(file, {"keys": keys, "tokens": tokens, "mask": mask}, {"encoder": digest})


def _empty(rows: int, length: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rows, length, width, dtype=torch.float16), torch.zeros(rows, length, dtype=torch.bool)


def _padded(values: torch.Tensor, length: int) -> torch.Tensor:
    """Zeros behind the tokens, up to `length`."""
    padded = values.new_zeros(values.shape[0], length, *values.shape[2:])
    padded[:, : values.shape[1]] = values
    return padded


def _mask_of(mask: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """The mask, and for records without text True at position 0 alone."""
    first = torch.zeros_like(mask)
    first[:, 0] = True
    return torch.where(there[:, None], mask, first)
